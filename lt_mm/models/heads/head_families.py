"""Which mixin adds the term to which stock head: :func:`register_head_family`."""

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from lt_mm.models.heads.base import ConsistencyMixin
from lt_mm.structures.errors import UnsupportedHeadError

_Mixin = TypeVar('_Mixin', bound=type[ConsistencyMixin])
_FAMILIES: list[type[ConsistencyMixin]] = []

_CORNERS = (
    'it predicts the corners of boxes, each by itself, and a box only exists once two of them are '
    'grouped, so no prediction of its loss is that of an instance'
)
_CELLS = (
    'the mask and the class of an instance are predicted once for every cell of a grid that its '
    'centre region covers, and its targets do not tell which instance a cell was given'
)
_FRAMES = (
    'it predicts an instance in all frames of a video at once, while a record is that of one image'
)
# Stock heads that no family can read, and why; by name, for not all are in every version.
_REASONS = {
    'CornerHead': _CORNERS,
    'CentripetalHead': _CORNERS,
    **dict.fromkeys(
        ('SOLOHead', 'DecoupledSOLOHead', 'DecoupledSOLOLightHead', 'SOLOV2Head'), _CELLS
    ),
    'CLRHead': 'it predicts lanes, which are lines without a box',
    'LinearReIDHead': 'it trains embeddings by triplets of images, and predicts no class',
    'Mask2FormerTrackHead': _FRAMES,
}


def register_head_family(*heads: type[nn.Module]) -> Callable[[_Mixin], _Mixin]:
    """Class decorator: the mixin adds the term to heads of some stock classes.

    A head belongs to the family that was registered *last* among those of which it is an
    instance, so a family of your own comes before those of this package::

        @register_head_family(MyHead)
        class MyHeadConsistency(DenseConsistency):
            def lt_assigned(self, targets, arguments): ...

    ``docs/heads.md`` shows a whole family.

    Args:
        *heads: Stock classes; their subclasses belong to the family too, unless the mixin's
            ``lt_check`` refuses them.

    Raises:
        TypeError: If no class is given, or the decorated class is no ConsistencyMixin.
    """
    if not heads or not all(isinstance(head, type) for head in heads):
        raise TypeError(
            f'register_head_family got {heads}; expected the classes of the heads, such as '
            '@register_head_family(MyHead)'
        )

    def decorator(mixin: _Mixin) -> _Mixin:
        if not (isinstance(mixin, type) and issubclass(mixin, ConsistencyMixin)):
            raise TypeError(
                f'{mixin!r} does not derive from ConsistencyMixin; derive it from '
                'DenseConsistency or another mixin of lt_mm.models.heads'
            )
        mixin.lt_heads = heads
        _FAMILIES.insert(0, mixin)
        return mixin

    return decorator


def family_of(head: nn.Module) -> type[ConsistencyMixin]:
    """The mixin for a built head.

    Raises:
        UnsupportedHeadError: If the head belongs to no family.
    """
    name, known = type(head).__name__, {cls for mixin in _FAMILIES for cls in mixin.lt_heads}
    reason = _REASONS.get(name)
    if reason and type(head) not in known:
        raise UnsupportedHeadError(
            f'LossTransformHead cannot wrap {name}: {reason}; expected a head such as RetinaHead, '
            f"with a prediction for each instance. Leave this head as it is: dict(type='{name}', "
            '...)'
        )
    for mixin in _FAMILIES:
        if isinstance(head, mixin.lt_heads):
            return mixin
    supported = sorted(cls.__name__ for cls in known)
    raise UnsupportedHeadError(
        f'LossTransformHead cannot wrap {name}: nothing tells which of its predictions show '
        f'the same instance; expected one of {", ".join(supported)}, or a subclass. Wrap one '
        f"of these, leave this head as it is (head=dict(type='{name}', ...)), or register a "
        'family for it: lt_mm.models.heads.register_head_family (docs/heads.md)'
    )
