"""``PairVisualizationHook``: what the heads pair in a training step, drawn."""

from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from lt_mm.models.heads.loss_transform_head import ConsistencyHead
from lt_mm.registry import HOOKS, register
from lt_mm.structures.pair_record import PairRecord
from lt_mm.visualization.drawing import pixels_of
from lt_mm.visualization.pairs_figure import pairs_figure


@register(HOOKS)
class PairVisualizationHook(Hook):
    """Logs pictures of the pairs of training batches.

    ``custom_hooks = [dict(type='lt_mm.PairVisualizationHook', interval=200)]``. At every
    ``interval``-th iteration, one picture a wrapped head, ``lt_pairs_<head>``, goes to
    all ``vis_backends`` of the visualizer. A row is a source. For a detector: the source
    image with the restored boxes on it, then its replicas with the predicted ones;
    predictions that pair have one colour a group, unpaired ones are dashed and grey. For
    a classifier: the replicas, their most probable class, and the KL of their mean to
    each, averaged. The title says how many are paired.

    Training is the same with and without it, bit for bit. It draws on rank 0.

    Args:
        interval: Iterations from one picture to the next.
        max_sources: At most so many sources of the batch, those with pairs first.
        max_replicas: At most so many replicas of each.
        max_per_group: Of the predictions of a replica in one group, at most so many, the
            most confident ones. Of the unpaired ones likewise.

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
        self._records: dict[str, list[PairRecord]] = {}

    def before_train(self, runner) -> None:
        if not _wrapped_heads(runner):
            raise ValueError(
                f'{type(runner.model).__name__} has no LossTransformHead, so nothing is '
                "paired; wrap its head, dict(type='lt_mm.LossTransformHead', head=<stock "
                'head>), or leave PairVisualizationHook out of custom_hooks'
            )

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if is_main_process() and self.every_n_train_iters(runner, self.interval):
            self._records = {name: [] for name in _wrapped_heads(runner)}
            for name, head in _wrapped_heads(runner).items():
                head.lt_recorder = self._records[name].append

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if not self._records:
            return
        for head in _wrapped_heads(runner).values():
            del head.lt_recorder
        records, self._records = self._records, {}
        classes = getattr(runner.train_dataloader.dataset, 'metainfo', {}).get('classes')
        num_parts = getattr(runner.train_loop, 'num_micro_batches', 1)
        for name, noted in records.items():
            if not noted:  # a RoI head, whose box and mask heads pair
                continue
            record = _of_batch(noted, min(num_parts, len(data_batch['data_samples'])))
            figure = pairs_figure(
                record,
                data_batch,
                classes,
                *self.limits,
                divergence=getattr(_wrapped_heads(runner)[name], 'lt_divergence', None),
                heading=f'iteration {runner.iter + 1}, {name}: ',
            )
            runner.visualizer.add_image(f'lt_pairs_{name}', pixels_of(figure), step=runner.iter + 1)


def _wrapped_heads(runner: Any) -> dict[str, ConsistencyHead]:
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    return {name: part for name, part in model.named_modules() if isinstance(part, ConsistencyHead)}


def _of_batch(noted: list[PairRecord], num_parts: int) -> PairRecord:
    """The record of a batch, from those of its micro-batches.

    A loop with micro-batches passes through each twice; the pairs are known the second
    time. Part k holds images k, k + num_parts, ... A stock loop has one part.
    """
    parts = [record.cpu() for record in noted[-num_parts:]]
    for number, part in enumerate(parts):
        part.images = part.images * num_parts + number
    return PairRecord.join(parts)
