"""The losses of a batch whose predictions are made in parts, micro-batch by micro-batch.

Every stock head turns its predictions into losses in one method. While a
:class:`JointLosses` is open, that method takes the predictions of all parts and calls the
head's own method once, on the whole batch. So whatever the losses divide by, sort, sample or
keep from step to step, they are those of the whole batch. Each part is then given its share,
whose gradient is that of the whole batch's loss with respect to the part's predictions.
"""

import inspect
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from mmdet.models.dense_heads import ConditionalDETRHead, DeformableDETRHead, DETRHead, DINOHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads import DynamicRoIHead, MaskScoringRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmpretrain.models.heads import ClsHead, MultiLabelClsHead
from torch import Tensor, nn

from lt_mm.models.heads.options import KINDS
from lt_mm.models.mixins import stock_class
from lt_mm.structures.errors import UnsupportedHeadError

# The method that turns the predictions of a head into losses.
_METHODS = {
    ClsHead: '_get_loss',
    MultiLabelClsHead: '_get_loss',
    BaseDenseHead: 'loss_by_feat',
    DETRHead: 'loss_by_feat',
    BBoxHead: 'loss_and_target',
    FCNMaskHead: 'loss_and_target',
}
# Methods ``loss`` that hand all predictions to ``loss_by_feat``, image by image.
_DENSE_LOSSES = (
    BaseDenseHead.loss,
    DETRHead.loss,
    DeformableDETRHead.loss,
    ConditionalDETRHead.loss,
)
_REFUSED = {
    DINOHead: 'makes as many denoising queries as its batch has annotations, so those of '
    'micro-batches are not those of the batch',
    DynamicRoIHead: 'moves its thresholds at each pass over a micro-batch',
    MaskScoringRoIHead: 'needs the losses of a micro-batch before all micro-batches are known',
}
_HINT = "Use the stock loop: train_cfg=dict(_delete_=True, type='EpochBasedTrainLoop', ...)"
_PENDING = ('loss', *(f'loss_lt_{kind}' for kind in KINDS))  # read in the first pass


class JointLosses:
    """A context in which the heads of a model compute the losses of several parts jointly.

    Use: for each part ``begin(number)`` and a pass without a graph; :meth:`compute`; for each
    part ``begin(number)`` and a pass with a graph, in which the losses are shares.

    Args:
        module: A stock model, not wrapped for several ranks.

    Raises:
        UnsupportedHeadError: If it has a head whose losses cannot be computed so.
    """

    def __init__(self, module: nn.Module) -> None:
        methods = {head: _loss_method(name, head) for name, head in module.named_modules()}
        self._methods = {head: method for head, method in methods.items() if method}
        self._recorded: dict[tuple[nn.Module, int], dict[int, inspect.BoundArguments]] = {}
        self._joint: dict[tuple[nn.Module, int], _JointCall] = {}

    def __enter__(self) -> 'JointLosses':
        for head, name in self._methods.items():
            setattr(head, name, self._replacement(head))
        return self

    def __exit__(self, *error: Any) -> None:
        for head, name in self._methods.items():
            vars(head).pop(name, None)

    def begin(self, number: int) -> None:
        """Starts a pass over a part."""
        self._number = number
        self._calls: Counter[nn.Module] = Counter()

    def compute(self) -> None:
        """Computes the losses of the whole batch, from the parts that were seen."""
        for (head, place), parts in self._recorded.items():
            method = getattr(type(head), self._methods[head])
            self._joint[head, place] = _JointCall(head, method, parts)
        self._recorded.clear()

    def check_first_pass(self, losses: dict[str, Any]) -> None:
        """Refuses losses that do not come from the heads' methods, or not from them alone.

        Args:
            losses: The loss dict of the model in the first pass over the present part.

        Raises:
            UnsupportedHeadError: If there is one.
        """
        for key, value in losses.items():
            values = value if isinstance(value, (list, tuple)) else [value]
            expected = torch.full((), self._pending())
            if 'loss' in key and not all(
                torch.allclose(each.float().cpu(), expected, equal_nan=True) for each in values
            ):
                raise UnsupportedHeadError(
                    f'{key} is not computed in a method that is known to make losses, so it '
                    'cannot be put together from micro-batches; expected one of '
                    f'{", ".join(f"{cls.__name__}.{name}" for cls, name in _METHODS.items())}. '
                    f'{_HINT}'
                )

    def _pending(self) -> float:
        """What stands for a loss in the first pass.

        Among NaN, what another computes is seen; among zeros, what another adds.
        """
        return 0.0 if self._number else math.nan

    def _replacement(self, head: nn.Module) -> Callable:
        def compute_losses(*args: Any, **kwargs: Any) -> dict[str, Any]:
            stock = getattr(stock_class(head), self._methods[head])
            bound = inspect.signature(stock).bind(head, *args, **kwargs)
            call = head, self._calls[head]
            self._calls[head] += 1
            if self._joint:
                losses = self._joint[call].share(self._number, bound)
            else:
                _check_rows(head, bound)
                self._recorded.setdefault(call, {})[self._number] = bound
                first = next(_predictions(bound))
                losses = {
                    key: first.new_full((), self._pending(), dtype=torch.float32)
                    for key in _PENDING
                }
            return _as_returned(head, bound, losses)

        return compute_losses


class _JointCall:
    """The losses of the calls that a head gets from several parts at one place of its step.

    Args:
        head: The head.
        method: Its own method, unbound.
        parts: For each part, by its number, the arguments, without a graph.
    """

    def __init__(
        self, head: nn.Module, method: Callable, parts: dict[int, inspect.BoundArguments]
    ) -> None:
        self._shapes = {
            number: [each.shape for each in _predictions(part)] for number, part in parts.items()
        }
        order = _Order(head, list(parts.values()))
        self._rows = dict(zip(parts, order.rows))
        with torch.enable_grad():
            joined = order.joined()
            losses = _losses_of(method(*joined.args, **joined.kwargs))
        self._axes = _axes(joined)
        self._parameters = [each for each in head.parameters() if each.requires_grad]
        inputs = [*_predictions(joined), *self._parameters]
        self._losses = {
            key: [self._with_gradients(each, inputs) for each in value]
            if isinstance(value, (list, tuple))
            else self._with_gradients(value, inputs)
            for key, value in losses.items()
        }

    def share(self, number: int, arguments: inspect.BoundArguments) -> dict[str, Any]:
        """The share of a part in the losses, and all of what is only logged.

        Args:
            number: The number of the part.
            arguments: As in the first pass, with a graph.

        Raises:
            RuntimeError: If the part gives other predictions than in the first pass.
        """
        predictions = list(_predictions(arguments))
        if [each.shape for each in predictions] != self._shapes.get(number):
            raise RuntimeError(
                'a micro-batch gives other predictions in the second pass than in the '
                'first: something in the model draws random numbers that are not from '
                'random, numpy or torch, or keeps a state that is not a buffer; use the '
                "stock loop, train_cfg=dict(type='EpochBasedTrainLoop', ...)"
            )

        def shared(key: str, loss: Any) -> Any:
            if isinstance(loss, list):
                return [shared(key, each) for each in loss]
            value, gradients = loss
            if 'loss' not in key or not isinstance(value, Tensor):
                return value
            return self._shared(number, predictions, value, gradients)

        return {key: shared(key, loss) for key, loss in self._losses.items()}

    def _with_gradients(self, value: Any, inputs: list[Tensor]) -> tuple[Any, list[Tensor | None]]:
        """A loss without its graph, and its gradient with respect to the inputs."""
        if not isinstance(value, Tensor):
            return value, []
        value = value.mean() if value.is_floating_point() else value  # as MMEngine does
        if not value.requires_grad:
            return value.detach(), []
        gradients = torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True)
        return value.detach(), list(gradients)

    def _shared(
        self, number: int, predictions: list[Tensor], value: Tensor, gradients: list[Tensor | None]
    ) -> Tensor:
        """A share of a loss's value, with the gradient for the predictions of a part."""
        count = len(self._shapes)
        own: list[tuple[Tensor, Tensor]] = []
        for i, (prediction, gradient) in enumerate(zip(predictions, gradients)):
            if gradient is not None and prediction.requires_grad:
                rows = self._rows[number].to(gradient.device)
                own.append((prediction, gradient.index_select(self._axes[i], rows)))
        for parameter, gradient in zip(self._parameters, gradients[len(predictions) :]):
            if gradient is not None:
                own.append((parameter, gradient / count))
        inputs, shares = zip(*own) if own else ((), ())
        return _Linear.apply(value / count, shares, *inputs)


class _Linear(torch.autograd.Function):
    """A value whose gradient with respect to some tensors is known."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: tuple[Tensor, ...], *inputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        ctx.dtypes = [each.dtype for each in inputs]
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (grad_output * gradient for gradient in ctx.gradients)
        return None, None, *(each.to(dtype) for each, dtype in zip(scaled, ctx.dtypes))


def _loss_method(name: str, head: nn.Module) -> str | None:
    """The name of the method in which a module of a model makes losses; None if it has none."""
    stock: Any = stock_class(head)
    for refused, reason in _REFUSED.items():
        if isinstance(head, refused):
            raise UnsupportedHeadError(f'{name} is a {stock.__name__}, which {reason}. {_HINT}')
    if isinstance(head, (BaseDenseHead, DETRHead)) and stock.loss not in _DENSE_LOSSES:
        raise UnsupportedHeadError(
            f'{name} is a {stock.__name__}, which has a method loss of its own, so its '
            'losses cannot be put together from micro-batches; expected a head that keeps '
            f'BaseDenseHead.loss or the loss of a DETRHead. {_HINT}'
        )
    shared = BaseDenseHead.get_positive_infos
    if getattr(stock, 'get_positive_infos', shared) is not shared:
        raise UnsupportedHeadError(
            f'{name} is a {stock.__name__}, which hands the positives to a mask head. {_HINT}'
        )
    return next((method for cls, method in _METHODS.items() if isinstance(head, cls)), None)


def _as_returned(head: Any, bound: inspect.BoundArguments, losses: dict[str, Any]) -> dict:
    """The losses in the form in which the method of a head returns them."""
    if isinstance(head, BBoxHead):
        # A cascade refines its boxes with the targets.
        sampled = bound.arguments['sampling_results'], bound.arguments['rcnn_train_cfg']
        return dict(loss_bbox=losses, bbox_targets=head.get_targets(*sampled))
    return dict(loss_mask=losses) if isinstance(head, FCNMaskHead) else losses


def _losses_of(returned: dict[str, Any]) -> dict[str, Any]:
    for key in ('loss_bbox', 'loss_mask'):
        if isinstance(returned.get(key), dict):
            return returned[key]
    return returned


def _images(bound: inspect.BoundArguments) -> list[Any]:
    """One object for each image, from the arguments of a method that makes losses."""
    for name in ('data_samples', 'sampling_results', 'batch_img_metas'):
        if name in bound.arguments:
            return bound.arguments[name]
    raise UnsupportedHeadError(f'a head is given {list(bound.arguments)} to make losses. {_HINT}')


def _axis(name: str) -> int:
    """Along which axis the predictions with a name are those of rows or images."""
    return 1 if name.startswith('all_layers') else 0  # DETR: (layers, images, ...)


def _rows_of_images(head: Any, bound: inspect.BoundArguments) -> list[int]:
    """How many rows of the predictions each image has."""
    if isinstance(head, BBoxHead):
        return [len(sampled.priors) for sampled in _images(bound)]
    if isinstance(head, FCNMaskHead):
        return [len(sampled.pos_priors) for sampled in _images(bound)]
    return [1] * len(_images(bound))


def _check_rows(head: Any, bound: inspect.BoundArguments) -> None:
    """Raises an UnsupportedHeadError for predictions that do not belong to images or RoIs."""
    images = _images(bound)
    rows = sum(_rows_of_images(head, bound))
    for prediction, axis in zip(_predictions(bound), _axes(bound)):
        if prediction.dim() <= axis or prediction.shape[axis] != rows:
            raise UnsupportedHeadError(
                f'{stock_class(head).__name__} makes losses from a tensor of shape '
                f'{tuple(prediction.shape)}; expected {rows} rows along axis {axis}, those of '
                f'{len(images)} images of a micro-batch. {_HINT}'
            )


def _named_tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor) and value.is_floating_point():
        yield name, value
    elif _is_of_levels(value):
        for level in value:
            yield from _named_tensors(name, level)


def _is_of_levels(value: Any) -> bool:
    """Whether a list holds the predictions of levels, not what belongs to images."""
    return isinstance(value, (list, tuple)) and any(
        isinstance(each, (Tensor, list, tuple)) for each in value
    )


def _predictions(bound: inspect.BoundArguments) -> Iterator[Tensor]:
    """All tensors of numbers among the arguments, in a fixed order."""
    for name, value in bound.arguments.items():
        for _, tensor in _named_tensors(name, value):
            yield tensor


def _axes(bound: inspect.BoundArguments) -> list[int]:
    return [
        _axis(name)
        for argument, value in bound.arguments.items()
        for name, _ in _named_tensors(argument, value)
    ]


class _Order:
    """The order of the batch, in which image i of part k is image i * (number of parts) + k.

    Args:
        head: Whose arguments they are.
        parts: The arguments of its method for each part.

    Attributes:
        rows: For each part the rows of the batch's predictions that are its own.
    """

    def __init__(self, head: nn.Module, parts: list[inspect.BoundArguments]) -> None:
        self._parts = parts
        counts = [_rows_of_images(head, part) for part in parts]
        self._images = sorted(
            (image, place) for place, own in enumerate(counts) for image in range(len(own))
        )
        rows: list[list[int]] = [[] for _ in parts]
        start = 0
        for image, place in self._images:
            rows[place].extend(range(start, start + counts[place][image]))
            start += counts[place][image]
        self.rows = [torch.tensor(own, dtype=torch.int64) for own in rows]

    def joined(self) -> inspect.BoundArguments:
        """The arguments for the whole batch; its predictions are leaves."""
        first = self._parts[0]
        columns = {name: [part.arguments[name] for part in self._parts] for name in first.arguments}
        if 'rois' in columns:
            columns['rois'] = [self._renumbered(*each) for each in enumerate(columns['rois'])]
        joined = {name: self._values(_axis(name), values) for name, values in columns.items()}
        return inspect.BoundArguments(first.signature, OrderedDict(joined))

    def _renumbered(self, place: int, rois: Tensor) -> Tensor:
        """RoIs (N, 5) of a part with the numbers that its images have in the batch."""
        own = [number for number, (_, other) in enumerate(self._images) if other == place]
        numbers = rois.new_tensor(own)[rois[:, 0].long()]
        return torch.cat([numbers[:, None], rois[:, 1:]], dim=1)

    def _values(self, axis: int, values: list[Any]) -> Any:
        first = values[0]
        if isinstance(first, Tensor):
            places = torch.cat(self.rows).argsort().to(first.device)
            joined = torch.cat(values, dim=axis).index_select(axis, places)
            if not joined.is_floating_point():
                return joined
            # In half precision, small gradients would be lost before the loss is scaled.
            return joined.to(torch.promote_types(joined.dtype, torch.float32)).requires_grad_()
        if _is_of_levels(first):
            return type(first)(self._values(axis, list(level)) for level in zip(*values))
        if isinstance(first, (list, tuple)):
            return [values[place][image] for image, place in self._images]
        return first
