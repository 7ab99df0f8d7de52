"""Training steps: what the wrapper costs, and the memory of a step in micro-batches.

Models and heads are those of the stock configs, from random initialisation; the images
are made. A step is forward, backward and update.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.hub import get_config
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmpretrain.structures import DataSample

from lt_mm.datasets.converters import write_shapes_dataset
from lt_mm.engine.loops.micro_batches import joint_step
from tools.benchmarks.timing import Row, Timer

CLASSIFIER = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'
DETECTOR = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
WRAP = dict(type='lt_mm.LossTransformHead', rho=1.0)
PEAK_TARGET, STEP_TARGET = '<= 1.15', '<= 1.02'


def measure(timer: Timer, quick: bool) -> list[Row]:
    """Rows of the table: the cost of the wrapper, then the memory."""
    # Memory at the recipes' sizes of images: with few pixels the gradients of the
    # parameters, which micro-batches add up, weigh more than the activations.
    rows, sources, scale = [], 2 if quick else 8, (416, 320) if quick else (1333, 800)
    for name, model, few, many in (
        ('ResNet-50', classifier, pictures(4), pictures(sources)),
        ('Faster R-CNN R50', _detector, _scenes(1, (416, 320)), _scenes(1, scale)),
    ):
        data = few(2)
        for amp in (False, True) if timer.device.type == 'cuda' else (False,):
            rows.append(_wrapper_cost(timer, name, model, data, amp))
        rows += _micro_batch_memory(timer, name, model, many, (4,) if quick else (4, 8))
    return rows


def _wrapper_cost(timer: Timer, name: str, model: Callable, data: dict[str, Any], amp: bool) -> Row:
    wrapped, stock = (stock_step(model(flag, timer.device), data, amp) for flag in (True, False))
    ratio = timer.compare(wrapped, stock)
    return Row(
        f'step of {name} with LossTransformHead',
        'without, same batch',
        ratio.ratio,
        'x time',
        STEP_TARGET,
        f'batch of {len(data["inputs"])}, {"AMP" if amp else "float32"}, {ratio.b:.2f} s without',
    )


def _micro_batch_memory(
    timer: Timer, name: str, model: Callable, batch: Callable, replicas: Sequence[int]
) -> list[Row]:
    """Peak of tensors of a step with m replicas, against one with the sources alone."""
    sources = batch(1)
    base = timer.peak_bytes(stock_step(model(False, timer.device), sources))
    shape, rows = 'x'.join(map(str, sources['inputs'][0].shape[1:])), []
    for count in replicas:
        data = batch(count)
        joint = timer.peak_bytes(stock_step(model(True, timer.device), data)) / base
        network = model(True, timer.device)
        optim = _optim(network)
        flat = timer.peak_bytes(lambda: joint_step(network, data, optim, count)) / base
        rows.append(
            Row(
                f'{name}: peak memory in {count} micro-batches, m = {count}',
                'stock step on the source batch',
                flat,
                'x memory',
                PEAK_TARGET,
                f'{len(sources["inputs"])} source(s) of {shape}, {base / 2**20:.0f} MiB; in '
                f'one batch {joint:.2f} x',
            )
        )
    return rows


def stock_step(model: BaseModel, data: dict[str, Any], amp: bool = False) -> Callable[[], Any]:
    """Forward pass, backward pass and update."""
    optim = _optim(model)

    def step() -> None:
        with torch.autocast(next(model.parameters()).device.type, enabled=amp):
            model.train_step(data, optim)

    return step


def _optim(model: torch.nn.Module) -> OptimWrapper:
    return OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9))


def classifier(wrapped: bool, device: torch.device, **options: Any) -> BaseModel:
    """The stock classifier, wrapped with options or as it is."""
    config = get_config(CLASSIFIER)
    init_default_scope('mmpretrain')
    if wrapped:
        config.model.head = dict(WRAP, head=config.model.head, **options)
    config.model.data_preprocessor = config.data_preprocessor
    return _built(config, device)


def _detector(wrapped: bool, device: torch.device) -> BaseModel:
    config = get_config(DETECTOR)
    init_default_scope('mmdet')
    config.model.backbone.init_cfg = None
    if wrapped:
        config.model.roi_head = dict(WRAP, head=config.model.roi_head)
    return _built(config, device)


def _built(config: Config, device: torch.device) -> BaseModel:
    torch.manual_seed(0)
    return MODELS.build(config.model).to(device).train()


def pictures(sources: int) -> Callable[[int], dict[str, Any]]:
    """Gives recorded batches of a classifier, by the number of replicas."""

    def batch(replicas: int) -> dict[str, Any]:
        inputs, samples = [], []
        for index in range(sources * replicas):
            sample = DataSample().set_gt_label(index // replicas)
            sample.set_metainfo(dict(source_id=index // replicas, source_shape=(224, 224)))
            samples.append(sample)
            inputs.append(torch.randint(0, 256, (3, 224, 224), dtype=torch.uint8))
        return dict(inputs=inputs, data_samples=samples)

    return batch


_MADE: tempfile.TemporaryDirectory | None = None


def _scenes(sources: int, scale: tuple[int, int]) -> Callable[[int], dict[str, Any]]:
    """Gives recorded batches of a detector, as its data set and pipeline make them."""

    def batch(replicas: int) -> dict[str, Any]:
        init_default_scope('mmdet')
        dataset = DATASETS.build(
            dict(
                type='CocoDataset',
                data_root=_made_data(),
                ann_file='annotations/train.json',
                data_prefix=dict(img='train/'),
                metainfo=dict(classes=('circle', 'square', 'triangle')),
                filter_cfg=dict(filter_empty_gt=True),
                pipeline=[
                    dict(
                        type='lt_mm.InvertiblePipeline',
                        transforms=[
                            dict(type='LoadImageFromFile'),
                            dict(type='LoadAnnotations', with_bbox=True),
                            dict(type='Resize', scale=scale, keep_ratio=True),
                            dict(type='RandomFlip', prob=0.5),
                            dict(type='PackDetInputs'),
                        ],
                    )
                ],
            )
        )
        return pseudo_collate(
            [dataset[source] for source in range(sources) for _ in range(replicas)]
        )

    return batch


def _made_data() -> str:
    global _MADE
    if _MADE is None:
        _MADE = tempfile.TemporaryDirectory()
        write_shapes_dataset(
            Path(_MADE.name), num_train=8, num_val=2, image_size=(320, 416), seed=0
        )
    return _MADE.name
