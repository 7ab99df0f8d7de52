"""The consistency term: D_KL(mean prediction || each restored prediction).

For n predictions p_i, brought back to the source frame, and the indicator 1(i, j) of
:mod:`lt_mm.core.pairing`::

    term   = 1/n * sum_i D_KL( pbar_i || p_i )
    pbar_i = sum_j 1(i, j) p_j / sum_j 1(i, j)

All functions take the predictions of a batch and their group ids, and return a scalar, >= 0
up to rounding, in float32 or wider, under autocast too. The gradient flows to every paired
prediction, and through the mean unless ``detach_mean``. A prediction without a positive adds
0; without any pair the term is 0 and still has a graph. Finite predictions give a finite term
and, in float32 or wider, a finite gradient, however large they are. A log-probability below -100
counts as -100, in classes and masks, so that a class which one prediction rules out with a logit
of -inf adds a bounded amount; the gradient flows as without this. A paired prediction that is NaN
makes the term NaN. Time and memory are linear in the number of predictions: the mean is a segment
reduction. With a ``target``, such as the mean of earlier epochs
(:mod:`lt_mm.core.memory`), that mean is taken instead, and counts as constant; a prediction
then needs no positive in the batch. ``ValueError`` is raised if shapes do not fit, or if the
temperature or ``avg_factor`` is not positive.
"""

from lt_mm.core.consistency.bernoulli import bernoulli_consistency, compared_cells, mask_consistency
from lt_mm.core.consistency.boxes import (
    BIN_FLOOR,
    MIN_BOX_SIDE,
    box_consistency,
    box_divergences,
    compared_axes,
    compared_sides,
    side_consistency,
)
from lt_mm.core.consistency.categorical import categorical_consistency
from lt_mm.core.consistency.common import logits_of, logits_of_both, non_negative
from lt_mm.core.consistency.replica_means import Cells, replica_cells
from lt_mm.core.consistency.strength import Modulation, positives_each

__all__ = [
    'BIN_FLOOR',
    'MIN_BOX_SIDE',
    'Cells',
    'Modulation',
    'bernoulli_consistency',
    'box_consistency',
    'box_divergences',
    'categorical_consistency',
    'compared_axes',
    'compared_cells',
    'compared_sides',
    'logits_of',
    'logits_of_both',
    'mask_consistency',
    'non_negative',
    'positives_each',
    'replica_cells',
    'side_consistency',
]
