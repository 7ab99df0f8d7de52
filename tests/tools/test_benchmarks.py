"""The frame of tools/benchmarks: targets, medians, peaks, tables. No times."""

import time
from dataclasses import asdict

import pandas as pd
import pytest
import torch

from tests.paths import TOOLS
from tools.benchmarks import run, timing


def row(**fields):
    return timing.Row(
        **{**dict(what='a', against='b', value=(1.5, 1.4, 1.7), unit='x time'), **fields}
    )


@pytest.mark.parametrize(
    'target, met',
    [('', None), ('<= 1.5', True), ('<= 1.4', False), ('>= 1.5', True), ('>= 10', False)],
)
def test_targets(target, met):
    assert row(target=target).met is met


def test_target_of_another_form():
    with pytest.raises(ValueError, match="target is '< 2'; expected '<= x'"):
        row(target='< 2')


def test_single_figures():
    one = row(value=3)
    assert (one.ratio, one.low, one.high) == (3, 3, 3)


def test_comparison(monkeypatch):
    """Times that are told: a drifts with b, and the quartiles of the ratio stay."""
    told = {'a': iter([2.0, 4, 6, 8, 30]), 'b': iter([1.0, 2, 3, 4, 5])}
    timer = timing.Timer('cpu', quick=True)
    monkeypatch.setattr(timer, 'once', lambda function: next(told[function()]))
    compared = timer.compare(lambda: 'a', lambda: 'b')
    assert (compared.a, compared.b) == (6, 3)
    assert compared.ratio.tolist() == [2, 2, 2]
    assert compared.faster.tolist() == [0.5, 0.5, 0.5]


def test_quartiles_of_a_comparison(monkeypatch):
    """The quartiles change places where the ratio is turned round."""
    told = {'a': iter([1.0, 2, 4, 8, 16]), 'b': iter([4.0] * 5)}
    timer = timing.Timer('cpu', quick=True)
    monkeypatch.setattr(timer, 'once', lambda function: next(told[function()]))
    compared = timer.compare(lambda: 'a', lambda: 'b')
    assert compared.ratio.tolist() == [1, 0.5, 2]
    assert compared.faster.tolist() == [1, 0.5, 2]


def test_seconds():
    median, low, high = timing.Timer('cpu', quick=True).seconds(lambda: time.sleep(0.01))
    assert 0.01 <= low <= median <= high


def test_peak():
    """Three tensors are made, two are alive at once."""
    x = torch.zeros(1000, 250)
    peak = timing.Timer('cpu').peak_bytes(lambda: (x + 1).mul(2).add(3))
    assert 2 * x.nbytes <= peak < 2.1 * x.nbytes


def code(name):
    return (TOOLS / 'benchmarks' / f'{name}.py').read_text()


def test_every_benchmark_has_its_function():
    assert {'geometry', 'sampler', 'term'} <= set(run.NAMES)
    for name in run.NAMES:
        assert 'def measure(timer: Timer, quick: bool)' in code(name)


def test_files(tmp_path):
    rows = [
        row(target='<= 1.6', note='small'),
        row(target='>= 10'),
        row(curve='Time: sizes', x=1),
        row(curve='Time: sizes', x=2),
    ]
    run.write(tmp_path, 'a machine', pd.DataFrame(dict(asdict(r), benchmark='term') for r in rows))
    table = (tmp_path / 'table.md').read_text().splitlines()
    assert table[0] == 'a machine'
    assert table[4:] == [
        '| term | a | b | 1.5 x time [1.4, 1.7] | <= 1.6 met | small |',
        '| term | a | b | 1.5 x time [1.4, 1.7] | >= 10 **missed** |  |',
    ]
    assert pd.read_csv(tmp_path / 'table.csv').met[:2].tolist() == [True, False]
    assert len(pd.read_csv(tmp_path / 'table.csv')) == 4
    assert (tmp_path / 'plot.png').stat().st_size > 1000
