"""Images of which one copy in each group is augmented weakly, by a pipeline of its own."""

from typing import Any

from lt_mm.datasets.source_numbers import pipelines_of
from lt_mm.datasets.transforms.samples import IS_WEAK
from lt_mm.registry import DATASETS, register
from lt_mm.structures.errors import MissingRecordError


@register(DATASETS)
class WithWeakCopies:
    """A data set that can also show each of its images as a weak copy.

    The samplers of this package then make the first copy in each group a weak one: the clean
    image, on which alone the stock loss is taken with ``supervise='one'`` of the head, as in
    AugMix.

    Args:
        dataset: The stock data set, or its config. Its ``pipeline`` holds one
            ``dict(type='lt_mm.InvertiblePipeline', transforms=..., weak=[...])``.

    Raises:
        MissingRecordError: If there is no pipeline for weak copies.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        if not num_weak_of(self.dataset):
            raise MissingRecordError(
                f'{type(self.dataset).__name__} has no pipeline for weak copies; expected in a '
                "stock data set, not in a wrapper of one: pipeline=[dict(type='lt_mm."
                "InvertiblePipeline', transforms=<strong augmentations>, weak=<weak ones>)]"
            )

    @property
    def metainfo(self) -> dict:
        """The metainfo of the data set, such as ``classes``."""
        return self.dataset.metainfo

    @property
    def num_weak(self) -> int:
        """How many images have a weak copy, at indices from ``len`` on: all."""
        return len(self.dataset)

    def full_init(self) -> None:
        """Loads the list of images; MMEngine's loaders call it."""
        self.dataset.full_init()

    def get_data_info(self, index: int) -> dict:
        """What is known of an image."""
        return self.dataset.get_data_info(index)

    def get_cat_ids(self, index: int) -> list[int]:
        """The classes of an image."""
        return self.dataset.get_cat_ids(index)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        if index >= len(self):
            return weak_copy(self.dataset, index - len(self))
        return self.dataset[index]


def num_weak_of(dataset: Any) -> int:
    """How many images of a data set have a weak copy: all, or none."""
    has_weak = hasattr(dataset, 'pipeline') and any(
        pipeline.weak is not None for pipeline in pipelines_of(dataset)
    )
    return len(dataset) if has_weak else 0


def weak_copy(dataset: Any, index: int) -> Any:
    """The weak copy of an image of a stock data set.

    Raises:
        IndexError: If there is no such image.
        RuntimeError: If the image cannot be used, and no good one came before it.
    """
    if not 0 <= index < len(dataset):
        raise IndexError(f'there is no weak copy {index} of {len(dataset)}')
    sample = dataset.pipeline({**dataset.get_data_info(index), IS_WEAK: True})
    if sample is None:
        raise RuntimeError(
            f'the weak pipeline rejects image {index} of {type(dataset).__name__}, and no good '
            'image came before it; see the warnings above, and check the pipeline: '
            "dict(type='lt_mm.InvertiblePipeline', weak=[...], ...)"
        )
    return sample
