"""What every benchmark shares: how two things are compared, and what is reported.

A benchmark is a module of this folder with ``measure(timer, quick) -> list[Row]``;
``run.py`` finds it by its name.
"""

import gc
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.utils import benchmark

ROUNDS, QUICK_ROUNDS = 15, 5
SECONDS, QUICK_SECONDS = 1.0, 0.2


@dataclass
class Row:
    """One line of the table, or one point of a curve.

    Args:
        what: What was measured.
        against: What it is compared with; empty for a figure by itself.
        value: The median and the lower and upper quartile, or a single figure.
        unit: ``'x time'``, ``'x faster'``, ``'x memory'``, ``'ms'``, ``'GB'``...
        target: ``'<= 1.6'`` or ``'>= 10'``; empty without one.
        note: Sizes, precision, absolute figures.
        curve: Name of the panel of the plot in which the row is a point of the curve
            ``what``; empty for a row of the table.
        x: Where the point lies, with a curve.

    Raises:
        ValueError: If the target is not written as above.
    """

    what: str
    against: str
    value: InitVar[ArrayLike]
    unit: str
    target: str = ''
    note: str = ''
    curve: str = ''
    x: float = 0.0
    ratio: float = field(init=False)
    low: float = field(init=False)
    high: float = field(init=False)
    met: bool | None = field(init=False, default=None)  # None without a target

    def __post_init__(self, value: ArrayLike) -> None:
        self.ratio, self.low, self.high = np.broadcast_to(value, 3).tolist()
        if self.target:
            sign, _, bound = self.target.partition(' ')
            if sign not in ('<=', '>='):
                raise ValueError(f"target is {self.target!r}; expected '<= x' or '>= x'")
            self.met = self.ratio <= float(bound) if sign == '<=' else self.ratio >= float(bound)


@dataclass
class Comparison:
    """How long ``a`` takes against ``b``.

    Args:
        a: Median in seconds.
        b: Median in seconds.
        ratio: Ratio of the medians, and the quartiles of the ratios of single rounds.
    """

    a: float
    b: float
    ratio: np.ndarray

    @property
    def faster(self) -> np.ndarray:
        """How many times faster a is: median, lower and upper quartile."""
        return 1 / self.ratio[[0, 2, 1]]


class Timer:
    """Times functions on one device.

    Args:
        device: ``'cpu'`` or ``'cuda'``; every time is taken when the card has finished.
        quick: Fewer rounds, for a first look.
    """

    def __init__(self, device: str, quick: bool = False) -> None:
        self.device = torch.device(device)
        self.rounds = QUICK_ROUNDS if quick else ROUNDS
        self.min_run_time = QUICK_SECONDS if quick else SECONDS

    @property
    def amp_dtype(self) -> torch.dtype:
        """What autocast computes in on this device."""
        return torch.float16 if self.device.type == 'cuda' else torch.bfloat16

    def once(self, function: Callable[[], object]) -> float:
        """Seconds that one call takes."""
        begin = benchmark.timer()
        function()
        return benchmark.timer() - begin

    def seconds(self, function: Callable[[], object]) -> np.ndarray:
        """Median and quartiles of the seconds that a call takes."""
        timer = benchmark.Timer(
            'function()', globals=dict(function=function), num_threads=torch.get_num_threads()
        )
        return quartiles(timer.blocked_autorange(min_run_time=self.min_run_time).times)

    def compare(
        self, a: Callable[[], object], b: Callable[[], object], rounds: int | None = None
    ) -> Comparison:
        """Calls a and b in turn, after a first call of each, which is not counted.

        What slows the machine down for a while slows both, and the ratio stays. (PyTorch's
        own ``Compare`` shows measurements that were made one after the other.)

        Args:
            a: What is measured.
            b: What it is compared with.
            rounds: Calls of each; the timer's own number unless given.
        """
        a(), b()
        gc.collect()
        times = np.empty((rounds or self.rounds, 2))
        for index, both in enumerate(times):
            for which in (0, 1) if index % 2 else (1, 0):
                both[which] = self.once((a, b)[which])
        median_a, median_b = np.median(times, axis=0)
        _, *spread = quartiles(times[:, 0] / times[:, 1])
        return Comparison(median_a, median_b, np.array([median_a / median_b, *spread]))

    def peak_bytes(self, function: Callable[[], object]) -> int:
        """Most bytes of tensors that a call holds beyond those there before it."""
        function()
        gc.collect()
        if self.device.type == 'cuda':
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            function()
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - before
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profiler:
            function()
        events = profiler.profiler.kineto_results.events()
        records = sorted(
            (event.start_ns(), event.nbytes()) for event in events if event.name() == '[memory]'
        )
        return max(0, *np.cumsum([size for _, size in records]).tolist())


def quartiles(values: np.ndarray | list[float]) -> np.ndarray:
    """Median, lower and upper quartile."""
    return np.quantile(values, (0.5, 0.25, 0.75))


def peak_of_process(code: str) -> int:
    """Most bytes that a new Python process with this code has in memory (Linux).

    Raises:
        RuntimeError: If the code fails, with what it wrote.
    """
    code += (
        "\nimport re\nprint(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f'exit code {done.returncode} of\n{code}\n{done.stderr}')
    return int(done.stdout.split()[-1]) * 1024


def machine(device: torch.device) -> str:
    """Processor or card, threads, and versions, in one line."""
    info = Path('/proc/cpuinfo')
    model = re.search(r'model name\s*: (.*)', info.read_text()) if info.exists() else None
    name = model[1] if model else platform.processor() or platform.machine()
    if device.type == 'cuda':
        name = f'{torch.cuda.get_device_name()}, {name}'
    return (
        f'{name}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, '
        f'Python {platform.python_version()}'
    )
