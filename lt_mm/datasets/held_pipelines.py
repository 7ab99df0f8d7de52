"""Pipelines and the data sets that hold them.

Pipelines learn which data set holds them, and so which transforms are switched off; and a data set
is copied together with its pipelines.
"""

import copy
from typing import Any

from lt_mm.datasets.source_numbers import holds_pipelines, is_dataset, members_of
from lt_mm.datasets.transforms.invertible_pipeline import InvertiblePipeline


def hold_pipelines(dataset: Any) -> None:
    """Has the wrapped lists of data sets that mix images follow their ``skip_type_keys``.

    A ``MultiImageMixDataset`` leaves out transforms by their names, and ``YOLOXModeSwitchHook``
    sets these names; the data set sees those of its own list alone, not what is inside of an
    ``InvertiblePipeline`` in it.

    Args:
        dataset: The data set; it may wrap or join others.
    """
    names = 'dataset', 'labelled', 'unlabelled'
    single = [getattr(dataset, name, None) for name in names]
    for inner in [*getattr(dataset, 'datasets', ()), *single]:
        if inner is not None:
            hold_pipelines(inner)
    if hasattr(dataset, '_skip_type_keys'):
        for transform in dataset.pipeline:
            if isinstance(transform, InvertiblePipeline):
                transform.held_by(dataset)


def working_copy(dataset: Any) -> Any:
    """A data set that shares annotations with another one, and has pipelines of its own.

    Pipelines keep something from one sample to the next: counts of unusable images, and the last
    good one, which takes their place.

    Args:
        dataset: A built data set; it may wrap or join others.
    """
    return _copied(dataset, {})


def _copied(dataset: Any, memo: dict[int, Any]) -> Any:
    if id(dataset) in memo:
        return memo[id(dataset)]
    made = copy.copy(dataset)
    # What refers to the data set from inside of a pipeline refers to the copy.
    memo[id(dataset)] = made
    for name, value in vars(dataset).items():
        if is_dataset(value):
            setattr(made, name, _copied(value, memo))
        elif any(is_dataset(each) for each in members_of(value)):
            setattr(made, name, _copied_members(value, memo))
    for name, value in vars(dataset).items():
        if any(holds_pipelines(each) for each in [value, *members_of(value)]):
            setattr(made, name, copy.deepcopy(value, memo))
    return made


def _copied_members(value: Any, memo: dict[int, Any]) -> Any:
    """A list, tuple or dict, with copies of the data sets in it."""
    if isinstance(value, dict):
        return dict(zip(value, _copied_members(list(value.values()), memo)))
    return [_copied(each, memo) if is_dataset(each) else each for each in value]
