"""The weight rho of the consistency term over training."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

RhoConfig = float | int | Mapping
_KINDS = ('constant', 'linear', 'cosine')


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class RhoSchedule:
    """rho as a function of the finished part of training.

    It moves from ``start`` at ``begin`` to ``end`` at ``finish``, and is constant before and after.

    Attributes:
        kind: 'constant' (always ``end``), 'linear' or 'cosine' (half a period).
        start: rho up to ``begin``.
        end: rho from ``finish`` on.
        begin: Part of training, in [0, 1], at which rho starts to move.
        finish: Part of training at which rho reaches ``end``.
    """

    kind: str = 'constant'
    start: float = 0.0
    end: float = 1.0
    begin: float = 0.0
    finish: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f'rho has type={self.kind!r}; expected one of {_KINDS}')
        for name in ('start', 'end'):
            value = getattr(self, name)
            if not (_is_number(value) and math.isfinite(value) and value >= 0):
                raise ValueError(f'rho has {name}={value!r}; expected a finite number >= 0')
        if not (
            _is_number(self.begin)
            and _is_number(self.finish)
            and 0 <= self.begin < self.finish <= 1
        ):
            raise ValueError(
                f'rho moves from {self.begin!r} to {self.finish!r}; expected parts of '
                'training with 0 <= begin < finish <= 1'
            )

    @classmethod
    def from_config(cls, rho: RhoConfig) -> 'RhoSchedule':
        """From a number or ``dict(type='linear', start=0, end=1, begin=0, finish=0.5)``.

        Raises:
            ValueError: If a type or key is unknown, if a rho is not a finite number >= 0,
                or if ``begin`` is not before ``finish``.
        """
        if isinstance(rho, Mapping):
            unknown = set(rho) - {'type', 'start', 'end', 'begin', 'finish'}
            if unknown:
                raise ValueError(
                    f'rho has the unknown keys {sorted(unknown)}; expected '
                    'type, start, end, begin, finish'
                )
            options = dict(rho)
            return cls(kind=options.pop('type', 'linear'), **options)
        if not _is_number(rho):
            raise ValueError(
                f'rho is {rho!r}; expected a number or a dict such as '
                "dict(type='linear', start=0, end=1, finish=0.5)"
            )
        return cls(end=float(rho))

    @property
    def is_constant(self) -> bool:
        return self.kind == 'constant' or self.start == self.end

    def at(self, progress: float) -> float:
        """Rho when ``progress`` of training, in [0, 1], is done."""
        if self.is_constant:
            return self.end
        part = (progress - self.begin) / (self.finish - self.begin)
        part = min(max(part, 0.0), 1.0)
        if self.kind == 'cosine':
            part = (1 - math.cos(math.pi * part)) / 2
        return self.start + (self.end - self.start) * part
