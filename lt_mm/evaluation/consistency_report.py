"""What is measured of predictions for replicas, for all images, each image and each class."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lt_mm.core.measures import agreement
from lt_mm.core.measures.calibration import calibrating_temperature, tempered
from lt_mm.core.pairing import is_paired
from lt_mm.datasets.display import class_name

# The examples are the images at these quantiles of the KL.
_EXAMPLES = (0.5, 0.75, 0.95, 1.0)


@dataclass
class ConsistencyReport:
    """What was measured, in detail.

    Attributes:
        numbers: The metrics, without prefix; None where nothing was found.
        images: A row for each image: ``source_id``, ``img_path`` and its own values,
            None where it has none.
        labels: (G,) int64, the class of each group: of an image the most probable one in
            the mean prediction (-1 for multi-label heads), of matched boxes the most
            common one.
        agreement: (G,) float64, the agreement of each group.
        probabilities: For each source id the predictions of its m replicas, (m, C)
            float32; empty for detectors.
    """

    numbers: dict[str, float | None]
    images: list[dict[str, Any]]
    labels: Tensor
    agreement: Tensor
    probabilities: dict[int, np.ndarray] = field(default_factory=dict)

    def per_class(self, classes: Sequence[str]) -> dict[str, dict[str, float]]:
        """The mean ``agreement`` of each class that was predicted, and its ``count``.

        Args:
            classes: Names of the classes.
        """
        rows = zip(*(part.tolist() for part in agreement.means_by_key(self.agreement, self.labels)))
        return {
            class_name(classes, label): dict(agreement=mean, count=count)
            for label, mean, count in rows
            if label >= 0
        }

    def examples(self) -> list[dict[str, Any]]:
        """Images whose replicas are predicted more or less alike, with the predictions."""
        if not self.probabilities:
            return []
        ordered = sorted(self.images, key=lambda row: row['mean_kl'])
        chosen = sorted({round(share * (len(ordered) - 1)) for share in _EXAMPLES})
        return [
            {name: ordered[place][name] for name in ('source_id', 'img_path', 'mean_kl')}
            | dict(probabilities=self.probabilities[ordered[place]['source_id']].tolist())
            for place in chosen
        ]


def class_report(results: list[dict], activation: str) -> ConsistencyReport:
    """Measures how alike the class probabilities of replicas are.

    Args:
        results: For each replica ``source_id``, ``img_path``, ``probabilities`` (C,) and
            ``label``, the true class or None; two or more replicas of each source.
        activation: 'softmax', 'sigmoid' or 'auto'.
    """
    ids = source_ids(results)
    probabilities = torch.from_numpy(np.stack([row['probabilities'] for row in results]))
    if activation == 'auto':
        activation = agreement.activation_of(probabilities)
    kl = agreement.group_kl(probabilities, ids, activation)
    alike = agreement.pair_agreement(agreement.decided_labels(probabilities, activation), ids)
    labels = agreement.group_means(probabilities, ids).argmax(dim=1)
    if activation == 'sigmoid':
        labels = torch.full_like(labels, -1)
    sources = agreement.paired_ids(ids)
    numbers = dict(
        mean_kl=_mean(kl),
        agreement=_mean(alike),
        **_calibrated(probabilities, ids, [row['label'] for row in results], activation),
        num_images=len(sources),
        num_predictions=len(results),
    )
    rows = _rows(results, sources, mean_kl=kl.tolist(), agreement=alike.tolist())
    matrices = {int(source): probabilities[ids == source].numpy() for source in sources}
    return ConsistencyReport(numbers, rows, labels, alike, matrices)


def _calibrated(
    probabilities: Tensor, ids: Tensor, labels: list[int | None], activation: str
) -> dict[str, float | None]:
    """The KL at the temperature that fits the labels; nothing unless each replica has one."""
    if activation != 'softmax' or None in labels:
        return {}
    temperature = calibrating_temperature(probabilities, torch.tensor(labels))
    if temperature is None:
        return dict(temperature=None, calibrated_kl=None)
    kl = agreement.group_kl(tempered(probabilities, temperature), ids)
    return dict(temperature=temperature, calibrated_kl=_mean(kl))


def box_report(results: list[dict], iou_threshold: float) -> ConsistencyReport:
    """Measures how alike the boxes that are predicted in replicas are.

    Args:
        results: For each replica ``source_id``, ``img_path``, ``boxes`` (n, 4) in pixels
            of the source, and their ``labels`` (n,) and ``scores`` (n,).
        iou_threshold: Smallest IoU of a box with the mean box of its group.
    """
    image_ids = source_ids(results)
    parts = [torch.from_numpy(result['boxes']) for result in results]
    groups, boxes = agreement.match_boxes(parts, image_ids, iou_threshold), torch.cat(parts)
    labels = torch.cat([torch.from_numpy(result['labels']) for result in results])
    box_ids = image_ids.repeat_interleave(torch.tensor([len(part) for part in parts]))
    iou = agreement.group_iou(boxes, groups)
    scores = torch.cat([torch.from_numpy(result['scores']) for result in results])
    alike = agreement.pair_agreement(labels, groups)
    score_jitter = agreement.pair_difference(scores, groups)
    matched = is_paired(groups).double()
    sources, counts = image_ids.unique(), Counter(box_ids.tolist())
    # All boxes of a group have the same source.
    group_sources = agreement.common_labels(box_ids, groups)
    rows = _rows(
        results,
        sources,
        num_predictions=[counts[source] for source in sources.tolist()],
        matched_share=_means_of(sources, box_ids, matched),
        mean_iou=_means_of(sources, group_sources, iou),
        score_jitter=_means_of(sources, group_sources, score_jitter),
        agreement=_means_of(sources, group_sources, alike),
    )
    numbers = dict(
        matched_share=_mean(matched),
        mean_iou=_mean(iou),
        score_jitter=_mean(score_jitter),
        agreement=_mean(alike),
        mean_kl_bbox=agreement.group_box_kl(boxes, groups),
        num_images=len(sources),
        num_predictions=len(boxes),
    )
    return ConsistencyReport(numbers, rows, agreement.common_labels(labels, groups), alike)


def source_ids(results: list[dict]) -> Tensor:
    """The source of each result, (N,) int64."""
    return torch.tensor([result['source_id'] for result in results], dtype=torch.int64)


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if len(values) else None


def _means_of(sources: Tensor, keys: Tensor, values: Tensor) -> list[float | None]:
    """For each source the mean of the values that have it as key; None without any."""
    found, means, _ = agreement.means_by_key(values, keys)
    by_source = dict(zip(found.tolist(), means.tolist()))
    return [by_source.get(source) for source in sources.tolist()]


def _rows(results: list[dict], sources: Tensor, **columns: list) -> list[dict[str, Any]]:
    """A row for each source, with its path and its value of each column."""
    paths = {result['source_id']: result['img_path'] for result in results}
    return [
        dict(zip(('source_id', 'img_path', *columns), (source, paths[source], *values)))
        for source, *values in zip(sources.tolist(), *columns.values())
    ]
