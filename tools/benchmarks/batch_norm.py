"""What batch norm changes in micro-batches: the gradient, and the statistics it keeps.

In training mode batch norm takes its statistics from the micro-batch, here from one
replica of every source, instead of from the joint batch. A ResNet-20 on made images,
whose replicas are shifted and mirrored, is compared after one step with the rate 1.
"""

import copy
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.structures import DataSample

from lt_mm.engine.loops.micro_batches import joint_step
from tools.benchmarks.timing import Row, Timer

SOURCES = 64


def measure(timer: Timer, quick: bool) -> list[Row]:
    """Relative differences between a joint step and one in micro-batches."""
    rows = []
    for replicas in (2,) if quick else (2, 4):
        for training in (False, True):
            rows += _differences(timer.device, replicas, training)
    return rows


def _differences(device: torch.device, replicas: int, training: bool) -> list[Row]:
    torch.manual_seed(0)
    data = _batch(SOURCES, replicas)
    model = _model(device)
    # Statistics that fit the images, as in the middle of training.
    model.train_step(data, _optim(model, 0.0))
    joint, flat = copy.deepcopy(model), copy.deepcopy(model)
    for each in (joint, flat):
        each.train(training)
    joint.train_step(data, _optim(joint))
    joint_step(flat, data, _optim(flat), replicas)
    mode = 'training' if training else 'eval'
    note = f'{SOURCES} sources, m = {replicas}, batch norm in {mode} mode'
    rows = [
        _row(
            'gradient',
            note,
            [
                (a - b, a - before)
                for a, b, before in zip(joint.parameters(), flat.parameters(), model.parameters())
            ],
        )
    ]
    if training:
        variances = [
            [
                module.running_var
                for module in each.modules()
                if isinstance(module, torch.nn.BatchNorm2d)
            ]
            for each in (joint, flat)
        ]
        rows.append(_row('running variances', note, [(a - b, a) for a, b in zip(*variances)]))
    return rows


def _row(what: str, note: str, pairs: list[Any]) -> Row:
    """Norm of all differences by the norm of all values."""
    difference, size = (
        torch.cat([pair[k].detach().flatten() for pair in pairs]).norm() for k in (0, 1)
    )
    return Row(
        f'ResNet-20, {what}: difference in micro-batches',
        'joint step',
        float(difference / size),
        'x its norm',
        note=note,
    )


def _optim(model: torch.nn.Module, rate: float = 1.0) -> OptimWrapper:
    return OptimWrapper(torch.optim.SGD(model.parameters(), lr=rate))


def _model(device: torch.device) -> BaseModel:
    init_default_scope('mmpretrain')
    head = dict(
        type='LinearClsHead', num_classes=10, in_channels=64, loss=dict(type='CrossEntropyLoss')
    )
    return MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='lt_mm.CifarResNet', depth=20),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='lt_mm.LossTransformHead', head=head, rho=1.0),
            data_preprocessor=dict(type='ClsDataPreprocessor', mean=[127] * 3, std=[60] * 3),
        )
    ).to(device)


def _batch(sources: int, replicas: int) -> dict[str, Any]:
    """Blurred noise, a colour a class, with replicas in a row."""
    inputs, samples = [], []
    for source in range(sources):
        image = (
            torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8), size=32, mode='bilinear')[0]
            * 255
        )
        image[source % 3] *= 0.3 + 0.07 * (source % 10)
        for _ in range(replicas):
            moved = image.roll(torch.randint(-4, 5, (2,)).tolist(), dims=(1, 2))
            inputs.append(moved.flip(2) if torch.rand(()) < 0.5 else moved)
            sample = DataSample().set_gt_label(source % 10)
            sample.set_metainfo(dict(source_id=source, source_shape=(32, 32)))
            samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)
