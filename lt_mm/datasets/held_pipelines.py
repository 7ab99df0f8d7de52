"""Pipelines learn which data set holds them, and so which transforms are switched off."""

from typing import Any

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
