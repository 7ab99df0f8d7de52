"""Every loss of MMDetection, of MMPretrain, and losses of torch, called on made predictions.

A case is the config of a loss and how it is called on predictions (N, 8), from which a loss of
boxes makes boxes, and labels (N,).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models import losses as mmdet_losses
from mmpretrain.models import losses as mmpretrain_losses
from torch import Tensor, nn

CLASSES = 8
_Case = tuple[dict[str, Any], Callable[[Any, Tensor, Tensor], Any]]


def _one_hot(labels: Tensor, like: Tensor) -> Tensor:
    return F.one_hot(labels, CLASSES).to(like)


def _boxes(values: Tensor) -> Tensor:
    corners = values[:, :2].sigmoid()
    return torch.cat([corners, corners + values[:, 2:4].sigmoid() + 0.2], dim=1)


def _wanted(labels: Tensor, like: Tensor) -> Tensor:
    return (labels[:, None] * 0.7 + torch.arange(CLASSES, device=labels.device)).sin().to(like)


def _of_classes(loss: Any, pred: Tensor, labels: Tensor) -> Any:
    return loss(pred, labels)


def _with_divisor(loss: Any, pred: Tensor, labels: Tensor) -> Any:
    """As the stock heads do: a divisor that is not the number of rows."""
    return loss(pred, labels, avg_factor=max(int((labels > 0).sum()), 1))


def _of_rows(loss: Any, pred: Tensor, labels: Tensor) -> Any:
    return loss(pred, _one_hot(labels, pred))


def _of_values(loss: Any, pred: Tensor, labels: Tensor) -> Any:
    return loss(pred[:, :4], _wanted(labels, pred)[:, :4])


def _of_positives(loss: Any, pred: Tensor, labels: Tensor) -> Any:
    weight = (labels > 1).to(pred)[:, None].expand(-1, 4)
    found = _boxes(pred), _boxes(_wanted(labels, pred))
    return loss(*found, weight, avg_factor=max(int((labels > 1).sum()), 1))


def _of_boxes(loss: Any, pred: Tensor, labels: Tensor) -> Any:
    return loss(_boxes(pred), _boxes(_wanted(labels, pred)))


def _of_pairs(loss: Any, pred: Tensor, labels: Tensor) -> Any:
    corners = pred.view(-1, 1, 2, 4)
    match = [[[[0, 0], [0, 1]], [[1, 1], [1, 2]]]] * len(pred)
    return sum(loss(corners, corners.flip(-1), match))


def _with_quality(loss: Any, pred: Tensor, labels: Tensor) -> Any:
    return loss(pred, (labels, labels.to(pred) / CLASSES))


def _weighted(loss: Any, pred: Tensor, labels: Tensor) -> Any:
    return loss(pred, _one_hot(labels, pred), (labels > 1).to(pred)[:, None].expand_as(pred))


def _of_distances(loss: Any, pred: Tensor, labels: Tensor) -> Any:
    return loss(pred, labels.to(pred) * 0.8)


def _of_logarithms(loss: Any, pred: Tensor, labels: Tensor) -> Any:
    return loss(pred.log_softmax(dim=1), labels)


def _sum(loss: Any, pred: Tensor, labels: Tensor) -> Any:
    return sum(loss(pred, labels, pred[:, :4], _wanted(labels, pred)[:, :4]))


def _correlation(loss: Any, pred: Tensor, labels: Tensor) -> Any:
    return loss(pred.T @ _one_hot(labels, pred) / len(pred))


_SCORED = dict(use_sigmoid=True)
MMDET: dict[str, _Case] = {
    'AssociativeEmbeddingLoss': ({}, _of_pairs),
    'BalancedL1Loss': ({}, _of_values),
    'BoundedIoULoss': ({}, _of_positives),
    'CIoULoss': ({}, _of_positives),
    'CrossEntropyLoss': ({}, _with_divisor),
    'CrossEntropyCustomLoss': (dict(num_classes=CLASSES), _of_classes),
    'DIoULoss': ({}, _of_positives),
    'DiceLoss': ({}, _of_rows),
    'DistributionFocalLoss': ({}, _of_distances),
    'EIoULoss': ({}, _of_positives),
    'EQLV2Loss': (dict(num_classes=CLASSES - 1), _of_classes),
    'FocalCustomLoss': (dict(num_classes=CLASSES), _of_classes),
    'FocalLoss': ({}, _with_divisor),
    'GHMC': ({}, _weighted),
    'GHMR': ({}, _weighted),
    'GIoULoss': ({}, _of_positives),
    'GaussianFocalLoss': ({}, lambda loss, p, y: loss(p.sigmoid(), _one_hot(y, p))),
    'IoULoss': ({}, _of_positives),
    'KnowledgeDistillationKLDivLoss': ({}, lambda loss, p, y: loss(p, 3 * _one_hot(y, p))),
    'L1Loss': ({}, _of_values),
    'L2Loss': ({}, _of_rows),
    'MSELoss': ({}, _of_values),
    'MarginL2Loss': (
        dict(pos_margin=0.1, neg_margin=0.1),
        lambda loss, p, y: loss(p.float(), _one_hot(y, p).float(), torch.ones_like(p).float()),
    ),
    'MultiPosCrossEntropyLoss': (
        {},
        lambda loss, p, y: loss(p, _one_hot(y, p), p.new_ones(len(p))),
    ),
    'QualityFocalLoss': ({}, _with_quality),
    'SIoULoss': ({}, _of_positives),
    'SeesawLoss': (
        dict(num_classes=CLASSES - 2, return_dict=False),
        lambda loss, p, y: loss(p, y % (CLASSES - 1)),
    ),
    'SmoothL1Loss': ({}, _of_positives),
    'TripletLoss': ({}, lambda loss, p, y: loss(p, y % 2)),
    'VarifocalLoss': ({}, _of_rows),
}
# It is no module, and assigns by itself: DDQDETRHead, which is refused, is its one user.
NOT_CALLED = {'DDQAuxLoss'}
MMPRETRAIN: dict[str, _Case] = {
    'AsymmetricLoss': ({}, _with_divisor),
    'CAELoss': (dict(lambd=2.0), _sum),
    'CosineSimilarityLoss': ({}, _of_rows),
    'CrossCorrelationLoss': ({}, _correlation),
    'CrossEntropyLoss': (dict(class_weight=[1.0, 2.0] * 4), _with_divisor),
    'FocalLoss': ({}, _of_rows),
    'LabelSmoothLoss': (dict(label_smooth_val=0.1, num_classes=CLASSES), _with_divisor),
    'PixelReconstructionLoss': (
        dict(criterion='L2'),
        lambda loss, p, y: loss(p[:, None], _wanted(y, p)[:, None], (y > 1).to(p)[:, None]),
    ),
    'RegressionLoss': (dict(loss_type='MSELoss'), _of_values),
    'SeesawLoss': (dict(num_classes=CLASSES), _of_classes),
    # Its prototypes are parameters of the loss, and its rows are views of other rows.
    'SwAVLoss': (dict(feat_dim=CLASSES, num_prototypes=5), lambda loss, p, y: loss(p)),
}
if not hasattr(mmpretrain_losses, 'RegressionLoss'):  # openmmlab's MMPretrain has none
    del MMPRETRAIN['RegressionLoss']
TORCH: dict[str, _Case] = {
    'BCEWithLogitsLoss': ({}, _of_rows),
    'CrossEntropyLoss': (dict(label_smoothing=0.1), _of_classes),
    'CrossEntropyLoss of some classes': (dict(ignore_index=0), _of_classes),
    'HuberLoss': ({}, _of_values),
    'KLDivLoss': (
        dict(reduction='batchmean'),
        lambda loss, p, y: loss(p.log_softmax(dim=1), _one_hot(y, p)),
    ),
    'L1Loss': ({}, _of_values),
    'MSELoss': (dict(reduction='none'), _of_values),
    'MultiLabelSoftMarginLoss': ({}, _of_rows),
    'MultiMarginLoss': ({}, _of_classes),
    'NLLLoss': (dict(weight=torch.arange(1.0, CLASSES + 1)), _of_logarithms),
    'SmoothL1Loss': ({}, _of_values),
    'SoftMarginLoss': ({}, lambda loss, p, y: loss(p, 2 * _one_hot(y, p) - 1)),
}
CASES = {
    f'{module.__name__.split(".")[0]} {name}': (module, name, *case)
    for module, cases in ((mmdet_losses, MMDET), (mmpretrain_losses, MMPRETRAIN), (nn, TORCH))
    for name, case in cases.items()
}


def loss_names(module: Any) -> set[str]:
    """The classes of losses that a package has."""
    return {
        name
        for name in module.__all__
        if isinstance(getattr(module, name), type) and name.endswith(('Loss', 'GHMC', 'GHMR'))
    }


class CalledLoss(nn.Module):
    """A loss of a case as the loss of a classification head, which gives it a divisor."""

    def __init__(self, case: str) -> None:
        super().__init__()
        module, name, options, self.function = CASES[case]
        self.loss = getattr(module, name.split()[0])(**options)

    def forward(self, pred: Tensor, labels: Tensor, avg_factor: int) -> Tensor:
        return self.function(self.loss, pred, labels)
