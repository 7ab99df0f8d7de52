"""A fixed number of augmented copies of each image, the same in every run."""

from collections.abc import Sequence
from typing import Any

from lt_mm.core.seeds import seeded
from lt_mm.datasets.held_pipelines import hold_pipelines
from lt_mm.datasets.source_numbers import number_sources
from lt_mm.registry import DATASETS, register


class RepeatedImages:
    """Each image of a data set n times: sample i is copy ``i % n`` of chosen image ``i // n``.

    Args:
        dataset: The data set, or its config.
        num_copies: n, how often each image comes.
        indices: The images of the data set that are used, by default all.
        max_images: At most so many images are used, evenly spaced over the data set.

    Attributes:
        indices: The numbers of the images that are used.

    Raises:
        ValueError: If a number is out of range, or ``indices`` and ``max_images`` are both given.
    """

    def __init__(
        self,
        dataset: Any,
        num_copies: int,
        indices: Sequence[int] | None = None,
        max_images: int | None = None,
    ) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.num_copies = num_copies
        self.indices = chosen_images(len(self.dataset), indices, max_images)

    @property
    def metainfo(self) -> dict:
        """The metainfo of the data set, such as ``classes``."""
        return self.dataset.metainfo

    def full_init(self) -> None:
        """Loads the list of images; MMEngine's loaders call it."""
        self.dataset.full_init()

    def image_and_copy(self, index: int) -> tuple[int, int]:
        """The image of the data set that a sample shows, and the number of the copy."""
        place, copy = divmod(index, self.num_copies)
        return self.indices[place], copy

    def get_data_info(self, index: int) -> dict:
        """The annotations of the image that a sample shows."""
        return self.dataset.get_data_info(self.image_and_copy(index)[0])

    def __len__(self) -> int:
        """The number of copies of all images that are used."""
        return len(self.indices) * self.num_copies


@register(DATASETS)
class ReplicaDataset(RepeatedImages):
    """m augmented copies of the images of a data set, which depend on the seed alone.

    Sample i is copy ``i % m`` of chosen image ``i // m``. Its random numbers depend on the
    seed, the image and the number of the copy alone, so two models see the same copies,
    in any order, batch size and number of loading processes. That holds for transforms
    that use the generators of Python, numpy and torch, as the stock ones do, or generators of
    their own that :func:`lt_mm.core.seeds.seed_all` can seed (albumentations, imgaug), and
    that keep nothing from one sample to the next.

    There are m samples for each image, so stock metrics count every copy.

    Args:
        dataset: The data set, or its config; its pipeline augments.
        num_replicas: m.
        seed: A number >= 0.
        indices: See :class:`RepeatedImages`, here and below.
        max_images: At most so many images.

    Raises:
        ValueError: If a number is out of range, or ``indices`` and ``max_images`` are both given.
    """

    def __init__(
        self,
        dataset: Any,
        num_replicas: int = 4,
        seed: int = 0,
        indices: Sequence[int] | None = None,
        max_images: int | None = None,
    ) -> None:
        if num_replicas < 1 or seed < 0:
            raise ValueError(
                f'num_replicas is {num_replicas} and seed {seed}; expected '
                'a positive number of copies and a seed >= 0'
            )
        super().__init__(dataset, num_replicas, indices, max_images)
        number_sources(self.dataset)
        hold_pipelines(self.dataset)
        self.seed = seed

    def __getitem__(self, index: int) -> dict:
        image, replica = self.image_and_copy(index)
        with seeded(self.seed, image, replica, within=self.dataset):
            return self.dataset[image]


def chosen_images(
    count: int, indices: Sequence[int] | None, max_images: int | None
) -> Sequence[int]:
    """The numbers of the images that are used; see :class:`RepeatedImages`."""
    if indices is not None and max_images is not None:
        raise ValueError(
            f'indices are {indices} and max_images is {max_images}; expected one of them'
        )
    if indices is not None:
        if not len(indices) or not all(0 <= index < count for index in indices):
            raise ValueError(
                f'indices are {indices}; expected numbers from 0 to {count - 1}, at least '
                f'one: the data set has {count} images'
            )
        return [int(index) for index in indices]
    if max_images is not None and max_images < 1:
        raise ValueError(f'max_images is {max_images}; expected a positive number')
    number = min(count, max_images or count)
    return [position * count // number for position in range(number)]
