"""A picture of what LossTransform sees: replicas, and their predictions restored."""

import math
from typing import Any

import numpy as np
import torch
from mmdet.structures.bbox import get_box_tensor
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import load_checkpoint
from mmengine.structures import InstanceData

from lt_mm.apis.replica_configs import validation_replicas
from lt_mm.core.geometry import boxes_to_source
from lt_mm.core.pairing import greedy_iou_groups, is_paired
from lt_mm.datasets.display import class_name, rgb_image, source_image
from lt_mm.engine.checkpoints import checkpoint_loading
from lt_mm.engine.launch import enter_scope, load_config
from lt_mm.evaluation.predictions import restoring_matrix
from lt_mm.structures.record import source_ids_of
from lt_mm.visualization.drawing import save_figure
from lt_mm.visualization.restored_figure import PredictedReplica, restored_figure


def draw_replicas(
    config: str,
    checkpoint: str,
    out: str,
    index: int | None = None,
    num_replicas: int = 4,
    score_threshold: float = 0.4,
    seed: int = 0,
    trust_checkpoint: bool = False,
) -> dict[str, Any]:
    """Draws replicas of a validation image and all their predictions on the source.

    Above are the replicas as the training pipeline makes them, with the boxes that the
    model predicts there. Below is the source image with the boxes of all replicas
    brought back to it. Boxes that pair (greedily by IoU, same class) share a colour;
    the others are dashed and grey. The annotations are white.

    Args:
        config: Config file of a detector. A training pipeline that does not record is
            wrapped.
        checkpoint: Checkpoint file of that detector.
        out: PNG to write.
        index: Number of the image in the validation set; by default the first of those
            with most instances, where more than 6 count as 6.
        num_replicas: How many replicas to draw.
        score_threshold: Predictions with a lower score are left out.
        seed: Seed of the augmentations.
        trust_checkpoint: See :func:`lt_mm.engine.checkpoints.checkpoint_loading`.

    Returns:
        How many ``boxes`` were drawn, how many of them are ``paired``, and the ``best_score`` of
        all predictions; None where there are none at all.

    Raises:
        MissingRecordError: If no single matrix describes a replica.
        UntrustedCheckpointError: If the checkpoint holds code.
        ValueError: If the training pipeline is not one for single images.
    """
    cfg = load_config(config)
    enter_scope(cfg)
    dataset = DATASETS.build(validation_replicas(cfg))
    if index is None:
        index = _index_with_most_instances(dataset)
    model = MODELS.build(cfg.model)
    with checkpoint_loading(trust_checkpoint):
        load_checkpoint(model, checkpoint, map_location='cpu')
    np.random.seed(seed)
    packed = [dataset[index] for _ in range(num_replicas)]
    samples = [each['data_samples'] for each in packed]
    source_ids_of(samples)
    everything = [_predict(model, each) for each in packed]
    predictions = [found[found.scores >= score_threshold] for found in everything]
    scores = torch.cat([found.scores for found in everything])
    best_score = float(scores.max()) if len(scores) else None
    restored = [
        boxes_to_source(found.bboxes, restoring_matrix(sample).expand(len(found), 3, 3))
        for found, sample in zip(predictions, samples)
    ]
    groups = greedy_iou_groups(restored, [found.labels for found in predictions])
    classes = dataset.metainfo['classes']
    replicas = [
        PredictedReplica(
            rgb_image(each['inputs'], is_bgr=True),
            found.bboxes,
            boxes,
            [
                f'{class_name(classes, label)} {score:.2f}'
                for label, score in zip(found.labels.tolist(), found.scores.tolist())
            ],
            group_ids,
            get_box_tensor(each['data_samples'].gt_instances.bboxes),
        )
        for each, found, boxes, group_ids in zip(packed, predictions, restored, groups)
    ]
    annotations = _annotated_boxes(dataset, index)
    empty = nothing_drawn(score_threshold, best_score)
    save_figure(restored_figure(source_image(samples[0]), annotations, replicas, empty), out)
    paired = is_paired(torch.cat(groups))
    return dict(boxes=len(paired), paired=int(paired.sum()), best_score=best_score)


def nothing_drawn(score_threshold: float, best_score: float | None) -> str:
    """What to say where no prediction reaches a threshold.

    Args:
        score_threshold: The threshold.
        best_score: The highest score of all predictions; None without any.
    """
    if best_score is None:
        return 'there is no prediction'
    return (
        f'no prediction has a score of {score_threshold:g} or more: the highest is '
        f'{best_score:.3f}; draw it with --score-threshold {math.floor(best_score * 100) / 100:g}'
    )


def _annotated_boxes(dataset: Any, index: int) -> torch.Tensor:
    """(k, 4), the annotated boxes of a source, without those that are ignored."""
    boxes = [
        instance['bbox']
        for instance in dataset.get_data_info(index)['instances']
        if not instance.get('ignore_flag')
    ]
    return torch.tensor(boxes, dtype=torch.float64).view(-1, 4)


def _index_with_most_instances(dataset: Any) -> int:
    counts = [min(len(dataset.get_data_info(i)['instances']), 6) for i in range(len(dataset))]
    return int(np.argmax(counts))


@torch.no_grad()
def _predict(model: Any, packed: dict) -> InstanceData:
    """The predictions; their boxes in pixels of the replica."""
    model.eval()
    batch = dict(inputs=[packed['inputs']], data_samples=[packed['data_samples']])
    data = model.data_preprocessor(batch, False)
    # Not rescaled: the matrices lead back to the source, not the scale factor.
    sample = model.predict(data['inputs'], data['data_samples'], rescale=False)[0]
    return sample.pred_instances
