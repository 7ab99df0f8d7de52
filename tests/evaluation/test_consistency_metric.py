"""ConsistencyMetric, and the tool that measures a checkpoint with it."""

import copy
import csv
import json
import random
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, METRICS, MODELS, init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData

from lt_mm.apis import consistency as consistency_report
from lt_mm.apis.consistency import measure_consistency, probability_matrix
from lt_mm.datasets.replica_dataset import ReplicaDataset
from lt_mm.evaluation import consistency_metric
from lt_mm.evaluation.consistency_metric import ConsistencyMetric
from lt_mm.structures.errors import MissingRecordError, UnpairedBatchError
from tests import reference, reference_losses
from tests.configs.made_data import write_pictures, write_shapes
from tests.models.heads.head_data import (
    BOXES,
    FLIP,
    IDENTITY,
    LABELS,
    SHEAR,
    ZOOM,
    cls_samples,
    det_sample,
)
from tests.paths import CONFIGS, TOOLS
from tests.ranks import run_ranks

# -- the metric on made predictions ------------------------------------------------


def predicted(source_ids, rows):
    """Classification samples with predictions."""
    samples = cls_samples(source_ids)
    for sample, row in zip(samples, rows):
        sample.set_pred_score(torch.tensor(row))
    return samples


def detected(
    source_id, view, offset=0.0, labels=LABELS, scores=(0.9, 0.6), scale=(1, 1), instances=(0, 1)
):
    """A replica in which the detector finds the objects, off by some source pixels.

    As MMDetection gives it: boxes divided by the scale factor.
    """
    sample = det_sample(source_id, view=view)
    sample.set_metainfo(dict(scale_factor=scale))
    boxes = reference.move_boxes(np.array(BOXES) + offset, [view] * 2) / (*scale, *scale)
    rows = list(instances)
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32)[rows],
        scores=torch.tensor(scores)[rows],
        labels=torch.tensor(labels)[rows],
    )
    return sample


def measured(samples, prefix='consistency/', size=None, **options):
    metric = ConsistencyMetric(**options)
    Evaluator(metric).process(samples)
    numbers = metric.evaluate(len(samples) if size is None else size)
    return {name[len(prefix) :]: value for name, value in numbers.items()}, metric.report


ROWS = [
    [0.7, 0.2, 0.1],
    [0.6, 0.3, 0.1],
    [0.2, 0.7, 0.1],
    [0.1, 0.1, 0.8],
    [0.0, 0.1, 0.9],
    [0.3, 0.3, 0.4],
]


def test_classifier_is_measured():
    numbers, report = measured(predicted([4, 4, 4, 9, 9, 9], ROWS))
    kl = [reference.mean_kl(ROWS[:3]), reference.mean_kl([ROWS[3], [1e-38, 0.1, 0.9], ROWS[5]])]
    assert numbers['mean_kl'] == pytest.approx(sum(kl) / 2, rel=1e-2)
    assert numbers['agreement'] == pytest.approx((1 / 3 + 1) / 2)
    assert (numbers['num_images'], numbers['num_replicas']) == (2, 3)
    assert [row['source_id'] for row in report.images] == [4, 9]
    assert report.images[0]['mean_kl'] == pytest.approx(kl[0], rel=1e-5)
    assert report.labels.tolist() == [0, 2]
    np.testing.assert_allclose(report.probabilities[9], ROWS[3:], rtol=1e-6)


def test_replicas_come_in_any_order_and_beyond_the_length_of_the_data_set():
    """MMEngine would cut the results to the number of images."""
    order = [3, 0, 4, 1, 5, 2]
    ids = [4, 4, 4, 9, 9, 9]
    expected, _ = measured(predicted(ids, ROWS))
    numbers, _ = measured(predicted([ids[i] for i in order], [ROWS[i] for i in order]), size=2)
    assert numbers == pytest.approx(expected)


def test_what_samplers_repeat_to_fill_ranks_does_not_count():
    expected, _ = measured(predicted([4, 4, 9, 9, 2, 2], ROWS))
    numbers, _ = measured(predicted([4, 4, 9, 9, 2, 2, 4, 4], ROWS + ROWS[2:4]))
    assert numbers == expected


def test_multi_label_predictions_are_bernoullis():
    rows = [[0.7, 0.6], [0.8, 0.1], [0.9, 0.8]]
    naive = reference.mean_bernoulli_kl
    numbers, report = measured(predicted([1, 1, 1], rows))
    assert numbers['mean_kl'] == pytest.approx(naive(rows), rel=1e-5)
    assert numbers['agreement'] == pytest.approx(1 / 3)  # both classes, in two of three
    assert report.labels.tolist() == [-1]
    given, _ = measured(predicted([1, 1, 1], ROWS[:3]), activation='sigmoid')
    assert given['mean_kl'] == pytest.approx(naive(ROWS[:3]), rel=1e-5)


def test_detector_that_finds_the_same_everywhere():
    """Flipped, enlarged, and divided by scale factors: all come back to the source."""
    numbers, report = measured(
        [
            detected(3, IDENTITY),
            detected(8, ZOOM, scale=(2.0, 0.5)),
            detected(3, FLIP, scale=(1.5, 3.0)),
            detected(8, FLIP @ ZOOM),
        ]
    )
    assert numbers['mean_iou'] == pytest.approx(1, abs=1e-5)
    assert numbers['mean_kl_bbox'] == pytest.approx(0, abs=1e-9)
    assert numbers['agreement'] == numbers['matched_share'] == 1
    assert numbers['num_predictions'] == 8 and numbers['num_images'] == 2
    assert sorted(report.labels.tolist()) == [0, 0, 1, 1]


def test_detector_that_finds_it_elsewhere():
    """Off by 4 pixels, with another class, an object less, or with little confidence."""
    numbers, report = measured(
        [
            detected(3, IDENTITY),
            detected(3, FLIP, offset=4.0, labels=[1, 2]),
            detected(8, IDENTITY),
            detected(8, ZOOM, instances=(0,)),
            detected(5, IDENTITY, scores=(0.9, 0.4)),
            detected(5, FLIP, scores=(0.4, 0.9)),
        ]
    )
    iou = [
        reference_losses.iou(np.array(box) + shift, np.array(box) + 2)
        for box in BOXES
        for shift in (0, 4)
    ]
    assert numbers['mean_iou'] == pytest.approx((sum(iou) / 2 + 1) / 3, abs=1e-4)
    assert numbers['agreement'] == pytest.approx(2 / 3)
    assert numbers['matched_share'] == pytest.approx(6 / 9)
    rows = {row['source_id']: row for row in report.images}
    assert rows[3]['agreement'] == 0.5 and rows[3]['matched_share'] == 1
    assert rows[8]['num_predictions'] == 3 and rows[8]['matched_share'] == 2 / 3
    assert rows[5]['mean_iou'] is None and rows[5]['matched_share'] == 0
    loose, _ = measured(
        [detected(5, IDENTITY, scores=(0.9, 0.4)), detected(5, FLIP, scores=(0.4, 0.9))],
        score_threshold=0.4,
    )
    assert loose['matched_share'] == 1


def test_values_that_nothing_was_found_for_are_left_out_and_logged(monkeypatch):
    logged = []
    monkeypatch.setattr(consistency_metric, 'print_log', lambda message, *_: logged.append(message))
    nothing = dict(scores=(0.1, 0.1))
    numbers, report = measured([detected(3, IDENTITY, **nothing), detected(3, SHEAR, **nothing)])
    assert numbers == dict(num_images=1, num_replicas=2, num_predictions=0)
    assert report.images[0]['matched_share'] is None
    assert 'rotated or sheared' in logged[0]
    assert 'leaves out matched_share, mean_iou, agreement' in logged[1]


@pytest.mark.parametrize(
    'samples, error, words',
    [
        (
            lambda: without(predicted([1, 1], ROWS), 'source_id'),
            MissingRecordError,
            'InvertiblePipeline.*on_bad_image',
        ),
        (lambda: without([detected(1, FLIP)] * 2, 'source_matrix'), MissingRecordError, 'Mosaic'),
        (lambda: predicted([1, 2, 3], ROWS), UnpairedBatchError, 'ReplicaDataset.*num_repeats'),
        (lambda: [], UnpairedBatchError, 'none of the 0'),
        (lambda: predicted([1, 1], [[float('nan'), 0.0]] * 2), ValueError, 'not finite'),
        (lambda: [detected(1, FLIP, scores=(float('nan'), 1.0))], ValueError, 'scores.*finite'),
        (lambda: cls_samples([1, 1]), ValueError, 'pred_score.*pred_instances'),
    ],
)
def test_what_cannot_be_measured_is_an_error(samples, error, words):
    with pytest.raises(error, match=words):
        measured(samples())


def without(samples, name):
    for sample in samples:
        if name in sample:
            delattr(sample, name)
    return samples


def test_two_images_with_one_id_are_an_error():
    first, second = predicted([1, 1], ROWS)
    first.set_metainfo(dict(img_path='a.png'))
    second.set_metainfo(dict(img_path='b.png'))
    with pytest.raises(MissingRecordError, match='a.png.*b.png.*sample_idx_offset'):
        measured([first, second])


@pytest.mark.parametrize(
    'options', [dict(activation='tanh'), dict(score_threshold=2), dict(iou_threshold=-1)]
)
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match=str(next(iter(options.values())))):
        ConsistencyMetric(**options)


@pytest.mark.parametrize('scope', ['mmdet', 'mmpretrain'])
def test_found_from_both_default_scopes(scope):
    init_default_scope(scope)
    for name in ('lt_mm.ConsistencyMetric', 'ConsistencyMetric'):
        assert type(METRICS.build(dict(type=name))) is ConsistencyMetric
    assert DATASETS.get('lt_mm.ReplicaDataset') is DATASETS.get('ReplicaDataset')


def on_rank(rank, folder):
    """Replicas 0, 2, 4 on one rank and 1, 3, 5 on the other, as samplers deal them."""
    samples = predicted([4, 4, 4, 9, 9, 9], ROWS)[rank::2]
    boxes = [detected(3, IDENTITY), detected(3, FLIP, offset=4.0)][rank : rank + 1]
    found = []
    for part in (samples, boxes):
        metric = ConsistencyMetric(collect_dir=folder)
        Evaluator(metric).process(part)
        found.append(metric.evaluate(2))
    return found


def test_ranks_together_measure_what_one_does(tmp_path):
    first, second = run_ranks(on_rank, 2, str(tmp_path / 'parts'))
    assert first == second
    expected, _ = measured(predicted([4, 4, 4, 9, 9, 9], ROWS))
    boxes, _ = measured([detected(3, IDENTITY), detected(3, FLIP, offset=4.0)])
    for found, alone in zip(first, (expected, boxes)):
        assert found == {f'consistency/{name}': value for name, value in alone.items()}


# -- stock models ------------------------------------------------------------------


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp('pictures') / 'all'
    write_pictures(root)
    return root


def classifier_options(pictures):
    """Twelve images of two classes, and a narrow network."""
    options = {'model.backbone.base_channels': 4, 'model.backbone.stem_channels': 4}
    for name in ('train', 'val', 'test'):
        options[f'{name}_dataloader.num_workers'] = 0
        options[f'{name}_dataloader.persistent_workers'] = False
        options[f'{name}_dataloader.dataset.data_root'] = str(pictures)
    return options


def wrapped_options(pictures):
    return dict(
        classifier_options(pictures),
        **{
            'model.head.head.in_channels': 32,
            'model.head.head.num_classes': 2,
            'data_preprocessor.num_classes': 2,
        },
    )


@pytest.fixture(scope='module')
def classifier(pictures, tmp_path_factory):
    """Config, checkpoint and options of a stock classifier with random weights."""
    config = str(CONFIGS / 'resnet18_cifar10_folder.py')
    options = dict(
        classifier_options(pictures),
        **{
            'model.head.in_channels': 32,
            'model.head.num_classes': 2,
            'data_preprocessor.num_classes': 2,
            'val_evaluator': dict(type='Accuracy'),
        },
    )
    checkpoint = tmp_path_factory.mktemp('weights') / 'classifier.pth'
    save_random_weights(config, options, checkpoint)
    return config, str(checkpoint), options


def save_random_weights(config, options, checkpoint):
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(copy.deepcopy(options))
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        model = registry.build(cfg.model)
    generator = torch.Generator().manual_seed(0)
    for value in model.parameters():
        if value.dim() > 1:  # as large as keeps the size of what goes through
            value.data = (
                torch.randn(value.shape, generator=generator) * (1.5 / value[0].numel()) ** 0.5
            )
    torch.save(dict(state_dict=model.state_dict()), checkpoint)


def in_a_validation(sampler, dataset):
    """Changes of a config that put the metric beside a stock one."""

    def change(cfg):
        pipeline = [dict(type='lt_mm.InvertiblePipeline', transforms=cfg.train_pipeline)]
        cfg.val_dataloader.dataset.pipeline = pipeline
        cfg.val_dataloader.sampler = dict(**sampler, shuffle=False)
        if dataset:
            cfg.val_dataloader.dataset = dict(dataset, dataset=cfg.val_dataloader.dataset)
        cfg.val_evaluator = [dict(type='Accuracy'), dict(type='lt_mm.ConsistencyMetric')]

    return change


@pytest.mark.parametrize(
    'change',
    [
        in_a_validation(dict(type='lt_mm.GroupedRepeatAugSampler', num_repeats=3), None),
        in_a_validation(
            dict(type='DefaultSampler'), dict(type='lt_mm.ReplicaDataset', num_replicas=3)
        ),
    ],
    ids=['sampler', 'data set'],
)
def test_beside_a_stock_metric_in_a_validation(change, classifier, tmp_path):
    config, checkpoint, options = classifier
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(copy.deepcopy(options))
    change(cfg)
    cfg.update(work_dir=str(tmp_path), load_from=checkpoint)
    numbers = Runner.from_cfg(cfg).val()
    assert 0 <= numbers['accuracy/top1'] <= 100
    assert numbers['consistency/num_images'] == 12  # though there are 36 results
    assert numbers['consistency/num_replicas'] == 3
    assert numbers['consistency/mean_kl'] > 0


def test_replicas_are_a_function_of_the_seed_and_the_image(classifier):
    config, _, options = classifier
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(copy.deepcopy(options))
    init_default_scope('mmpretrain')
    inner = DATASETS.build(dict(cfg.val_dataloader.dataset, pipeline=cfg.train_pipeline))

    def data_set(**more):
        return ReplicaDataset(inner, num_replicas=2, **more)

    every, some = data_set(), data_set(indices=[7, 3])
    assert len(every) == 24 and len(some) == 4 and len(data_set(max_images=5)) == 10
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    images = [every[index]['inputs'] for index in range(24)]
    assert random.getstate() == state[0]
    assert np.random.get_state()[1].tolist() == state[1]
    assert torch.equal(torch.get_rng_state(), state[2])
    for index, image in ((3, images[7]), (2, images[6]), (0, images[14])):
        assert torch.equal(some[index]['inputs'], image)
    assert not torch.equal(images[6], images[7])
    other = data_set(seed=1)
    assert any(not torch.equal(other[index]['inputs'], images[index]) for index in range(24))
    assert every.metainfo['classes'] == ('0', '1')
    assert some.get_data_info(1)['img_path'] == every.get_data_info(14)['img_path']
    for wrong in (
        dict(indices=[12]),
        dict(indices=[]),
        dict(max_images=0),
        dict(seed=-1),
        dict(indices=[1], max_images=1),
    ):
        with pytest.raises(ValueError, match='expected'):
            data_set(**wrong)


def run_tool(*arguments):
    tool = runpy.run_path(str(TOOLS / 'analysis' / 'consistency.py'))
    tool['main']([str(argument) for argument in arguments])


def written_by_tool(config, checkpoint, options, out, *arguments):
    run_tool(
        config,
        checkpoint,
        '--out',
        out,
        '--num-replicas',
        3,
        *arguments,
        '--cfg-options',
        *(f'{key}={value}' for key, value in options.items() if not isinstance(value, dict)),
    )
    picture = cv2.imread(str(out / 'consistency.png'))
    assert picture is not None and picture.std() > 10 and min(picture.shape[:2]) > 300
    with open(out / 'consistency.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    return json.loads((out / 'consistency.json').read_text()), rows


def test_tool_on_a_classifier(classifier, tmp_path, capsys):
    found, rows = written_by_tool(*classifier, tmp_path, '--max-images', 6)
    assert found['task'] == 'classification' and found['num_images'] == len(rows) == 6
    assert (
        found['mean_kl'] == pytest.approx(np.mean([float(row['mean_kl']) for row in rows]))
        and found['mean_kl'] > 0
    )
    assert 0 <= found['agreement'] <= 1 and 'images' not in found
    assert sum(own['count'] for own in found['per_class'].values()) == 6
    assert set(found['stock']) == {'unaugmented', 'single_replicas', 'averaged_replicas'}
    for metrics in found['stock'].values():
        assert 0 <= metrics['accuracy/top1'] <= 100
    assert 'agreement' in capsys.readouterr().out


def test_numbers_come_from_the_predictions_of_the_copies(
    classifier, pictures, tmp_path, monkeypatch
):
    """KL and accuracies, the latter by the stock frameworks, from the matrices."""
    monkeypatch.setattr(consistency_report, '_EXAMPLES', np.linspace(0, 1, 12))
    config, checkpoint, options = classifier
    found = measure_consistency(config, checkpoint, 3, cfg_options=options, work_dir=str(tmp_path))
    single, averaged = [], []
    for example in found['examples']:
        label = int(Path(example['img_path']).parent.name)
        matrix = np.array(example['probabilities'])
        assert example['mean_kl'] == pytest.approx(reference.mean_kl(matrix), abs=1e-6)
        single += (matrix.argmax(axis=1) == label).tolist()
        averaged.append(matrix.mean(axis=0).argmax() == label)
    assert len(averaged) == 12
    for name, hits in (('single_replicas', single), ('averaged_replicas', averaged)):
        assert found['stock'][name]['accuracy/top1'] == pytest.approx(100 * np.mean(hits), rel=1e-5)
    # The config with LossTransform sees the same copies, one image alone too.
    one = found['examples'][5]
    alone = probability_matrix(
        str(CONFIGS / 'resnet18_cifar10_folder_lt.py'),
        checkpoint,
        one['source_id'],
        3,
        cfg_options=wrapped_options(pictures),
        work_dir=str(tmp_path),
    )
    assert alone.shape == (3, 2) and alone.dtype == np.float32
    np.testing.assert_allclose(alone, one['probabilities'], rtol=1e-4, atol=1e-6)


def test_arguments_and_pipelines_that_cannot_be_used(classifier, tmp_path):
    config, checkpoint, options = classifier
    with pytest.raises(ValueError, match='num_replicas is 1'):
        measure_consistency(config, checkpoint, 1, cfg_options=options, work_dir=str(tmp_path))
    mixing = dict(
        options,
        **{
            'train_dataloader.dataset': dict(
                _delete_=True,
                type='MultiImageMixDataset',
                dataset=dict(type='CustomDataset'),
                pipeline=[],
            )
        },
    )
    with pytest.raises(ValueError, match='MultiImageMixDataset.*replica_pipeline'):
        measure_consistency(config, checkpoint, 2, cfg_options=mixing, work_dir=str(tmp_path))
    own = dict(
        options,
        **{
            'train_dataloader.dataset': dict(_delete_=True, type='MultiImageMixDataset'),
            'replica_pipeline': [dict(type='LoadImageFromFile'), dict(type='PackInputs')],
        },
    )
    found = measure_consistency(
        config,
        checkpoint,
        2,
        cfg_options=own,
        with_stock=False,
        max_images=2,
        work_dir=str(tmp_path),
    )
    assert found['mean_kl'] == pytest.approx(0, abs=1e-9) and found['agreement'] == 1
    assert found['stock'] == {}


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    """The demo detector, narrow, with random weights, on two images."""
    root = tmp_path_factory.mktemp('detector')
    write_shapes(root / 'shapes')
    options = {
        'model.backbone.base_channels': 8,
        'model.backbone.stem_channels': 8,
        'model.neck.in_channels': [8, 16, 32, 64],
        'model.neck.out_channels': 16,
        'model.rpn_head.in_channels': 16,
        'model.rpn_head.feat_channels': 16,
        'model.roi_head.head.bbox_roi_extractor.out_channels': 16,
        'model.roi_head.head.bbox_head.in_channels': 16,
        'model.roi_head.head.bbox_head.fc_out_channels': 16,
        'model.test_cfg.rpn.max_per_img': 20,
        'model.test_cfg.rpn.nms_pre': 50,
        'train_dataloader.dataset.data_root': str(root / 'shapes'),
    }
    for name in ('val', 'test'):
        options[f'{name}_dataloader.dataset.data_root'] = str(root / 'shapes')
        options[f'{name}_dataloader.num_workers'] = 0
        options[f'{name}_dataloader.persistent_workers'] = False
        options[f'{name}_evaluator.ann_file'] = str(root / 'shapes/annotations/val.json')
    config = str(CONFIGS / 'faster_rcnn_r18_lt_demo.py')
    save_random_weights(config, options, root / 'detector.pth')
    return config, str(root / 'detector.pth'), options


def test_tool_on_a_detector(detector, tmp_path):
    found, rows = written_by_tool(*detector, tmp_path, '--score-threshold', 0.05)
    assert found['task'] == 'detection' and len(rows) == found['num_images'] == 2
    counts = [int(row['num_predictions']) for row in rows]
    assert found['num_predictions'] == sum(counts) > 0
    assert 0 < found['matched_share'] <= 1 and 0.5 < found['mean_iou'] <= 1
    assert set(found['stock']) == {'unaugmented', 'tta'}
    for metrics in found['stock'].values():
        assert 'coco/bbox_mAP' in metrics


def test_detector_without_confident_boxes_is_reported_too(detector, tmp_path):
    config, checkpoint, options = detector
    found, rows = written_by_tool(
        config, checkpoint, options, tmp_path, '--no-stock', '--score-threshold', 1
    )
    assert found['num_predictions'] == 0 and found['mean_iou'] is None
    assert rows[0]['mean_iou'] == '' and found['stock'] == {}
    with pytest.raises(ValueError, match='expected a classifier'):
        probability_matrix(config, checkpoint, 0, 2, cfg_options=options, work_dir=str(tmp_path))
