"""The consistency term by itself, forward and backward."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_mm.core.consistency import bernoulli_consistency, box_consistency, categorical_consistency
from lt_mm.core.pairing import groups_across_replicas
from tools.benchmarks.timing import Row, Timer

NUM_CLASSES = 1000
EMBEDDING = 128


def measure(timer: Timer, quick: bool) -> list[Row]:
    n = 1024 if quick else 8192
    return [
        *_against_cross_entropy(timer, n),
        _against_bce(timer, n),
        *_against_supcon(timer, n),
        *_growth(timer, n, quick),
    ]


def _gradient(function: Callable, leaf: Tensor, *args: Any) -> Callable[[], object]:
    return lambda: torch.autograd.grad(function(leaf, *args), leaf)


def _under_autocast(timer: Timer, function: Callable) -> Callable:
    def run(*args: Any) -> Any:
        with torch.autocast(timer.device.type, dtype=timer.amp_dtype):
            return function(*args)

    return run


def _logits(
    timer: Timer, n: int, num_classes: int = NUM_CLASSES, dtype: torch.dtype = torch.float32
) -> Tensor:
    drawn = torch.randn(n, num_classes, device=timer.device)
    return drawn.to(dtype).requires_grad_()


def _groups(timer: Timer, n: int, m: int) -> Tensor:
    """As the sampler deals them: the replicas of a source in a row."""
    return torch.arange(n, device=timer.device) // m


def _against_cross_entropy(timer: Timer, n: int) -> list[Row]:
    rows, order = [], torch.randperm(n, device=timer.device)
    labels = torch.randint(NUM_CLASSES, (n,), device=timer.device)
    for what, m, dtype, shuffled in [
        ('m = 2', 2, torch.float32, False),
        ('m = 4', 4, torch.float32, False),
        ('m = 32', 32, torch.float32, False),
        ('m = 4, shuffled', 4, torch.float32, True),
        ('m = 4, AMP', 4, timer.amp_dtype, False),
    ]:
        logits, ids = _logits(timer, n, dtype=dtype), _groups(timer, n, m)
        ids = ids[order] if shuffled else ids
        term, plain = categorical_consistency, F.cross_entropy
        if dtype != torch.float32:
            term, plain = _under_autocast(timer, term), _under_autocast(timer, plain)
        ours, stock = _gradient(term, logits, ids), _gradient(plain, logits, labels)
        time = timer.compare(ours, stock)
        sizes = f'{n} x {NUM_CLASSES}, {str(dtype)[6:]}'
        rows.append(
            Row(
                f'term, {what}',
                'cross_entropy',
                time.ratio,
                'x time',
                '<= 1.6',
                f'{sizes}; {1e3 * time.a:.1f} and {1e3 * time.b:.1f} ms',
            )
        )
        peak = timer.peak_bytes(ours) / logits.nbytes
        other = timer.peak_bytes(stock) / logits.nbytes
        rows.append(
            Row(
                f'term, {what}: peak',
                'the logits',
                peak,
                'x memory',
                '<= 2.2' if dtype == torch.float32 else '',
                f'{sizes}; cross_entropy {other:.2f}',
            )
        )
    return rows


def _against_bce(timer: Timer, n: int) -> Row:
    logits, ids = _logits(timer, n, 80), _groups(timer, n, 4)
    targets = torch.zeros_like(logits)
    time = timer.compare(
        _gradient(bernoulli_consistency, logits, ids),
        _gradient(F.binary_cross_entropy_with_logits, logits, targets),
    )
    return Row(
        'term of sigmoids, m = 4',
        'binary_cross_entropy_with_logits',
        time.ratio,
        'x time',
        note=f'{n} x 80; {1e3 * time.a:.1f} and {1e3 * time.b:.1f} ms',
    )


def _against_supcon(timer: Timer, n: int) -> list[Row]:
    from pytorch_metric_learning.losses import SupConLoss

    logits, ids = _logits(timer, n), _groups(timer, n, 4)
    embeddings = _logits(timer, n, EMBEDDING)
    ours = _gradient(categorical_consistency, logits, ids)
    supcon = _gradient(SupConLoss(), embeddings, ids)
    time = timer.compare(ours, supcon, rounds=3)
    less = timer.peak_bytes(supcon) / timer.peak_bytes(ours)
    note = f'{n} x {NUM_CLASSES} and {n} x {EMBEDDING}'
    return [
        Row(
            'term, m = 4',
            'SupCon',
            time.faster,
            'x faster',
            '>= 10',
            f'{note}; {time.a:.3f} and {time.b:.3f} s',
        ),
        Row('term, m = 4: peak', 'SupCon', less, 'x less memory', note=note),
    ]


def _growth(timer: Timer, n: int, quick: bool) -> list[Row]:
    """Time and peak memory against N, m, and the instances of an image."""
    rows = []
    for size in [n // 2**k for k in range(5, -1, -1)]:
        logits, ids = _logits(timer, size), _groups(timer, size, 4)
        rows += _points(
            timer,
            'predictions N (C = 1000, m = 4)',
            'softmax term',
            size,
            _gradient(categorical_consistency, logits, ids),
        )
    for m in (1, 2, 4, 8, 16, 32):
        logits, ids = _logits(timer, n), _groups(timer, n, m)
        rows += _points(
            timer,
            f'replicas m (N = {n}, C = 1000)',
            'softmax term',
            m,
            _gradient(categorical_consistency, logits, ids),
        )
    for instances in (1, 3, 10, 30, 100, 300, 1000):
        rows += _instances(timer, instances)
    return rows + _exponents(rows)


def _instances(timer: Timer, instances: int) -> list[Row]:
    """16 images, 4 replicas a source, 4 predictions an instance, 80 classes."""
    images, m, hits = 16, 4, 4
    shape = images, instances, hits
    image, instance, _ = torch.meshgrid(
        *(torch.arange(size, device=timer.device) for size in shape), indexing='ij'
    )
    image, instance = image.flatten(), instance.flatten()
    annotations = torch.stack([image // m, instance], dim=1)
    keep = torch.ones_like(image, dtype=torch.bool)
    corner = 100 * torch.rand(len(image), 2, device=timer.device)
    boxes = torch.cat([corner, corner + 50], dim=1).requires_grad_()
    logits = _logits(timer, len(image), 80)
    panel = 'instances of an image (16 images, m = 4, C = 80)'
    pair = partial(groups_across_replicas, annotations, image, keep)
    ids = pair()
    return [
        *_points(timer, panel, 'pairing', instances, pair),
        *_points(
            timer, panel, 'softmax term', instances, _gradient(categorical_consistency, logits, ids)
        ),
        *_points(timer, panel, 'box term', instances, _gradient(box_consistency, boxes, ids)),
    ]


def _points(timer: Timer, panel: str, what: str, x: int, run: Callable) -> list[Row]:
    milliseconds, peak = 1e3 * timer.seconds(run), timer.peak_bytes(run) / 1e6
    return [
        Row(what, '', milliseconds, 'ms', curve=f'Time: {panel}', x=x),
        Row(what, '', peak, 'MB', curve=f'Memory: {panel}', x=x),
    ]


def _exponents(rows: list[Row]) -> list[Row]:
    """K in x^k, from the last two points of each curve."""
    found = []
    for panel, what in dict.fromkeys((row.curve, row.what) for row in rows):
        before, last = [row for row in rows if (row.curve, row.what) == (panel, what)][-2:]
        k = math.log(last.ratio / before.ratio) / math.log(last.x / before.x)
        # Of times the noise of the machine allows no sharp bound.
        bound = '<= 1.1' if panel.startswith('Memory') else ''
        note = f'from {before.x:g} to {last.x:g}'
        found.append(Row(f'{panel}, {what}', '', k, 'exponent', bound, note))
    return found
