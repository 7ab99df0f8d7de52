"""What the class term takes over from the class loss of the stock head."""

from dataclasses import dataclass
from typing import Any

from lt_mm.core.consistency import Modulation
from lt_mm.structures.errors import UnsupportedHeadError

# Losses that say nothing of their activation, by what they read the logits as.
_SIGMOID_LOSSES = ('FocalLoss', 'BCEWithLogitsLoss', 'MultiLabelSoftMarginLoss')
_SOFTMAX_LOSSES = ('CrossEntropyLoss',)

# Of losses without a modulation of their own: that of QualityFocalLoss by default. With weights
# of 1, the many classes that all replicas deny with some noise make up most of the sum.
_DEFAULT = Modulation(2.0, 2.0)


@dataclass(frozen=True)
class ClassLoss:
    """How strong a stock class loss is, so that rho is relative to it.

    Attributes:
        weight: Its ``loss_weight``.
        modulation: How it weighs a class that it reads as a sigmoid; None where all alike.
    """

    weight: float = 1.0
    modulation: Modulation | None = _DEFAULT

    @classmethod
    def read(cls, loss: Any, default: Modulation | None = _DEFAULT) -> 'ClassLoss':
        """Reads a loss module of MMDetection, MMPretrain or torch; None if a head has none.

        Losses without a modulation, such as the binary cross entropy of YOLOX, are given that
        of QualityFocalLoss, so that classes that no replica sees do not make up the sum; or
        another default.
        """
        weight = float(getattr(loss, 'loss_weight', 1.0))
        if hasattr(loss, 'pos_weight') and hasattr(loss, 'gamma'):  # GaussianFocalLoss
            return cls(weight, Modulation(loss.alpha, loss.alpha, loss.pos_weight, loss.neg_weight))
        if hasattr(loss, 'iou_weighted'):  # VarifocalLoss
            return cls(weight, Modulation(0.0, loss.gamma, 1.0, loss.alpha))
        if hasattr(loss, 'gamma') and hasattr(loss, 'alpha'):  # FocalLoss
            gamma, alpha = loss.gamma, loss.alpha
            return cls(weight, Modulation(gamma, gamma, alpha, 1 - alpha))
        if hasattr(loss, 'beta'):  # QualityFocalLoss
            return cls(weight, Modulation(loss.beta, loss.beta))
        if hasattr(loss, 'gamma_pos'):  # AsymmetricLoss
            return cls(weight, Modulation(loss.gamma_pos, loss.gamma_neg))
        return cls(weight, default)


def reads_sigmoid(loss: Any) -> bool:
    """Whether a classification loss reads its logits as independent Bernoullis.

    Args:
        loss: A loss module of MMPretrain or torch.

    Raises:
        UnsupportedHeadError: If nothing tells.
    """
    # LabelSmoothLoss and its like keep the loss that reads the logits.
    reader: Any = getattr(loss, 'ce', loss)
    for each in (loss, reader):
        if hasattr(each, 'use_sigmoid'):
            return bool(each.use_sigmoid)
    name = type(loss).__name__
    if name not in (*_SIGMOID_LOSSES, *_SOFTMAX_LOSSES):
        raise UnsupportedHeadError(
            f'{name} does not say whether it reads the logits as a softmax or as independent '
            'sigmoids (use_sigmoid), and the consistency term has to read them alike; name '
            "it: head=dict(type='lt_mm.LossTransformHead', activation='softmax', ...), or "
            "activation='sigmoid'"
        )
    return name in _SIGMOID_LOSSES
