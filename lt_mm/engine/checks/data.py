"""Whether the samples of a data set carry a record, and what it restores."""

from typing import Any

from lt_mm.core.seeds import seeded
from lt_mm.datasets.checks import innermost_datasets
from lt_mm.datasets.held_pipelines import working_copy
from lt_mm.datasets.replica_failures import find_failures
from lt_mm.datasets.source_catalog import sources_and_replicas
from lt_mm.datasets.source_numbers import check_numbers, pipelines_of
from lt_mm.engine.checks.report import NOTE, OK, WRONG, Report
from lt_mm.evaluation.replica_summary import ReplicaSummary
from lt_mm.structures.errors import RECORD_HINT

_NUM_SOURCES = 3
_NUM_REPLICAS = 2
# A box that a transform makes anew from masks is off by about a pixel.
_MAX_ERROR = 2.0


def check_data(dataset: Any, compares: bool, min_visibility: float, report: Report) -> None:
    """Draws a few samples of a training set and restores their boxes.

    The data set, its pipelines and the random generators stay as they are.

    Args:
        dataset: The built data set.
        compares: Whether a head needs the record.
        min_visibility: Instances less visible than this pair with nothing.
        report: Gets the findings.
    """
    pipelines = pipelines_of(dataset)
    if not pipelines:
        if compares:
            text = f'no pipeline of {type(dataset).__name__} records what it does'
            report.add(WRONG, 'pipeline', text, RECORD_HINT)
        return
    with report.reporting('pipeline'):
        check_numbers(dataset)
        number = len(innermost_datasets(dataset))
        plural = 's, whose images have ids of their own' if number > 1 else ''
        report.add(OK, 'pipeline', f'records {number} data set{plural}')
    with report.reporting('first samples'), seeded(0):
        summary = _summary(working_copy(dataset), min_visibility)
        _report(summary, report)


def _summary(dataset: Any, min_visibility: float) -> ReplicaSummary:
    summary = ReplicaSummary()
    # Nobody annotated the others.
    dataset = getattr(dataset, 'labelled', dataset)
    for source, replicas in sources_and_replicas(dataset, _NUM_SOURCES, _NUM_REPLICAS, seed=0):
        summary.add(source, replicas, find_failures(source, replicas, min_visibility))
    return summary


def _report(summary: ReplicaSummary, report: Report) -> None:
    error = summary.largest_error
    if error is not None and error > _MAX_ERROR:
        text = f'restored boxes lie up to {error:.1f} px beside the annotations ({summary})'
        report.add(WRONG, 'first samples', text, 'look: python tools/browse_replicas.py CONFIG')
        return
    report.add(OK, 'first samples', str(summary))
    if summary.kept and summary.inexact == summary.kept:
        text = 'all boxes were rotated or sheared, and are not compared; their classes are'
        report.add(NOTE, 'boxes', text)
