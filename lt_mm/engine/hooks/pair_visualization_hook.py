"""``PairVisualizationHook``: pictures of what the heads pair in a training step."""

from collections.abc import Callable
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import nn

from lt_mm.models.mixins import InstanceMixin, mix_in
from lt_mm.registry import HOOKS, register
from lt_mm.structures.pair_record import PairRecord, recorded_heads, recording
from lt_mm.visualization.drawing import pixels_of
from lt_mm.visualization.pairs_figure import pairs_figure


@register(HOOKS)
class PairVisualizationHook(Hook):
    """Logs pictures of the pairs of training batches.

    ``custom_hooks = [dict(type='lt_mm.PairVisualizationHook', interval=200)]``. At every
    ``interval``-th iteration, one picture for each wrapped head, ``lt_pairs_<head>``, goes
    to all ``vis_backends`` of the visualizer. Each row shows a source. For a detector, these
    are the source image with the restored boxes, and then its replicas with the predicted
    boxes; predictions that pair have one colour for each group, unpaired ones are dashed and
    grey. For a classifier, these are the replicas, their most probable class, and the KL of
    their mean to each of them, averaged. The title says how many predictions are paired.

    Training is the same with and without the hook, bit for bit. It draws on rank 0.

    The hook gives the runner's model, this one object, a class that derives from its own
    (:func:`lt_mm.models.mixins.mix_in`) and stays with it. In a step that is drawn, the heads
    have a recorder during each forward pass, and however the pass ends, none after it.

    Args:
        interval: Iterations from one picture to the next.
        max_sources: How many sources of the batch to draw at most, those with pairs first.
        max_replicas: How many replicas of each source to draw at most.
        max_per_group: How many predictions of a replica in one group to draw at most, and
            how many unpaired ones; the most confident ones are drawn.

    Raises:
        ValueError: If a number is below 1, or the model has no wrapped head.
    """

    priority = 'LOW'

    def __init__(
        self,
        interval: int = 100,
        max_sources: int = 3,
        max_replicas: int = 4,
        max_per_group: int = 3,
    ) -> None:
        for name, value in (
            ('interval', interval),
            ('max_sources', max_sources),
            ('max_replicas', max_replicas),
            ('max_per_group', max_per_group),
        ):
            if not (isinstance(value, int) and value >= 1):
                raise ValueError(f'{name} is {value!r}; expected an integer, 1 or more')
        self.interval = interval
        self.limits = (max_sources, max_replicas, max_per_group)

    def before_train(self, runner: Any) -> None:
        model = _model_of(runner)
        if not recorded_heads(model):
            raise ValueError(
                f'{type(model).__name__} has no LossTransformHead, so nothing is paired; wrap '
                "its head, dict(type='lt_mm.LossTransformHead', head=<stock head>), or remove "
                'PairVisualizationHook from custom_hooks'
            )
        if not isinstance(model, _RecordedModel):
            mix_in(_RecordedModel, model)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        model = _model_of(runner)
        model.lt_passes = None  # the step before may have failed
        if is_main_process() and self.every_n_train_iters(runner, self.interval):
            model.lt_passes = []

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        model = _model_of(runner)
        passes, model.lt_passes = model.lt_passes, None
        if passes is None:
            return
        classes = getattr(runner.train_dataloader.dataset, 'metainfo', {}).get('classes')
        for name, head in recorded_heads(model).items():
            found = [record for records in passes for record in records[name]]
            if not found:  # a RoI head, whose box and mask heads form the pairs
                continue
            figure = pairs_figure(
                found[-1].cpu(),
                data_batch,
                classes,
                *self.limits,
                divergence=getattr(head, 'lt_divergence', None),
                heading=f'iteration {runner.iter + 1}, {name}: ',
            )
            runner.visualizer.add_image(f'lt_pairs_{name}', pixels_of(figure), step=runner.iter + 1)


class _RecordedModel(InstanceMixin, nn.Module):
    """Mixin for a model: collects what its wrapped heads record in each forward pass.

    Attributes:
        lt_passes: The records of the heads, by name, of each pass; None to collect nothing.
    """

    prefix = 'Recorded'
    lt_passes: list[dict[str, list[PairRecord]]] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.lt_record(super().__call__, *args, **kwargs)

    def lt_record(self, function: Callable, *args: Any, **kwargs: Any) -> Any:
        """Calls a function in which heads form pairs, and collects what they record."""
        if self.lt_passes is None:
            return function(*args, **kwargs)
        with recording(self) as records:
            self.lt_passes.append(records)
            return function(*args, **kwargs)


def _model_of(runner: Any) -> Any:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
