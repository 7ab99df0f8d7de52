"""A picture of what LossTransform sees: replicas, and their predictions restored."""

from typing import Any

import numpy as np
import torch
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import load_checkpoint
from mmengine.structures import InstanceData

from lt_mm.apis.replica_configs import validation_replicas
from lt_mm.core.geometry import boxes_to_source
from lt_mm.core.pairing import greedy_iou_groups, is_paired
from lt_mm.datasets.display import class_name, rgb_image, source_image
from lt_mm.engine.checkpoints import checkpoint_loading
from lt_mm.engine.launch import enter_scope, load_config
from lt_mm.evaluation.consistency_metric import restoring_matrix
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
) -> dict[str, int]:
    """Draws replicas of a validation image and all their predictions on the source.

    Above are the replicas as the training pipeline makes them, with the boxes that the
    model predicts there. Below is the source image with the boxes of all replicas
    brought back to it. Boxes that pair (greedily by IoU, same class) share a colour;
    the others are dashed and grey.

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
        How many ``boxes`` were drawn, and how many of them are ``paired``.

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
    predictions = [_predict(model, each, score_threshold) for each in packed]
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
        )
        for each, found, boxes, group_ids in zip(packed, predictions, restored, groups)
    ]
    save_figure(restored_figure(source_image(samples[0]), replicas), out)
    paired = is_paired(torch.cat(groups))
    return dict(boxes=len(paired), paired=int(paired.sum()))


def _index_with_most_instances(dataset: Any) -> int:
    counts = [min(len(dataset.get_data_info(i)['instances']), 6) for i in range(len(dataset))]
    return int(np.argmax(counts))


@torch.no_grad()
def _predict(model: Any, packed: dict, score_threshold: float) -> InstanceData:
    """Confident predictions; their boxes in pixels of the replica."""
    model.eval()
    batch = dict(inputs=[packed['inputs']], data_samples=[packed['data_samples']])
    data = model.data_preprocessor(batch, False)
    # Not rescaled: the matrices lead back to the source, not the scale factor.
    sample = model.predict(data['inputs'], data['data_samples'], rescale=False)[0]
    return sample.pred_instances[sample.pred_instances.scores >= score_threshold]
