"""How much predictions flicker in the frames of a slow pan and zoom, as a metric."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric

from lt_mm.core.geometry import boxes_to_source
from lt_mm.core.measures import agreement, flicker
from lt_mm.evaluation.predictions import check_activation, check_fractions, kept_prediction
from lt_mm.registry import METRICS, register
from lt_mm.structures.errors import MissingRecordError
from lt_mm.structures.record import ImageRecord

FRAMES_HINT = (
    'let the data loader give frames: val_dataloader.dataset = '
    "dict(type='lt_mm.PanZoomDataset', dataset=<the validation data set>)"
)


@register(METRICS)
class FlickerMetric(BaseMetric):
    """How much predictions change between consecutive frames of a slow pan and zoom.

    Works with MMPretrain classifiers and MMDetection detectors, without annotations, on the frames
    of a :class:`~lt_mm.datasets.PanZoomDataset`, in any order and on any rank. What the image shows
    does not change from frame to frame, so 0 is best everywhere. For classifiers:

    - ``label_changes``: the share of consecutive frames whose most probable class differs (of
      multi-label heads: the set of classes with a probability of 1/2 or more).
    - ``kl``: the mean of D_KL(frame || next frame), in nats.

    For detectors, the predictions with a score of ``score_threshold`` or more are brought back to
    the source image, and those of two consecutive frames are matched greedily by IoU within a
    class. An object that reaches the border of either frame does not count. Of all objects that
    are detected in one of two consecutive frames or in both, and of those that are matched:

    - ``blinking``: the share of objects that only one of the two frames shows; the sum of
      ``appearing`` and ``vanishing``.
    - ``center_jitter``: the mean distance of two matched centres over the root of the box's area.
    - ``size_jitter``: the mean difference of two matched sides over their mean.
    - ``score_swing``: the mean absolute difference of two matched scores.

    Both also give ``num_images`` and ``num_frames``; detectors ``objects_per_frame``, since a
    model that finds nothing does not flicker. A value that nothing was found for is left out.

    Args:
        activation: 'softmax', 'sigmoid', or 'auto': 'softmax' where all probabilities of
            a prediction sum to 1.
        score_threshold: Smallest confidence of a detection.
        iou_threshold: Smallest IoU of matched boxes.
        margin: A box nearer to the border than this share of the frame's sides reaches it.
        collect_device: See MMEngine's ``BaseMetric``, here and below.
        prefix: By default 'flicker'.
        collect_dir: Folder for results of several ranks.

    Attributes:
        sequences: For each source id its frames in their order, on the main process: dicts with
            ``probabilities``, or ``boxes`` in pixels of the source, ``labels`` and ``scores``;
            empty before the evaluation.
        images: For each source id its own values.

    Raises:
        MissingRecordError: If a data sample is no frame, or frames are missing.
        ValueError: If an option is out of range, or a prediction is not finite.
    """

    default_prefix = 'flicker'

    def __init__(
        self,
        activation: str = 'auto',
        score_threshold: float = 0.5,
        iou_threshold: float = 0.5,
        margin: float = 0.02,
        collect_device: str = 'cpu',
        prefix: str | None = None,
        collect_dir: str | None = None,
    ) -> None:
        super().__init__(collect_device, prefix, collect_dir)
        check_activation(activation)
        check_fractions(score_threshold=score_threshold, iou_threshold=iou_threshold, margin=margin)
        self.activation = activation
        self.score_threshold = score_threshold
        self.iou_threshold = iou_threshold
        self.margin = margin
        self.sequences: dict[int, list[dict]] = {}
        self.images: dict[int, Mapping[str, float | None]] = {}

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keeps those parts of a batch of predictions that are compared.

        Args:
            data_batch: Not used.
            data_samples: Predictions as dictionaries, as MMEngine's evaluator gives them.
        """
        for sample in data_samples:
            record = ImageRecord.read(sample, FRAMES_HINT)
            if 'frame_index' not in sample:
                raise MissingRecordError(
                    f'the prediction for {sample.get("img_path")} is not that of a frame; '
                    + FRAMES_HINT
                )
            facts = {name: sample[name] for name in ('frame_index', 'num_frames', 'frame_matrix')}
            result = dict(facts, source_id=record.source_id, source_shape=record.source_shape)
            self.results.append({**result, **kept_prediction(sample, self.score_threshold)})

    def evaluate(self, size: int) -> dict:
        """Measures all that was processed on all ranks.

        Args:
            size: Length of the data set. Not used: frames that a sampler repeats to fill the
                ranks are found by their number.
        """
        return super().evaluate(sys.maxsize)

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Puts the frames of each image in order and measures; see the class."""
        self.sequences = _sequences(results)
        frames = next(iter(self.sequences.values()))
        numbers = self._of_classes() if 'probabilities' in frames[0] else self._of_boxes()
        numbers |= dict(num_images=len(self.sequences), num_frames=len(frames))
        return {name: value for name, value in numbers.items() if value is not None}

    def changes(self, source_id: int) -> list[flicker.BoxChanges]:
        """What changed in the detections before each frame; before the first one nothing."""
        frames = [_detections(frame) for frame in self.sequences[source_id]]
        return [
            flicker.box_changes(before, after, self.iou_threshold, self.margin)
            for before, after in zip([frames[0], *frames], frames)
        ]

    def probabilities(self, source_id: int) -> np.ndarray:
        """What a classifier predicts for the frames of an image, (T, C) float32."""
        return np.stack([frame['probabilities'] for frame in self.sequences[source_id]])

    def _of_classes(self) -> dict[str, float | None]:
        rows = {source: torch.from_numpy(self.probabilities(source)) for source in self.sequences}
        activation = self.activation
        if activation == 'auto':
            activation = agreement.activation_of(torch.cat(list(rows.values())))
        self.images = {
            source: dict(
                label_changes=float(flicker.label_changes(row, activation).double().mean()),
                kl=float(flicker.consecutive_kl(row, activation).mean()),
            )
            for source, row in rows.items()
        }
        return {
            name: float(np.mean([image[name] for image in self.images.values()]))
            for name in ('label_changes', 'kl')
        }

    def _of_boxes(self) -> dict[str, float | None]:
        total, detections, count = flicker.BoxFlicker(), 0, 0
        for source, frames in self.sequences.items():
            own = flicker.box_flicker(
                [_detections(frame) for frame in frames], self.iou_threshold, self.margin
            )
            total = total.plus(own)
            self.images[source] = own.rates()
            detections += sum(len(frame['boxes']) for frame in frames)
            count += len(frames)
        return dict(total.rates(), objects_per_frame=detections / count)


def _detections(frame: dict) -> flicker.Detections:
    """The detections of a frame, as :attr:`FlickerMetric.sequences` has them."""
    height, width = frame['source_shape']
    whole = torch.tensor([0, 0, width, height], dtype=torch.float64)
    boxes, labels, scores = (
        torch.from_numpy(frame[name]) for name in ('boxes', 'labels', 'scores')
    )
    window = boxes_to_source(whole, torch.from_numpy(frame['frame_matrix']))
    return flicker.Detections(boxes, labels, scores, window)


def _sequences(results: list[dict]) -> dict[int, list[dict]]:
    """The frames of each source in their order, each once."""
    found: dict[int, dict[int, dict]] = {}
    for result in results:
        found.setdefault(result['source_id'], {})[result['frame_index']] = result
    for source, frames in found.items():
        expected = next(iter(frames.values()))['num_frames']
        if len(frames) != expected:
            raise MissingRecordError(
                f'of the image with source_id {source} the frames {sorted(frames)} were evaluated; '
                f'expected all {expected}. The sampler of the data loader leaves samples out: '
                "val_dataloader.sampler = dict(type='DefaultSampler', shuffle=False)"
            )
    return {source: [frames[index] for index in sorted(frames)] for source, frames in found.items()}
