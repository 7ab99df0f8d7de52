"""PanZoomDataset, FlickerMetric and CalibrationMetric with stock models and made predictions."""

import copy
import pickle

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData

from lt_mm.core.geometry import map_boxes
from lt_mm.datasets import PanZoomDataset
from lt_mm.datasets.altered.pan_zoom import warp
from lt_mm.evaluation import CalibrationMetric, FlickerMetric
from lt_mm.structures.errors import MissingRecordError
from tests.evaluation.random_models import classifier_fixture, detector_fixture, pictures_fixture  # noqa: F401 (fixtures)
from tests.models.heads.head_data import cls_samples


def config_of(fixture, work_dir, evaluator):
    """The config that tests frames of its validation images."""
    path, checkpoint, options = fixture
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(copy.deepcopy(options))
    cfg.work_dir, cfg.load_from = str(work_dir), checkpoint
    frames = dict(
        type='lt_mm.PanZoomDataset', dataset=cfg.val_dataloader.dataset, num_frames=4, max_images=2
    )
    cfg.test_dataloader = dict(
        batch_size=3,
        num_workers=0,
        dataset=frames,
        sampler=dict(type='DefaultSampler', shuffle=False),
    )
    cfg.test_evaluator, cfg.test_cfg = evaluator, dict()
    return cfg


def test_the_pixels_are_where_the_matrix_says():
    image = np.zeros((60, 80, 3), np.uint8)
    image[20:40, 30:50] = 255
    matrix = np.array([[1.25, 0, -8], [0, 1.25, -6], [0, 0, 1]])
    x1, y1, x2, y2 = map_boxes(torch.tensor([30.0, 20, 50, 40]), torch.from_numpy(matrix)).tolist()
    moved = warp(image, matrix)[..., 0] / 255
    # The area, and the centre, to a part of a pixel.
    assert moved.sum() == pytest.approx((x2 - x1) * (y2 - y1), rel=1e-2)
    rows, columns = np.mgrid[:60, :80] + 0.5
    assert (moved * columns).sum() / moved.sum() == pytest.approx((x1 + x2) / 2, abs=0.05)
    assert (moved * rows).sum() / moved.sum() == pytest.approx((y1 + y2) / 2, abs=0.05)


def test_frames_of_a_detector(detector, tmp_path):
    cfg = config_of(detector, tmp_path, [dict(type='lt_mm.FlickerMetric', score_threshold=0.0)])
    init_default_scope('mmdet')
    frames = DATASETS.build(copy.deepcopy(cfg.test_dataloader.dataset))
    assert len(frames) == 8
    samples = [frames[index]['data_samples'] for index in range(8)]
    again = pickle.loads(pickle.dumps(frames))  # as loading processes get it, in another order
    for index in (6, 1):
        sample = again[index]['data_samples']
        np.testing.assert_array_equal(sample.source_matrix, samples[index].source_matrix)
    for index, sample in enumerate(samples):
        assert (sample.frame_index, sample.num_frames) == (index % 4, 4)
        assert sample.ori_shape == sample.source_shape and not len(sample.gt_instances)
        width, height = sample.scale_factor
        np.testing.assert_allclose(
            sample.source_matrix, np.diag([width, height, 1]) @ sample.frame_matrix
        )
    image = cv2.imread(samples[1].img_path)[..., ::-1]
    np.testing.assert_array_equal(frames.frame(1), warp(image, samples[1].frame_matrix))
    runner = Runner.from_cfg(cfg)
    numbers = runner.test()
    metric = runner.test_loop.evaluator.metrics[0]
    assert numbers['flicker/num_images'] == 2 and numbers['flicker/num_frames'] == 4
    assert numbers['flicker/objects_per_frame'] > 0 and len(metric.images) == 2
    assert [[row['frame_index'] for row in rows] for rows in metric.sequences.values()] == [
        [0, 1, 2, 3]
    ] * 2


def test_frames_of_a_classifier_and_its_calibration(classifier, tmp_path):
    cfg = config_of(
        classifier,
        tmp_path,
        [dict(type='lt_mm.FlickerMetric'), dict(type='lt_mm.CalibrationMetric')],
    )
    runner = Runner.from_cfg(cfg)
    numbers = runner.test()
    rows = runner.test_loop.evaluator.metrics[0].sequences
    kl, changes = [], []
    for frames in rows.values():
        p = np.array([frame['probabilities'] for frame in frames], dtype=np.float64)
        kl += (p[:-1] * np.log(p[:-1] / p[1:])).sum(axis=1).tolist()
        changes += (p[:-1].argmax(axis=1) != p[1:].argmax(axis=1)).tolist()
    assert numbers['flicker/kl'] == pytest.approx(np.mean(kl), rel=1e-5) and np.mean(kl) > 0
    assert numbers['flicker/label_changes'] == pytest.approx(np.mean(changes))
    assert 0 <= numbers['calibration/ece'] <= 1
    confidences = [frame['probabilities'].max() for frames in rows.values() for frame in frames]
    assert numbers['calibration/confidence'] == pytest.approx(np.mean(confidences))


def frame_samples(boxes_of_frames, scale=(2.0, 1.0)):
    """The frames of one image, in which boxes given in the source are found."""
    samples = cls_samples([7] * len(boxes_of_frames))
    for index, (sample, boxes) in enumerate(zip(samples, boxes_of_frames)):
        matrix = np.array([[1.2, 0, -index], [0, 1.2, -5.0], [0, 0, 1]])
        sample.set_metainfo(
            dict(
                source_shape=(100, 100),
                frame_index=index,
                num_frames=len(boxes_of_frames),
                frame_matrix=matrix,
                source_matrix=np.diag([*scale, 1]) @ matrix,
                scale_factor=scale,
            )
        )
        tensor = torch.tensor(boxes).view(-1, 4)
        found = map_boxes(tensor.double(), torch.from_numpy(matrix).expand(len(tensor), 3, 3))
        sample.pred_instances = InstanceData(
            bboxes=found.float(),
            labels=torch.zeros(len(tensor), dtype=torch.int64),
            scores=torch.full((len(tensor),), 0.9),
        )
    return samples


def measured(metric, samples):
    Evaluator(metric).process(samples)
    return metric.evaluate(0)


def test_boxes_come_back_whatever_the_frame_and_the_scale():
    box, other = [30.0, 30, 50, 50], [30.0, 60, 50, 76]
    steady = frame_samples([[box, other]] * 3)
    numbers = measured(FlickerMetric(), [steady[row] for row in (2, 0, 1, 0)])  # 0 fills a rank
    assert numbers['flicker/blinking'] == numbers['flicker/score_swing'] == 0
    assert numbers['flicker/center_jitter'] == pytest.approx(0, abs=1e-6)
    assert numbers['flicker/objects_per_frame'] == 2
    moved = [32.0, 30, 52, 50]
    numbers = measured(FlickerMetric(), frame_samples([[box, other], [moved], [moved]]))
    assert numbers['flicker/vanishing'] == pytest.approx(1 / 3)
    assert numbers['flicker/appearing'] == 0
    assert numbers['flicker/center_jitter'] == pytest.approx(2 / 20 / 2, abs=1e-5)
    nothing = measured(FlickerMetric(score_threshold=0.95), steady)
    assert 'flicker/blinking' not in nothing and nothing['flicker/objects_per_frame'] == 0


def test_what_is_no_sequence_is_refused(classifier, tmp_path):
    samples = frame_samples([[[30.0, 30, 50, 50]]] * 3)
    with pytest.raises(MissingRecordError, match='expected all 3'):
        measured(FlickerMetric(), samples[:2])
    with pytest.raises(MissingRecordError, match='PanZoomDataset'):
        measured(FlickerMetric(), cls_samples([1]))
    with pytest.raises(ValueError, match='one label'):
        measured(CalibrationMetric(), samples)
    cfg = config_of(classifier, tmp_path, [])
    init_default_scope('mmpretrain')
    inner = cfg.val_dataloader.dataset
    for wrong in (dict(num_frames=1), dict(shares=(0.9, 0.5)), dict(max_images=0)):
        with pytest.raises(ValueError, match='expected'):
            PanZoomDataset(inner, **wrong)
    wrapped = [dict(type='lt_mm.InvertiblePipeline', transforms=inner.pipeline)]
    with pytest.raises(ValueError, match='not in an InvertiblePipeline'):
        PanZoomDataset(dict(inner, pipeline=wrapped))
