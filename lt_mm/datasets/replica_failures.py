"""Annotations that a replica does not show, shows too little of, or shows inexactly."""

from dataclasses import dataclass

from torch import Tensor

from lt_mm.core.geometry import map_boxes, visible_fraction
from lt_mm.datasets.source_catalog import Instances, Replica, Source

LOST, BELOW, INEXACT = 'lost', 'below visibility', 'inexact'


@dataclass
class Failure:
    """An annotation that a replica does not show, shows too little of, or shows inexactly.

    Attributes:
        source: The source.
        replica: The replica.
        number: Number of the replica, counted from 1.
        row: The annotation's place in the data set's list.
        kinds: One or more of ``LOST``, ``BELOW``, ``INEXACT``.
        reason: The reason in words.
        matrix: (3, 3) float64, from pixels of the source to pixels of the replica: the
            instance's, or the image's where the instance is lost; None if it is unknown.
        box: (4,) float64, the instance in pixels of the replica; None if it is lost.
    """

    source: Source
    replica: Replica
    number: int
    row: int
    kinds: tuple[str, ...]
    reason: str
    matrix: Tensor | None
    box: Tensor | None = None


def find_failures(source: Source, replicas: list[Replica], min_visibility: float) -> list[Failure]:
    """Finds the annotations that are lost, too little visible, or inexact in a replica.

    Args:
        source: The source; for a classifier there is nothing to find.
        replicas: Replicas; those of other sources are left out.
        min_visibility: Instances less visible than this pair with nothing.
    """
    failures = []
    for number, replica in enumerate(replicas, start=1):
        instances = replica.instances
        if instances is None or replica.source_id != source.source_id:
            continue
        for row in source.rows:
            where = (source, replica, number, row)
            places = instances.of(source.source_id, row)
            if not places:
                reason = _why_lost(source, replica, row)
                failures.append(Failure(*where, (LOST,), reason, replica.matrix))
            for place in places:
                faults = _faults(instances, place, min_visibility)
                if faults:
                    failures.append(
                        Failure(
                            *where,
                            tuple(faults),
                            '; '.join(faults.values()),
                            instances.matrices[place],
                            instances.boxes[place],
                        )
                    )
    return failures


def _faults(instances: Instances, place: int, min_visibility: float) -> dict[str, str]:
    """What is wrong with an instance of a replica: by kind, in words."""
    faults, visibility = {}, float(instances.visibility[place])
    if visibility < min_visibility:
        faults[BELOW] = f'{visibility:.1%} visible, less than {min_visibility:.0%}'
    if not instances.exact[place]:
        faults[INEXACT] = (
            'rotated or sheared: the box comes back up to '
            f'{float(instances.errors[place]):.1f} px too large'
        )
    return faults


def _why_lost(source: Source, replica: Replica, row: int) -> str:
    if replica.matrix is None:
        return 'lost; where it went is not known, since images were merged'
    moved = map_boxes(source.box_of(row), replica.matrix).numpy()[None]
    inside = float(visible_fraction(moved, moved, replica.image.shape)[0])
    if inside == 0:
        return 'lost: moved out of the image'
    return f'lost: removed by a transform, though {inside:.0%} of it lies inside'
