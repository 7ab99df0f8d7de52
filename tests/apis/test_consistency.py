"""The measurement of a checkpoint's consistency, and the tool that writes it."""

import csv
import json
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest

from lt_mm.apis.consistency import measure_consistency, probability_matrix
from lt_mm.evaluation import consistency_report
from tests import reference
from tests.evaluation.random_models import (  # noqa: F401 (fixtures)
    CONFIGS,
    classifier_fixture,
    detector_fixture,
    pictures_fixture,
    wrapped_options,
)
from tests.paths import TOOLS


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
