"""Curves of several runs: resumed logs, epochs, panels."""

import json
import runpy

import cv2
import pytest

from tests.paths import TOOLS

TOOL = runpy.run_path(str(TOOLS / 'analysis' / 'plot_logs.py'))


def read_curves(work_dir):
    """For each key the iterations where it was logged, and the values there."""
    log = TOOL['read_run'](str(work_dir))
    curves = {key: log[key].dropna() for key in log}
    return {key: (list(curve.index), curve.tolist()) for key, curve in curves.items()}


def trained(iteration, epoch=None, **values):
    entry = dict(lr=0.1, time=0.5, data_time=0.1, **values, iter=iteration, step=iteration)
    return entry if epoch is None else dict(entry, epoch=epoch)


def validated(step, **values):
    return dict(
        {name.replace('__', '/'): value for name, value in values.items()},
        data_time=9.0,
        time=9.0,
        step=step,
    )


def write(run, start, entries, end=''):
    folder = run / start / 'vis_data'
    folder.mkdir(parents=True)
    lines = ''.join(json.dumps(entry) + '\n' for entry in entries)
    (folder / 'scalars.json').write_text(lines + end)
    return folder / 'scalars.json'


def test_a_run_of_epochs(tmp_path):
    """10 iterations an epoch, logged every 4; validated by epoch."""
    write(
        tmp_path,
        '20250101_000000',
        [
            trained(4, 1, loss=3.0),
            trained(8, 1, loss=2.5, lt_num_paired=6.0),
            validated(1, accuracy__top1=20.0),
            trained(14, 2, loss=2.0),
            trained(18, 2, loss=1.5),
            validated(2, accuracy__top1=30.0),
        ],
    )
    curves = read_curves(tmp_path)
    assert curves['loss'] == ([4, 8, 14, 18], [3.0, 2.5, 2.0, 1.5])
    assert curves['lt_num_paired'] == ([8], [6.0])
    assert curves['accuracy/top1'] == ([8, 18], [20.0, 30.0])
    assert curves['time'] == ([4, 8, 14, 18], [0.5] * 4)  # not that of the validation


def test_a_run_of_iterations(tmp_path):
    write(
        tmp_path,
        '20250101_000000',
        [trained(50, loss=3.0), validated(75, coco__bbox_mAP=0.1), trained(100, loss=2.0)],
    )
    curves = read_curves(tmp_path)
    assert curves['coco/bbox_mAP'] == ([75], [0.1])


def test_a_resumed_run(tmp_path):
    """It stopped after iteration 28, in epoch 3, and went on from the end of epoch 2."""
    write(
        tmp_path,
        '20250101_000000',
        [
            trained(10, 1, loss=3.0),
            validated(1, accuracy__top1=20.0),
            trained(20, 2, loss=2.0),
            validated(2, accuracy__top1=30.0),
            trained(24, 3, loss=99.0),
            trained(28, 3, loss=99.0),
        ],
    )
    write(
        tmp_path,
        '20250102_000000',
        [
            # In the log of a resumed epoch the grid may be another.
            trained(23, 3, loss=1.8),
            trained(30, 3, loss=1.5),
            validated(3, accuracy__top1=40.0),
        ],
    )
    curves = read_curves(tmp_path)
    assert curves['loss'] == ([10, 20, 23, 30], [3.0, 2.0, 1.8, 1.5])
    assert curves['accuracy/top1'] == ([10, 20, 30], [20.0, 30.0, 40.0])


def test_a_validation_that_is_run_again_first(tmp_path):
    write(tmp_path, '20250101_000000', [trained(10, 1, loss=3.0)])
    write(
        tmp_path, '20250102_000000', [validated(1, accuracy__top1=20.0), trained(20, 2, loss=2.0)]
    )
    curves = read_curves(tmp_path)
    assert curves['accuracy/top1'] == ([10], [20.0]) and curves['loss'][0] == [10, 20]


def test_a_run_that_began_anew(tmp_path):
    write(
        tmp_path,
        '20250101_000000',
        [
            trained(10, 1, loss=9.0),
            validated(1, accuracy__top1=9.0),
            trained(20, 2, loss=9.0),
            validated(2, accuracy__top1=9.0),
        ],
    )
    write(
        tmp_path, '20250102_000000', [trained(10, 1, loss=3.0), validated(1, accuracy__top1=20.0)]
    )
    curves = read_curves(tmp_path)
    assert curves['loss'] == ([10], [3.0]) and curves['accuracy/top1'] == ([10], [20.0])


def test_a_log_that_is_being_written(tmp_path):
    write(tmp_path, 'start', [trained(1, 1, loss=3.0)], end='{"loss": 2')
    assert read_curves(tmp_path)['loss'] == ([1], [3.0])


def test_no_log(tmp_path):
    with pytest.raises(FileNotFoundError, match='holds no log'):
        read_curves(tmp_path)


@pytest.fixture
def two_runs(tmp_path):
    """A detector with LossTransform, and a plain classifier."""
    write(
        tmp_path / 'lt',
        'start',
        [
            entry
            for n in (1, 2)
            for entry in (
                trained(
                    10 * n,
                    n,
                    loss=3.0,
                    loss_cls=1.0,
                    loss_rpn_bbox=0.5,
                    loss_lt_cls=0.1,
                    loss_rpn_lt_cls=0.1,
                    lt_kl_cls=0.2,
                    lt_num_paired=50.0,
                    lt_paired_share=0.9,
                    grad_norm=7.0,
                ),
                validated(
                    n,
                    coco__bbox_mAP=0.1 * n,
                    coco__bbox_mAP_50=0.2,
                    coco__bbox_mAP_75=0.1,
                    coco__bbox_mAP_s=0.0,
                ),
            )
        ],
    )
    write(tmp_path / 'plain', 'start', [trained(8, 1, loss=2.0), validated(1, accuracy__top1=50.0)])
    return [str(tmp_path / 'lt'), str(tmp_path / 'plain')]


def drawn_curves(monkeypatch, runs, out, *arguments):
    """For each panel the colours, dashes and values of its curves."""
    figures = []
    monkeypatch.setitem(
        TOOL['main'].__globals__, 'save_figure', lambda figure, path: figures.append(figure)
    )
    TOOL['main']([*runs, '--out', str(out), *arguments])
    return {
        axes.get_title(): {
            (line.get_color(), line.get_linestyle()): list(line.get_ydata()) for line in axes.lines
        }
        for axes in figures[0].axes
    }


def test_a_panel_a_group_of_keys(two_runs, tmp_path, monkeypatch):
    found = drawn_curves(monkeypatch, two_runs, tmp_path / 'x.png')
    assert list(found) == [
        'total loss',
        'stock losses',
        'consistency terms, times rho',
        'consistency terms (KL)',
        'paired predictions a step',
        'paired share of the instances',
        'validation: accuracy',
        'validation: coco',
    ]
    first, second = found['total loss']
    assert first[0] != second[0]  # a colour a run
    assert list(found['total loss'].values()) == [[3.0, 3.0], [2.0]]
    assert list(found['stock losses'].values()) == [[1.0, 1.0], [0.5, 0.5]]
    assert len({dashes for _, dashes in found['stock losses']}) == 2
    assert len(found['consistency terms, times rho']) == 2
    assert list(found['validation: coco'].values())[:2] == [[0.1, 0.2], [0.2, 0.2]]
    assert list(found['validation: accuracy'].values()) == [[50.0]]


def test_keys_that_are_asked_for(two_runs, tmp_path, monkeypatch):
    found = drawn_curves(monkeypatch, two_runs, tmp_path / 'x.png', '--keys', 'grad_norm', 'coco/*')
    assert list(found) == ['grad_norm', 'coco/*'] and len(found['coco/*']) == 4
    with pytest.raises(ValueError, match=r"not log \['los'\].*'loss'"):
        TOOL['main']([*two_runs, '--out', str(tmp_path / 'x.png'), '--keys', 'los'])


def test_the_picture_and_the_last_metrics(two_runs, tmp_path, capsys):
    TOOL['main']([*two_runs, '--out', str(tmp_path / 'new' / 'x.png')])
    assert cv2.imread(str(tmp_path / 'new' / 'x.png')).std() > 10
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == two_runs
    assert ['coco/bbox_mAP', '0.2', '-'] in rows and ['accuracy/top1', '-', '50.0'] in rows
