"""The consistency term on MMPretrain's classification heads."""
from typing import Any, Dict, List

import torch
from mmpretrain.models.heads import ClsHead, MultiLabelClsHead
from torch import Tensor, nn

from lt_mm.adapters.head import (ConsistencyHead, ConsistencyOptions,
                                 UnsupportedHeadError, add_consistency, register_wrap,
                                 source_ids_of)
from lt_mm.core.pairing import is_paired

# Losses of MMPretrain that read the logits as independent Bernoullis.
_SIGMOID_LOSSES = ('FocalLoss', 'AsymmetricLoss')


class ClsConsistency(ConsistencyHead):
    """Front of a classification head: replicas of one image are positives."""

    def loss(self, feats: Any, data_samples: List[Any], **kwargs: Any) -> dict:
        losses = super().loss(feats, data_samples, **kwargs)
        if 'loss_lt_cls' not in losses:
            raise UnsupportedHeadError(
                f'{type(self).__name__} computes its loss without _get_loss, so the '
                'consistency term was not added; wrap a head that derives its loss '
                'from ClsHead or MultiLabelClsHead')
        return losses

    def _get_loss(self, cls_score: Tensor, data_samples: List[Any],
                  **kwargs: Any) -> Dict[str, Tensor]:
        losses = super()._get_loss(cls_score, data_samples, **kwargs)
        if not isinstance(cls_score, Tensor) or cls_score.dim() != 2:
            raise UnsupportedHeadError(
                f'{type(self).__name__} predicts {type(cls_score).__name__}; the '
                'consistency term needs logits of shape (N, C)')
        self._refuse_mixed_labels(data_samples)
        source_ids = source_ids_of(data_samples)
        self._watch_groups(source_ids)
        # The pairs are formed here: samples with the same source image.
        group_ids = torch.tensor(source_ids, device=cls_score.device)
        self._term('cls', lambda: self._class_term(
            cls_score, group_ids, self._is_sigmoid()), losses)
        paired = is_paired(group_ids)
        losses['lt_num_pairs'] = paired.sum().float()
        losses['lt_paired_share'] = paired.float().mean()
        return losses

    def _is_sigmoid(self) -> bool:
        loss = self.loss_module
        return (isinstance(self, MultiLabelClsHead)
                or bool(getattr(loss, 'use_sigmoid', False))
                or type(loss).__name__ in _SIGMOID_LOSSES)

    def _refuse_mixed_labels(self, data_samples: List[Any]) -> None:
        if isinstance(self, MultiLabelClsHead) or 'gt_score' not in data_samples[0]:
            return
        scores = torch.stack([sample.gt_score for sample in data_samples])
        if bool((scores.amax(dim=1) < scores.sum(dim=1)).any()):
            raise ValueError(
                'the labels of the batch are mixed (gt_score): stock batch_augments '
                'such as Mixup or CutMix mix each replica with another image, so '
                'replicas of one source no longer show the same thing and their '
                'predictions must not be pulled together; remove '
                'model.train_cfg.augments (or data_preprocessor.batch_augments)')


def _applies(head: nn.Module) -> bool:
    return isinstance(head, (ClsHead, MultiLabelClsHead))


def _wrap(head: nn.Module, options: ConsistencyOptions) -> nn.Module:
    names = {cls.__name__ for cls in type(head).__mro__}
    if 'RegressionHead' in names or not hasattr(head, 'loss_module'):
        raise UnsupportedHeadError(
            f'{type(head).__name__} gives no class logits; expected a classification '
            "head such as dict(type='LinearClsHead', num_classes=..., in_channels=...)")
    return add_consistency(ClsConsistency, head, options)


register_wrap(_applies, _wrap)
