"""What has to be right before the first step, found and put right while it costs nothing."""

from typing import Any

from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from lt_mm.datasets.held_pipelines import hold_pipelines
from lt_mm.datasets.samplers.repeat_aug import check_train_dataloader
from lt_mm.datasets.source_numbers import take_over_numbers
from lt_mm.models.recorded_augments import record_batch_augments
from lt_mm.registry import TRANSFORMS
from lt_mm.structures import comparing_heads


def prepare_training(runner: Runner, loader: DataLoader) -> None:
    """Makes sure that what happens later in a run is recorded too.

    - Batches hold whole groups.
    - Lists that ``MultiImageMixDataset`` holds follow its ``skip_type_keys``.
    - Pipelines that hooks switch to (``PipelineSwitchHook``, ``SwitchRecipeHook``) record, and
      number their sources as the present ones do.
    - Batch augments of MMDetection move the record.

    Args:
        runner: A built runner, before training.
        loader: Its training loader.

    Raises:
        ValueError: If groups do not fit into a batch.
        MissingRecordError: If a pipeline that a hook switches to does not record.
        LostRecordError: If a batch augment cannot be recorded.
    """
    check_train_dataloader(loader)
    hold_pipelines(loader.dataset)
    for hook in runner.hooks:
        _check_switches(hook, loader.dataset)
    model: Any = runner.model.module if is_model_wrapper(runner.model) else runner.model
    preprocessor = model.data_preprocessor
    if comparing_heads.exist() and isinstance(preprocessor, DetDataPreprocessor):
        record_batch_augments(preprocessor.batch_augments)


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
