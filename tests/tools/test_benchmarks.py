"""The frame of tools/benchmarks: targets, medians, peaks, tables. No times."""

import sys

import pytest
import torch

from tests.paths import TOOLS

BENCHMARKS = TOOLS / 'benchmarks'


@pytest.fixture
def frame(monkeypatch):
    """The modules ``timing`` and ``run``, imported as the command imports them."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import run
    import timing

    yield timing, run
    for name in ('run', 'timing'):
        del sys.modules[name]


def row(timing, **fields):
    return timing.Row(
        **{**dict(what='a', against='b', ratio=1.5, low=1.4, high=1.7, unit='x time'), **fields}
    )


@pytest.mark.parametrize(
    'target, met',
    [('', None), ('<= 1.5', True), ('<= 1.4', False), ('>= 1.5', True), ('>= 10', False)],
)
def test_targets(frame, target, met):
    assert row(frame[0], target=target).met is met


def test_target_of_another_form(frame):
    with pytest.raises(ValueError, match="target is '< 2'; expected '<= x'"):
        _ = row(frame[0], target='< 2').met


def test_comparison(frame, monkeypatch):
    """Times that are told: a drifts with b, and the quartiles of the ratio stay."""
    timing, _ = frame
    told = {'a': iter([2.0, 4, 6, 8, 30]), 'b': iter([1.0, 2, 3, 4, 5])}
    timer = timing.Timer('cpu', quick=True)
    monkeypatch.setattr(timer, 'once', lambda function: next(told[function()]))
    compared = timer.compare(lambda: 'a', lambda: 'b')
    assert (compared.a, compared.b, compared.ratio) == (6, 3, 2)
    assert (compared.low, compared.high) == (2, 2)
    assert compared.faster == (0.5, 0.5, 0.5)


def test_peak(frame):
    """Three tensors are made, two are alive at once."""
    x = torch.zeros(1000, 250)
    peak = frame[0].Timer('cpu').peak_bytes(lambda: (x + 1).mul(2).add(3))
    assert 2 * x.nbytes <= peak < 2.1 * x.nbytes


def test_every_benchmark_has_its_function(frame):
    _, run = frame
    assert {'geometry', 'sampler', 'term'} <= set(run.NAMES)
    for name in run.NAMES:
        assert 'def measure(timer: Timer, quick: bool)' in (BENCHMARKS / f'{name}.py').read_text()


def test_files(frame, tmp_path):
    timing, run = frame
    rows = [
        row(timing, target='<= 1.6', note='small'),
        row(timing, target='>= 10'),
        row(timing, curve='Time: sizes', x=1),
        row(timing, curve='Time: sizes', x=2),
    ]
    run.write(tmp_path, 'a machine', False, {'term': rows})
    table = (tmp_path / 'table.md').read_text().splitlines()
    assert table[0] == 'a machine'
    assert table[4:] == [
        '| term | a | b | 1.5 x time [1.4, 1.7] | <= 1.6 met | small |',
        '| term | a | b | 1.5 x time [1.4, 1.7] | >= 10 **missed** |  |',
    ]
    assert len((tmp_path / 'table.csv').read_text().splitlines()) == 5
    assert (tmp_path / 'plot.png').stat().st_size > 1000
