"""A data set of which only a part has labels."""

import copy
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmengine.dataset import BaseDataset

from lt_mm.datasets.source_numbers import pipelines_of
from lt_mm.datasets.transforms.samples import without_annotations
from lt_mm.datasets.weak_copies import num_weak_of, weak_copy
from lt_mm.registry import DATASETS, register
from lt_mm.structures.errors import RECORD_HINT, MissingRecordError

_IMAGE_SUFFIXES = {'.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm'}


@register(DATASETS)
class LabelledAndUnlabelled:
    """The images of two data sets, of which the second has no labels, whatever it says.

    The labelled images come first. The records of the others say so (``is_labelled=False``), and
    wrapped heads leave them out of the stock loss. With ``GroupedRepeatAugSampler`` and its
    ``unlabelled_share``, every batch holds both. The sampler gives both parts ids of their own.
    Where the pipelines of the unlabelled part have a ``weak`` list, one copy in each of its
    groups is a weak one.

    Args:
        labelled: The stock training data set, or its config; its pipeline has to be an
            ``InvertiblePipeline``.
        unlabelled: Likewise, or the path of a folder whose images are used, those in its
            subfolders too. Annotations are ignored; note that a ``filter_cfg`` of the data set
            still leaves images out because of them. A config without a pipeline, and a folder,
            get the pipeline of the labelled part's config.
        lazy_init: Whether the lists of images are loaded later, by :meth:`full_init`.

    Raises:
        MissingRecordError: If a part has no ``InvertiblePipeline``.
        ValueError: If there is no pipeline for a folder, or no image in it.
    """

    def __init__(self, labelled: Any, unlabelled: Any, lazy_init: bool = False) -> None:
        pipeline = labelled.get('pipeline') if isinstance(labelled, dict) else None
        pipeline = copy.deepcopy(pipeline)  # building may change a config
        # In this order, which is that of their numbers.
        self.labelled = DATASETS.build(labelled) if isinstance(labelled, dict) else labelled
        self.unlabelled = _built_unlabelled(unlabelled, pipeline)
        for name, part in (('labelled', self.labelled), ('unlabelled', self.unlabelled)):
            if not pipelines_of(part):
                raise MissingRecordError(
                    f'the {name} part, a {type(part).__name__}, has no InvertiblePipeline, so '
                    f'nothing would tell which samples are labelled; {RECORD_HINT}'
                )
        shared = {id(each) for each in pipelines_of(self.labelled)}
        for each in pipelines_of(self.unlabelled):
            if id(each) in shared:
                raise MissingRecordError(
                    'the labelled and the unlabelled part have one and the same '
                    'InvertiblePipeline object; expected one each: a config, or a copy.deepcopy'
                )
            each.is_labelled = False
            _check_keeps_images(each)
        if not lazy_init:
            self.full_init()

    @property
    def metainfo(self) -> dict:
        """The metainfo of the labelled part, such as ``classes``."""
        return self.labelled.metainfo

    def full_init(self) -> None:
        """Loads the lists of images; MMEngine's loaders call it."""
        for part in (self.labelled, self.unlabelled):
            if hasattr(part, 'full_init'):
                part.full_init()

    def is_labelled(self, index: int) -> bool:
        """Whether an image belongs to the labelled part."""
        return self._place(index)[0] is self.labelled

    def get_data_info(self, index: int) -> dict:
        """What is known of an image; nothing of the annotations of an unlabelled one."""
        part, place = self._place(index)
        info = part.get_data_info(place)
        return info if part is self.labelled else without_annotations(info)

    def get_cat_ids(self, index: int) -> list[int]:
        """The classes of an image; none of an unlabelled one."""
        part, place = self._place(index)
        return part.get_cat_ids(place) if part is self.labelled else []

    @functools.cached_property
    def num_weak(self) -> int:
        """How many images have a weak copy, at indices from ``len`` on: all that are unlabelled."""
        return num_weak_of(self.unlabelled)

    def __len__(self) -> int:
        return len(self.labelled) + len(self.unlabelled)

    def __getitem__(self, index: int) -> Any:
        if index >= len(self) and self.num_weak:
            return weak_copy(self.unlabelled, index - len(self))
        part, place = self._place(index)
        return part[place]

    def _place(self, index: int) -> tuple[Any, int]:
        """The part that holds an image, and the place of the image in it."""
        if not -len(self) <= index < len(self):
            raise IndexError(f'index {index} of {len(self)} images')
        index %= len(self)
        number = len(self.labelled)
        return (self.labelled, index) if index < number else (self.unlabelled, index - number)


class UnlabelledFolder(BaseDataset):
    """The images in a folder and its subfolders, in the order of their paths.

    Args:
        folder: Its path.
        pipeline: Config of the pipeline.

    Raises:
        ValueError: If there is no image.
    """

    def __init__(self, folder: str | Path, pipeline: Any) -> None:
        super().__init__(data_root=str(folder), pipeline=pipeline, lazy_init=True)

    def load_data_list(self) -> list[dict]:
        root = Path(self.data_root)
        paths = sorted(path for path in root.rglob('*') if path.suffix.lower() in _IMAGE_SUFFIXES)
        if not paths:
            raise ValueError(
                f'there is no image in {root}: expected files that end in '
                f'{", ".join(sorted(_IMAGE_SUFFIXES))}; check train_dataloader.dataset.unlabelled'
            )
        return [
            dict(img_path=str(path), img_id=number, instances=[])
            for number, path in enumerate(paths)
        ]


def _check_keeps_images(pipeline: Any) -> None:
    """Refuses transforms that leave out every image without a box."""
    for transform in _transforms_in([pipeline, pipeline.weak]):
        if not getattr(transform, 'allow_negative_crop', True):
            name = type(transform).__name__
            raise ValueError(
                f'the pipeline of the unlabelled part has {name}(allow_negative_crop=False), which '
                'leaves out images without a box, so all of them; expected '
                f'{name}(allow_negative_crop=True): unlabelled=dict(..., pipeline=[...])'
            )


def _transforms_in(holders: Iterable[Any]) -> Iterator[Any]:
    """All transforms in some of them, those that others choose from or apply too."""
    for holder in holders:
        yield holder
        inner = getattr(holder, 'transforms', ())
        yield from _transforms_in(inner if isinstance(inner, (list, tuple)) else [inner])


def _built_unlabelled(unlabelled: Any, pipeline: Any) -> Any:
    """The unlabelled data set, with a pipeline config where it has none of its own."""
    if isinstance(unlabelled, (str, Path)):
        if not pipeline:
            raise ValueError(
                f'unlabelled={str(unlabelled)!r} is a folder, and there is no pipeline for its '
                'images: expected labelled=dict(type=..., pipeline=...), whose pipeline they get'
            )
        return UnlabelledFolder(unlabelled, pipeline)
    if isinstance(unlabelled, dict):
        given = {} if 'pipeline' in unlabelled or not pipeline else dict(pipeline=pipeline)
        return DATASETS.build({**unlabelled, **given})
    return unlabelled
