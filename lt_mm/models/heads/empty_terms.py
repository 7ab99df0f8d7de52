"""A term that has weight but compares nothing: the log says so, once."""

import logging

import torch
from mmengine.logging import print_log
from torch import Tensor

# MMDetection's configs log every 50 steps.
_INTERVAL = 50

NO_PAIR = (
    'no instance had predictions that pair in two replicas (see lt_paired_share; an augmentation '
    'may remove the instances, or leave less of them than min_visibility)'
)
UNSURE = (
    'no prediction was confident enough to be a target (lower weak_target.threshold, or '
    'score_threshold with pairs by IoU; train on the labelled images first, or begin with a model '
    'that is trained on them, load_from)'
)
NO_MATCH = (
    'no restored box for one copy overlapped with one of the same class for another (lower '
    'iou_threshold or score_threshold)'
)
INEXACT = (
    'all paired boxes were rotated, sheared or seen in perspective, and no matrix restores '
    'such boxes exactly (for RandomAffine set max_rotate_degree=0.0 and max_shear_degree=0.0)'
)
CUT = (
    'in each axis a border, a crop or a paste cut a side of all paired boxes but one of an '
    'instance (crop and shift less, or set rho_bbox=0)'
)
BLURRED = (
    'no cell of the masks of an instance was read within the mask, and away from its edge, in two '
    'replicas (masks of few cells that are uncertain everywhere; set rho_mask=0 for the first '
    'epochs with a schedule)'
)


class EmptyTerms:
    """Counts what the terms of one head compare, and warns of those that compare nothing.

    The counts stay on their device, and the host waits for them once in an interval.

    Args:
        name: Of the head, for the log.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._steps: dict[str, int] = {}
        self._counts: dict[str, Tensor] = {}
        self._warned: set[str] = set()

    def watch(self, kind: str, remaining: dict[str, Tensor]) -> None:
        """Takes note of a training step, and warns if none of an interval compared anything.

        Args:
            kind: 'cls', 'bbox', 'mask' or 'obj'.
            remaining: What may take from the term all that it compares, with the predictions
                (N,) bool that remain after it; in the order in which it is done.
        """
        if kind in self._warned:
            return
        counts = torch.stack([rows.detach().sum() for rows in remaining.values()])
        self._counts[kind] = self._counts.get(kind, 0) + counts
        self._steps[kind] = self._steps.get(kind, 0) + 1
        if self._steps[kind] < _INTERVAL:
            return
        self._steps[kind] = 0
        totals = self._counts.pop(kind).tolist()
        if totals[-1] == 0:
            self._warned.add(kind)
            reason = list(remaining)[totals.index(0)]
            print_log(
                f'{self._name}: loss_lt_{kind} has weight, but compared nothing in {_INTERVAL} '
                f'training steps: {reason}',
                logger='current',
                level=logging.WARNING,
            )
