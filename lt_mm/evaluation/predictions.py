"""Predictions of samples as they are kept by the metrics of this package."""

from typing import Any

import numpy as np
import torch
from mmdet.structures.bbox import get_box_tensor
from torch import Tensor

from lt_mm.core.geometry import boxes_to_source, is_axis_aligned, scale_matrix
from lt_mm.core.measures.agreement import ACTIVATIONS
from lt_mm.structures.errors import MissingRecordError


def kept_prediction(sample: dict, score_threshold: float) -> dict[str, Any]:
    """What is kept of the prediction for a sample, as arrays.

    Args:
        sample: A data sample with a record, as MMEngine's evaluator gives it.
        score_threshold: Smallest confidence of a detection.

    Returns:
        Of classifiers ``probabilities`` (C,) and ``label``, see :func:`single_label`. Of
        detectors ``boxes`` (n, 4) in pixels of the source, ``labels`` and ``scores`` (n,), and
        whether the boxes came back exactly, ``is_exact``.

    Raises:
        ValueError: If it is neither, or a prediction is not finite.
        MissingRecordError: If no matrix brings the boxes back.
    """
    if 'pred_instances' in sample:
        return _restored(sample, score_threshold)
    if 'pred_score' in sample:
        probabilities = _numbers(sample, 'pred_score', sample['pred_score'])
        return dict(probabilities=probabilities, label=single_label(sample))
    raise ValueError(
        f'a prediction has the fields {sorted(sample)}; expected pred_score, of a classifier, or '
        'pred_instances, of a detector'
    )


def single_label(sample: dict) -> int | None:
    """The true class of an image; None unless it has exactly one."""
    labels = torch.as_tensor(sample.get('gt_label', ())).flatten().tolist()
    return labels[0] if len(labels) == 1 else None


def check_fractions(**values: float) -> None:
    """Makes sure that options are fractions.

    Raises:
        ValueError: If one is not in [0, 1].
    """
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f'{name} is {value}; expected a fraction in [0, 1]')


def check_activation(activation: str) -> None:
    """Makes sure that an activation is known, or 'auto'.

    Raises:
        ValueError: If it is not.
    """
    if activation not in ('auto', *ACTIVATIONS):
        raise ValueError(f'activation is {activation!r}; expected one of {("auto", *ACTIVATIONS)}')


def restoring_matrix(sample: Any) -> Tensor:
    """The matrix (3, 3) float64 of a replica, from pixels of the source to its own.

    Args:
        sample: A data sample with a record, or one as a dict.

    Raises:
        MissingRecordError: If no single matrix describes the replica.
    """
    if sample.get('source_matrix') is None:
        raise MissingRecordError(
            f'no single matrix brings the boxes of {sample.get("img_path")} back to '
            'their source, since its pipeline merges images or moves them unrecorded; '
            'expected a pipeline without Mosaic, MixUp or CopyPaste'
        )
    return torch.from_numpy(np.asarray(sample.get('source_matrix')))


def _restored(sample: dict, score_threshold: float) -> dict[str, Any]:
    """Confident boxes (n, 4) of a replica in pixels of its source, labels and scores (n,)."""
    matrix = restoring_matrix(sample)
    found = sample['pred_instances']
    scores = _numbers(sample, 'scores', found['scores'])
    keep = torch.from_numpy(scores >= score_threshold)
    boxes = _numbers(sample, 'bboxes', get_box_tensor(found['bboxes']).cpu()[keep])
    # Detectors divide their boxes by the scale factor, which does not undo the matrix.
    width, height = sample.get('scale_factor', (1, 1))[:2]
    matrix = torch.from_numpy(scale_matrix(1 / width, 1 / height)) @ matrix
    restored = boxes_to_source(torch.from_numpy(boxes).double(), matrix.expand(len(boxes), 3, 3))
    return dict(
        boxes=restored.numpy(),
        labels=found['labels'].cpu()[keep].numpy(),
        scores=scores[keep.numpy()],
        is_exact=bool(is_axis_aligned(matrix)),
    )


def _numbers(sample: dict, name: str, values: Tensor) -> np.ndarray:
    """A prediction as a float32 array; a tensor would be stored with its whole batch."""
    numbers = values.detach().cpu().float().numpy()
    if not np.isfinite(numbers).all():
        raise ValueError(
            f'{name} predicted for {sample.get("img_path")} is not finite; '
            'the weights of the model are broken, or its input is'
        )
    return numbers
