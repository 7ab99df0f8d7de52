"""Whether a classifier is as often right as it says, as a metric."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric

from lt_mm.core.measures.calibration import calibration_error
from lt_mm.evaluation.predictions import kept_prediction, single_label
from lt_mm.registry import METRICS, register


@register(METRICS)
class CalibrationMetric(BaseMetric):
    """The expected calibration error of an MMPretrain classifier with one label an image.

    - ``ece``: see :func:`lt_mm.core.measures.calibration.calibration_error`, in [0, 1].
    - ``confidence``: the mean probability of the predicted class.
    - ``overconfidence``: ``confidence`` less the share of correct predictions.

    Args:
        num_bins: Number of ranges of confidence.
        collect_device: See MMEngine's ``BaseMetric``, here and below.
        prefix: By default 'calibration'.
        collect_dir: Folder for results of several ranks.

    Raises:
        ValueError: If there are less than one bin, an image has not exactly one label, or a
            prediction is not finite.
    """

    default_prefix = 'calibration'

    def __init__(
        self,
        num_bins: int = 15,
        collect_device: str = 'cpu',
        prefix: str | None = None,
        collect_dir: str | None = None,
    ) -> None:
        super().__init__(collect_device, prefix, collect_dir)
        if num_bins < 1:
            raise ValueError(f'num_bins is {num_bins}; expected a positive number of bins')
        self.num_bins = num_bins

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keeps the confidence of each prediction and whether it is right.

        Args:
            data_batch: Not used.
            data_samples: Predictions as dictionaries, as MMEngine's evaluator gives them.
        """
        for sample in data_samples:
            label = single_label(sample)
            if label is None or 'pred_score' not in sample:
                raise ValueError(
                    f'the prediction for {sample.get("img_path")} has the fields {sorted(sample)} '
                    f'and the labels {sample.get("gt_label")}; expected the pred_score of a '
                    'classifier and one label. Remove lt_mm.CalibrationMetric from the evaluator'
                )
            probabilities = kept_prediction(sample, 0)['probabilities']
            predicted = int(probabilities.argmax())
            self.results.append((float(probabilities[predicted]), predicted == label))

    def compute_metrics(self, results: list[tuple[float, bool]]) -> dict[str, float]:
        """Measures; see the class."""
        confidences, correct = (torch.tensor(column) for column in zip(*results))
        # A softmax in single precision may exceed 1 by its rounding.
        confidences = confidences.double().clamp(max=1)
        confidence = float(confidences.mean())
        return dict(
            ece=calibration_error(confidences, correct, self.num_bins),
            confidence=confidence,
            overconfidence=confidence - float(correct.double().mean()),
        )
