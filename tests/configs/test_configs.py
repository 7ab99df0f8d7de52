"""Every config is short, stands in the table, and trains: two steps on made data."""

import inspect
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from lt_mm.datasets.samplers.repeat_aug import GroupedRepeatAugSampler, check_train_dataloader
from lt_mm.datasets.transforms.invertible_pipeline import InvertiblePipeline
from lt_mm.engine.checks import check_run
from lt_mm.models.heads import ConsistencyMixin
from tests.configs.made_data import use_made_data, write_pictures, write_shapes
from tests.paths import CONFIGS

FILES = sorted(
    str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob('*.py') if '_base_' not in path.parts
)


@pytest.mark.parametrize('name', FILES)
def test_it_is_short(name):
    lines = (CONFIGS / name).read_text().splitlines()
    assert len(lines) <= 40 and any(line.startswith('_base_ =') for line in lines)


@pytest.mark.parametrize('name', [name for name in FILES if '_lt' in name])
def test_it_stands_in_the_table(name):
    assert f'`{name}`' in (CONFIGS / 'README.md').read_text()


@HOOKS.register_module()
class KeepSteps(Hook):
    """Keeps what every training step gave, and the weights before the first one."""

    priority = 'LOW'

    def before_train(self, runner):
        self.outputs = []
        self.before = {
            name: parameter.detach().clone() for name, parameter in runner.model.named_parameters()
        }

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.outputs.append({key: float(value.detach()) for key, value in outputs.items()})


@pytest.fixture(scope='module')
def shapes(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('shapes')
    write_shapes(root)
    return root


@pytest.fixture(scope='module')
def pictures(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('pictures')
    write_pictures(root)
    return root


def two_steps(cfg: Config, work_dir: Path) -> Runner:
    """A runner of the config that has made two steps, without any download."""
    loader = cfg.train_dataloader
    batch_size = loader.sampler.get('num_repeats', 2)
    if 'unlabelled_share' in loader.sampler:
        batch_size = round(batch_size / loader.sampler.unlabelled_share)
    loader.update(batch_size=batch_size, num_workers=0, persistent_workers=False, pin_memory=False)
    loader.pop('prefetch_factor', None)
    for key in ('dataloader', 'cfg', 'evaluator'):
        cfg[f'val_{key}'] = cfg[f'test_{key}'] = None
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2)
    cfg.default_hooks.checkpoint = cfg.load_from = None
    # A seed with which replicas are not flipped alike, where flips are all that is random.
    cfg.randomness, cfg.work_dir = dict(seed=1), str(work_dir)
    cfg.custom_hooks = [*cfg.get('custom_hooks', []), dict(type='KeepSteps')]
    _without_downloads(cfg.model)
    _with_few_predictions(cfg.model)
    # What Runner.from_cfg takes from the config. It also prints and dumps the whole of
    # it, which takes longer than the steps of a small network.
    names = inspect.signature(Runner.__init__).parameters
    runner = Runner(**{name: cfg[name] for name in names if name in cfg})
    check_train_dataloader(runner.train_loop.dataloader)
    check_run(cfg, runner.model, runner.train_loop.dataloader).raise_if_wrong()
    runner.train()
    return runner


def _without_downloads(node) -> None:
    """Weights of model zoos stay where they are."""
    if isinstance(node, dict):
        if (node.get('init_cfg') or {}).get('type') == 'Pretrained':
            node['init_cfg'] = None
        for value in node.values():
            _without_downloads(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            _without_downloads(value)


def _with_few_predictions(node) -> None:
    """512 RoIs an image through a mask head take a CPU a minute.

    And a small image has fewer points than a DETR has queries.
    """
    if isinstance(node, dict):
        if node.get('type') == 'RandomSampler':
            node['num'] = min(node['num'], 32)
        if 'num_queries' in node:
            node['num_queries'] = min(node['num_queries'], 40)
        for value in node.values():
            _with_few_predictions(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            _with_few_predictions(value)


# Of these folders, whose models are large, the quick tests take one config of a kind.
_LARGE = ('coco/', 'imagenet/', 'pennfudan/', 'voc/')
_QUICK = (
    'coco/faster_rcnn_r50_lt_unlabelled_10.py',
    'coco/faster_rcnn_r50_lt_v1.py',
    'coco/gfl_r50_lt.py',
    'coco/rtmdet_tiny_lt_unlabelled_10.py',
    'coco/yolox_s_lt.py',
    'imagenet/mobilenet_v2_lt_v1.py',
    'pennfudan/mask_rcnn_resnet50_lt.py',
    'pennfudan/mask_rcnn_r50_finetune_lt.py',
)


# Of networks that differ in depth alone, they take CIFAR-10 with LossTransform: test_plain_twins.py
# finds nothing else than LossTransform there that the plain config has not.
_DEEP = ('resnet40', 'resnet44', 'resnet50', 'resnet110', 'densenet40')


def _is_slow(name: str) -> bool:
    if name.startswith(tuple(f'cifar/{network}' for network in _DEEP)):
        return not name.endswith('_cifar10_lt.py')
    return name.startswith(_LARGE) and name not in _QUICK


@pytest.mark.parametrize(
    'name',
    [pytest.param(name, marks=pytest.mark.slow) if _is_slow(name) else name for name in FILES],
)
def test_two_steps(name, shapes, pictures, tmp_path):
    cfg = Config.fromfile(str(CONFIGS / name))
    batch_size = cfg.train_dataloader.batch_size
    use_made_data(cfg, shapes, pictures, tmp_path)
    has_memory, has_weak_target = '_memory' in name, 'weak_target' in str(cfg.model)
    if has_memory:  # the second step sees the images of the first
        cfg.train_dataloader.dataset.indices = 2
    runner = two_steps(cfg, tmp_path)
    _check_parts(
        runner,
        batch_size,
        is_lt='_lt' in name or has_memory,
        # The SupCon baseline takes replicas too.
        is_repeated='_lt' in name or '_supcon' in name,
        is_recorded='_lt' in name or '_supcon' in name or has_memory,
    )
    steps = next(hook for hook in runner.hooks if isinstance(hook, KeepSteps))
    assert len(steps.outputs) == 2
    for output in steps.outputs:
        assert torch.tensor(list(output.values())).isfinite().all(), output
    changed = {
        name
        for name, parameter in runner.model.named_parameters()
        if not torch.equal(parameter, steps.before[name])
    }
    frozen = {
        name for name, parameter in runner.model.named_parameters() if not parameter.requires_grad
    }
    assert changed and not changed & frozen
    if '_lt' in name or has_memory:
        # Confident predictions, which 'iou' pairs, take training.
        _check_terms(
            steps.outputs,
            no_pairs='_iou' in name
            or has_weak_target
            or ('_unlabelled' in name and 'cifar' not in name),
            # The stock head of the ViT starts with zero weights: all agree. Weights that rise from
            # 0 are too small in the first steps.
            no_terms=has_weak_target
            or any(part in name for part in ('_iou', '_unlabelled', 'vit_')),
        )


def _check_parts(
    runner: Runner, batch_size: int, is_lt: bool, is_repeated: bool, is_recorded: bool
) -> None:
    """The three parts are there in a config with LossTransform, and only there."""
    wrapped = [m for m in runner.model.modules() if isinstance(m, ConsistencyMixin)]
    assert bool(wrapped) == is_lt
    loader = runner.train_dataloader
    sampler, dataset = loader.batch_sampler.sampler, loader.dataset
    while hasattr(dataset, 'dataset') or hasattr(dataset, 'labelled'):
        dataset = getattr(dataset, 'dataset', None) or dataset.labelled
    pipeline = dataset.pipeline.transforms
    assert isinstance(pipeline[0], InvertiblePipeline) == is_recorded
    assert isinstance(sampler, GroupedRepeatAugSampler) == is_repeated
    if is_repeated:
        assert batch_size % sampler.layout.num_repeats == 0
        assert len(pipeline) == 1  # the whole stock list is inside


def _check_terms(outputs, no_pairs: bool, no_terms: bool) -> None:
    terms = [key for key in outputs[0] if 'loss_lt_' in key]
    pairs = [key for key in outputs[0] if 'lt_num_paired' in key]
    assert terms and pairs
    for keys, may_be_zero in ((terms, no_terms), (pairs, no_pairs)):
        assert may_be_zero or any(output[key] > 0 for output in outputs for key in keys)
