"""One table of everything that may pair, though the batch lies on several ranks.

A head gathers its candidates once a step (``across_ranks``); what pairs and compares them
sees the whole batch and knows nothing of ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.dist import all_gather, get_dist_info
from torch import Tensor

from lt_mm.structures.record import origins_of


@dataclass
class Part:
    """The candidates of one part of a batch.

    Attributes:
        columns: For each name a tensor (P, ...) with a row for each candidate; may carry a
            graph. 'images', (P,) int64, counts the images of this part from 0.
        source_ids: The source of each image of this part.
        avg_factor: What this part adds to the divisor n of the term.
        num_replicas: For each image, in how many samples the sampler shows its source; 0 if that
            is not known.
        num_stand_ins: Images that the data set put in the place of others.
    """

    columns: dict[str, Tensor]
    source_ids: list[int]
    avg_factor: float
    num_replicas: list[int]
    num_stand_ins: int = 0

    @classmethod
    def of(cls, columns: dict[str, Tensor], samples: Sequence[Any], avg_factor: float) -> 'Part':
        """A part whose images are data samples, or the ``gt_instances`` of data samples.

        Raises:
            MissingRecordError: If one has no record, or if two images have the same id.
            UnsupportedHeadError: If a sample occurs several times.
        """
        origins = origins_of(samples)
        return cls(
            columns,
            [origin.source_id for origin in origins],
            avg_factor,
            [origin.num_replicas or 0 for origin in origins],
            sum(origin.is_stand_in for origin in origins),
        )


@dataclass
class GatheredBatch:
    """The candidates of all parts of a batch.

    Attributes:
        columns: As of :class:`Part`, (Q, ...), part after part; 'images' counts through the
            whole batch. Only the rows of this part carry a graph.
        source_ids: The source of each image.
        num_replicas: As of :class:`Part`.
        num_stand_ins: As of :class:`Part`.
        avg_factor: The divisor n of the term.
        own: The rows of this part.
    """

    columns: dict[str, Tensor]
    source_ids: list[int]
    num_replicas: list[int]
    num_stand_ins: int
    avg_factor: float
    own: slice


def join_parts(parts: Sequence[Part], number: int) -> GatheredBatch:
    """The batch of several parts, as the part with a number sees it."""
    counts = [len(part.columns['images']) for part in parts]
    start = sum(counts[:number])
    columns = parts[0].columns
    if len(parts) > 1:
        columns = {name: torch.cat([part.columns[name] for part in parts]) for name in columns}
        sizes = [len(part.source_ids) for part in parts]
        offsets = [sum(sizes[:place]) for place in range(len(parts))]
        columns['images'] = torch.cat(
            [part.columns['images'] + offset for part, offset in zip(parts, offsets)]
        )
    return GatheredBatch(
        columns=columns,
        source_ids=[source for part in parts for source in part.source_ids],
        num_replicas=[count for part in parts for count in part.num_replicas],
        num_stand_ins=sum(part.num_stand_ins for part in parts),
        avg_factor=sum(part.avg_factor for part in parts),
        own=slice(start, start + counts[number]),
    )


def gather_ranks(part: Part) -> GatheredBatch:
    """The batch of all ranks, in two collective calls.

    Every rank computes the loss of the whole batch and back-propagates to its own rows. Their
    gradient is multiplied by the number of ranks, because the model wrapper
    (``DistributedDataParallel``) then averages over the ranks: the result is the gradient of
    the loss of the whole batch, through the mean predictions too. Nothing is exchanged in the
    backward pass. All ranks must call it together, whatever their batches hold.

    Raises:
        RuntimeError: If the ranks have columns of different types or shapes.
    """
    rank, world_size = get_dist_info()
    device = part.columns['images'].device
    own_bytes = _to_bytes(part)
    header = torch.tensor(
        [
            len(part.columns['images']),
            len(part.source_ids),
            part.avg_factor,
            part.num_stand_ins,
            len(own_bytes),
        ],
        dtype=torch.float64,
        device=device,
    )
    headers = torch.stack(all_gather(header)).tolist()
    # A byte at least: gloo crashes on tensors without elements.
    padded = own_bytes.new_zeros(max(1, *(int(size) for *_, size in headers)))
    padded[: len(own_bytes)] = own_bytes
    parts = [
        _from_bytes(data[: int(size)], part, int(rows), int(images), avg_factor, int(stand_ins))
        for data, (rows, images, avg_factor, stand_ins, size) in zip(all_gather(padded), headers)
    ]
    parts[rank].columns = {
        name: _times_gradient(column, world_size) for name, column in part.columns.items()
    }
    return join_parts(parts, rank)


def _to_bytes(part: Part) -> Tensor:
    """All numbers of a part, column after column: tensors of any type in one message."""
    columns = [column.detach() for column in part.columns.values()]
    numbers = [part.source_ids, part.num_replicas]
    columns.append(torch.tensor(numbers, dtype=torch.int64, device=columns[0].device))
    return torch.cat([column.contiguous().flatten().view(torch.uint8) for column in columns])


def _from_bytes(
    data: Tensor, like: Part, rows: int, images: int, avg_factor: float, num_stand_ins: int
) -> Part:
    """The part of another rank, whose columns have the types and shapes of ``like``'s."""
    shapes = {name: (rows, *column.shape[1:]) for name, column in like.columns.items()}
    sizes = [
        torch.Size(shapes[name]).numel() * column.element_size()
        for name, column in like.columns.items()
    ]
    if sum(sizes) + 16 * images != len(data):
        raise RuntimeError(
            f'a rank sent {len(data)} bytes for {rows} candidates where this one expected '
            f'{sum(sizes) + 16 * images}: the candidates of the ranks have different types or '
            'shapes, such as numbers of classes; expected the same model on every rank'
        )
    *chunks, numbers = data.split([*sizes, 16 * images])
    # clone: a view of another type must begin at a multiple of its size.
    columns = {
        name: chunk.clone().view(like.columns[name].dtype).view(shape)
        for chunk, (name, shape) in zip(chunks, shapes.items())
    }
    ids, num_replicas = numbers.clone().view(torch.int64).view(2, images).tolist()
    return Part(columns, ids, avg_factor, num_replicas, num_stand_ins)


def _times_gradient(values: Tensor, factor: int) -> Tensor:
    if not (values.requires_grad and torch.is_grad_enabled()):
        return values
    values = values.view_as(values)
    values.register_hook(lambda gradient: gradient * factor)
    return values
