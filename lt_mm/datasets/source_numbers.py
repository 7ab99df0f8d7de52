"""Every source of a data set gets a number of its own.

A data set counts its images from 0, and so does each one of those that a ``ConcatDataset``
joins. :func:`number_sources` gives their pipelines ranges that do not overlap. It runs
where a sampler of this package is built, which is before data are loaded, and before the
data set goes to worker processes.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from lt_mm.datasets.transforms.invertible_pipeline import InvertiblePipeline
from lt_mm.structures.errors import SAMPLE_IDX_OFFSET_HINT, MissingRecordError

# A longer list holds annotations, not data sets.
_MAX_PARTS = 1000

_Part = tuple[Any, list[InvertiblePipeline]]  # a data set, and its pipelines


def number_sources(dataset: Any, num_replicas: int | None = None) -> None:
    """Gives every source in a data set a number of its own.

    Data sets are found in the attributes of others, so in wrappers of the user too. An
    offset that the user gave to a pipeline stays.

    Args:
        dataset: The data set; it may wrap or join others.
        num_replicas: Replicas of a source that a sampler makes; None if that is not known.

    Raises:
        MissingRecordError: If two data sets have the same pipeline, or if the offsets that
            the user gave them let their ranges overlap.
    """
    parts = list({id(each[0]): each for each in _parts_of(dataset, {})}.values())
    _check_pipelines(parts)
    ranges = [_given_range(*part) for part in parts]
    taken = sorted(each for each in ranges if each is not None)
    _check_ranges(taken)
    for (part, pipelines), given in zip(parts, ranges):
        start, end = given or _free_range(len(part), taken)
        taken = sorted([*taken, (start, end)])
        for pipeline in pipelines:
            # A single data set may count its images as it likes.
            pipeline.number(start, end - start if len(parts) > 1 else None, num_replicas)


def check_numbers(dataset: Any) -> None:
    """Makes sure that no two sources in a data set have one number.

    Args:
        dataset: The data set; a sampler may have numbered its sources.

    Raises:
        MissingRecordError: If the ranges of two data sets overlap.
    """
    parts = {id(part): (part, pipelines[0]) for part, pipelines in _parts_of(dataset, {})}
    starts = {key: pipeline.sample_idx_offset for key, (_, pipeline) in parts.items()}
    _check_ranges(sorted((starts[key], starts[key] + len(parts[key][0])) for key in parts))


def pipelines_of(dataset: Any) -> list[InvertiblePipeline]:
    """The recording pipelines of all data sets in a data set."""
    return [pipeline for _, pipelines in _parts_of(dataset, {}) for pipeline in pipelines]


def set_num_replicas(dataset: Any, num_replicas: int) -> None:
    """Has the records of a numbered data set say in how many samples a source is shown."""
    for pipeline in pipelines_of(dataset):
        pipeline.num_replicas = num_replicas


def take_over_numbers(dataset: Any, transforms: list[Any], hook: str, key: str) -> None:
    """Numbers a pipeline that is to replace the present one of a data set during training.

    Args:
        dataset: The data set, whose sources have their numbers; nothing is asked of it where no
            pipeline records.
        transforms: The new pipeline, built.
        hook: Name of the hook that replaces it, for messages.
        key: Its argument of the hook, for messages.

    Raises:
        MissingRecordError: If it does not record, or if several data sets would share it.
    """
    present = [pipelines for _, pipelines in _parts_of(dataset, {}) if pipelines]
    if not present:
        return
    found = [pipeline for each in transforms for pipeline in _pipelines_in(each)]
    if not any(pipeline.is_loading for pipeline in found):
        raise MissingRecordError(
            f'the {key} of {hook} does not record, so training would stop when it takes the place '
            'of the training pipeline; expected it wrapped as that one is: custom_hooks=[..., '
            f"dict(type='{hook}', ..., {key}=[dict(type='lt_mm.InvertiblePipeline', "
            'transforms=<its stock list>)])], with the other hooks of the stock config beside it'
        )
    if len(present) > 1:
        raise MissingRecordError(
            f'the {key} of {hook} is to be the pipeline of {len(present)} data sets at once, so it '
            'could not tell their images apart; expected one data set. Remove the hook, or join '
            'the annotation files'
        )
    for pipeline in found:
        pipeline.continue_numbers(present[0][0])


def _parts_of(dataset: Any, known: dict[int, list[_Part]]) -> list[_Part]:
    """The data sets in which samples start, with their pipelines, inner ones first."""
    if id(dataset) not in known:
        known[id(dataset)] = []
        parts = [
            part
            for value in _values_in(dataset)
            if is_dataset(value)
            for part in _parts_of(value, known)
        ]
        pipelines = [found for value in _values_in(dataset) for found in _pipelines_in(value)]
        # The pipeline of a MultiImageMixDataset gets samples that have their numbers.
        if pipelines and not (parts and all(not each.is_loading for each in pipelines)):
            parts.append((dataset, pipelines))
        known[id(dataset)] = parts
    return known[id(dataset)]


def _values_in(holder: Any) -> Iterator[Any]:
    """The attributes of an object, and the members of those that are short collections."""
    for value in getattr(holder, '__dict__', {}).values():
        yield value
        yield from members_of(value)


def members_of(value: Any) -> Iterable[Any]:
    """The members of a short collection; of everything else none."""
    if isinstance(value, (list, tuple, dict)) and len(value) <= _MAX_PARTS:
        return value.values() if isinstance(value, dict) else value
    return ()


def holds_pipelines(value: Any) -> bool:
    """Whether a value is a recording pipeline, or a ``Compose`` with one in it."""
    return any(True for _ in _pipelines_in(value))


def is_dataset(value: Any) -> bool:
    """Whether a value can be indexed as a data set, and holds something."""
    is_sized = hasattr(type(value), '__getitem__') and hasattr(type(value), '__len__')
    return is_sized and hasattr(value, '__dict__') and not isinstance(value, (list, tuple, dict))


def _pipelines_in(value: Any) -> Iterator[InvertiblePipeline]:
    if isinstance(value, InvertiblePipeline):
        yield value
    elif isinstance(getattr(value, 'transforms', None), (list, tuple)):  # Compose
        for transform in value.transforms:
            yield from _pipelines_in(transform)


def _check_pipelines(parts: list[_Part]) -> None:
    holders: dict[int, Any] = {}
    for part, pipelines in parts:
        for pipeline in pipelines:
            first = holders.setdefault(id(pipeline), part)
            if first is not part:
                raise MissingRecordError(
                    f'a {type(first).__name__} and a {type(part).__name__} have one and the same '
                    'InvertiblePipeline object, so it cannot tell their images apart; expected a '
                    'pipeline for each data set: give each a config, pipeline='
                    "[dict(type='lt_mm.InvertiblePipeline', transforms=...)], or a copy.deepcopy"
                )


def _given_range(part: Any, pipelines: list[InvertiblePipeline]) -> tuple[int, int] | None:
    for pipeline in pipelines:
        if pipeline.given_offset is not None:
            return pipeline.given_offset, pipeline.given_offset + len(part)
    return None


def _check_ranges(ranges: list[tuple[int, int]]) -> None:
    """Raises if ranges, which ascend, overlap."""
    for (_, end), (start, _) in itertools.pairwise(ranges):
        if start < end:
            raise MissingRecordError(
                f'the source ids from {start} on stand for images of two data sets, since '
                f'the ranges of their offsets overlap. {SAMPLE_IDX_OFFSET_HINT}'
            )


def _free_range(length: int, taken: list[tuple[int, int]]) -> tuple[int, int]:
    """The first range of numbers that overlaps with none of those taken, which ascend."""
    start = 0
    for other_start, other_end in taken:
        if start + length <= other_start:
            break
        start = max(start, other_end)
    return start, start + length
