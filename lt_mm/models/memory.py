"""The memory of a wrapped head: what it predicted for each instance in earlier epochs.

The running means and how they are stored are in :mod:`lt_mm.core.memory`; here they are made
for what a head predicts, asked with the present epoch, and handed over to be saved.
"""

import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any

import torch
from mmengine.logging import MessageHub, print_log
from torch import Tensor

from lt_mm.core.memory import LARGEST_MOMENTUM, Memory, fingerprints, instance_of_key
from lt_mm.core.memory_codes import Code
from lt_mm.structures.errors import SAMPLE_IDX_OFFSET_HINT, MissingRecordError
from lt_mm.structures.record import ImageRecord

# Steps of a pixel by which an annotated box is known again.
_BOX_STEPS = 8


@dataclass
class MemoryOptions:
    """The option ``memory=dict(...)`` of a wrapped head.

    Args:
        momentum: Weight of the earlier mean when a new prediction is taken into it, 0 to 0.95.
        max_age: Means that were not updated for more epochs are not used, and begun anew; any
            age is used if None. Epochs are MMEngine's, so with an iteration-based loop, which
            counts none, it has no effect.
        num_kept: How many of the class probabilities of a mean are stored, the largest ones; by
            default 44 of up to 256 classes and 24 of more. All are stored if there are no more.
        masks: Whether mask heads remember masks: ``mask_grid`` ** 2 bytes an instance.

    Raises:
        ValueError: If one is out of range.
    """

    momentum: float = 0.7
    max_age: int | None = None
    num_kept: int | None = None
    masks: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.momentum <= LARGEST_MOMENTUM:
            raise ValueError(
                f'memory.momentum is {self.momentum}; expected 0 to {LARGEST_MOMENTUM}, such as '
                'memory=dict(momentum=0.7) in the LossTransformHead'
            )
        for name in ('max_age', 'num_kept'):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value > 0):
                raise ValueError(
                    f'memory.{name} is {value!r}; expected a positive integer, or None'
                )

    @classmethod
    def from_config(cls, config: Any) -> 'MemoryOptions | None':
        """The options of ``memory=...``: None, a dict, or made options."""
        if config is None or isinstance(config, cls):
            return config
        if not isinstance(config, Mapping):
            raise ValueError(
                f'memory is {config!r}; expected None or a dict such as memory=dict(momentum=0.7)'
            )
        unknown = set(config) - set(asdict(cls()))
        if unknown:
            raise ValueError(
                f'memory has {sorted(unknown)}; expected some of {sorted(asdict(cls()))}'
            )
        return cls(**config)


class HeadMemory:
    """What one head predicted for each source instance, restored, in earlier epochs.

    Copies of a model, such as that of MMEngine's ``EMAHook``, begin with an empty one. It is no
    part of the state dict: checkpoints stay those of the stock head, and
    :class:`~lt_mm.engine.hooks.MemoryHook` saves it beside them.

    Args:
        options: Those of the wrap.
    """

    def __init__(self, options: MemoryOptions) -> None:
        self._options = options
        self._memory: Memory | None = None
        self._loaded: dict[str, Tensor] | None = None
        self._is_resumed = self._has_warned = False
        self._first_epoch: int | None = None

    def __deepcopy__(self, memo: dict) -> 'HeadMemory':
        return HeadMemory(self._options)

    @property
    def num_bytes(self) -> int:
        """What it takes, on the device of the predictions."""
        return 0 if self._memory is None else self._memory.num_bytes

    def __len__(self) -> int:
        """Number of instances that were seen."""
        return 0 if self._memory is None else len(self._memory)

    @property
    def knows_all(self) -> bool:
        """Whether an epoch is over, so that instances without an earlier prediction are few."""
        return self._is_resumed or self._first_epoch not in (None, present_epoch())

    def compare(
        self,
        instance_ids: Tensor,
        keep: Tensor,
        checks: Tensor,
        codes: Mapping[str, Code],
        values: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """The means that predictions are compared with; then takes these into the means.

        Args:
            instance_ids: (N, 2) int64, source and place of the annotation of each.
            keep: (N,) bool, the predictions that take part.
            checks: (N,) int64, see :func:`instance_checks`.
            codes: How each kind of values is stored, by name.
            values: For each name (N, ...) predictions, NaN where not known; no gradient flows.

        Returns:
            For each name (N, ...) means, NaN where there is nothing to compare with.

        Raises:
            MissingRecordError: If two sources have the same id.
        """
        if self._memory is None:
            self._memory = self._made(codes, keep.device)
        epoch = present_epoch()
        if self._first_epoch is None:
            self._first_epoch = epoch
        visit = self._memory.visit(instance_ids, keep, epoch, checks)
        if bool(visit.changed.any()):
            self._replace_changed(visit.keys[visit.changed])
        targets = {name: self._memory.target(visit, name, each) for name, each in values.items()}
        self._memory.update(visit, **values)
        return targets

    def state_dict(self) -> dict[str, Tensor]:
        """All entries; empty before the first training step."""
        if self._memory is None:
            return self._loaded or {}
        return {name: each.cpu() for name, each in self._memory.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from :meth:`state_dict`, before the first training step."""
        self._memory, self._loaded, self._is_resumed = None, dict(state), True

    def _made(self, codes: Mapping[str, Code], device: torch.device) -> Memory:
        memory = Memory(codes, self._options.momentum, self._options.max_age, device)
        if self._loaded:
            memory.load_state_dict(self._loaded)
            self._loaded = None
        return memory

    def _replace_changed(self, keys: Tensor) -> None:
        """Entries of other annotations: a changed data set, or ids that collide."""
        source, place = (int(each) for each in instance_of_key(keys[0]))
        if not self._is_resumed:
            raise MissingRecordError(
                f'annotation {place} of the image with source_id {source} is another one than '
                'when the image was seen before (class, box or file), so two images have the '
                f'same id and would be compared with each other. {SAMPLE_IDX_OFFSET_HINT}'
            )
        if self._has_warned:
            return
        self._has_warned = True
        print_log(
            f'The memory was saved with other data: {len(keys)} instances of the batch, such as '
            f'annotation {place} of the image with source_id {source}, are begun anew; '
            'others are too, without a word',
            'current',
            logging.WARNING,
        )


def present_epoch() -> int:
    """The epoch as the Runner tells it; 0 outside of training, and in iteration-based loops."""
    return MessageHub.get_current_instance().runtime_info.get('epoch', 0)


def instance_checks(labels: Tensor, source_boxes: Tensor) -> Tensor:
    """(N,) int64 numbers by which annotations are known again, from class and box (N, 4)."""
    sides = (source_boxes * _BOX_STEPS).round().long().unbind(dim=1)
    return fingerprints(labels, *sides)


def image_checks(samples: Sequence[Any], device: torch.device) -> Tensor:
    """(N,) int64 numbers by which the sources of samples are known again, from size and file.

    Of the path its last two parts count, so that a data set may be moved.
    """
    facts = []
    for sample in samples:
        name = '/'.join(PurePath(sample.get('img_path') or '').parts[-2:])
        height, width = ImageRecord.read(sample).source_shape or (0, 0)
        facts.append((zlib.crc32(name.encode()), height, width))
    return fingerprints(*torch.tensor(facts, device=device).view(-1, 3).unbind(dim=1))
