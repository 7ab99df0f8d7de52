"""Metrics."""

from lt_mm.evaluation.consistency_metric import ConsistencyMetric

__all__ = ['ConsistencyMetric']
