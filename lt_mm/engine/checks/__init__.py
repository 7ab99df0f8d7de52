"""Whether a run is what its config means it to be, said before the first step."""

from lt_mm.engine.checks.data import check_data
from lt_mm.engine.checks.inheritance import check_inherited_pipelines
from lt_mm.engine.checks.overrides import check_overrides
from lt_mm.engine.checks.report import Finding, Report, RunCheckError
from lt_mm.engine.checks.run import check_run

__all__ = [
    'Finding',
    'Report',
    'RunCheckError',
    'check_data',
    'check_inherited_pipelines',
    'check_overrides',
    'check_run',
]
