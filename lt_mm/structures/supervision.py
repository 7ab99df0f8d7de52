"""Which images of a batch the stock loss sees, and which copies are targets."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lt_mm.structures.errors import MissingRecordError, UnpairedBatchError
from lt_mm.structures.record import ImageRecord

# In the metainfo of the proposals of a region proposal network: its own loss saw no unlabelled
# image.
LEAVES_OUT_UNLABELLED = 'leaves_out_unlabelled'
_SAMPLER_HINT = (
    'use the sampler that mixes both: train_dataloader.sampler = dict(type='
    "'lt_mm.GroupedRepeatAugSampler', num_repeats=2, unlabelled_share=0.5)"
)


@dataclass(frozen=True)
class Supervision:
    """The roles of the B images of a batch.

    Attributes:
        labelled: For each image, whether its annotations count.
        supervised: For each image, whether the stock loss sees it.
        weak: For each image, whether it is a weak copy.
    """

    labelled: tuple[bool, ...]
    supervised: tuple[bool, ...]
    weak: tuple[bool, ...]

    @classmethod
    def of(cls, samples: Sequence[Any], supervise: str) -> 'Supervision':
        """The roles that the records of samples, or of their ``gt_instances``, tell.

        Args:
            samples: Of the batch.
            supervise: 'all' labelled images, or 'one' of the copies of each source: the weak one,
                or the first where none is weak.

        Raises:
            MissingRecordError: If a sample has no record.
            UnpairedBatchError: If the stock loss would see no image.
        """
        origins = [ImageRecord.read(sample).origin for sample in samples]
        labelled = tuple(origin.is_labelled for origin in origins)
        supervised = labelled
        if supervise == 'one':
            chosen: dict[int, int] = {}
            for image, origin in enumerate(origins):
                if origin.is_weak or origin.source_id not in chosen:
                    chosen[origin.source_id] = image
            images = set(chosen.values())
            supervised = tuple(own and image in images for image, own in enumerate(labelled))
        if not any(supervised):
            raise UnpairedBatchError(
                f'none of the {len(origins)} images of the batch is labelled, so there is no stock '
                f'loss; {_SAMPLER_HINT}. Below a loop with micro-batches, RoI heads and '
                'WeakTargetHook need a labelled image in each micro-batch: lower '
                'train_cfg.num_micro_batches'
            )
        return cls(labelled, supervised, tuple(origin.is_weak for origin in origins))

    @property
    def is_stock(self) -> bool:
        """Whether the stock loss sees all images, as without this package."""
        return all(self.supervised)

    @property
    def supervised_images(self) -> list[int]:
        """The images that the stock loss sees."""
        return _places(self.supervised)

    @property
    def unsupervised_images(self) -> list[int]:
        """The images with annotations that the stock loss does not see."""
        return [image for image in _places(self.labelled) if not self.supervised[image]]

    @property
    def unlabelled_images(self) -> list[int]:
        """The images without annotations."""
        return [image for image, own in enumerate(self.labelled) if not own]

    def rows_of(self, counts: Sequence[int], device: torch.device) -> Tensor:
        """(n,) int64, the rows of the supervised images in a table with rows for each image."""
        starts, first = [], 0
        for count in counts:
            starts.append(first)
            first += count
        return torch.cat(
            [
                torch.arange(starts[image], starts[image] + counts[image], device=device)
                for image in self.supervised_images
            ]
        )


def check_weak_copies(samples: Sequence[Any]) -> None:
    """Makes sure that every source that is shown several times has one weak copy.

    Raises:
        MissingRecordError: If one has none, or several.
    """
    sizes: Counter[int] = Counter()
    weak: Counter[int] = Counter()
    for sample in samples:
        origin = ImageRecord.read(sample).origin
        sizes[origin.source_id] += 1
        weak[origin.source_id] += origin.is_weak
    for source, size in sizes.items():
        if size > 1 and weak[source] != 1:
            raise MissingRecordError(
                f'the head has weak_target, and of the {size} copies of source {source} in the '
                f'batch {weak[source]} are weak; expected one, from the weak pipeline of the data '
                "set: dict(type='lt_mm.InvertiblePipeline', transforms=<strong augmentations>, "
                'weak=<weak ones>) in the unlabelled part of lt_mm.LabelledAndUnlabelled, or in '
                'lt_mm.WithWeakCopies'
            )


def _places(flags: Sequence[bool]) -> list[int]:
    return [place for place, flag in enumerate(flags) if flag]
