"""How much predictions change from one frame to the next of a slow pan and zoom over one image.

What the image shows does not change from frame to frame, so whatever changes in predictions that
were brought back to the source image is flicker.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lt_mm.core.geometry import box_areas
from lt_mm.core.measures.agreement import SMALLEST_COMPLEMENT, SMALLEST_PROBABILITY, decided_labels
from lt_mm.core.pairing import greedy_iou_pairs


class Detections(NamedTuple):
    """The detections of one frame.

    Attributes:
        boxes: (n, 4) xyxy, restored to the source image; pixels.
        labels: (n,) integer.
        scores: (n,).
        window: (4,) xyxy, the part of the source image that the frame shows; pixels.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    window: Tensor


class BoxFlicker(NamedTuple):
    """What changes in the detections of consecutive frames, as sums.

    Attributes:
        matched: Number of detections that the next frame shows as well.
        appearing: Number of detections that the frame before did not show.
        vanishing: Number of detections that the next frame does not show.
        center_jitter: The distance of two matched centres over the root of the area of their
            mean box, summed over the matched.
        size_jitter: The difference of two widths over their mean, averaged with that of the
            heights, summed over the matched.
        score_swing: The absolute difference of two scores, summed over the matched.
    """

    matched: int = 0
    appearing: int = 0
    vanishing: int = 0
    center_jitter: float = 0.0
    size_jitter: float = 0.0
    score_swing: float = 0.0

    def plus(self, other: 'BoxFlicker') -> 'BoxFlicker':
        """The sums of both."""
        sums: list[Any] = [own + its for own, its in zip(self, other)]
        return BoxFlicker(*sums)

    @property
    def objects(self) -> int:
        """Number of objects that were detected in one of two consecutive frames or in both."""
        return self.matched + self.appearing + self.vanishing

    def rates(self) -> dict[str, float | None]:
        """The measures, None where nothing was found.

        Returns:
            ``appearing``, ``vanishing`` and their sum ``blinking``, as a share of the objects;
            ``center_jitter``, ``size_jitter`` and ``score_swing``, means over the matched.
        """
        objects, matched = self.objects, self.matched
        blinking = self.appearing + self.vanishing
        return dict(
            blinking=blinking / objects if objects else None,
            appearing=self.appearing / objects if objects else None,
            vanishing=self.vanishing / objects if objects else None,
            center_jitter=self.center_jitter / matched if matched else None,
            size_jitter=self.size_jitter / matched if matched else None,
            score_swing=self.score_swing / matched if matched else None,
        )


def label_changes(probabilities: Tensor, activation: str = 'softmax') -> Tensor:
    """Which frames are decided otherwise than the frame before.

    Args:
        probabilities: (T, C), of consecutive frames.
        activation: See :func:`lt_mm.core.measures.agreement.decided_labels`.

    Returns:
        (T - 1,) bool.
    """
    labels = decided_labels(probabilities.cpu(), activation)
    return labels[1:] != labels[:-1]


def consecutive_kl(probabilities: Tensor, activation: str = 'softmax') -> Tensor:
    """D_KL(p_t || p_{t+1}) of each frame and the next one.

    Args:
        probabilities: (T, C), of consecutive frames. Those below ``SMALLEST_PROBABILITY`` count as
            that, so the value is finite.
        activation: 'softmax': categorical, rows sum to 1. 'sigmoid': the sum of the Bernoulli KLs
            of all classes; if 1 - p is below ``SMALLEST_COMPLEMENT``, it counts as that.

    Returns:
        (T - 1,) float64, >= 0 up to rounding, in nats.
    """
    p = probabilities.detach().cpu().double()
    if activation == 'sigmoid':
        p = torch.cat([p, (1 - p).clamp(min=SMALLEST_COMPLEMENT)], dim=1)
    p = p.clamp(min=SMALLEST_PROBABILITY)
    return (p[:-1] * (p[:-1].log() - p[1:].log())).sum(dim=1)


def box_flicker(
    frames: Sequence[Detections], iou_threshold: float = 0.5, margin: float = 0.02
) -> BoxFlicker:
    """What changes in the detections of the consecutive frames of one image.

    The detections of two frames are matched greedily by IoU, each once, same class. An object that
    reaches the border of one of the frames counts in neither: the border cuts it off. A box without
    area does not count.

    Args:
        frames: The detections of each frame, in any order within a frame.
        iou_threshold: Smallest IoU of matched boxes.
        margin: A box that comes nearer to the border of a frame than this share of the frame's
            sides reaches the border.
    """
    total = BoxFlicker()
    for before, after in itertools.pairwise(frames):
        total = total.plus(box_changes(before, after, iou_threshold, margin).sums())
    return total


class BoxChanges(NamedTuple):
    """What becomes of the detections of a frame in the next one.

    Attributes:
        before: The n detections of a frame that have an area, in another order.
        after: Likewise the k detections of the next frame.
        matched: (p, 2) int64, the rows in both of those that are matched and count.
        vanishing: (n,) bool, those that count and are not matched.
        appearing: (k,) bool, likewise.
    """

    before: Detections
    after: Detections
    matched: Tensor
    vanishing: Tensor
    appearing: Tensor

    def sums(self) -> BoxFlicker:
        """What changes, in numbers."""
        rows, columns = self.matched.unbind(dim=1)
        a, b = self.before.boxes[rows], self.after.boxes[columns]
        sizes_a, sizes_b = a[:, 2:] - a[:, :2], b[:, 2:] - b[:, :2]
        sizes = (sizes_a + sizes_b) / 2
        moved = (a[:, :2] + a[:, 2:] - b[:, :2] - b[:, 2:]).norm(dim=1) / 2
        swing = (self.before.scores[rows] - self.after.scores[columns]).abs()
        return BoxFlicker(
            len(rows),
            int(self.appearing.sum()),
            int(self.vanishing.sum()),
            float((moved / sizes.prod(dim=1).sqrt()).sum()),
            float(((sizes_a - sizes_b).abs() / sizes).mean(dim=1).sum()),
            float(swing.sum()),
        )


def box_changes(
    before: Detections, after: Detections, iou_threshold: float = 0.5, margin: float = 0.02
) -> BoxChanges:
    """What becomes of the detections of a frame in the next one; see :func:`box_flicker`."""
    before, after = _in_order(before), _in_order(after)
    rows, columns = greedy_iou_pairs(
        before.boxes, after.boxes, before.labels, after.labels, iou_threshold
    )
    vanishing, appearing = (
        _is_inside(frame.boxes, before.window, margin)
        & _is_inside(frame.boxes, after.window, margin)
        for frame in (before, after)
    )
    counted = vanishing[rows] & appearing[columns]
    vanishing[rows] = False
    appearing[columns] = False
    matched = torch.stack([rows, columns], dim=1)[counted]
    return BoxChanges(before, after, matched, vanishing, appearing)


def _in_order(frame: Detections) -> Detections:
    """The detections that have an area, in float64 and in an order of their own.

    Equal IoUs are matched by their order, which must not depend on the one that was given.
    """
    boxes, labels, scores, window = (each.detach().cpu() for each in frame)
    boxes, scores = boxes.double(), scores.double()
    columns = [*boxes.unbind(dim=1), labels.double(), -scores]
    order = (box_areas(boxes) > 0).nonzero()[:, 0]
    for column in columns:  # the last one has the say
        order = order[column[order].argsort(stable=True)]
    return Detections(boxes[order], labels[order], scores[order], window.double())


def _is_inside(boxes: Tensor, window: Tensor, margin: float) -> Tensor:
    """Which boxes (n, 4) keep away from the border of a window (4,): (n,) bool."""
    room = margin * (window[2:] - window[:2])
    return ((boxes[:, :2] > window[:2] + room) & (boxes[:, 2:] < window[2:] - room)).all(dim=1)
