"""What has to be right before the first step, found and put right while it costs nothing."""

from collections.abc import Iterable
from typing import Any

from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmengine.model import is_model_wrapper
from torch.utils.data import DataLoader

from lt_mm.datasets.held_pipelines import hold_pipelines
from lt_mm.datasets.samplers.repeat_aug import check_train_dataloader, repeats_sources
from lt_mm.datasets.source_numbers import number_sources, take_over_numbers
from lt_mm.models.recorded_augments import record_batch_augments
from lt_mm.registry import TRANSFORMS
from lt_mm.structures import comparing_heads


def prepare_training(model: Any, loader: DataLoader, hooks: Iterable[Any]) -> None:
    """Makes sure that what happens later in a run is recorded too.

    - Batches hold whole groups.
    - Every source has a number of its own, with the stock samplers too.
    - Lists that ``MultiImageMixDataset`` holds follow its ``skip_type_keys``.
    - Pipelines that hooks switch to (``PipelineSwitchHook``, ``SwitchRecipeHook``) record, and
      number their sources as the present ones do.
    - Batch augments of MMDetection move the record.

    Args:
        model: The built model; it may be in a wrapper.
        loader: The built training loader.
        hooks: The built hooks of the run.

    Raises:
        ValueError: If groups do not fit into a batch.
        MissingRecordError: If a pipeline that a hook switches to does not record.
        LostRecordError: If a batch augment cannot be recorded.
    """
    check_train_dataloader(loader)
    if comparing_heads.exist() and not repeats_sources(loader):
        number_sources(loader.dataset)  # samplers of this package have done so
    hold_pipelines(loader.dataset)
    for hook in hooks:
        _check_switches(hook, loader.dataset)
    preprocessor = bare_model(model).data_preprocessor
    if comparing_heads.exist() and isinstance(preprocessor, DetDataPreprocessor):
        record_batch_augments(preprocessor.batch_augments)


def bare_model(model: Any) -> Any:
    """A model without the wrapper that distributes it."""
    return model.module if is_model_wrapper(model) else model


def _check_switches(hook: Any, dataset: Any) -> None:
    """Numbers the pipelines that a hook switches to."""
    name = type(hook).__name__
    if hasattr(hook, 'switch_pipeline'):  # PipelineSwitchHook, which builds it at that epoch
        hook.switch_pipeline = [
            TRANSFORMS.build(each) if isinstance(each, dict) else each
            for each in hook.switch_pipeline
        ]
        take_over_numbers(dataset, hook.switch_pipeline, name, 'switch_pipeline')
    schedule = getattr(hook, 'schedule', None)
    if isinstance(schedule, dict):  # SwitchRecipeHook, which has built them
        for recipe in schedule.values():
            if 'train_pipeline' in recipe:
                transforms = recipe['train_pipeline'].transforms
                take_over_numbers(dataset, transforms, name, 'train_pipeline')
