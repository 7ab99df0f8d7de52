"""How alike the predictions for the replicas of an image are, as a metric."""

import logging
import sys
from collections.abc import Sequence
from typing import Any

from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log

from lt_mm.core.measures import agreement
from lt_mm.core.pairing import is_paired
from lt_mm.evaluation.consistency_report import (
    ConsistencyReport,
    box_report,
    class_report,
    source_ids,
)
from lt_mm.evaluation.predictions import check_activation, check_fractions, kept_prediction
from lt_mm.registry import METRICS, register
from lt_mm.structures.errors import UnpairedBatchError
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


@register(METRICS)
class ConsistencyMetric(BaseMetric):
    """How alike predictions for m augmented copies ("replicas") of each image are.

    Works with MMPretrain classifiers and MMDetection detectors, and without annotations. The
    data loader has to give replicas with a record: the pipeline is in an
    :class:`~lt_mm.datasets.InvertiblePipeline`, and each image comes several times, by a
    :class:`~lt_mm.datasets.ReplicaDataset` or a
    :class:`~lt_mm.datasets.GroupedRepeatAugSampler`. Replicas of one image may
    come in different batches and on different ranks. For classifiers:

    - ``mean_kl``: the mean over the images of D_KL(mean prediction || each), in nats, as
      in the consistency term. It grows with m, so compare values of equal m. It is
      smaller for models that are less sure of their predictions.
    - ``calibrated_kl``: the same after temperature scaling, which takes that advantage away:
      the logits are divided by the one ``temperature`` at which the labels of all replicas
      are most likely. Of heads with a softmax, where each replica has one label.
    - ``agreement``: of all pairs of replicas of an image, the share in which the most
      probable class is the same (of multi-label heads: the set of classes with a
      probability of 1/2 or more); the mean over the images.

    For detectors, the predictions with a score of ``score_threshold`` or more are brought
    back to the source image and matched across replicas greedily by IoU, whatever their
    class. Predictions that match one another are a group:

    - ``matched_share``: share of the predictions that match one of another replica. An
      object that a crop removed from the other replicas counts as not matched.
    - ``mean_iou``: the mean IoU of a group's boxes with the group's mean box; the mean
      over the groups.
    - ``score_jitter``: the mean absolute difference of the scores of two boxes of a
      group, over its pairs; the mean over the groups.
    - ``agreement``: of all pairs of boxes of a group, the share with the same class; the
      mean over the groups.
    - ``mean_kl_bbox``: D_KL(mean box || each) of the matched boxes, as in the term.

    Both also give ``num_images``, ``num_replicas`` (m) and ``num_predictions``. A value
    that nothing was found for, such as the IoU where no box matched, is left out, and a
    warning says so.

    Stock metrics beside this one see the same replicas. MMEngine gives them as many
    results as the data set has samples: all of them with a ``ReplicaDataset``, a part of
    them with a sampler that repeats. The AP of a detector's replicas means nothing, as stock
    metrics compare them with annotations of the source.

    Memory: one rank holds C numbers, or the confident boxes, of every replica.

    Args:
        activation: 'softmax', 'sigmoid', or 'auto': 'softmax' where all probabilities of
            a prediction sum to 1.
        score_threshold: Smallest confidence of a detection.
        iou_threshold: Smallest IoU of a box with the mean box of its group.
        collect_device: See MMEngine's ``BaseMetric``, here and below.
        prefix: By default 'consistency'.
        collect_dir: Folder for results of several ranks.

    Attributes:
        report: The details of the evaluation, on the main process; None before it.

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
        check_activation(activation)
        check_fractions(score_threshold=score_threshold, iou_threshold=iou_threshold)
        self.activation = activation
        self.score_threshold = score_threshold
        self.iou_threshold = iou_threshold
        self.report: ConsistencyReport | None = None

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keeps those parts of a batch of predictions that are compared.

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
            result.update(kept_prediction(sample, self.score_threshold))
            self.results.append(result)

    def evaluate(self, size: int) -> dict:
        """Measures all that was processed on all ranks.

        Args:
            size: Length of the data set. Not used: with a sampler that repeats, there
                are more results than that, and cutting them would tear groups apart. The
                samples that a sampler repeats to fill the ranks are found by their source.
        """
        return super().evaluate(sys.maxsize)

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Groups the results by source and measures; see the class."""
        results, num_replicas = _equal_groups(results)
        if 'probabilities' in results[0]:
            self.report = class_report(results, self.activation)
        else:
            if not all(result['is_exact'] for result in results):
                _warn(
                    'restores boxes of rotated or sheared replicas. These are hulls of hulls, '
                    'larger than the predicted boxes, and overlap less than exact ones'
                )
            self.report = box_report(results, self.iou_threshold)
        numbers = self.report.numbers
        numbers['num_replicas'] = num_replicas
        missing = [name for name, value in numbers.items() if value is None]
        if missing:
            _warn(
                f'leaves out {", ".join(missing)}: '
                + (
                    'no temperature from 0.01 to 100 fits the labels best; the predictions are '
                    'all right, or no better than guesses'
                    if 'temperature' in missing
                    else f'no predictions of two replicas match (score_threshold='
                    f'{self.score_threshold}, iou_threshold={self.iou_threshold})'
                )
            )
        return {name: value for name, value in numbers.items() if value is not None}


def _warn(message: str) -> None:
    print_log(f'ConsistencyMetric {message}', 'current', logging.WARNING)


def _equal_groups(results: list[dict]) -> tuple[list[dict], int]:
    """The results of sources with two replicas or more; equally many of each source."""
    check_distinct(results)
    ids = source_ids(results)
    is_counted, num_replicas = agreement.equal_groups(ids)
    kept = is_counted & is_paired(ids)
    if not bool(kept.any()):
        raise UnpairedBatchError(
            f'none of the {len(results)} evaluated samples is a replica of the same '
            f'image as another, so there is nothing to compare; {REPLICA_HINT}'
        )
    return [results[row] for row in kept.nonzero()[:, 0].tolist()], num_replicas
