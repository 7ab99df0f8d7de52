"""The measurement of robustness to corruptions, and the tool that writes its table."""

import json
import runpy

import numpy as np
import pytest
import torch

from lt_mm.apis.steadiness import robustness
from lt_mm.apis.steadiness.robustness import RobustnessReport, measure_robustness, table_of
from lt_mm.core.measures.robustness import mean_corrupted, mean_corruption_error, relative_corrupted
from lt_mm.core.seeds import seeded
from lt_mm.datasets.altered.corruption import Corruption
from tests.evaluation.random_models import classifier_fixture, detector_fixture, pictures_fixture  # noqa: F401 (fixtures)
from tests.paths import TOOLS

needs_corruptions = pytest.mark.skipif(
    not robustness.is_installed(), reason='imagecorruptions is not installed'
)


def test_means_are_those_of_the_definitions():
    errors, baseline = np.random.default_rng(0).uniform(0.1, 0.9, (2, 3, 5))
    own, its = torch.from_numpy(errors), torch.from_numpy(baseline)
    expected = np.mean([sum(errors[k]) / sum(baseline[k]) for k in range(3)])
    assert mean_corruption_error(own, its) == pytest.approx(expected)
    assert mean_corruption_error(its, its) == pytest.approx(1)
    assert mean_corruption_error(own, torch.zeros(3, 5)) is None
    assert relative_corrupted(own, 0.5) == pytest.approx(errors.mean() / 0.5)
    assert (
        mean_corrupted(own) == pytest.approx(errors.mean()) and relative_corrupted(own, 0) is None
    )
    with pytest.raises(ValueError, match='same kinds'):
        mean_corruption_error(own, its[:2])


def test_the_error_of_corruption_is_relative_to_the_baseline():
    def report(*values, left_out=()):
        rows = torch.tensor(values, dtype=torch.float64)
        return RobustnessReport('accuracy/top1', 0.8, ['fog', 'snow'], [1, 5], rows, dict(left_out))

    own = report((0.8, 0.6), (0.4, 0.2), left_out=dict(frost='ValueError: too small'))
    plain = report((0.6, 0.2), (0.4, 0.2))
    assert own.numbers(plain)['mCE'] == pytest.approx((0.6 / 1.2 + 1) / 2)
    assert own.numbers()['rPC'] == pytest.approx(0.5 / 0.8) and own.numbers()['fog'] == 0.7
    assert 'left out: frost (ValueError: too small)' in table_of(own, plain)


def test_what_cannot_be_measured_is_refused(classifier, monkeypatch):
    config, checkpoint, options = classifier
    with pytest.raises(ValueError, match='gaussian_noise'):
        measure_robustness(config, checkpoint, kinds=['rain'], cfg_options=options)
    monkeypatch.setattr(robustness, 'is_installed', lambda: False)
    with pytest.raises(ImportError, match='pip install imagecorruptions-imaug'):
        measure_robustness(config, checkpoint, cfg_options=options)


@needs_corruptions
def test_corruptions_depend_on_the_seed_alone_and_are_those_of_rgb():
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    transform = Corruption()
    for transform.kind in robustness.KINDS:
        with seeded(3):
            first = transform(dict(img=image))['img']
        with seeded(3):
            bgr = transform(dict(img=image[..., ::-1], img_path='a.jpg'))['img']
        assert first.shape == image.shape and first.dtype == np.uint8
        assert not np.array_equal(first, image), transform.kind
        np.testing.assert_array_equal(bgr[..., ::-1], first, err_msg=transform.kind)
    assert transform(dict(img=image[..., :1]))['img'].shape == (40, 50, 1)
    transform.kind = None
    assert transform(dict(img=image))['img'] is image


@needs_corruptions
def test_corrupted_images_reach_the_model(classifier, tmp_path, monkeypatch):
    """Each run of the evaluation sees its own corruption, and the same in every measurement."""
    from mmpretrain.models import ImageClassifier

    seen = []
    stock = ImageClassifier.test_step

    def test_step(model, data):
        seen.append(torch.stack(list(data['inputs'])).double().mean().item())
        return stock(model, data)

    monkeypatch.setattr(ImageClassifier, 'test_step', test_step)
    config, checkpoint, options = classifier
    given = dict(
        kinds=['gaussian_noise', 'brightness'],
        severities=[1, 5],
        max_images=2,
        cfg_options=options,
        work_dir=str(tmp_path),
    )
    report = measure_robustness(config, checkpoint, **given)
    assert report.values.shape == (2, 2) and not report.left_out and 0 <= report.clean <= 1
    clean, _, _, little, much = seen
    assert len(set(seen)) == 5 and clean < little < much
    again = list(seen)
    seen.clear()
    assert torch.equal(measure_robustness(config, checkpoint, **given).values, report.values)
    assert seen == again


@needs_corruptions
def test_tool_on_a_detector_and_its_baseline(detector, tmp_path, capsys):
    config, checkpoint, options = detector
    tool = runpy.run_path(str(TOOLS / 'analysis' / 'robustness.py'))
    command = [config, checkpoint, '--baseline', config, checkpoint, '--out', tmp_path]
    command += ['--kinds', 'contrast', '--severities', 3, '--cfg-options']
    tool['main'](
        [str(each) for each in command]
        + [f'{key}={value}' for key, value in options.items() if not isinstance(value, dict)]
    )
    found = json.loads((tmp_path / 'robustness.json').read_text())
    assert found['metric'] == 'coco/bbox_mAP' and found['mPC'] == found['contrast']
    assert found['values'] == found['baseline']['values'] and 'rPC' in capsys.readouterr().out
    with pytest.raises(ValueError, match='annotations of all images'):
        measure_robustness(
            config, checkpoint, ['fog'], [1], 1, cfg_options=options, work_dir=str(tmp_path)
        )
