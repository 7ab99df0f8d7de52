"""The joint gradient from micro-batches, against the step on the joint batch."""

import copy

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from lt_mm.engine.loops.micro_batches import _GatheredMicroBatches, joint_step
from lt_mm.models.heads.gathering import Part
from lt_mm.structures.errors import UnsupportedHeadError
from tests.models.heads.head_data import (
    FLIP,
    MASK_SIDE,
    SHAPE,
    ZOOM,
    cls_samples,
    det_sample,
    mask_roi_head_config,
)
from tests.models.model_data import model_config
from tests.paths import CONFIGS
from tests.training_data import classifier_config, detector_options, recorded


class KeepGradients(OptimWrapper):
    """Leaves weights and gradients as they are after the backward pass."""

    def step(self, **kwargs):
        pass

    def zero_grad(self, **kwargs):
        pass


def config_of(kind, draws=False):
    """A narrow stock model; with ``draws`` its RoI sampler or its drop path draws."""
    if kind != 'Mask R-CNN':
        config = model_config(kind, across_ranks=False)
    else:
        config = model_config('Faster R-CNN', across_ranks=False)
        roi_head = mask_roi_head_config()
        roi_head['bbox_roi_extractor']['featmap_strides'] = [16]
        config['type'] = 'mmdet.MaskRCNN'
        config['roi_head']['head'] = roi_head
        config['train_cfg']['rcnn']['mask_size'] = MASK_SIDE
    if draws and kind == 'classifier':
        config['backbone'].update(drop_path_rate=0.3)
    elif draws:
        config['train_cfg']['rcnn']['sampler'] = dict(
            type='RandomSampler', num=8, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=True
        )
    return ConfigDict(config)


def built(kind, draws=False, norm_eval=True):
    init_default_scope('mmpretrain' if kind == 'classifier' else 'mmdet')
    config = config_of(kind, draws)
    config.backbone.norm_eval = norm_eval
    torch.manual_seed(0)
    model = MODELS.build(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.train()


def batch(kind):
    """Two sources, two replicas of each."""
    views = [(3, None), (3, FLIP), (8, None), (8, ZOOM)]
    samples = (
        cls_samples([source for source, _ in views])
        if kind == 'classifier'
        else [det_sample(source, view=view) for source, view in views]
    )
    inputs = torch.rand(4, 3, *SHAPE, generator=torch.Generator().manual_seed(0))
    return dict(inputs=inputs, data_samples=samples)


def gradients(model):
    return {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def optim_of(model):
    return KeepGradients(torch.optim.SGD(model.parameters(), lr=0.1))


def assert_same_gradients(found, expected):
    assert found.keys() == expected.keys()
    scale = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        difference = (found[name] - gradient).abs().max() / scale
        assert difference <= 1e-5, (name, float(difference))


KINDS = ('classifier', 'Faster R-CNN', 'Mask R-CNN')


@pytest.mark.parametrize('count', [2, 4, 3])
@pytest.mark.parametrize('kind', KINDS)
def test_gradient_is_that_of_the_joint_batch(kind, count):
    """Three micro-batches: unequal ones, and replicas that share one."""
    stock = built(kind)
    expected = stock.train_step(batch(kind), optim_of(stock))
    model = built(kind)
    found = joint_step(model, batch(kind), optim_of(model), count)
    assert expected['lt_num_paired'] > 0 and expected['loss_lt_cls'] > 0
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        # Shares are logged as means over the micro-batches, here unequal ones.
        if 'share' not in key and not (key == 'acc' and count == 3):
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6, msg=key)
    assert_same_gradients(gradients(model), gradients(stock))


@pytest.mark.parametrize('kind', KINDS)
def test_one_micro_batch_is_the_stock_step_with_its_draws(kind):
    """Its second pass draws what its first one drew; batch norm in training mode."""
    stock, model = (built(kind, draws=True, norm_eval=False) for _ in range(2))
    torch.manual_seed(1)
    stock.train_step(batch(kind), optim_of(stock))
    torch.manual_seed(1)
    joint_step(model, batch(kind), optim_of(model), 1)
    assert_same_gradients(gradients(model), gradients(stock))
    for (name, mine), theirs in zip(model.named_buffers(), stock.buffers()):
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize('kind', KINDS)
def test_second_pass_repeats_the_first(kind, monkeypatch):
    gather, compared = _GatheredMicroBatches.gather, []

    def compare(self, part):
        if self.is_complete:
            first = self._recorded[self.number][self._calls].columns
            compared.extend(torch.equal(first[name], part.columns[name]) for name in first)
        return gather(self, part)

    monkeypatch.setattr(_GatheredMicroBatches, 'gather', compare)
    model = built(kind, draws=True)
    joint_step(model, batch(kind), optim_of(model), 2)
    assert len(compared) > 4 and all(compared)
    assert all(head.lt_gatherer is None for head in model.modules() if hasattr(head, 'lt_options'))


def part_of(logits, source):
    images = torch.zeros(len(logits), dtype=torch.int64)
    return Part(dict(images=images, logits=logits), [source], avg_factor=len(logits))


def test_other_predictions_in_the_second_pass_are_refused():
    gathered = _GatheredMicroBatches()
    for number in range(2):
        gathered.begin(number)
        alone = gathered.gather(part_of(torch.full((3,), float(number)), number))
        assert not alone.is_complete and alone.source_ids == [number]
    gathered.is_complete = True
    gathered.begin(1)
    with pytest.raises(RuntimeError, match='second pass'):
        gathered.gather(part_of(torch.zeros(2), 1))
    own = torch.full((3,), 5.0, requires_grad=True)
    batch = gathered.gather(part_of(own, 1))
    assert batch.columns['logits'].tolist() == [0.0] * 3 + [5.0] * 3
    assert batch.columns['images'].tolist() == [0] * 3 + [1] * 3
    assert batch.source_ids == [0, 1] and batch.avg_factor == 6 and batch.num_shares == 2
    (gradient,) = torch.autograd.grad(batch.columns['logits'][batch.own].sum(), own)
    assert gradient.tolist() == [1.0] * 3
    with pytest.raises(RuntimeError, match='second pass'):
        gathered.gather(part_of(own, 1))


def test_shares_of_a_loss_add_up_and_have_its_gradient():
    gathered = _GatheredMicroBatches()
    for number in range(3):
        gathered.begin(number)
        gathered.gather(part_of(torch.zeros(1), number))
    gathered.is_complete = True
    gathered.begin(0)
    batch = gathered.gather(part_of(torch.zeros(1), 0))
    loss = torch.tensor(6.0, requires_grad=True)
    share = batch.share(2 * loss)
    assert share == 4.0 and torch.autograd.grad(share, loss)[0] == 2.0


def test_an_error_leaves_no_trace():
    model = built('classifier')
    broken = batch('classifier')
    broken['data_samples'][3].set_metainfo(dict(source_shape=(1, 1)))
    with pytest.raises(ValueError, match='same source_id'):
        joint_step(model, broken, optim_of(model), 1)
    assert model.head.lt_gatherer is None
    assert not model.head.loss_module._forward_pre_hooks
    assert not model.head.loss_module._forward_hooks


def test_refusals():
    model = built('ATSS')
    with pytest.raises(UnsupportedHeadError, match='ATSSHead'):
        joint_step(model, batch('ATSS'), optim_of(model), 2)
    model = built('classifier')
    accumulating = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), accumulative_counts=2)
    with pytest.raises(ValueError, match='accumulative_counts=1'):
        joint_step(model, batch('classifier'), accumulating, 2)
    model.head.lt_options.across_ranks = True
    with pytest.raises(ValueError, match="placement='rank'"):
        joint_step(model, batch('classifier'), optim_of(model), 2)


def test_the_loop_trains_a_classifier_from_a_config(pictures, tmp_path):
    cfg = classifier_config(
        pictures,
        tmp_path,
        **{
            'train_cfg': dict(
                _delete_=True, type='lt_mm.MicroBatchTrainLoop', max_epochs=4, num_micro_batches=4
            )
        },
    )
    runner = Runner.from_cfg(cfg)
    runner.train()
    steps = recorded(runner)
    assert len(steps) == 24 and all(step['lt_num_paired'] == 8 for step in steps)
    losses = [step['loss'] for step in steps]
    assert sum(losses[-8:]) < sum(losses[:8])


def test_the_iteration_loop_trains_a_detector_from_a_config(shapes, tmp_path):
    cfg = Config.fromfile(str(CONFIGS / 'faster_rcnn_r18_lt_demo.py'))
    cfg.merge_from_dict(
        detector_options(
            shapes,
            **{
                'work_dir': str(tmp_path),
                'randomness': dict(seed=0),
                'train_cfg': dict(
                    _delete_=True,
                    type='lt_mm.MicroBatchIterTrainLoop',
                    max_iters=2,
                    num_micro_batches=2,
                ),
                'val_dataloader': None,
                'val_cfg': None,
                'val_evaluator': None,
                'test_dataloader': None,
                'test_cfg': None,
                'test_evaluator': None,
            },
        )
    )
    runner = Runner.from_cfg(cfg)
    before = copy.deepcopy(runner.model.state_dict())
    runner.train()
    assert all(step['lt_num_paired'] > 0 for step in recorded(runner))
    after = runner.model.state_dict()
    assert not torch.equal(
        before['roi_head.bbox_head.fc_cls.weight'], after['roi_head.bbox_head.fc_cls.weight']
    )
