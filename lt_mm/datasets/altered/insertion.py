"""A transform is put into the pipelines of a data set that is built."""

from collections.abc import Callable
from typing import Any


def _loads_image(transform: Callable) -> bool:
    """Whether a transform is one of the stock ones that load an image."""
    name = type(transform).__name__
    return name.startswith('Load') and 'Image' in name


def insert_after_loading(dataset: Any, transform: Callable) -> None:
    """Puts a transform behind the loading of images into the pipelines of a data set.

    Args:
        dataset: The data set; it may wrap or join others.
        transform: The transform.

    Raises:
        ValueError: If a pipeline is not a list of stock transforms, or there is none.
    """
    inner = [getattr(dataset, 'dataset', None), *getattr(dataset, 'datasets', ())]
    inner = [each for each in inner if each is not None]
    for each in inner:
        insert_after_loading(each, transform)
    if inner:
        return
    transforms = getattr(getattr(dataset, 'pipeline', None), 'transforms', None)
    if not isinstance(transforms, list) or any(
        type(each).__name__ == 'InvertiblePipeline' for each in transforms
    ):
        raise ValueError(
            f'the pipeline of a {type(dataset).__name__} is '
            f'{getattr(dataset, "pipeline", None)}; expected the stock pipeline of validation, '
            'from loading to packing, not in an InvertiblePipeline'
        )
    loading = [place for place, each in enumerate(transforms) if _loads_image(each)]
    transforms.insert(max(loading, default=-1) + 1, transform)
