"""tools/experiments: runs that resume, what is read of their logs, tables."""

import copy
import importlib.util
import json
import os
import runpy
from argparse import Namespace

import numpy as np
import pandas as pd
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData

from lt_mm.visualization.training_log import read_log
from tests.engine.interrupted_runs import validation, weights, write_config
from tests.evaluation.random_models import detector_fixture  # noqa: F401 (a fixture)
from tests.paths import TOOLS
from tests.training_data import write_pictures

STUDIES = sorted((TOOLS / 'experiments' / 'studies').glob('*.py'))


def load(name, folder='experiments'):
    spec = importlib.util.spec_from_file_location(name, TOOLS / folder / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


run, report, shifts = load('run'), load('report'), load('shifts')
plots = load('plot_logs', 'analysis')


@pytest.fixture(params=STUDIES, ids=lambda path: path.stem)
def study(request):
    return runpy.run_path(str(request.param))


def test_settings_of_a_study_fit_their_configs(study):
    configs = {}
    for config, settings, *initial in study['runs'].values():
        if config not in configs:
            configs[config] = Config.fromfile(config)
        cfg = copy.deepcopy(configs[config])
        cfg.merge_from_dict(settings)
        # A name that is misspelt would be added beside the one that is meant.
        for key in settings:
            *path, last = key.split('.')
            whole = configs[config]
            for name in path:
                whole = whole.get(name, {})
            assert last in whole or key in _ADDED, key
        assert all(name in study['runs'] for name in initial)


# What the base configs leave at its default.
_ADDED = {
    *(
        f'model.{head}.{name}'
        for head in ('head', 'roi_head', 'bbox_head')
        for name in ('detach_mean', 'allow_unrepeated', 'rho_bbox', 'rho_obj', 'pairing')
    ),
    'model.train_cfg.augments',
    'data_preprocessor.type',
    'train_cfg.val_interval',
    'train_dataloader.dataset.indices',
    *(f'train_dataloader.sampler.{name}' for name in ('repeat_fraction', 'start_epoch')),
}


def test_tables_and_figures_name_runs(study):
    names = set(study['runs'])
    tables = study['sections'].values()
    assert {name for entries in tables for pair in entries for name in pair} - {None} <= names
    assert {run for entries in tables for run, _ in entries} == names
    for figure in study['figures'].values():
        series = figure.get('series', {0: dict(enumerate(figure.get('runs', [])))})
        assert {name for levels in series.values() for name in levels.values()} <= names


def write_log(folder, stamp, entries):
    path = folder / stamp / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text('\n'.join(map(json.dumps, entries)))


def test_curve_of_an_interrupted_run(tmp_path):
    """Iteration 4 was done twice; the second log counts."""
    steps = [
        dict(
            epoch=1 + i // 2,
            iter=i + 1,
            step=i + 1,
            loss=float(i),
            loss_lt_cls=0.5,
            lt_paired_share=1.0,
        )
        for i in range(4)
    ]
    again = dict(steps[3], loss=10.0)
    write_log(tmp_path, '20260101_000000', [*steps[:2], dict(step=1, acc=0.25), *steps[2:]])
    write_log(tmp_path, '20260102_000000', [again, dict(step=2, acc=0.5)])
    (tmp_path / 'summary.json').write_text(json.dumps(dict(images_per_step=8)))
    first, last = run.read_curve(tmp_path, 'acc', 100).to_dict('records')
    assert first == dict(images=16, metric=25, loss=0.5, loss_lt=0.5, paired_share=1)
    assert last == dict(images=32, metric=50, loss=6.0, loss_lt=0.5, paired_share=1)
    with pytest.raises(ValueError, match=r"no 'top1' in .*scalars.json.*'acc', .*`metric`"):
        run.read_curve(tmp_path, 'top1', 100)


@pytest.mark.filterwarnings('ignore:.*is left out, it holds no entry')
def test_logs_that_were_cut_by_a_kill(tmp_path):
    """Wherever the kill was in a line: the entries before it and of the next start are read."""
    steps = [dict(epoch=1, iter=i, step=i, loss=0.5, acc=float('nan')) for i in (1, 2)]
    line = json.dumps(steps[1])
    for end in range(len(line)):
        write_log(tmp_path / f'run{end}', '20260101_000000', [steps[0]])
        write_log(tmp_path / f'run{end}', '20260102_000000', [steps[1]])
        path = next(tmp_path.glob(f'run{end}/20260101*/vis_data/scalars.json'))
        path.write_text(path.read_text() + '\n' + line[:end])
        (tmp_path / f'run{end}' / 'summary.json').write_text(json.dumps(dict(images_per_step=8)))
        first, second = read_log(tmp_path / f'run{end}')
        assert first[0]['iter'] == 1 and len(first) == 1 and second[0]['iter'] == 2
    last = tmp_path / f'run{end}'
    write_log(last, '20260103_000000', [dict(step=1, acc=0.5)])
    assert run.read_curve(last, 'acc', 1).metric.tolist() == [0.5]
    assert plots.read_run(str(last)).loss.tolist() == [0.5, 0.5]
    path.write_text('\x00\x00\n"text"\n' + json.dumps(steps[0]) + '\n')  # a power failure
    with pytest.warns(UserWarning, match='scalars.json:1 is left out') as caught:
        assert [entry['iter'] for entry in read_log(last)[0]] == [1]
    assert len(caught) == 2


def test_rows_are_written_in_one_step_and_once(tmp_path, monkeypatch):
    path = tmp_path / 'new' / 'test.csv'
    for seed, metric in [(0, 1.5), (10, 2.5), (0, 3.5)]:
        run.append(path, 'plain', seed, pd.DataFrame([dict(metric=metric)]))
    expected = 'run,seed,metric\nplain,10,2.5\nplain,0,3.5\n'
    assert path.read_text() == expected
    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', lambda *paths: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run.append(path, 'plain', 1, pd.DataFrame([dict(metric=1.0)]))
    assert path.read_text() == expected
    path.write_text(expected + 'plain,1')  # of seed 11, by an earlier version
    assert run.recorded(path) == {('plain', 0), ('plain', 10)}
    run.append(path, 'other', 0, pd.DataFrame([dict(metric=4.5)]))
    assert path.read_text() == expected + 'other,0,4.5\n'
    path.write_text('run,se')
    assert run.recorded(path) == set()


def test_rows_with_other_columns_are_refused(tmp_path):
    """As after a change of the corruptions that a study names."""
    path = tmp_path / 'corruptions.csv'
    run.append(path, 'plain', 0, pd.DataFrame([dict(clean=0.5, fog=0.2)]))
    before = path.read_text()
    with pytest.raises(ValueError, match='clean,fog.*clean,snow.*measure all runs again'):
        run.append(path, 'plain', 1, pd.DataFrame([dict(clean=0.5, snow=0.1)]))
    assert path.read_text() == before


def test_differences_of_means():
    values, others = pd.Series([3.0, 5.0, 7.0]), pd.Series([1.0, 2.0, 3.0, 6.0])
    difference, error = report.difference_of_means(values, others)
    assert difference == 2
    assert error == pytest.approx(np.sqrt(np.var(values, ddof=1) / 3 + np.var(others, ddof=1) / 4))
    difference, error = report.difference_of_means(pd.Series([2.0]), others)
    assert difference == -1 and np.isnan(error)
    assert report.show_difference(difference, error) == '-1.0'


def test_differences_that_are_paired_by_seed():
    """The seeds differ much, and the runs of one seed little; seed 3 has no partner."""
    values = pd.Series([30.0, 41.0, 54.0, 7.0], index=[0, 1, 2, 3])
    others = pd.Series([50.0, 29.0, 40.0], index=[2, 0, 1])
    difference, error = report.paired_difference(values, others)
    assert difference == pytest.approx((1 + 1 + 4) / 3)
    assert error == pytest.approx(np.std([1, 1, 4], ddof=1) / np.sqrt(3))
    assert report.show_difference(difference, error) == '+2.0 (± 1.0)'
    assert report.show_difference(*report.paired_difference(values, others[[0]])) == '+1.0'
    assert report.show_difference(*report.paired_difference(values[[3]], others)) == ''


def test_table_of_a_paired_study():
    rows = [('a', 0, 30.0), ('a', 1, 41.0), ('b', 1, 40.0), ('b', 0, 28.0)]
    runs = pd.DataFrame(rows, columns=['run', 'seed', 'metric']).set_index('run').assign(images=8)
    consistency = runs.rename(columns=dict(metric='mean_iou'))
    study = dict(
        paired=True,
        metric_name='AP',
        runs=dict.fromkeys('ab'),
        measured=dict(mean_iou='IoU', mPC='mPC'),  # the latter was not measured yet
        sections={'All': [('a', 'b')], 'Later': [('b', 'a')], 'Not yet': [('c', 'a')]},
    )
    text = report.table(study, runs, consistency)
    assert '### Later' in text and '### Not yet' not in text
    tested = report.test_table(study, runs[['seed', 'metric']]).splitlines()
    assert '| `a` | 35.5 ± 7.8 | `b` | +1.5 (± 0.5) |' in tested
    assert '| `b` | 34.0 ± 8.5 | `a` | -1.5 (± 0.5) |' in tested
    (line,) = [row for row in text.splitlines() if row.startswith('| `a`')]
    assert '| `b` | +1.5 (± 0.5) |' in line
    assert line.endswith('± 7.778, +1.500 (± 0.500) |')
    alone = report.table(study, runs, consistency[consistency.seed != (consistency.index == 'a')])
    (line,) = [row for row in alone.splitlines() if row.startswith('| `a`')]
    assert line.endswith('| 30.000 |')  # no seed of it is one of b's
    assert report.test_table(study, pd.DataFrame()) == ''


def test_a_pilot_does_not_count_beside_the_seeds_of_the_study():
    rows = [('a', 0, 30.0), ('a', 5, 90.0), ('a', 1, 40.0), ('b', 5, 28.0)]
    runs = pd.DataFrame(rows, columns=['run', 'seed', 'metric']).set_index('run')
    kept = report.without_pilots(dict(seeds=[0, 1]), runs)
    assert list(kept.itertuples(name=None)) == [('a', 0, 30.0), ('a', 1, 40.0), ('b', 5, 28.0)]
    assert report.without_pilots(dict(seeds=[0, 1]), pd.DataFrame()).empty


def arguments(tmp_path, **more):
    return Namespace(
        study=tmp_path / 'small.py',
        only=['*'],
        seeds=None,
        results=tmp_path / 'results',
        work_dir=tmp_path / 'runs',
        **more,
    )


def test_a_forward_pass_in_bfloat16():
    model = torch.nn.Conv2d(3, 4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper = load('bfloat16').BFloat16OptimWrapper(optimizer)
    before = model.weight.detach().clone()
    with wrapper.optim_context(model):
        output = model(torch.ones(2, 3, 8, 8))
    assert output.dtype == torch.bfloat16
    assert output.is_contiguous(memory_format=torch.channels_last)
    wrapper.update_params(output.float().sum())
    # The gradient of each weight is the number of its places, exact in bfloat16.
    torch.testing.assert_close(before - model.weight, torch.full_like(before, 0.1 * 2 * 36))
    assert model.weight.dtype == torch.float32


def test_a_study_from_its_runs_to_its_table(tmp_path, monkeypatch):
    """Real runs in this process: one goes on from another, and none is done twice."""
    pictures = write_pictures(tmp_path / 'pictures')
    tested = {name.replace('val_', 'test_'): data for name, data in validation(pictures).items()}
    settings = {**validation(pictures), **tested, 'default_hooks.logger.interval': 1}
    config = str(write_config(pictures, tmp_path, **settings))
    monkeypatch.setattr(
        run,
        'in_process',
        lambda args, name, seed: run.train(study, name, seed, args.work_dir) is None,
    )
    rate = 'optim_wrapper.optimizer.lr'
    study = dict(
        metric='accuracy/top1',
        metric_name='Top-1',
        seeds=[0],
        scale=1,
        bfloat16=True,
        consistency=dict(num_replicas=2, max_images=4),
        steadiness=dict(num_frames=3, max_images=4),
        corruptions=dict(kinds=('fog', 'contrast'), severities=(5,)),
        measured=dict(agreement='Agreement', label_changes='Flicker', mPC='Corrupted'),
        runs=dict(tuned=(config, {rate: 0.0}, 'plain'), plain=(config, {})),
        sections={'All': [('plain', None), ('tuned', 'plain')]},
        figures={},
    )
    args = arguments(tmp_path)
    assert run.pending_runs(study, args) == [('tuned', 0), ('plain', 0)]
    assert run.do_run(study, args, 'tuned', 0)
    assert run.pending_runs(study, args) == [('plain', 0)]
    assert run.do_run(study, args, 'plain', 0)
    # With a rate of 0 what is learnt stays as the other run left it.
    tuned, plain = (weights(run.last_checkpoint(args.work_dir, name, 0)) for name in study['runs'])
    learnt = [name for name in plain if name.endswith('weight')]
    assert {plain[name].dtype for name in learnt} == {torch.float32}
    (dumped,) = run.folder_of(args.work_dir, 'plain', 0).glob('*.py')
    assert 'BFloat16OptimWrapper' in dumped.read_text()
    assert learnt and all(torch.equal(tuned[name], plain[name]) for name in learnt)
    runs = report.read(args.results / 'runs.csv')
    assert list(runs.index) == ['tuned', 'plain']
    measured = report.read(args.results / 'consistency.csv')
    assert 0 <= measured.agreement['plain'] <= 1
    run.test_runs(study, args)
    tested = report.read(args.results / 'test.csv')
    assert sorted(tested.index) == ['plain', 'tuned']
    assert tested.metric['plain'] == runs.metric['plain']  # the test data are the validation's
    pytest.importorskip('imagecorruptions')
    run.measure_runs(study, args)
    corrupted = report.read(args.results / 'corruptions.csv').loc['plain']
    assert corrupted.mPC == pytest.approx((corrupted.fog + corrupted.contrast) / 2, abs=1e-4)
    assert corrupted.clean == pytest.approx(runs.metric['plain'] / 100, abs=1e-4)
    steady = report.read(args.results / 'steadiness.csv')
    changes = steady.label_changes['plain'] * 8  # 2 pairs of frames of 4 images
    assert changes == round(changes)
    text = report.table(study, runs, report.read_measured(args.results))
    assert '| `tuned` |' in text and '| `plain` | +0.0 |' in text
    assert text.splitlines()[2].endswith('| Agreement | Flicker | Corrupted |')
    shown = [f'{value:.3f}' for value in (steady.label_changes['plain'], corrupted.mPC)]
    assert [cell.strip() for cell in text.splitlines()[4].split('|')[-3:-1]] == shown


def test_a_shifted_image_is_the_image_in_another_place():
    image = torch.arange(2 * 5 * 7, dtype=torch.uint8).view(2, 5, 7)
    for shift in range(4):
        found = shifts.shifted(image, shift, room=3)
        assert found.shape == (2, 8, 10) and found.dtype == torch.uint8
        start = 3 - shift
        assert torch.equal(found[:, start : start + 5, start : start + 7], image)


class _BrightRectangle:
    """Finds the pixels that are 255."""

    def test_step(self, data):
        (image,), (sample,) = data['inputs'], data['data_samples']
        assert sample.img_shape == image.shape[1:]
        y, x = (image[0] == 255).nonzero().unbind(1)
        box = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()[None]
        sample.pred_instances = InstanceData(
            bboxes=box, labels=torch.tensor([0]), scores=torch.tensor([0.9])
        )
        return [sample]


def test_boxes_of_shifted_images_are_brought_back():
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    image[:, 10:20, 30:50] = 255
    sample = dict(inputs=image, data_samples=DetDataSample())
    for shift in range(5):
        found = shifts._detections(_BrightRectangle(), sample, shift, 4, score_threshold=0.3)
        assert found.boxes.tolist() == [[34, 14, 54, 24]]
        assert found.window.tolist() == [4, 4, 64, 44]
        none = shifts._detections(_BrightRectangle(), sample, shift, 4, score_threshold=0.95)
        assert not len(none.boxes)


def test_a_detector_has_no_jitter_without_a_shift(detector, tmp_path):
    config, checkpoint, settings = detector
    options = dict(max_images=2, score_threshold=0.0, cfg_options=settings)
    found = shifts.measure_shifts(config, checkpoint, (0, 5), work_dir=str(tmp_path), **options)
    names = 'center_jitter', 'size_jitter', 'score_swing', 'blinking'
    assert [found[f'{name}_0'] for name in names] == [0] * 4
    assert found['blinking_5'] > 0  # a model with random weights
