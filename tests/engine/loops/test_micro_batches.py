"""The joint gradient from micro-batches, against the step on the joint batch."""

import copy
from contextlib import contextmanager

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from lt_mm.engine.loops.micro_batches import joint_step
from lt_mm.models.heads.options import WeakTargetOptions
from lt_mm.structures.errors import UnsupportedHeadError
from tests.engine.loops.steps import KeepGradients, assert_joint, gradients_of
from tests.models.heads.head_data import (
    FLIP,
    MASK_SIDE,
    SHAPE,
    ZOOM,
    cascade_config,
    cls_samples,
    det_sample,
    mask_roi_head_config,
)
from tests.models.model_data import model_config
from tests.paths import CONFIGS
from tests.training_data import classifier_config, detector_options, recorded


def config_of(kind, draws=False):
    """A narrow stock model; with ``draws`` its RoI sampler or its drop path draws."""
    if 'Mask' not in kind:
        config = model_config(kind, across_ranks=False)
    else:
        config = model_config('Faster R-CNN', across_ranks=False)
        cascade = kind == 'Cascade Mask R-CNN'
        roi_head = cascade_config(masks=True) if cascade else mask_roi_head_config()
        roi_head['bbox_roi_extractor']['featmap_strides'] = [16]
        config['type'] = 'mmdet.MaskRCNN'
        config['roi_head']['head'] = roi_head
        config['train_cfg']['rcnn']['mask_size'] = MASK_SIDE
        if cascade:
            config['train_cfg']['rcnn'] = [config['train_cfg']['rcnn']] * 3
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


def optim_of(model):
    return KeepGradients(torch.optim.SGD(model.parameters(), lr=0.1))


KINDS = ('classifier', 'Faster R-CNN', 'Mask R-CNN')


@pytest.mark.parametrize('kind', [*KINDS, 'Cascade Mask R-CNN', 'ATSS'])
def test_gradient_is_that_of_the_joint_batch(kind):
    """Three micro-batches: unequal ones, and replicas that share one."""
    log = assert_joint(built(kind), batch(kind), (2, 4, 3), tolerance=1e-5)
    prefix = 's0.' if kind.startswith('Cascade') else ''
    assert log[f'{prefix}lt_num_paired'] > 0 and log[f'{prefix}loss_lt_cls'] > 0


@pytest.mark.parametrize('kind', ['Faster R-CNN', 'Mask R-CNN', 'Cascade Mask R-CNN', 'ATSS'])
@pytest.mark.parametrize('empty', [(1, 3), (0, 2), (1,)], ids=str)
def test_a_micro_batch_without_an_object(kind, empty):
    """As ``allow_negative_crop`` makes them: no RoI of a part is positive."""
    data = batch(kind)
    for number in empty:
        source = data['data_samples'][number].source_id
        data['data_samples'][number] = det_sample(source, instances=())
    log = assert_joint(built(kind), data, (2, 4), tolerance=1e-5)
    assert any(log[key] > 0 for key in log if key.endswith('loss_bbox'))


def test_a_batch_without_an_object():
    data = batch('Mask R-CNN')
    data['data_samples'] = [det_sample(source, instances=()) for source in (3, 3, 8, 8)]
    assert_joint(built('Mask R-CNN'), data, (2, 4), tolerance=1e-5)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """Under autocast the gradients are those of the stock step, up to its rounding."""

    class Autocast(KeepGradients):
        @contextmanager
        def optim_context(self, model):
            with super().optim_context(model), torch.autocast('cpu', dtype):
                yield

    found = []
    for step in (None, joint_step):
        model = built('classifier')
        optim_wrapper = Autocast(torch.optim.SGD(model.parameters(), lr=0.1))
        if step:
            step(model, batch('classifier'), optim_wrapper, 2)
        else:
            model.train_step(batch('classifier'), optim_wrapper)
        found.append(torch.cat([each.grad.flatten() for each in model.parameters()]))
    assert (found[0] - found[1]).norm() < 0.05 * found[0].norm() and found[0].norm() > 0


@pytest.mark.parametrize('kind', KINDS)
def test_one_micro_batch_is_the_stock_step_with_its_draws(kind):
    """Its second pass draws what its first one drew; batch norm in training mode."""
    stock, model = (built(kind, draws=True, norm_eval=False) for _ in range(2))
    torch.manual_seed(1)
    expected, _, buffers = gradients_of(stock, batch(kind), None)
    torch.manual_seed(1)
    found, _, own_buffers = gradients_of(model, batch(kind), 1)
    scale = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-5 * scale, name
    for name, buffer in buffers.items():
        assert torch.equal(own_buffers[name], buffer), name


def test_other_predictions_in_the_second_pass_are_refused():
    model = built('Faster R-CNN')
    sample, calls = model.roi_head.bbox_sampler.sample, []

    def sample_less(*args, **kwargs):
        result = sample(*args, **kwargs)
        calls.append(result)
        if len(calls) > len(batch('Faster R-CNN')['data_samples']):
            result.neg_priors = result.neg_priors[:1]
        return result

    model.roi_head.bbox_sampler.sample = sample_less
    with pytest.raises(RuntimeError, match='second pass'):
        joint_step(model, batch('Faster R-CNN'), optim_of(model), 2)


def test_an_error_leaves_no_trace():
    model = built('classifier')
    broken = batch('classifier')
    broken['data_samples'][3].set_metainfo(dict(source_shape=(1, 1)))
    with pytest.raises(ValueError, match='same source_id'):
        joint_step(model, broken, optim_of(model), 1)
    assert '_get_loss' not in vars(model.head)
    expected, found = (
        gradients_of(each, batch('classifier'), 2)[0] for each in (model, built('classifier'))
    )
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_refusals():
    model = built('classifier')
    accumulating = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), accumulative_counts=2)
    with pytest.raises(ValueError, match='accumulative_counts=1'):
        joint_step(model, batch('classifier'), accumulating, 2)
    model.head.lt_options.across_ranks = True
    with pytest.raises(ValueError, match="placement='rank'"):
        joint_step(model, batch('classifier'), optim_of(model), 2)
    model.head.lt_options.across_ranks = False
    model.head.lt_options.weak_target = WeakTargetOptions(teacher=True)
    with pytest.raises(ValueError, match='expected teacher=False'):
        joint_step(model, batch('classifier'), optim_of(model), 2)


def test_roi_heads_with_losses_of_their_own_are_refused():
    """They keep a state from pass to pass, or need the losses of one micro-batch."""
    config = config_of('Faster R-CNN')
    config.roi_head.head.update(type='mmdet.DynamicRoIHead')
    config.roi_head.head.bbox_head.loss_bbox = dict(type='SmoothL1Loss')
    config.train_cfg.rcnn.dynamic_rcnn = dict(
        iou_topk=10, beta_topk=5, update_iter_interval=100, initial_iou=0.4, initial_beta=1.0
    )
    init_default_scope('mmdet')
    dynamic = config, 'roi_head is a DynamicRoIHead.*EpochBased'
    config = config_of('Mask R-CNN')
    config.roi_head.head.update(
        type='mmdet.MaskScoringRoIHead',
        mask_iou_head=dict(
            type='mmdet.MaskIoUHead',
            num_convs=1,
            num_fcs=1,
            roi_feat_size=3,
            in_channels=8,
            conv_out_channels=8,
            fc_out_channels=8,
            num_classes=3,
        ),
    )
    scoring = config, 'roi_head is a MaskScoringRoIHead.*EpochBased'
    for refused, message in (dynamic, scoring):
        model = MODELS.build(refused).train()
        with pytest.raises(UnsupportedHeadError, match=message):
            joint_step(model, batch('Mask R-CNN'), optim_of(model), 2)


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
