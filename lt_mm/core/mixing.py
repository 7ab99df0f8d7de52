"""Mixed batches whose replicas stay comparable: mixup, CutMix and Cutout for groups.

Mixup and CutMix mix image i with an image pi(i) of the batch. If pi is drawn for each image by
itself, two replicas of one source get different partners and no longer show the same thing. Here
*sources* are permuted: replica k of a source is mixed with replica k of the partner source, with
one lambda and one box for the batch, so that all replicas of a source have the same soft label.

Sources: mixup, arXiv:1710.09412; CutMix, arXiv:1905.04899; Cutout, arXiv:1708.04552.
Nothing is drawn at random here: permutations, lambdas, boxes and centres are arguments.
"""

import torch
from torch import Tensor

from lt_mm.core.pairing import compact_ids


def number_sources(source_ids: Tensor) -> Tensor:
    """Numbers the sources of a batch 0, 1, 2... in the order of their first replica.

    Args:
        source_ids: (N,) integer, equal for replicas of one source, in any order.

    Returns:
        (N,) int64.
    """
    return compact_ids(first_replicas(source_ids))


def first_replicas(source_ids: Tensor) -> Tensor:
    """Row of the first replica of each sample's source: (N,) integer to (N,) int64."""
    numbers = compact_ids(source_ids)
    rows = torch.arange(len(numbers), device=numbers.device)
    first = torch.full_like(rows, len(rows)).scatter_reduce_(0, numbers, rows, 'amin')
    return first[numbers]


def mixing_partners(source_ids: Tensor, permutation: Tensor) -> Tensor:
    """The row that each row of a batch is mixed with, the same source for all replicas.

    Replica k of source s gets replica k modulo r of source ``permutation[s]``, which
    has r replicas. Where every source has one replica this is ``permutation`` itself.

    Args:
        source_ids: (N,) integer, equal for replicas of one source, in any order. Best
            on the CPU, since the host has to know how many sources there are.
        permutation: (S,) int64, a permutation of the S sources, numbered in the order
            of their first replica (:func:`number_sources`).

    Returns:
        (N,) int64, rows of the batch.

    Raises:
        ValueError: If the permutation has not one entry for each source.
    """
    sources = number_sources(source_ids)
    sizes = torch.bincount(sources)
    if len(permutation) != len(sizes):
        raise ValueError(
            f'the permutation has {len(permutation)} entries and the batch '
            f'{len(sizes)} sources; expected one entry for each source'
        )
    ordered = sources.argsort(stable=True)  # rows, replicas of a source together
    starts = sizes.cumsum(0) - sizes
    place = torch.empty_like(ordered).scatter_(
        0, ordered, torch.arange(len(ordered), device=ordered.device)
    )
    replica = place - starts[sources]
    partner = permutation[sources]
    return ordered[starts[partner] + replica % sizes[partner]]


def mix(values: Tensor, partners: Tensor, lam: float) -> Tensor:
    """Mixup: ``lam * values + (1 - lam) * values[partners]``.

    Args:
        values: (N, ...), images or labels; receives gradient.
        partners: (N,) int64, rows.
        lam: Share of the row itself, in [0, 1].

    Returns:
        A new tensor like ``values``.
    """
    return lam * values + (1 - lam) * values[partners]


def paste_box(images: Tensor, partners: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """CutMix: puts the partner's pixels inside one box of each image.

    Args:
        images: (N, C, H, W); receives gradient.
        partners: (N,) int64, rows.
        box: (top, bottom, left, right), pixels of the image, ends exclusive; may be empty.

    Returns:
        A new tensor like ``images``.
    """
    top, bottom, left, right = box
    pasted = images.clone()
    pasted[:, :, top:bottom, left:right] = images[partners, :, top:bottom, left:right]
    return pasted


def square_masks(centers: Tensor, length: int, shape: tuple[int, int]) -> Tensor:
    """Cutout: the pixels of one square for each image, clipped at the border.

    Args:
        centers: (N, 2) integer, row and column of a pixel. A square of even length extends one
            pixel further above and to the left of it than below and to the right.
        length: Side of the squares, pixels.
        shape: (H, W) of the images.

    Returns:
        (N, H, W) bool.
    """
    inside = []
    for axis, size in enumerate(shape):
        starts = centers[:, axis, None] - length // 2
        pixels = torch.arange(size, device=centers.device)
        inside.append((pixels >= starts) & (pixels < starts + length))
    return inside[0][:, :, None] & inside[1][:, None, :]


def average_over_replicas(values: Tensor, source_ids: Tensor) -> Tensor:
    """Replaces the values of each replica by their mean over the replicas of its source.

    Args:
        values: (N, D) floating point, such as soft labels; receives gradient.
        source_ids: (N,) integer.

    Returns:
        (N, D); the rows of a source are equal bit for bit.
    """
    numbers = compact_ids(source_ids)
    ones = values.new_ones(len(values))
    counts = values.new_zeros(len(values)).index_add(0, numbers, ones)
    sums = torch.zeros_like(values).index_add(0, numbers, values)
    return sums[numbers] / counts[numbers, None]


def replicas_agree(values: Tensor, source_ids: Tensor) -> Tensor:
    """Whether all replicas of every source have the same values, bit for bit.

    Args:
        values: (N, D).
        source_ids: (N,) integer.

    Returns:
        Scalar bool, on the device of ``values``; True for an empty batch.
    """
    return (values == values[first_replicas(source_ids)]).all()
