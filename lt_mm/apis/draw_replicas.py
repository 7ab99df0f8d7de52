"""A picture of what LossTransform sees: replicas, and their predictions restored."""

from typing import Any

import mmcv
import numpy as np
import torch
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from torch import Tensor, nn

from lt_mm.core.geometry import boxes_to_source
from lt_mm.core.pairing import greedy_iou_groups
from lt_mm.datasets.display import rgb_image
from lt_mm.engine.checkpoints import checkpoint_loading
from lt_mm.engine.launch import load_config
from lt_mm.structures.record import source_ids_of
from lt_mm.visualization.drawing import colors, draw_boxes, new_figure, save_figure, show_image

_UNPAIRED_COLOR = '0.55'


def draw_replicas(
    config: str,
    checkpoint: str,
    out: str,
    index: int | None = None,
    num_replicas: int = 4,
    score_threshold: float = 0.4,
    seed: int = 0,
) -> dict[str, int]:
    """Draws replicas of a validation image and all their predictions on the source.

    Above, the replicas as the training pipeline makes them, with the boxes that the
    model predicts there. Below, the source image with the boxes of all replicas
    brought back to it; boxes that pair (greedily by IoU, same class) share a colour,
    the others are dashed and grey.

    Args:
        config: Config file of a detector whose training pipeline is an
            ``InvertiblePipeline``.
        checkpoint: Checkpoint file of that detector.
        out: PNG to write.
        index: Image of the validation set; by default the first of those with most
            instances up to 6.
        num_replicas: How many replicas to draw.
        score_threshold: Predictions below it are left out.
        seed: Seed of the augmentations.

    Returns:
        Numbers drawn: ``boxes`` in all and ``paired`` of them.

    Raises:
        MissingRecordError: If the training pipeline records nothing.
        UntrustedCheckpointError: If the checkpoint holds code.
        ValueError: If no single matrix describes a replica.
    """
    cfg = load_config(config)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    dataset, classes = _validation_replicas(cfg)
    if index is None:
        index = _telling_index(dataset)
    model = MODELS.build(cfg.model)
    with checkpoint_loading():
        load_checkpoint(model, checkpoint, map_location='cpu')
    np.random.seed(seed)
    replicas = [dataset[index] for _ in range(num_replicas)]
    source_ids_of([replica['data_samples'] for replica in replicas])
    predictions = [_predict(model, replica, score_threshold) for replica in replicas]
    restored = [
        boxes_to_source(boxes, _matrix_of(replica).expand(len(boxes), 3, 3))
        for (boxes, _, _), replica in zip(predictions, replicas)
    ]
    groups = greedy_iou_groups(restored, [labels for _, labels, _ in predictions])
    source = mmcv.imread(dataset.get_data_info(index)['img_path'], channel_order='rgb')
    return _draw(out, source, replicas, predictions, restored, groups, classes)


def _validation_replicas(cfg: Any) -> tuple[Any, tuple[str, ...]]:
    """The validation set, seen through the training pipeline."""
    options = cfg.val_dataloader.dataset.copy()
    options.update(pipeline=cfg.train_dataloader.dataset.pipeline, test_mode=False)
    dataset = DATASETS.build(options)
    return dataset, dataset.metainfo['classes']


def _telling_index(dataset: Any) -> int:
    counts = [min(len(dataset.get_data_info(i)['instances']), 6) for i in range(len(dataset))]
    return int(np.argmax(counts))


def _predict(
    model: nn.Module, replica: dict, score_threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (n, 4) in replica pixels, labels (n,) and scores (n,)."""
    model.eval()
    batch = dict(inputs=[replica['inputs']], data_samples=[replica['data_samples']])
    with torch.no_grad():
        data = model.data_preprocessor(batch, False)
        # Not rescaled: the matrices lead back to the source, not the scale factor.
        sample = model.predict(data['inputs'], data['data_samples'], rescale=False)[0]
    found = sample.pred_instances[sample.pred_instances.scores >= score_threshold]
    return found.bboxes, found.labels, found.scores


def _matrix_of(replica: dict) -> Tensor:
    matrix = replica['data_samples'].get('source_matrix')
    if matrix is None:
        raise ValueError(
            'the training pipeline merges images or moves them unrecorded, so no single '
            'matrix brings the predictions of a replica back; draw a config without '
            'Mosaic, MixUp or CopyPaste'
        )
    return torch.from_numpy(matrix)


def _draw(
    out: str,
    source: np.ndarray,
    replicas: list[dict],
    predictions: list[tuple],
    restored: list[Tensor],
    groups: list[Tensor],
    classes: tuple[str, ...],
) -> dict[str, int]:
    all_groups = torch.cat(groups)
    sizes = torch.bincount(all_groups) if len(all_groups) else all_groups
    palette = colors(len(sizes))

    def style(group: int) -> dict:
        if sizes[group] < 2:
            return dict(edgecolor=_UNPAIRED_COLOR, linestyle='--', linewidth=1)
        return dict(edgecolor=palette[group], linewidth=1.8)

    columns = len(replicas)
    figure = new_figure(3.2 * columns, 7.5)
    grid = figure.add_gridspec(2, columns, height_ratios=[1, 2])
    for k, (replica, (boxes, labels, scores)) in enumerate(zip(replicas, predictions)):
        axes = figure.add_subplot(grid[0, k])
        show_image(axes, rgb_image(replica['inputs'], is_bgr=True), f'replica {k + 1}')
        names = [f'{classes[int(label)]} {score:.2f}' for label, score in zip(labels, scores)]
        draw_boxes(axes, boxes, [style(g) for g in groups[k].tolist()], names)
    paired = int((sizes[all_groups] > 1).sum()) if len(all_groups) else 0
    axes = figure.add_subplot(grid[1, :])
    show_image(
        axes,
        source,
        f'source image: {len(all_groups)} predictions of {columns} '
        f'replicas restored, {paired} paired (one colour a group), '
        f'{len(all_groups) - paired} unpaired (dashed)',
    )
    for boxes, ids in zip(restored, groups):
        draw_boxes(axes, boxes, [style(g) for g in ids.tolist()])
    save_figure(figure, out)
    return dict(boxes=len(all_groups), paired=paired)
