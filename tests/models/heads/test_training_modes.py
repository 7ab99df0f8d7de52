"""Ways to train that the stock Runner offers: each keeps the loss finite and falling."""

from contextlib import contextmanager

import pytest
import torch
from mmengine.config import Config
from mmengine.model import MMFullyShardedDataParallel, convert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, OPTIM_WRAPPERS, init_default_scope
from mmengine.runner import Runner

from lt_mm.datasets.converters import write_shapes_dataset
from lt_mm.models.heads import ClsConsistency
from tests.models.heads.head_data import cls_samples
from tests.models.model_data import model_config
from tests.paths import CONFIGS
from tests.ranks import run_ranks
from tests.training_data import classifier_config, detector_options, recorded


@OPTIM_WRAPPERS.register_module()
class CpuAutocastOptimWrapper(OptimWrapper):
    """Autocast on the CPU, where MMEngine's AmpOptimWrapper refuses to work."""

    def __init__(self, dtype: str, **kwargs) -> None:
        super().__init__(**kwargs)
        self.dtype = getattr(torch, dtype)

    @contextmanager
    def optim_context(self, model):
        with super().optim_context(model), torch.autocast('cpu', self.dtype):
            yield


def _autocast(dtype):
    return {'optim_wrapper.type': 'CpuAutocastOptimWrapper', 'optim_wrapper.dtype': dtype}


_RECORD = dict(type='RecordOutputs')
MODES = {
    'plain': {},
    'bfloat16': _autocast('bfloat16'),
    'float16': _autocast('float16'),
    'accumulation': {'optim_wrapper.accumulative_counts': 2},
    'clipping': {'optim_wrapper.clip_grad': dict(max_norm=1.0)},
    'EMA': {'custom_hooks': [_RECORD, dict(type='EMAHook', momentum=0.1)]},
    'compile': {'compile': dict(backend='aot_eager')},
}


def _marked(*slow):
    return [pytest.param(mode, marks=pytest.mark.slow) if mode in slow else mode for mode in MODES]


def falls(runner, key='loss'):
    """Whether all outputs are finite, the term is there, and the loss falls."""
    outputs = recorded(runner)
    values = [step[key] for step in outputs]
    assert all(torch.tensor(list(step.values())).isfinite().all() for step in outputs)
    assert sum(step['lt_num_paired'] > 0 for step in outputs) > len(outputs) / 2
    assert sum(step['loss_lt_cls'] > 0 for step in outputs) > len(outputs) / 2
    third = len(values) // 3
    return sum(values[-third:]) < sum(values[:third])


# Dynamo compiles around the hook of the test that appends to a list.
_COMPILED_APPEND = pytest.mark.filterwarnings('ignore:Dynamo does not know how to trace')


@pytest.mark.parametrize('mode', _marked('compile', 'float16'))
@_COMPILED_APPEND
def test_classifier(mode, pictures, tmp_path):
    torch._dynamo.reset()
    runner = Runner.from_cfg(
        classifier_config(pictures, tmp_path, **{'train_cfg.max_epochs': 4, **MODES[mode]})
    )
    runner.train()
    assert falls(runner)


@pytest.fixture(scope='module')
def two_shapes(tmp_path_factory):
    """Two images, so that every step sees both."""
    root = tmp_path_factory.mktemp('two_shapes')
    write_shapes_dataset(root, num_train=2, num_val=2, image_size=(96, 128), seed=0)
    return root


@pytest.mark.parametrize('mode', _marked('compile', 'bfloat16', 'float16'))
@_COMPILED_APPEND
def test_detector(mode, two_shapes, tmp_path):
    """A narrow single-stage detector: on the CPU, RoIAlign knows float32 alone."""
    torch._dynamo.reset()
    options = detector_options(
        two_shapes,
        **{
            'work_dir': str(tmp_path),
            'train_cfg.max_epochs': 24,
            'randomness': dict(seed=0),
            'val_dataloader': None,
            'val_cfg': None,
            'val_evaluator': None,
            'test_dataloader': None,
            'test_cfg': None,
            'test_evaluator': None,
            'default_hooks.checkpoint.interval': 100,
            'param_scheduler': [],
            'optim_wrapper.optimizer.lr': 0.004,
            **MODES[mode],
        },
    )
    cfg = Config.fromfile(str(CONFIGS / 'faster_rcnn_r18_lt_demo.py'))
    preprocessor = cfg.model.data_preprocessor
    cfg.merge_from_dict(
        {key: value for key, value in options.items() if not key.startswith('model.')}
    )
    cfg.model = dict(model_config('ATSS', across_ranks=False), data_preprocessor=preprocessor)
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert falls(runner)


def wide_classifier(wrapped):
    """A stock classifier; with or without the term."""
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    head = dict(type='LinearClsHead', num_classes=3, in_channels=64)
    if wrapped:
        head = dict(type='lt_mm.LossTransformHead', head=head)
    return MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            head=head,
            neck=dict(type='mmpretrain.GlobalAveragePooling'),
            backbone=dict(type='mmpretrain.ResNet', depth=18, base_channels=8, stem_channels=8),
        )
    )


def _batch():
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return dict(inputs=images, data_samples=cls_samples([3, 3, 8, 8]))


def sharded_losses(rank, wrapped):
    """Losses of some steps of the model below MMEngine's FSDP wrapper."""
    model = MMFullyShardedDataParallel(
        wide_classifier(wrapped), use_orig_params=True, device_id=torch.device('cpu')
    )
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.05))
    model.train()
    steps = [model.train_step(_batch(), optimizer) for _ in range(6)]
    return [{key: float(value.detach()) for key, value in step.items()} for step in steps]


def test_fully_sharded():
    try:
        run_ranks(sharded_losses, 2, False)
    except AssertionError as error:  # without a stock run there is nothing to compare
        reason = str(error).strip().splitlines()[-1]
        pytest.skip(f'the stock model does not train fully sharded here: {reason}')
    first, second = run_ranks(sharded_losses, 2, True)
    assert first == second  # the same batch on both ranks
    assert first[0]['lt_num_paired'] == 4 and first[0]['loss_lt_cls'] > 0
    assert first[-1]['loss'] < first[0]['loss']


def test_conversion_to_synchronised_batch_norm():
    """It rebuilds modules; a wrapped head keeps its front, and the names stay."""
    model = wide_classifier(wrapped=True)
    converted = convert_sync_batchnorm(model, 'torch')
    assert any(isinstance(part, torch.nn.SyncBatchNorm) for part in converted.modules())
    assert isinstance(converted.head, ClsConsistency)
    assert list(converted.state_dict()) == list(wide_classifier(wrapped=False).state_dict())
    # On the CPU the layer works in evaluation only.
    losses = converted.eval()(**_batch(), mode='loss')
    assert losses['lt_num_paired'] == 4 and losses['loss_lt_cls'] > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA card')
@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_amp_on_a_card(dtype, pictures, tmp_path):
    runner = Runner.from_cfg(
        classifier_config(
            pictures,
            tmp_path,
            **{
                'train_cfg.max_epochs': 4,
                'optim_wrapper.type': 'AmpOptimWrapper',
                'optim_wrapper.dtype': dtype,
            },
        )
    )
    runner.train()
    assert falls(runner)


@pytest.mark.slow
def test_compiled_by_inductor(pictures, tmp_path):
    torch._dynamo.reset()
    runner = Runner.from_cfg(
        classifier_config(
            pictures, tmp_path, **{'train_cfg.max_epochs': 4, 'compile': dict(backend='inductor')}
        )
    )
    runner.train()
    assert falls(runner)
