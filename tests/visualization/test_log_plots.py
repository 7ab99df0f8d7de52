"""Curves of several runs: resumed logs, epochs, panels."""

import json

import cv2
import pytest
from matplotlib.lines import Line2D

from lt_mm.visualization import log_plots
from lt_mm.visualization.log_plots import plot_logs, read_curves


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
            trained(8, 1, loss=2.5, lt_num_pairs=6.0),
            validated(1, accuracy__top1=20.0),
            trained(14, 2, loss=2.0),
            trained(18, 2, loss=1.5),
            validated(2, accuracy__top1=30.0),
        ],
    )
    curves = read_curves(str(tmp_path))
    assert curves['loss'] == ([4, 8, 14, 18], [3.0, 2.5, 2.0, 1.5])
    assert curves['lt_num_pairs'] == ([8], [6.0])
    assert curves['accuracy/top1'] == ([8, 18], [20.0, 30.0])
    assert curves['time'] == ([4, 8, 14, 18], [0.5] * 4)  # not that of the validation
    assert not {'iter', 'epoch', 'step'} & curves.keys()


def test_a_run_of_iterations(tmp_path):
    write(
        tmp_path,
        '20250101_000000',
        [trained(50, loss=3.0), validated(75, coco__bbox_mAP=0.1), trained(100, loss=2.0)],
    )
    curves = read_curves(str(tmp_path))
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
    curves = read_curves(str(tmp_path))
    assert curves['loss'] == ([10, 20, 23, 30], [3.0, 2.0, 1.8, 1.5])
    assert curves['accuracy/top1'] == ([10, 20, 30], [20.0, 30.0, 40.0])


def test_a_validation_that_is_run_again_first(tmp_path):
    write(tmp_path, '20250101_000000', [trained(10, 1, loss=3.0)])
    write(
        tmp_path, '20250102_000000', [validated(1, accuracy__top1=20.0), trained(20, 2, loss=2.0)]
    )
    curves = read_curves(str(tmp_path))
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
    curves = read_curves(str(tmp_path))
    assert curves['loss'] == ([10], [3.0]) and curves['accuracy/top1'] == ([10], [20.0])


def test_files_and_folders_of_one_start(tmp_path):
    log = write(tmp_path, 'start', [trained(1, 1, loss=3.0)], end='{"loss": 2')
    for path in (tmp_path, tmp_path / 'start', log):
        assert read_curves(str(path))['loss'] == ([1], [3.0])


def test_logs_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match='holds no log'):
        read_curves(str(tmp_path))
    log = write(tmp_path, 'start', [])
    log.write_text('{"iter"\n{"loss": 1, "iter": 1, "step": 1}\n')
    with pytest.raises(ValueError, match='line 1 of .*scalars.json'):
        read_curves(str(tmp_path))


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
                    lt_num_pairs=50.0,
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


def panels_of(monkeypatch, runs, out, **options):
    """For each panel the keys and colours of its curves."""
    figures = []
    monkeypatch.setattr(log_plots, 'save_figure', lambda figure, path: figures.append(figure))
    plot_logs(runs, str(out), **options)
    found = {}
    for axes in figures[0].axes:
        if axes.get_title():
            lines = [line for line in axes.lines if len(line.get_xdata())]
            found[axes.get_title()] = {
                (line.get_color(), line.get_linestyle()): list(line.get_ydata())
                for line in lines
                if isinstance(line, Line2D)
            }
    return found, figures[0]


def test_a_panel_a_group_of_keys(two_runs, tmp_path, monkeypatch):
    found, figure = panels_of(monkeypatch, two_runs, tmp_path / 'x.png')
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
    assert list(found['validation: coco'].values()) == [[0.1, 0.2], [0.2, 0.2]]
    assert list(found['validation: accuracy'].values()) == [[50.0]]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ['lt', 'plain']


def test_keys_that_are_asked_for(two_runs, tmp_path, monkeypatch):
    found, _ = panels_of(monkeypatch, two_runs, tmp_path / 'x.png', keys=['grad_norm', 'coco/*'])
    assert list(found) == ['grad_norm', 'coco/*'] and len(found['coco/*']) == 4
    with pytest.raises(ValueError, match=r"logged \['los'\].*'loss'"):
        plot_logs(two_runs, str(tmp_path / 'x.png'), keys=['los'])


def test_the_picture_and_the_report(two_runs, tmp_path):
    lt, plain = plot_logs(two_runs, str(tmp_path / 'new' / 'x.png'))
    assert cv2.imread(str(tmp_path / 'new' / 'x.png')).std() > 10
    assert str(lt) == 'lt: up to iteration 20, coco/bbox_mAP 0.2, coco/bbox_mAP_50 0.2'
    assert str(plain) == 'plain: up to iteration 8, accuracy/top1 50'


def test_names_without_what_they_share(tmp_path):
    assert log_plots._names(['/a/x/seed0', '/a/y/seed0']) == ['x/seed0', 'y/seed0']
    assert log_plots._names(['/a/x', '/a/x/start']) == ['x', 'start']
    assert log_plots._names(['/a/x/']) == ['x']
