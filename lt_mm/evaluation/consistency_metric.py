"""How alike the predictions for the replicas of an image are, as a metric."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from mmdet.structures.bbox import get_box_tensor
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from torch import Tensor

from lt_mm.core import agreement
from lt_mm.core.geometry import boxes_to_source, is_axis_aligned, scale_matrix
from lt_mm.core.pairing import group_sizes
from lt_mm.registry import METRICS, register
from lt_mm.structures.errors import MissingRecordError, UnpairedBatchError
from lt_mm.structures.record import ImageRecord, check_distinct

EVALUATED_RECORD_HINT = (
    'wrap the pipeline of the data set that is evaluated: val_dataloader.dataset.pipeline'
    " = [dict(type='lt_mm.InvertiblePipeline', transforms=<the training pipeline>, "
    "on_bad_image='raise')]"
)
REPLICA_HINT = (
    "repeat each image: val_dataloader.dataset = dict(type='lt_mm.ReplicaDataset', "
    'dataset=<the data set, with its augmenting pipeline>, num_replicas=m), or '
    "val_dataloader.sampler = dict(type='lt_mm.GroupedRepeatAugSampler', num_repeats=m, "
    'shuffle=False), with m >= 2'
)


@dataclass
class ConsistencyReport:
    """What was measured, in detail.

    Attributes:
        numbers: The metrics, without prefix.
        images: A row for each image: ``source_id``, ``img_path`` and its own values,
            None where it has none.
        labels: (G,) int64, the class of each group: of an image the most probable one in
            the mean prediction (-1 for multi-label heads), of matched boxes the most
            common one.
        agreement: (G,) float64, the agreement of each group.
        probabilities: For each source id the predictions of its m replicas, (m, C)
            float32; empty for detectors.
    """

    numbers: dict[str, float]
    images: list[dict[str, Any]]
    labels: np.ndarray
    agreement: np.ndarray
    probabilities: dict[int, np.ndarray] = field(default_factory=dict)


@register(METRICS)
class ConsistencyMetric(BaseMetric):
    """How alike predictions for m augmented copies ("replicas") of each image are.

    Works with MMPretrain classifiers and MMDetection detectors, without annotations. The
    loader has to give replicas with a record: a pipeline in an
    :class:`~lt_mm.datasets.InvertiblePipeline`, and each image several times, by a
    :class:`~lt_mm.datasets.ReplicaDataset` or a
    :class:`~lt_mm.datasets.GroupedRepeatAugSampler`. Replicas of one image may
    come in different batches and on different ranks. For classifiers:

    - ``mean_kl``: the mean over the images of D_KL(mean prediction || each), in nats, as
      in the consistency term. It grows with m, so compare values of equal m; and models
      that are less sure of their predictions have less of it.
    - ``agreement``: of all pairs of replicas of an image, the share in which the most
      probable class is the same (of multi-label heads: the set of classes with a
      probability of 1/2 or more); the mean over the images.

    For detectors, of the predictions with a score of ``score_threshold`` or more, brought
    back to the source image and matched over the replicas greedily by IoU, whatever their
    class. A group is what was matched to one another:

    - ``matched_share``: share of the predictions that match one of another replica. What
      a crop left out of the other replicas counts as not matched.
    - ``mean_iou``: the mean IoU of a group's boxes with the group's mean box; the mean
      over the groups.
    - ``agreement``: of all pairs of boxes of a group, the share with the same class; the
      mean over the groups.
    - ``mean_kl_bbox``: D_KL(mean box || each) of the matched boxes, as in the term.

    And ``num_images``, ``num_replicas`` (m), ``num_predictions``. A value that nothing
    was found for, as the IoU where no box matched, is left out, and that is logged.

    Stock metrics beside this one see the same replicas. MMEngine gives them as many
    results as the data set has samples: all with a ``ReplicaDataset``, a part of them
    with a sampler that repeats. The AP of a detector's replicas means nothing, as stock
    metrics compare them with annotations of the source.

    Memory: C numbers, or the confident boxes, of every replica on one rank.

    Args:
        activation: 'softmax', 'sigmoid', or 'auto': 'softmax' where all probabilities of
            a prediction sum to 1.
        score_threshold: Smallest confidence of a detection.
        iou_threshold: Smallest IoU of a box with the mean box of its group.
        collect_device: See MMEngine's ``BaseMetric``, here and below.
        prefix: By default 'consistency'.
        collect_dir: Folder for results of several ranks.

    Attributes:
        report: After the evaluation, on the main process, its details.

    Raises:
        MissingRecordError: If a data sample does not say which image it is a replica of,
            or no matrix brings its boxes back.
        UnpairedBatchError: If no image has two replicas.
        ValueError: If an option is out of range, or a prediction is not finite.
    """

    default_prefix = 'consistency'

    def __init__(
        self,
        activation: str = 'auto',
        score_threshold: float = 0.5,
        iou_threshold: float = 0.5,
        collect_device: str = 'cpu',
        prefix: str | None = None,
        collect_dir: str | None = None,
    ) -> None:
        super().__init__(collect_device, prefix, collect_dir)
        if activation not in ('auto', *agreement.ACTIVATIONS):
            raise ValueError(
                f'activation is {activation!r}; expected one of {("auto", *agreement.ACTIVATIONS)}'
            )
        for name, value in (('score_threshold', score_threshold), ('iou_threshold', iou_threshold)):
            if not 0 <= value <= 1:
                raise ValueError(f'{name} is {value}; expected a fraction in [0, 1]')
        self.activation = activation
        self.score_threshold = score_threshold
        self.iou_threshold = iou_threshold
        self.report: ConsistencyReport | None = None

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keeps what is compared of a batch of predictions.

        Args:
            data_batch: Not used.
            data_samples: Predictions as dictionaries, as MMEngine's evaluator gives them.
        """
        for sample in data_samples:
            record = ImageRecord.read(sample, EVALUATED_RECORD_HINT)
            result = dict(
                source_id=record.source_id,
                source_shape=record.source_shape,
                img_path=sample.get('img_path'),
            )
            if 'pred_instances' in sample:
                result.update(_restored(sample, self.score_threshold))
            elif 'pred_score' in sample:
                result.update(probabilities=_numbers(sample, 'pred_score', sample['pred_score']))
            else:
                raise ValueError(
                    f'a prediction has the fields {sorted(sample)}; expected pred_score, '
                    'of a classifier, or pred_instances, of a detector'
                )
            self.results.append(result)

    def evaluate(self, size: int) -> dict:
        """Measures all that was processed on all ranks.

        Args:
            size: Length of the data set. Not used: with a sampler that repeats, there
                are more results than that, and cutting them would tear groups. What ranks
                add to be equally long is left out by its source.
        """
        return super().evaluate(sys.maxsize)

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Groups the results by source and measures; see the class."""
        results, num_replicas = _equal_groups(results)
        if 'probabilities' in results[0]:
            self.report = _classes_report(results, self.activation)
        else:
            self.report = _boxes_report(results, self.iou_threshold)
        self.report.numbers['num_replicas'] = num_replicas
        missing = [name for name, value in self.report.numbers.items() if value is None]
        for name in missing:
            del self.report.numbers[name]
        if missing:
            _warn(
                f'leaves out {", ".join(missing)}: no predictions of two replicas '
                f'match (score_threshold={self.score_threshold}, '
                f'iou_threshold={self.iou_threshold})'
            )
        return dict(self.report.numbers)


def _warn(message: str) -> None:
    print_log(f'ConsistencyMetric {message}', 'current', logging.WARNING)


def _restored(sample: dict, score_threshold: float) -> dict[str, np.ndarray]:
    """Confident boxes (n, 4) of a replica in pixels of its source, and labels (n,)."""
    if sample.get('source_matrix') is None:
        raise MissingRecordError(
            f'no single matrix brings the boxes of {sample.get("img_path")} back to '
            'their source, since its pipeline merges images or moves them unrecorded; '
            'expected a pipeline without Mosaic, MixUp or CopyPaste'
        )
    found = sample['pred_instances']
    scores = _numbers(sample, 'scores', found['scores'])
    keep = torch.from_numpy(scores >= score_threshold)
    boxes = _numbers(sample, 'bboxes', get_box_tensor(found['bboxes']).cpu()[keep])
    # Detectors divide their boxes by the scale factor, which is not the view's inverse.
    width, height = sample.get('scale_factor', (1, 1))[:2]
    view = torch.from_numpy(
        scale_matrix(1 / width, 1 / height) @ np.asarray(sample['source_matrix'])
    )
    restored = boxes_to_source(torch.from_numpy(boxes).double(), view.expand(len(boxes), 3, 3))
    return dict(
        boxes=restored.numpy(),
        labels=found['labels'].cpu()[keep].numpy(),
        is_exact=bool(is_axis_aligned(view)),
    )


def _numbers(sample: dict, name: str, values: Tensor) -> np.ndarray:
    """A prediction in float32: arrays travel between ranks without their batch."""
    numbers = values.detach().cpu().float().numpy()
    if not np.isfinite(numbers).all():
        raise ValueError(
            f'{name} predicted for {sample.get("img_path")} is not finite; '
            'the weights of the model are broken, or its input is'
        )
    return numbers


def _equal_groups(results: list[dict]) -> tuple[list[dict], int]:
    """The results of sources with two replicas or more; equally many of each source."""
    check_distinct(results)
    source_ids = _ids(results)
    is_counted, num_replicas = agreement.equal_groups(source_ids)
    kept = is_counted & (group_sizes(source_ids) > 1)
    if not bool(kept.any()):
        raise UnpairedBatchError(
            f'none of the {len(results)} evaluated samples is a replica of the same '
            f'image as another, so there is nothing to compare; {REPLICA_HINT}'
        )
    return [results[row] for row in kept.nonzero()[:, 0].tolist()], num_replicas


def _ids(results: list[dict]) -> Tensor:
    return torch.tensor([result['source_id'] for result in results], dtype=torch.int64)


def _classes_report(results: list[dict], activation: str) -> ConsistencyReport:
    source_ids = _ids(results)
    probabilities = torch.from_numpy(np.stack([row['probabilities'] for row in results]))
    if activation == 'auto':
        activation = agreement.activation_of(probabilities)
    kl = agreement.group_kl(probabilities, source_ids, activation)
    alike = agreement.pair_agreement(
        agreement.decided_labels(probabilities, activation), source_ids
    )
    labels = agreement.group_means(probabilities, source_ids).argmax(dim=1)
    if activation == 'sigmoid':
        labels = torch.full_like(labels, -1)
    sources = agreement.paired_ids(source_ids)
    rows = _rows(results, sources, mean_kl=kl, agreement=alike)
    numbers = dict(
        mean_kl=float(kl.mean()),
        agreement=float(alike.mean()),
        num_images=len(sources),
        num_predictions=len(results),
    )
    matrices = {int(source): probabilities[source_ids == source].numpy() for source in sources}
    return ConsistencyReport(numbers, rows, labels.numpy(), alike.numpy(), matrices)


def _boxes_report(results: list[dict], iou_threshold: float) -> ConsistencyReport:
    if not all(result['is_exact'] for result in results):
        _warn(
            'restores boxes of rotated or sheared replicas. They are hulls of hulls, '
            'larger than the predicted ones, and overlap less than exact ones'
        )
    boxes = [torch.from_numpy(result['boxes']) for result in results]
    image_ids = _ids(results)
    groups = agreement.match_boxes(boxes, image_ids, iou_threshold)
    boxes = torch.cat(boxes)
    labels = torch.cat([torch.from_numpy(result['labels']) for result in results])
    source_ids = image_ids.repeat_interleave(
        torch.tensor([len(result['boxes']) for result in results])
    )
    iou = agreement.group_iou(boxes, groups)
    alike = agreement.pair_agreement(labels, groups)
    matched = (group_sizes(groups) > 1).double()
    sources = image_ids.unique()
    # All boxes of a group have the same source.
    of_group = agreement.common_labels(source_ids, groups)
    rows = _rows(
        results,
        sources,
        num_predictions=_spread(sources, source_ids, matched, counts=True),
        matched_share=_spread(sources, source_ids, matched),
        mean_iou=_spread(sources, of_group, iou),
        agreement=_spread(sources, of_group, alike),
    )
    numbers = dict(
        matched_share=_mean(matched),
        mean_iou=_mean(iou),
        agreement=_mean(alike),
        mean_kl_bbox=agreement.group_box_kl(boxes, groups),
        num_images=len(sources),
        num_predictions=len(boxes),
    )
    labels = agreement.common_labels(labels, groups)
    return ConsistencyReport(numbers, rows, labels.numpy(), alike.numpy())


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if len(values) else None


def _spread(
    sources: Tensor, keys: Tensor, values: Tensor, counts: bool = False
) -> list[float | None]:
    """For each source the mean, or the number, of the values with it as key."""
    found, means, numbers = (part.tolist() for part in agreement.means_by_key(values, keys))
    by_source = dict(zip(found, numbers if counts else means))
    return [by_source.get(source, 0 if counts else None) for source in sources.tolist()]


def _rows(results: list[dict], sources: Tensor, **columns: Any) -> list[dict[str, Any]]:
    """A row for each source, with its path and its value of each column."""
    paths = {result['source_id']: result['img_path'] for result in results}
    columns = {
        name: column.tolist() if isinstance(column, Tensor) else column
        for name, column in columns.items()
    }
    return [
        dict(
            source_id=source,
            img_path=paths[source],
            **{name: column[row] for name, column in columns.items()},
        )
        for row, source in enumerate(sources.tolist())
    ]
