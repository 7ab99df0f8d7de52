"""The weight rho of the consistency term over training."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

RhoConfig = float | int | Mapping | Sequence[Mapping]
_KINDS = ('constant', 'linear', 'cosine', 'gaussian')
# Of Laine and Aila, "Temporal Ensembling for Semi-Supervised Learning", appendix A.
_RAMP_UP, _RAMP_DOWN = 5.0, 12.5


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class RhoSchedule:
    """rho as a function of the finished part of training.

    It moves from ``start`` at ``begin`` to ``end`` at ``finish``, and is constant before and after.

    Attributes:
        kind: 'constant' (always ``end``), 'linear', 'cosine' (half a period) or 'gaussian': for
            the finished part t of the way, exp(-5 (1 - t)^2) upwards and exp(-12.5 t^2) downwards,
            which leave a step of less than 1 % at ``begin`` and ``finish``.
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
    def from_config(cls, rho: float | int | Mapping) -> 'RhoSchedule':
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
                "dict(type='linear', start=0, end=1, finish=0.5), or a list of these dicts, one "
                'after the other'
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
        elif self.kind == 'gaussian' and 0 < part < 1:
            if self.end > self.start:
                part = math.exp(-_RAMP_UP * (1 - part) ** 2)
            else:
                part = 1 - math.exp(-_RAMP_DOWN * part**2)
        return self.start + (self.end - self.start) * part


@dataclass(frozen=True)
class RhoPhases:
    """Schedules one after the other: up, held in between, and down again.

    Attributes:
        phases: In the order of time; between two, rho keeps the value that both have there.
    """

    phases: tuple[RhoSchedule, ...]

    def __post_init__(self) -> None:
        for first, second in zip(self.phases, self.phases[1:]):
            if 'constant' in (first.kind, second.kind) or first.finish > second.begin:
                raise ValueError(
                    f'rho has a phase from {second.begin} on after one up to {first.finish} '
                    f'({first.kind}, {second.kind}); expected moving phases in the order of time, '
                    'finish <= begin of the next'
                )
            if first.end != second.start:
                raise ValueError(
                    f'rho has a phase that ends at {first.end} before one that starts at '
                    f'{second.start}; expected end = start of the next'
                )

    @property
    def is_constant(self) -> bool:
        """Whether rho is the same at all times."""
        return all(phase.is_constant for phase in self.phases)

    def at(self, progress: float) -> float:
        """Rho when ``progress`` of training, in [0, 1], is done."""
        begun = [phase for phase in self.phases if phase.begin <= progress]
        return (begun or self.phases)[-1 if begun else 0].at(progress)


def rho_schedule(rho: RhoConfig) -> RhoSchedule | RhoPhases:
    """From what :meth:`RhoSchedule.from_config` takes, or a list of the dicts that it takes.

    ``[dict(type='gaussian', end=1, finish=0.4), dict(start=1, end=0, begin=0.8)]`` ramps rho up,
    holds it and ramps it down.

    Raises:
        ValueError: As there, or if the phases do not follow each other.
    """
    if isinstance(rho, (list, tuple)) and rho and all(isinstance(each, Mapping) for each in rho):
        return RhoPhases(tuple(RhoSchedule.from_config(each) for each in rho))
    return RhoSchedule.from_config(rho)  # type: ignore[arg-type]  # refuses other sequences
