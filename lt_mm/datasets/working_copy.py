"""Copies of data sets from which samples are drawn without a trace in the originals."""

import copy
from typing import Any

from lt_mm.datasets.source_numbers import holds_pipelines, is_dataset, members_of


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
            setattr(made, name, [_copied(each, memo) for each in value])
    for name, value in vars(dataset).items():
        if any(holds_pipelines(each) for each in [value, *members_of(value)]):
            setattr(made, name, copy.deepcopy(value, memo))
    return made
