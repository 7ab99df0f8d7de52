"""Running means of earlier predictions: the replicas of an instance are those of other epochs.

Whatever the augmentation was, restored predictions of a source instance lie in one frame, that
of the source. So one mean of them is kept for each instance, and the present prediction is
compared with it. A step does three things::

    visit = memory.visit(instance_ids, keep, epoch)          # which entries
    target = memory.target(visit, 'classes', probabilities)  # given to the term
    memory.update(visit, classes=probabilities, ...)         # after all targets were taken

Values are tensors (N, ...) of which NaN stands for what is not known: a side that a border cut,
a cell outside of the mask. All is computed in float64, so that the order of rows, or how they
are split among processes, is not seen in what is stored; every process is to be given the rows
of all, and then holds the same memory.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lt_mm.core.memory_codes import Code
from lt_mm.core.pairing import UNPAIRED, compact_rows

# An instance has one integer as its key: so many bits are for its place in the annotations.
_PLACE_BITS = 20
# The mean moves by (1 - momentum) times a difference. Float16 rounds the move away where the
# difference is below 2^-11 / (1 - momentum) of the value: 0.2 % with 0.7, a KL of 1e-6. Beyond this
# momentum it would be 1 %.
LARGEST_MOMENTUM = 0.95
# Room is made for so many more entries, relative to those that are there.
_GROWTH = 1 / 32
_MIN_GROWTH = 1024
_LARGEST_SHORT = 2**15 - 1


class Visit(NamedTuple):
    """Which entries the N predictions of a batch belong to.

    Args:
        numbers: (N,) int64 below U + 1: which of the batch's U instances; U for predictions that
            take no part.
        keys: (U,) int64, ascending.
        checks: (U,) int64.
        rows: (U,) int64, rows of the memory; ``UNPAIRED`` where it knows nothing of the instance.
        usable: (U,) bool, whether there is an entry, not too old, of the same data.
        changed: (U,) bool, whether there is an entry of other data.
        epoch: The present epoch.
    """

    numbers: Tensor
    keys: Tensor
    checks: Tensor
    rows: Tensor
    usable: Tensor
    changed: Tensor
    epoch: int


class Memory:
    """The running mean of what was predicted for each source instance.

    Args:
        codes: How each kind of values is stored, by name.
        momentum: Weight of the earlier mean, 0 to ``LARGEST_MOMENTUM``; the mean of the present
            predictions of an instance has the rest. The first ones are taken as they are.
        max_age: An entry that was not updated for more epochs is not used, and begun anew.
        device: Where the memory is held, and what it is asked with.

    Raises:
        ValueError: If momentum or max_age are out of range.
    """

    def __init__(
        self,
        codes: Mapping[str, Code],
        momentum: float = 0.7,
        max_age: int | None = None,
        device: torch.device | str = 'cpu',
    ) -> None:
        if not 0 <= momentum <= LARGEST_MOMENTUM:
            raise ValueError(
                f'momentum is {momentum}; expected 0 to {LARGEST_MOMENTUM}, such as 0.7: beyond '
                'it, what is stored is too coarse for the mean to move'
            )
        if max_age is not None and max_age < 1:
            raise ValueError(f'max_age is {max_age}; expected 1 epoch or more, or None')
        self.codes, self.momentum, self.max_age = dict(codes), momentum, max_age
        # Ascending keys of all entries, and where their numbers lie in the columns.
        self._keys = torch.empty(0, dtype=torch.int64, device=device)
        self._rows = torch.empty(0, dtype=torch.int32, device=device)
        self._columns = {
            name: torch.empty(0, *shape, dtype=dtype, device=device)
            for name, (shape, dtype) in self._fields().items()
        }

    def __len__(self) -> int:
        """Number of instances that were seen."""
        return len(self._keys)

    @property
    def num_bytes(self) -> int:
        """What the memory takes, with the room for further entries."""
        return sum(
            each.numel() * each.element_size()
            for each in (self._keys, self._rows, *self._columns.values())
        )

    def visit(
        self, instance_ids: Tensor, keep: Tensor, epoch: int, checks: Tensor | None = None
    ) -> Visit:
        """Looks up the instances of a batch.

        Args:
            instance_ids: (N, 2) int64: the source image's number, below 2^43, and the place of
                the instance in its annotations, below 2^20.
            keep: (N,) bool, the predictions that take part, of all processes.
            epoch: The present epoch, 0 to 32767.
            checks: (N,) integer, the same whenever an instance is seen, and another one if the
                data set is another (:func:`fingerprints`); an entry with another one is not used.

        Raises:
            ValueError: If the ids or the epoch are out of range.
        """
        if not 0 <= epoch <= _LARGEST_SHORT:
            raise ValueError(f'epoch is {epoch}; expected 0 to {_LARGEST_SHORT}')
        kept = keep.nonzero()[:, 0]
        keys, inverse = _keys_of(instance_ids[kept]).unique(return_inverse=True)
        numbers = torch.full_like(keep, len(keys), dtype=torch.int64)
        numbers[kept] = inverse
        own = keys.new_zeros(len(keys))
        if checks is not None:  # they are equal; the largest is the same in any order
            own.scatter_reduce_(0, inverse, checks[kept].long(), 'amax', include_self=False)
            own = own.to(torch.int16).long()
        return self._find(Visit(numbers, keys, own, keys, keys, keys, epoch))

    def target(self, visit: Visit, name: str, values: Tensor) -> Tensor:
        """What each prediction is to be compared with; see :func:`joined_means`.

        Args:
            visit: From :meth:`visit`.
            name: Of the code.
            values: (N, ...), the present predictions; no gradient flows.

        Returns:
            (N, ...) float64, NaN where there is nothing to compare with.
        """
        values = self._checked(visit, name, values)
        present, counts = instance_means(values, visit.numbers, len(visit.keys))
        joined = joined_means(self._stored(visit, name, present), present, counts)
        padded = joined.new_full((len(joined) + 1, *joined.shape[1:]), math.nan)
        padded[:-1] = joined
        return padded[visit.numbers]

    def update(self, visit: Visit, **values: Tensor) -> None:
        """Takes the present predictions into the means: once for each instance.

        Args:
            visit: From :meth:`visit`. An entry that another update changed since is updated
                from what it holds now.
            **values: (N, ...) for each code, by its name.
        """
        if values.keys() != self.codes.keys():
            raise ValueError(
                f'there are values of {sorted(values)}; expected {sorted(self.codes)}, those '
                'that the memory was made for'
            )
        visit = self._find(visit)
        columns = {'epochs': torch.full_like(visit.keys, visit.epoch), 'checks': visit.checks}
        for name, code in self.codes.items():
            own = self._checked(visit, name, values[name])
            present, _ = instance_means(own, visit.numbers, len(visit.keys))
            mean = running_means(self._stored(visit, name, present), present, self.momentum)
            columns |= {f'{name}.{part}': each for part, each in code.encode(mean).items()}
        rows = self._rows_to_write(visit)
        for name, each in columns.items():
            self._columns[name][rows] = each.to(self._columns[name].dtype)

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all entries, in the order of their keys."""
        rows = self._rows.long()
        return {'keys': self._keys.clone()} | {
            name: column[rows] for name, column in self._columns.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from :meth:`state_dict`.

        Raises:
            ValueError: If it is that of a memory of other values.
        """
        mine = {'keys': ((), torch.int64)} | self._fields()
        theirs = {name: (tuple(each.shape[1:]), each.dtype) for name, each in state.items()}
        if mine != theirs or len({len(each) for each in state.values()}) != 1:
            raise ValueError(
                f'the stored memory holds {theirs}, this one {mine}; give the same options as '
                'when it was stored, or begin without it'
            )
        device = self._keys.device
        self._keys = state['keys'].to(device, copy=True)
        self._rows = torch.arange(len(self._keys), dtype=torch.int32, device=device)
        self._columns = {name: state[name].to(device, copy=True) for name in self._columns}

    def _fields(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of what each column holds for an entry."""
        fields: dict[str, Any] = {'epochs': ((), torch.int16), 'checks': ((), torch.int16)}
        for name, code in self.codes.items():
            fields |= {f'{name}.{part}': each for part, each in code.fields().items()}
        return fields

    def _checked(self, visit: Visit, name: str, values: Tensor) -> Tensor:
        """Values (N, ...) in float64; NaN where they are not to be used."""
        shape = self.codes[name].shape
        if values.shape != (len(visit.numbers), *shape):
            raise ValueError(
                f'values of {name!r} have shape {tuple(values.shape)}; expected '
                f'{(len(visit.numbers), *shape)}'
            )
        values = values.detach().double()
        known = values.isfinite()
        if self.codes[name].whole:
            known = known.flatten(1).all(dim=1).view(-1, *[1] * len(shape))
        return torch.where(known, values, math.nan)

    def _find(self, visit: Visit) -> Visit:
        """The visit with the rows of its keys as the memory is now."""
        keys = visit.keys
        if not len(self):
            unknown = torch.full_like(keys, UNPAIRED)
            return visit._replace(rows=unknown, usable=unknown >= 0, changed=unknown >= 0)
        places = torch.searchsorted(self._keys, keys).clamp(max=len(self) - 1)
        rows = torch.where(self._keys[places] == keys, self._rows[places].long(), UNPAIRED)
        some = rows.clamp(min=0)
        same = self._columns['checks'][some] == visit.checks
        usable = (rows >= 0) & same
        if self.max_age is not None:
            usable &= visit.epoch - self._columns['epochs'][some].long() <= self.max_age
        return visit._replace(rows=rows, usable=usable, changed=(rows >= 0) & ~same)

    def _stored(self, visit: Visit, name: str, present: Tensor) -> Tensor:
        """The means (U, ...) of earlier predictions, NaN where there are none."""
        code, stored = self.codes[name], torch.full_like(present, math.nan)
        found = visit.usable.nonzero()[:, 0]
        if len(found):
            rows = visit.rows[found]
            parts = {part: self._columns[f'{name}.{part}'][rows] for part in code.fields()}
            stored[found] = code.decode(parts, present[found])
        return stored

    def _rows_to_write(self, visit: Visit) -> Tensor:
        """The rows (U,) of the batch's instances; new ones are given rows of their own."""
        new = (visit.rows < 0).nonzero()[:, 0]
        if not len(new):
            return visit.rows
        first, count = len(self), len(self) + len(new)
        room = len(self._columns['epochs'])
        if count > room:
            room = max(count, room + max(int(room * _GROWTH), _MIN_GROWTH))
            for name, column in self._columns.items():
                self._columns[name] = column.new_empty(room, *column.shape[1:])
                self._columns[name][:first] = column[:first]
        fresh = torch.arange(first, count, device=new.device)
        rows = visit.rows.index_copy(0, new, fresh)
        # Merged in linear time: both are sorted.
        places = torch.searchsorted(self._keys, visit.keys[new]) + fresh - first
        is_old = torch.ones(count, dtype=torch.bool, device=new.device)
        is_old[places] = False
        keys, owners = self._keys.new_empty(count), self._rows.new_empty(count)
        keys[is_old], owners[is_old] = self._keys, self._rows
        keys[places], owners[places] = visit.keys[new], fresh.int()
        self._keys, self._rows = keys, owners
        return rows


def instance_groups(instance_ids: Tensor, keep: Tensor) -> Tensor:
    """Group ids of predictions assigned to one annotation, in one replica or in several.

    What :func:`~lt_mm.core.pairing.groups_across_replicas` gives, for pairs with earlier epochs.

    Args:
        instance_ids: (N, k) integer, the source annotation of each prediction.
        keep: (N,) bool, those that may pair.

    Returns:
        (N,) int64 below N; ``UNPAIRED`` where ``keep`` is False.
    """
    return torch.where(keep, compact_rows(instance_ids), UNPAIRED)


def instance_means(values: Tensor, numbers: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The mean of the values of each instance that are known, and how many these are.

    Args:
        values: (N, ...), NaN where not known.
        numbers: (N,) int64, the instance of each; ``count`` for those of none.
        count: U, the number of instances.

    Returns:
        (U, ...) means, NaN where nothing is known; (U, ...) how many values of each are.
    """
    known = ~values.isnan()
    sums = values.new_zeros(count + 1, *values.shape[1:])
    counts = torch.zeros_like(sums).index_add_(0, numbers, known.to(values))[:count]
    sums = sums.index_add_(0, numbers, torch.where(known, values, 0))[:count]
    return sums / counts, counts  # 0 / 0 is NaN


def running_means(stored: Tensor, present: Tensor, momentum: float) -> Tensor:
    """The mean moved towards the present: the one that is known, where the other is NaN."""
    mixed = momentum * stored + (1 - momentum) * present
    return torch.where(stored.isnan(), present, torch.where(present.isnan(), stored, mixed))


def joined_means(stored: Tensor, present: Tensor, counts: Tensor) -> Tensor:
    """The mean that the present predictions of an instance are compared with.

    The earlier mean is one replica more, beside those in the batch: it is joined by them where
    there are two or more, ``(stored + sum of present) / (1 + count)``. A single prediction is
    compared with the earlier mean alone. Without an earlier mean it is that of the batch.

    Args:
        stored: (U, ...) earlier means, NaN where there are none.
        present: (U, ...) means of the predictions in the batch, NaN where there are none.
        counts: (U, ...), how many these are.

    Returns:
        (U, ...), NaN where there is nothing to compare with.
    """
    joined = torch.where(stored.isnan(), present, (stored + counts * present) / (1 + counts))
    return torch.where(counts >= 2, joined, stored)


def fingerprints(*facts: Tensor) -> Tensor:
    """A number for each of N instances, by which it is known again.

    Args:
        *facts: (N,) integers that belong to the annotation, such as its class, its place in pixels
            and the size of its image.

    Returns:
        (N,) int64. Of other facts the lowest 16 bits are the same once in 65,536 times.
    """
    mixed = torch.zeros_like(facts[0], dtype=torch.int64)
    for fact in facts:
        # Multiplication carries low bits up, and the shift brings high ones down.
        mixed = (mixed + fact.long() + 1) * 0x2545F4914F6CDD1D
        mixed = mixed ^ (mixed >> 29)
    return mixed


def instance_of_key(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The source and the place of the instances with keys, as in :attr:`Visit.keys`."""
    return keys >> _PLACE_BITS, keys & (2**_PLACE_BITS - 1)


def _keys_of(instance_ids: Tensor) -> Tensor:
    """(N, 2) ids as one integer each."""
    sources, places = instance_ids.long().unbind(dim=1)
    usable = (sources >= 0) & (sources < 2 ** (63 - _PLACE_BITS))
    usable &= (places >= 0) & (places < 2**_PLACE_BITS)
    if not usable.all():
        worst = instance_ids[~usable][0].tolist()
        raise ValueError(
            f'an instance has the ids {worst}; expected the number of a source, 0 to 2^43, and '
            f'a place in its annotations, 0 to 2^{_PLACE_BITS}'
        )
    return (sources << _PLACE_BITS) + places
