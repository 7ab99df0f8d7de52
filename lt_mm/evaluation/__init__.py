"""Metrics."""

from lt_mm.evaluation.calibration_metric import CalibrationMetric
from lt_mm.evaluation.consistency_metric import ConsistencyMetric
from lt_mm.evaluation.flicker_metric import FlickerMetric

__all__ = ['CalibrationMetric', 'ConsistencyMetric', 'FlickerMetric']
