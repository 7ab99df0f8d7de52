"""What every benchmark shares: how two things are compared, and what is reported.

A benchmark is a module of this folder with ``measure(timer, quick) -> list[Row]``;
``run.py`` finds it by its name.
"""

import gc
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

ROUNDS, QUICK_ROUNDS = 15, 5


@dataclass
class Row:
    """One line of the table.

    Args:
        what: What was measured.
        against: What it is compared with; empty for a figure by itself.
        ratio: The ratio of the medians, or the figure by itself.
        low: Lower quartile of it.
        high: Upper quartile.
        unit: ``'x time'``, ``'x faster'``, ``'x memory'``, ``'ms'``, ``'GB'``...
        target: ``'<= 1.6'`` or ``'>= 10'``; empty without one.
        note: Sizes, precision, absolute figures.
        curve: Name of the panel of the plot in which the row is a point of the curve
            ``what``; empty for a row of the table.
        x: Where the point lies, with a curve.
    """

    what: str
    against: str
    ratio: float
    low: float
    high: float
    unit: str
    target: str = ''
    note: str = ''
    curve: str = ''
    x: float = 0.0

    @property
    def met(self) -> bool | None:
        """Whether the ratio reaches its target; None without one.

        Raises:
            ValueError: If the target is not written as above.
        """
        if not self.target:
            return None
        sign, _, bound = self.target.partition(' ')
        if sign not in ('<=', '>='):
            raise ValueError(f"target is {self.target!r}; expected '<= x' or '>= x'")
        bound = float(bound)
        return self.ratio <= bound if sign == '<=' else self.ratio >= bound


@dataclass
class Ratio:
    """How long ``a`` takes against ``b``: medians in seconds, their ratio, quartiles."""

    a: float
    b: float
    ratio: float
    low: float
    high: float

    @property
    def faster(self) -> tuple[float, float, float]:
        """How many times faster a is: median and quartiles."""
        return 1 / self.ratio, 1 / self.high, 1 / self.low


class Timer:
    """Times functions on one device.

    Args:
        device: ``'cpu'`` or ``'cuda'``; the latter is timed with its own events.
        quick: Whether a few rounds have to do.
    """

    def __init__(self, device: str, quick: bool = False) -> None:
        self.device = torch.device(device)
        self.rounds = QUICK_ROUNDS if quick else ROUNDS

    @property
    def amp_dtype(self) -> torch.dtype:
        """What autocast computes in on this device."""
        return torch.float16 if self.device.type == 'cuda' else torch.bfloat16

    def once(self, function: Callable[[], object]) -> float:
        """Seconds that one call takes."""
        if self.device.type != 'cuda':
            begin = time.perf_counter()
            function()
            return time.perf_counter() - begin
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        function()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1000

    def seconds(
        self, function: Callable[[], object], rounds: int | None = None
    ) -> tuple[float, float, float]:
        """Median and quartiles of the seconds that a call takes, after a first one."""
        function()
        return quartiles([self.once(function) for _ in range(rounds or self.rounds)])

    def compare(
        self, a: Callable[[], object], b: Callable[[], object], rounds: int | None = None
    ) -> Ratio:
        """Calls a and b in turn, after a first call of each, which is not counted.

        What slows the machine down for a while slows both, and the ratio stays.

        Args:
            a: What is measured.
            b: What it is compared with.
            rounds: Calls of each; the timer's own number unless given.
        """
        a(), b()
        times_a, times_b = [], []
        gc.collect()
        for index in range(rounds or self.rounds):
            pair = [(a, times_a), (b, times_b)]
            for function, times in pair if index % 2 else reversed(pair):
                times.append(self.once(function))
        _, low, high = quartiles([x / y for x, y in zip(times_a, times_b)])
        median_a, median_b = statistics.median(times_a), statistics.median(times_b)
        return Ratio(median_a, median_b, median_a / median_b, low, high)

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
        held = most = 0
        records = [
            event
            for event in profiler.profiler.kineto_results.events()
            if event.name() == '[memory]'
        ]
        for record in sorted(records, key=lambda record: record.start_ns()):
            held += record.nbytes()
            most = max(most, held)
        return most


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method='inclusive')
    return median, low, high


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
    name = _processor()
    if device.type == 'cuda':
        name = f'{torch.cuda.get_device_name()}, {name}'
    return (
        f'{name}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, '
        f'Python {platform.python_version()}'
    )


def _processor() -> str:
    try:
        with open('/proc/cpuinfo') as lines:
            for line in lines:
                if line.startswith('model name'):
                    return line.partition(':')[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
