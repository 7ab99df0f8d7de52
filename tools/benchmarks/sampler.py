"""The order of an epoch: against MMPretrain's RepeatAugSampler, and its memory."""

from collections import deque
from collections.abc import Iterable

from mmpretrain.datasets.samplers import RepeatAugSampler

from lt_mm.datasets.samplers.repeat_aug import GroupedRepeatAugSampler
from tools.benchmarks.timing import Row, Timer, peak_of_process

NUM_REPEATS = 4

_ORDER = """
from itertools import islice
from lt_mm.datasets.samplers.repeat_aug import GroupedRepeatAugSampler
sampler = GroupedRepeatAugSampler(range({sources}), {repeats}, mode={mode!r}, seed=0)
for index in islice(sampler, {taken}):
    pass
"""


def measure(timer: Timer, quick: bool) -> list[Row]:
    sources = 100_000 if quick else 1_280_000
    ours = GroupedRepeatAugSampler(range(sources), NUM_REPEATS, seed=0)
    short = GroupedRepeatAugSampler(range(sources), NUM_REPEATS, mode='v1', seed=0)
    stock = RepeatAugSampler(range(sources), num_repeats=NUM_REPEATS, seed=0)
    rows = []
    for what, sampler in [('full', ours), ('v1', short)]:
        for part, run in [('until the first index', _first), ('all indices', _all)]:
            time = timer.compare(lambda: run(sampler), lambda: run(stock), rounds=5)
            rows.append(
                Row(
                    f"order, mode '{what}', {part}",
                    'RepeatAugSampler',
                    time.faster,
                    'x faster',
                    '>= 10' if run is _first else '',
                    f'{sources} x {NUM_REPEATS}; {time.a:.3f} s for {len(sampler)} indices '
                    f'and {time.b:.3f} s for {len(stock)}',
                )
            )
    rows += _memory(10_000_000 if quick else 100_000_000)
    for count in [sources // 4**k for k in range(4, -1, -1)]:
        sampler = GroupedRepeatAugSampler(range(count), NUM_REPEATS, seed=0)
        milliseconds = 1e3 * timer.seconds(lambda: _all(sampler))
        curve = f'Time: sources (m = {NUM_REPEATS})'
        rows.append(Row('order, all indices', '', milliseconds, 'ms', curve=curve, x=count))
    return rows


def _first(sampler: Iterable[int]) -> None:
    next(iter(sampler))


def _all(sampler: Iterable[int]) -> None:
    deque(sampler, maxlen=0)


def _memory(sources: int) -> list[Row]:
    """What the order adds to a process that has imported the frameworks.

    How much those take depends on torch's build more than on anything else.
    """
    rows = []
    empty = peak_of_process('import lt_mm.datasets.samplers.repeat_aug') / 1e9
    for mode in ('full', 'v1'):
        code = _ORDER.format(sources=sources, repeats=NUM_REPEATS, mode=mode, taken=1_000_000)
        peak = peak_of_process(code) / 1e9
        rows.append(
            Row(
                f"order of {sources:.0e} sources, '{mode}'",
                '',
                peak - empty,
                'GB',
                '<= 1.5',
                f'the process {peak:.2f} GB, with imports of {empty:.2f} GB',
            )
        )
    return rows
