"""SupCon as a classification head: the supervised contrastive baseline."""

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import Sequential
from mmpretrain.models.heads import LinearClsHead
from torch import Tensor, nn

from lt_mm.models.heads.base import ConsistencyMixin
from lt_mm.registry import MODELS, register
from lt_mm.structures import comparing_heads
from lt_mm.structures.errors import UnsupportedHeadError


@register(MODELS)
class SupConHead(LinearClsHead):
    """Trains the backbone by SupCon and, beside it, a linear classifier on top.

    Khosla et al., "Supervised Contrastive Learning", 2020. The loss is the one of
    pytorch-metric-learning (their L_out, equation 2) on a projection of the features,
    which are scaled to unit length first, as in section 3.1. (SupCon does not see their
    length; without the scaling it drifts, and the classifier's loss grows with it.)
    Positives are all samples of one class in the batch, replicas included; so the
    sampler should be a ``lt_mm.GroupedRepeatAugSampler``, but the pipeline needs no
    record.

    The paper trains in two stages: the backbone with the projection, by ``loss_supcon``
    alone; then, on the frozen backbone, a linear classifier by cross-entropy. Here both
    run at once, so that one run gives an accuracy. The classifier reads the features
    without passing gradient back, so the backbone sees the gradient of the first stage
    and nothing else. What differs: the classifier follows features that still move, and
    shares learning rate, epochs and augmentation with the backbone.

    Losses: ``loss_supcon`` (gradient to the projection and the backbone) and
    ``loss_cls`` (gradient to the classifier). Prediction is that of a ``LinearClsHead``
    on the scaled features.

    The contrast is with the samples of the same rank. Anchors without a positive are
    left out of the mean; a batch without any positive or negative gives 0.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the features, after pooling.
        projection_channels: Width of the embedding.
        hidden_channels: Width of the projection's hidden layer; ``in_channels`` if None.
        temperature: Divides the cosine similarities.
        supcon_weight: Weight of ``loss_supcon``.
        **kwargs: Of ``LinearClsHead``.

    Raises:
        ImportError: Without pytorch-metric-learning.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        projection_channels: int = 128,
        hidden_channels: int | None = None,
        temperature: float = 0.1,
        supcon_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, in_channels, **kwargs)
        hidden_channels = hidden_channels or in_channels
        # An init_cfg of its own: LinearClsHead's is made for the classifier.
        self.projection = Sequential(
            nn.Linear(in_channels, hidden_channels),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_channels, projection_channels),
            init_cfg=dict(type='Kaiming', layer='Linear'),
        )
        comparing_heads.enrol(self)
        self.supcon_weight = supcon_weight
        self.supcon = _supcon_loss_class()(temperature=temperature)

    def pre_logits(self, feats: tuple[Tensor, ...]) -> Tensor:
        """The features (N, in_channels) of unit length, which classifier and projection read."""
        return F.normalize(super().pre_logits(feats), dim=1)

    def loss(self, feats: tuple[Tensor, ...], data_samples: list[Any], **kwargs: Any) -> dict:
        """Both losses of a batch.

        Args:
            feats: The last one is (N, in_channels), the pooled features.
            data_samples: N samples with ``gt_label``.
            **kwargs: Of the loss module.

        Returns:
            ``loss_supcon`` and ``loss_cls``, scalars, and the accuracies where
            ``cal_acc`` is set.

        Raises:
            ValueError: If the labels are mixed, which SupCon does not define.
            UnsupportedHeadError: If LossTransformHead wraps this head.
        """
        self._check(data_samples)
        features = self.pre_logits(feats)
        losses = self._get_loss(self.fc(features.detach()), data_samples, **kwargs)
        losses['loss_cls'] = losses.pop('loss')
        labels = torch.cat([sample.gt_label for sample in data_samples])
        losses['loss_supcon'] = self.supcon_weight * self.supcon(self.projection(features), labels)
        return losses

    def _check(self, data_samples: list[Any]) -> None:
        if isinstance(self, ConsistencyMixin):
            raise UnsupportedHeadError(
                'LossTransformHead wraps a SupConHead, whose logits give no gradient to '
                'the backbone, so the consistency term would not train it; use '
                "head=dict(type='lt_mm.SupConHead', ...) alone, or wrap a LinearClsHead"
            )
        if 'gt_score' in data_samples[0]:
            raise ValueError(
                'the labels of the batch are mixed (gt_score), and SupCon needs one '
                'class for each sample; remove model.train_cfg.augments'
            )


def _supcon_loss_class() -> type:
    try:
        from pytorch_metric_learning.losses import SupConLoss
    except ImportError as error:
        raise ImportError(
            "SupConHead needs the loss of pytorch-metric-learning: pip install 'lt_mm[baselines]'"
        ) from error
    return SupConLoss
