"""What wrapped heads record of their pairs, and the hook that draws it."""

import copy

import cv2
import matplotlib
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from lt_mm.core.consistency import categorical_consistency
from lt_mm.datasets.display import source_image
from lt_mm.engine.hooks import pair_visualization_hook as pair_pictures
from lt_mm.engine.hooks.pair_visualization_hook import PairVisualizationHook
from lt_mm.structures.pair_record import PairRecord, recording
from lt_mm.visualization.pairs_figure import pairs_figure
from tests.models.heads import dense_data
from tests.models.heads.head_data import (
    FLIP,
    SHAPE,
    ZOOM,
    build_cls_head,
    build_roi_head,
    cls_samples,
    det_sample,
    mask_roi_head_config,
    roi_losses,
    to_source,
)
from tests.paths import CONFIGS
from tests.training_data import classifier_config, detector_options, recorded

VIEWS = [np.eye(3), FLIP, ZOOM]
LOCAL = dict(type='LocalVisBackend')
SMALL = {  # an iteration of the demo in half a second
    'train_cfg': dict(_delete_=True, type='IterBasedTrainLoop', max_iters=3),
    'train_dataloader.batch_size': 2,
    'default_hooks.checkpoint': None,
    'val_dataloader': None,
    'val_cfg': None,
    'val_evaluator': None,
    'test_dataloader': None,
    'test_cfg': None,
    'test_evaluator': None,
}


def replicas():
    """Three replicas of source 3 and one of source 8, which pairs with nothing."""
    return [*[det_sample(3, view=view) for view in VIEWS], det_sample(8)]


def check_boxes(record, num_pairs):
    """Restored boxes, sources and pairs of a record of :func:`replicas`."""
    assert int(record.paired.sum()) == num_pairs > 0
    assert not record.boxes.requires_grad and not record.restored.requires_grad
    views = [*VIEWS, VIEWS[0]]
    for image, source, paired, box, restored in zip(
        record.images.tolist(),
        record.source_ids.tolist(),
        record.paired.tolist(),
        record.boxes,
        record.restored,
    ):
        assert source == (8 if image == 3 else 3)
        assert not (paired and image == 3)
        expected = to_source(box, views[image])
        torch.testing.assert_close(restored.double(), expected, rtol=1e-4, atol=1e-2)
    for group in set(record.group_ids[record.paired].tolist()):
        members = record.group_ids == group
        assert len(set(record.images[members].tolist())) > 1


# -- what heads record ---------------------------------------------------------


@pytest.mark.parametrize('pairing', ['gt', 'gt_mean', 'gt_all', 'iou'])
def test_roi_heads_record_boxes_and_masks(pairing):
    samples = replicas()
    for sample in samples:
        sample.gt_instances.set_metainfo(dict(source_matrix=sample.source_matrix))
    head = build_roi_head(
        dict(
            type='lt_mm.LossTransformHead',
            head=mask_roi_head_config(),
            pairing=pairing,
            score_threshold=0.3,
            iou_threshold=0.2,
        )
    )
    expected, _ = roi_losses(head, samples)
    boxes, masks = [], []
    head.bbox_head.lt_recorder = boxes.append
    head.mask_head.lt_recorder = masks.append
    losses, _ = roi_losses(head, samples)
    assert losses.keys() == expected.keys()
    assert all(torch.equal(losses[key], expected[key]) for key in losses)
    (boxes,), (masks,) = boxes, masks
    check_boxes(boxes, int(losses['lt_num_paired']))
    check_boxes(masks, int(masks.paired.sum()))
    assert (boxes.kind, masks.kind) == ('bbox', 'mask')
    assert masks.masks.shape == (len(masks.boxes), 6, 6)
    assert masks.masks.min() > 0 and masks.masks.max() < 1
    if pairing == 'iou':
        assert bool((boxes.paired | (boxes.scores >= 0.3)).all())


@pytest.mark.parametrize('kind', ['RetinaNet', 'GFL', 'FCOS', 'YOLOX', 'DETR', 'RPN'])
def test_dense_heads_record_boxes(kind):
    head = dense_data.build(kind, rho=1.0)
    outputs, _ = dense_data.made_outputs(kind, head, images=4)
    samples = replicas()
    dense_data.seed_samplers()
    expected = dense_data.losses_of(kind, head, outputs, samples)
    records = []
    head.lt_recorder = records.append
    dense_data.seed_samplers()
    losses = dense_data.losses_of(kind, head, outputs, samples)
    for (name, value), (_, other) in zip(
        dense_data.values_of(losses), dense_data.values_of(expected)
    ):
        assert torch.equal(value, other), name
    (record,) = records
    (pairs,) = [value for name, value in losses.items() if 'lt_num_paired' in name]
    check_boxes(record, int(pairs))


def test_classifiers_record_logits():
    head = build_cls_head(
        dict(
            type='lt_mm.LossTransformHead',
            temperature=2.0,
            head=dict(
                type='LinearClsHead',
                num_classes=3,
                in_channels=5,
                loss=dict(type='CrossEntropyLoss'),
            ),
        )
    )
    feats = (torch.randn(5, 5),)
    records = []
    head.lt_recorder = records.append
    head.loss(feats, cls_samples([7, 7, 2, 2, 4]))
    (record,) = records
    logits = head(feats)
    assert torch.equal(record.logits, logits) and not record.logits.requires_grad
    assert record.paired.tolist() == [True] * 4 + [False]
    assert record.source_ids.tolist() == [7, 7, 2, 2, 4]
    torch.testing.assert_close(record.scores, logits.softmax(1).max(1).values)
    torch.testing.assert_close(
        head.lt_divergence(record.logits[2:4]),
        categorical_consistency(logits[2:4], torch.zeros(2, dtype=torch.int64), temperature=2.0),
    )


# -- what is drawn -------------------------------------------------------------


def made_record(group_ids, images, scores=None):
    """Boxes whose left sides tell their rows, of replicas without a view."""
    count = len(group_ids)
    rows = torch.arange(count, dtype=torch.float32)[:, None]
    boxes = torch.cat([rows, rows, rows + 20, rows + 30], dim=1)
    groups = torch.tensor(group_ids)
    paired = torch.tensor(
        [group >= 0 and group_ids.count(group) > 1 for group in group_ids], dtype=torch.bool
    )
    return PairRecord(
        'bbox',
        torch.tensor(images, dtype=torch.int64),
        torch.tensor(images) // 2,
        groups,
        paired,
        torch.zeros(count, dtype=torch.int64),
        torch.linspace(1, 0.5, count) if scores is None else torch.tensor(scores),
        boxes,
        boxes + 1,
    )


def batch(num_images=4):
    samples = [det_sample(number // 2) for number in range(num_images)]
    return dict(
        inputs=[torch.zeros(3, *SHAPE, dtype=torch.uint8)] * num_images, data_samples=samples
    )


def lefts(axes):
    """Left sides of the boxes drawn, by colour."""
    found = {}
    for patch in axes.patches:
        if isinstance(patch, matplotlib.patches.Rectangle):
            found.setdefault(patch.get_edgecolor()[:3], []).append(patch.get_x())
    return found


def test_one_colour_a_group():
    record = made_record([5, 5, 9, 9, -1, 5], [0, 1, 0, 1, 1, 0])
    figure = pairs_figure(record, batch(2), ['shape'], 3, 4, max_per_group=1)
    source, first, second = figure.axes
    blue, orange, grey = lefts(source)
    # Row 5, of the group and image of row 0, is less confident.
    assert lefts(source) == {blue: [1, 2], orange: [3, 4], grey: [5]}
    assert lefts(first) == {blue: [0], orange: [2]}
    assert lefts(second) == {blue: [1], orange: [3], grey: [4]}
    assert figure.get_suptitle().startswith('5 of 6 predictions are paired')
    assert [text.get_text() for text in first.texts] == ['shape 1.00', 'shape 0.80']


def test_no_pairs_are_told():
    for record in (made_record([-1, -1], [0, 1]), made_record([], [])):
        figure = pairs_figure(record, batch(2), None, 3, 4, 3)
        assert figure.get_suptitle() == (
            f'0 pairs: none of the {len(record.paired)} predictions has a partner'
        )


def test_sources_with_pairs_come_first():
    record = made_record([-1, 3, 3], [0, 4, 5])
    figure = pairs_figure(record, batch(6), None, max_sources=2, max_replicas=1, max_per_group=3)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [
        'source 2: restored',
        'image 4 of the batch',
        'source 0: restored',
        'image 0 of the batch',
    ]


# -- the hook ------------------------------------------------------------------


def train(cfg, work_dir, hook=None, backends=(LOCAL,)):
    """A runner that trained, and the outputs of its steps."""
    cfg = copy.deepcopy(cfg)
    cfg.work_dir = str(work_dir)
    # A process has one visualizer of each name.
    cfg.visualizer.update(name=str(work_dir), vis_backends=list(backends))
    if hook is not None:
        cfg.custom_hooks = [*cfg.custom_hooks, dict(type='lt_mm.PairVisualizationHook', **hook)]
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def images_in(work_dir):
    return {
        path.name: cv2.imread(str(path)) for path in work_dir.glob('*/vis_data/vis_image/*.png')
    }


def demo_config(shapes, **more):
    cfg = Config.fromfile(str(CONFIGS / 'faster_rcnn_r18_lt_demo.py'))
    options = detector_options(shapes)
    options = {
        key: value
        for key, value in options.items()
        if not key.startswith(('val', 'test', 'train_cfg'))
    }
    cfg.merge_from_dict({**options, **SMALL, **more})
    return cfg


def test_the_hook_draws_and_changes_nothing(shapes, tmp_path):
    cfg = demo_config(shapes)
    plain = train(cfg, tmp_path / 'plain')
    drawn = train(cfg, tmp_path / 'drawn', dict(interval=2))
    assert recorded(plain) == recorded(drawn) and len(recorded(plain)) == 3
    assert recorded(plain)[1]['lt_num_paired'] > 0
    for name, value in plain.model.state_dict().items():
        assert torch.equal(drawn.model.state_dict()[name], value), name
    images = images_in(tmp_path / 'drawn')
    assert list(images) == ['lt_pairs_roi_head.bbox_head_2.png']
    assert images['lt_pairs_roi_head.bbox_head_2.png'].std() > 10
    assert images_in(tmp_path / 'plain') == {}
    for module in drawn.model.modules():
        assert 'lt_recorder' not in vars(module)


def test_a_classifier_in_micro_batches(pictures, tmp_path, monkeypatch):
    figures = []

    def keep(*args, **kwargs):
        figures.append(pairs_figure(*args, **kwargs))
        return figures[-1]

    monkeypatch.setattr(pair_pictures, 'pairs_figure', keep)
    cfg = classifier_config(pictures, tmp_path)
    train(cfg, tmp_path / 'stock', dict(interval=6, max_sources=2))
    cfg.train_cfg = dict(type='lt_mm.MicroBatchTrainLoop', max_epochs=1, num_micro_batches=4)
    train(cfg, tmp_path / 'micro', dict(interval=6, max_sources=2))
    for name in ('stock', 'micro'):
        assert list(images_in(tmp_path / name)) == ['lt_pairs_head_6.png']
    for figure in figures:
        assert '8 of 8 predictions are paired' in figure.get_suptitle()
        titles = [axes.get_title() for axes in figure.axes]
        assert len(titles) == 8 and titles[0].startswith('source ') and all(titles)
        # The KL in the title is a KL of probabilities, so never below 0.
        assert float(titles[0].split('KL ')[1].split()[0]) >= 0


@pytest.mark.parametrize(
    'failing, error', [('head.loss_module', RuntimeError), ('optim_wrapper', KeyboardInterrupt)]
)
def test_a_step_that_fails_leaves_no_recorder(pictures, tmp_path, failing, error):
    """The caller catches the error, looks at the heads, and trains on."""

    def fail(*args):
        raise error('no memory is left')

    def recorders(model):
        return [part for part in model.modules() if 'lt_recorder' in vars(part)]

    cfg = classifier_config(pictures, tmp_path, **{'train_dataloader.batch_size': 24})
    cfg.custom_hooks = [*cfg.custom_hooks, dict(type='lt_mm.PairVisualizationHook', interval=1)]
    cfg.visualizer.update(name=str(tmp_path), vis_backends=[LOCAL])
    runner = Runner.from_cfg(cfg)
    if failing == 'optim_wrapper':
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        broken = runner.optim_wrapper.optimizer.register_step_pre_hook(fail)
    else:
        broken = runner.model.head.loss_module.register_forward_pre_hook(fail)
    with pytest.raises(error, match='no memory'):
        runner.train()
    assert recorders(runner.model) == [] and images_in(tmp_path) == {}
    broken.remove()
    runner.train()
    assert recorders(runner.model) == []
    assert len(images_in(tmp_path)) == len(recorded(runner)) == 2


def test_recording_ends_with_its_block():
    head = build_cls_head(
        dict(
            type='lt_mm.LossTransformHead',
            head=dict(
                type='LinearClsHead',
                num_classes=3,
                in_channels=5,
                loss=dict(type='CrossEntropyLoss'),
            ),
        )
    )
    model = torch.nn.ModuleDict(dict(other=torch.nn.Linear(2, 1), head=head))
    with pytest.raises(RuntimeError, match='in the block'), recording(model) as records:
        head.loss((torch.randn(4, 5),), cls_samples([7, 7, 2, 2]))
        raise RuntimeError('in the block')
    assert 'lt_recorder' not in vars(head) and head.lt_recorder is None
    assert {name: len(found) for name, found in records.items()} == {'head': 1}


def test_all_backends_get_the_picture(pictures, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(
        classifier_config(pictures, tmp_path),
        tmp_path,
        dict(interval=3),
        [LOCAL, dict(type='TensorboardVisBackend')],
    )
    assert len(images_in(tmp_path)) == 2
    (folder,) = tmp_path.glob('*/vis_data')
    events = EventAccumulator(str(folder)).Reload().Images('lt_pairs_head')
    assert [event.step for event in events] == [3, 6]


def test_other_ranks_do_not_draw(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(pair_pictures, 'is_main_process', lambda: False)
    train(classifier_config(pictures, tmp_path), tmp_path, dict(interval=1))
    assert images_in(tmp_path) == {}


def test_a_model_without_a_wrapped_head(pictures, tmp_path):
    cfg = classifier_config(pictures, tmp_path)
    cfg.model.head = cfg.model.head.head
    with pytest.raises(ValueError, match='no LossTransformHead'):
        train(cfg, tmp_path, dict(interval=1))


@pytest.mark.parametrize('name', ['interval', 'max_sources', 'max_replicas', 'max_per_group'])
def test_numbers_out_of_range(name):
    with pytest.raises(ValueError, match=f'{name} is 0'):
        PairVisualizationHook(**{name: 0})


def test_a_source_that_is_in_no_file(tmp_path):
    init_default_scope('mmdet')
    sample = det_sample(3)
    assert source_image(sample).shape == (*SHAPE, 3)
    path = tmp_path / 'image.png'
    cv2.imwrite(str(path), np.full((*SHAPE, 3), (255, 0, 0), np.uint8))
    # Packing may leave the path out of the sample itself.
    del sample.img_path
    sample.gt_instances.set_metainfo(dict(img_path=str(path)))
    assert source_image(sample)[0, 0].tolist() == [0, 0, 255]
