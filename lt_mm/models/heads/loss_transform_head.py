"""``LossTransformHead``: the wrapper around stock heads.

A wrapped head *is* the stock head: :class:`LossTransformHead` builds it with the stock
registry and then adds a mixin to that instance (see :mod:`lt_mm.models.mixins`). So
parameter names, state dicts, predictions and ``isinstance`` are those of the stock head by
construction.
"""

from typing import Any

from torch import nn

from lt_mm.models.heads.base import ConsistencyMixin
from lt_mm.models.heads.head_families import family_of
from lt_mm.models.heads.options import ConsistencyOptions, split_options
from lt_mm.models.mixins import build_stock
from lt_mm.registry import MODELS, register


@register(MODELS)
class LossTransformHead:
    """Builds a stock head and adds the consistency term to its loss.

    ``dict(type='lt_mm.LossTransformHead', head=<stock head>, rho=1.0)`` in the place of the
    stock head. Supported are

    - MMPretrain classification heads with logits of shape (N, C), multi-label ones included, and
      ``MultiTaskHead`` with such heads;
    - MMDetection's single-stage heads ``RetinaHead``, ``SSDHead``, ``ATSSHead``, ``GFLHead``,
      ``FCOSHead``, ``YOLOXHead``, ``RTMDetHead``, ``DETRHead``,
      ``DeformableDETRHead``, ``DINOHead``, and
      ``RPNHead``, with subclasses that keep their losses;
    - ``roi_head``: ``StandardRoIHead``, ``CascadeRoIHead`` and their subclasses; wraps the box
      heads, the mask heads and the RoI samplers in it;
    - ``bbox_head`` or ``mask_head`` of such a RoI head by itself. Data samples go to the RoI
      head only, so ``train_cfg.rcnn.sampler`` must then be a
      ``dict(type='lt_mm.SourceTrackingSampler', sampler=<stock sampler>)``;
    - heads of families that :func:`~lt_mm.models.heads.register_head_family` adds.

    The loss gets ``loss_lt_cls``, ``loss_lt_bbox``, ``loss_lt_mask``, and ``loss_lt_obj`` of heads
    with an objectness (YOLOX, YOLOv3), each rho * term.
    Logged beside them and not summed: ``lt_kl_cls``, ``lt_kl_bbox`` and so on (the terms
    without rho), ``lt_num_paired`` (paired predictions), ``lt_paired_share`` (share of the
    instances, or of the images of a classifier, that have a pair), and with
    ``pairing='gt_all'`` ``lt_between_cls`` and so on (share of the term that lies between
    replicas; 1 with the other pairings). The stock loss is computed once and stays as it is.

    Args:
        head: Config of the stock head (or a built one).
        **options: Those of :class:`~lt_mm.models.heads.ConsistencyOptions`. Any other
            argument goes to the stock head, as those that the stock detectors add to their
            heads (``train_cfg``, ``test_cfg``).

    Returns:
        The stock head, an instance of a subclass of its class.

    Raises:
        UnsupportedHeadError: If the head is none of the above.
        ValueError: If an option is out of range.
    """

    def __new__(cls, head: Any, **options: Any) -> Any:
        own, others = split_options(options)
        return _wrap(build_stock(head, others), own)


def wrap_head(head: nn.Module, **options: Any) -> nn.Module:
    """Adds the consistency term to a built stock head, in place, without a config.

    Args:
        head: A built head, as :class:`LossTransformHead` supports it.
        **options: Those of :class:`~lt_mm.models.heads.ConsistencyOptions`, such as
            ``rho=0.5``.

    Returns:
        The head itself, an instance of a subclass of its class.

    Raises:
        UnsupportedHeadError: If the head is not supported.
        TypeError: If there is no option of a name, or the head is wrapped already.
        ValueError: If an option is out of range.
    """
    return _wrap(head, ConsistencyOptions(**options))


def _wrap(head: nn.Module, options: ConsistencyOptions) -> nn.Module:
    if isinstance(head, ConsistencyMixin):
        raise TypeError(
            f'{type(head).__name__} has the consistency term already; expected a stock head. '
            'Wrap it once only'
        )
    return family_of(head).lt_wrap(head, options)
