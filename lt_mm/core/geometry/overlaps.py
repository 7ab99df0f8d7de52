"""How much boxes, and masks, overlap."""

import torch
from torch import Tensor


def pairwise_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Intersection over union: (..., n, 4) and (..., k, 4) xyxy to (..., n, k).

    0 without area. In float32 or wider.
    """
    boxes_a, boxes_b = wide(boxes_a), wide(boxes_b)
    low = torch.maximum(boxes_a[..., :, None, :2], boxes_b[..., None, :, :2])
    high = torch.minimum(boxes_a[..., :, None, 2:], boxes_b[..., None, :, 2:])
    common = (high - low).clamp(min=0).prod(dim=-1)
    union = box_areas(boxes_a)[..., :, None] + box_areas(boxes_b)[..., None, :] - common
    return torch.where(union > 0, common / torch.where(union > 0, union, 1), 0)


def wide(boxes_xyxy: Tensor) -> Tensor:
    """In float32 at least: areas of ordinary boxes overflow in half precision."""
    return boxes_xyxy if boxes_xyxy.dtype == torch.float64 else boxes_xyxy.float()


def box_areas(boxes_xyxy: Tensor) -> Tensor:
    """(..., 4) xyxy to (...); 0 for boxes that end before they begin."""
    return (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0).prod(dim=-1)


def overlap_of_masks(probabilities: Tensor, masks: Tensor) -> Tensor:
    """Intersection over union of predicted masks and true ones, in float32 or wider.

    Args:
        probabilities: (N, h, w) in [0, 1].
        masks: (N, h, w), 0 or 1.

    Returns:
        (N,) in [0, 1]; 0 where both are empty.
    """
    predicted, true = wide(probabilities).flatten(1), wide(masks).flatten(1)
    common = (predicted * true).sum(dim=1)
    union = predicted.sum(dim=1) + true.sum(dim=1) - common
    return torch.where(union > 0, common / torch.where(union > 0, union, 1), 0)
