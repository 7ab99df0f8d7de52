"""ConsistencyMetric, on made predictions and in the validation of a stock model."""

import copy

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, METRICS, init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData

from lt_mm.evaluation import consistency_metric
from lt_mm.evaluation.consistency_metric import ConsistencyMetric
from lt_mm.structures.errors import MissingRecordError, UnpairedBatchError
from tests import reference, reference_losses
from tests.evaluation.random_models import classifier_fixture, pictures_fixture  # noqa: F401 (fixtures)
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
from tests.ranks import run_ranks


def predicted(source_ids, rows):
    """Classification samples with predictions."""
    samples = cls_samples(source_ids)
    for sample, row in zip(samples, rows):
        sample.set_pred_score(torch.tensor(row))
    return samples


def detected(
    source_id, matrix, offset=0.0, labels=LABELS, scores=(0.9, 0.6), scale=(1, 1), instances=(0, 1)
):
    """A replica in which the detector finds the objects, off by some source pixels.

    As MMDetection gives it: boxes divided by the scale factor.
    """
    sample = det_sample(source_id, view=matrix)
    sample.set_metainfo(dict(scale_factor=scale))
    boxes = reference.move_boxes(np.array(BOXES) + offset, [matrix] * 2) / (*scale, *scale)
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


def test_softening_lowers_the_kl_and_not_the_calibrated_kl():
    """The labels are 1, 1, 1, 0, 0, 0: some predictions are right."""
    ids = [4, 4, 4, 9, 9, 9]
    rows = [[0.3, 0.6, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1]] * 2
    roots = torch.tensor(rows).sqrt()
    sharp, _ = measured(predicted(ids, rows))
    soft, _ = measured(predicted(ids, (roots / roots.sum(dim=1, keepdim=True)).tolist()))
    assert soft['mean_kl'] < 0.5 * sharp['mean_kl']
    assert soft['calibrated_kl'] == pytest.approx(sharp['calibrated_kl'], rel=1e-4)
    assert soft['temperature'] == pytest.approx(sharp['temperature'] / 2, rel=1e-4)
    powers = [[p ** (1 / sharp['temperature']) for p in row] for row in rows[:3]]
    tempered = [[p / sum(row) for p in row] for row in powers]
    assert sharp['calibrated_kl'] == pytest.approx(reference.mean_kl(tempered), rel=1e-4)


def test_calibrated_kl_needs_a_label_of_every_replica_and_a_temperature(monkeypatch):
    logged = []
    monkeypatch.setattr(consistency_metric, 'print_log', lambda message, *_: logged.append(message))
    unlabelled = predicted([4, 4, 4, 9, 9, 9], ROWS)
    del unlabelled[0].gt_label
    assert 'calibrated_kl' not in measured(unlabelled)[0]
    assert 'calibrated_kl' not in measured(predicted([1] * 3, ROWS[:3]), activation='sigmoid')[0]
    assert not logged
    right = predicted([1, 1], [[0.2, 0.7, 0.1], [0.1, 0.8, 0.1]])
    numbers, _ = measured(right)
    assert 'temperature' not in numbers and numbers['mean_kl'] > 0
    assert 'leaves out temperature, calibrated_kl: no temperature' in logged[0]


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
    assert numbers['score_jitter'] == pytest.approx(0, abs=1e-6)
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


def test_scores_that_differ():
    """Three replicas; the first object is found in all of them, the second one in two."""
    numbers, report = measured(
        [
            detected(3, IDENTITY, scores=(0.9, 0.6)),
            detected(3, FLIP, scores=(0.5, 0.8)),
            detected(3, ZOOM, scores=(0.6, 0.1)),
        ]
    )
    expected = ((0.4 + 0.3 + 0.1) / 3 + 0.2) / 2
    assert numbers['score_jitter'] == pytest.approx(expected, abs=1e-6)
    assert report.images[0]['score_jitter'] == pytest.approx(expected, abs=1e-6)


def test_values_that_nothing_was_found_for_are_left_out_and_logged(monkeypatch):
    logged = []
    monkeypatch.setattr(consistency_metric, 'print_log', lambda message, *_: logged.append(message))
    nothing = dict(scores=(0.1, 0.1))
    numbers, report = measured([detected(3, IDENTITY, **nothing), detected(3, SHEAR, **nothing)])
    assert numbers == dict(num_images=1, num_replicas=2, num_predictions=0)
    assert report.images[0]['matched_share'] is None
    assert 'rotated or sheared' in logged[0]
    assert 'leaves out matched_share, mean_iou, score_jitter, agreement' in logged[1]


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
