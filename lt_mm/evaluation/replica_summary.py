"""What becomes of annotations in the replicas of a data set, in numbers."""

from dataclasses import dataclass, fields

from lt_mm.datasets.replica_failures import BELOW, INEXACT, LOST, Failure
from lt_mm.datasets.source_catalog import Replica, Source


@dataclass
class ReplicaSummary:
    """Counts over sources and their replicas.

    Attributes:
        sources: Number of source images.
        replicas: Number of their replicas.
        instances: Annotations that the replicas should show: those of the source, once
            for each of its replicas.
        kept: How many of these are there.
        lost: The others.
        below_visibility: How many of those kept are less visible than the threshold.
        inexact: How many of those kept do not come back exactly: rotated or sheared ones.
        mixed_in: Instances of other sources (Mosaic, MixUp, CopyPaste).
        largest_error: Largest error of all exact instances, those mixed in too, in pixels
            of the source; None without any. Boxes that a transform makes anew from masks
            (CopyPaste) follow the pixels, and so are off by about one of these.
    """

    sources: int = 0
    replicas: int = 0
    instances: int = 0
    kept: int = 0
    lost: int = 0
    below_visibility: int = 0
    inexact: int = 0
    mixed_in: int = 0
    largest_error: float | None = None

    def add(self, source: Source, replicas: list[Replica], failures: list[Failure]) -> None:
        """Adds a source, its replicas and the failures that were found in them."""
        expected = len(source.rows) * sum(
            replica.source_id == source.source_id for replica in replicas
        )
        # A mosaic may show a source twice.
        lost, below, inexact = (
            len({(each.number, each.row) for each in failures if kind in each.kinds})
            for kind in (LOST, BELOW, INEXACT)
        )
        self.sources += 1
        self.replicas += len(replicas)
        self.instances += expected
        self.kept += expected - lost
        self.lost += lost
        self.below_visibility += below
        self.inexact += inexact
        for shown in [each.instances for each in replicas if each.instances is not None]:
            self.mixed_in += len(shown.boxes) - len(shown.of(source.source_id))
            errors = shown.errors[shown.exact].tolist()
            if errors:
                self.largest_error = max([*errors, self.largest_error or 0.0])

    def __str__(self) -> str:
        if not self.instances and not self.mixed_in:
            return f'{self.sources} sources, {self.replicas} replicas, without annotated instances'
        counts = ', '.join(
            f'{getattr(self, field.name)} {field.name.replace("_", " ")}'
            for field in fields(self)[:-1]
        )
        if self.largest_error is None:
            return f'{counts}; no exact instance'
        return f'{counts}; largest restoration error {self.largest_error:.2g} px'
