"""Small stock models and recorded batches for the tests of wrapped heads."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmdet.registry import MODELS as MMDET_MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from mmpretrain.structures import DataSample
from torch import nn

import lt_mm  # noqa: F401  (registers the classes)
from tests import reference

SHAPE = (64, 96)
BOXES = [[8.0, 10.0, 40.0, 50.0], [50.0, 20.0, 90.0, 60.0]]
LABELS = [1, 0]
MASK_SIDE = 6
STAGE_WEIGHTS = [1.0, 0.5, 0.25]
# Views of the source: as it is, mirrored, enlarged (cuts the second box), sheared.
IDENTITY = np.eye(3)
FLIP = np.array([[-1.0, 0.0, SHAPE[1]], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
ZOOM = np.array([[1.2, 0.0, -6.0], [0.0, 1.2, -4.0], [0.0, 0.0, 1.0]])
SHEAR = np.array([[1.0, 0.3, -9.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


def roi_head_config(**bbox_head: Any) -> dict:
    """A stock StandardRoIHead, narrow."""
    return dict(
        type='StandardRoIHead',
        bbox_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=3, sampling_ratio=0),
            out_channels=8,
            featmap_strides=[8],
        ),
        bbox_head=dict(
            type='Shared2FCBBoxHead',
            in_channels=8,
            fc_out_channels=16,
            roi_feat_size=3,
            num_classes=3,
            bbox_coder=dict(
                type='DeltaXYWHBBoxCoder',
                target_means=[0.0, 0.0, 0.0, 0.0],
                target_stds=[0.1, 0.1, 0.2, 0.2],
            ),
            reg_class_agnostic=False,
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False),
            loss_bbox=dict(type='L1Loss'),
        )
        | bbox_head,
    )


def mask_roi_head_config(shared: bool = False, **mask_head: Any) -> dict:
    """The same with a stock mask head, whose masks have MASK_SIDE cells a side."""
    config = roi_head_config()
    config['mask_roi_extractor'] = None if shared else config['bbox_roi_extractor']
    config['mask_head'] = (
        dict(
            type='FCNMaskHead',
            num_convs=1,
            in_channels=8,
            conv_out_channels=8,
            num_classes=3,
            loss_mask=dict(type='CrossEntropyLoss', use_mask=True),
        )
        | mask_head
    )
    return config


def cascade_config(masks: bool = False, **changes: Any) -> dict:
    """A stock CascadeRoIHead of three stages, narrow."""
    config = mask_roi_head_config() if masks else roi_head_config()
    stages = [roi_head_config(reg_class_agnostic=True)['bbox_head'] for _ in range(3)]
    for stage, scale in zip(stages, (1.0, 0.5, 0.3)):
        stage['bbox_coder']['target_stds'] = [std * scale for std in (0.1, 0.1, 0.2, 0.2)]
    return (
        dict(
            config,
            type='CascadeRoIHead',
            num_stages=3,
            bbox_head=stages,
            stage_loss_weights=STAGE_WEIGHTS,
        )
        | changes
    )


def rcnn_train_cfg(sampler: dict | None = None) -> ConfigDict:
    return ConfigDict(
        assigner=dict(
            type='MaxIoUAssigner',
            pos_iou_thr=0.5,
            neg_iou_thr=0.5,
            min_pos_iou=0.5,
            match_low_quality=False,
            ignore_iof_thr=-1,
        ),
        sampler=sampler
        or dict(
            type='RandomSampler', num=32, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=True
        ),
        mask_size=MASK_SIDE,
        pos_weight=-1,
        debug=False,
    )


def build_roi_head(config: dict, sampler: dict | None = None) -> nn.Module:
    """Builds a (wrapped) RoI head the way the stock detectors do."""
    init_default_scope('mmdet')
    config = copy.deepcopy(config)
    stages = config.get('head', config).get('num_stages')
    train_cfg = rcnn_train_cfg(sampler)
    config.update(
        train_cfg=[copy.deepcopy(train_cfg) for _ in range(stages)] if stages else train_cfg,
        test_cfg=ConfigDict(
            score_thr=0.0,
            nms=dict(type='nms', iou_threshold=0.5),
            max_per_img=20,
            mask_thr_binary=0.5,
        ),
    )
    return _with_random_weights(MMDET_MODELS.build(config))


def det_sample(
    source_id: int,
    flip: bool = False,
    instances: Sequence[int] = (0, 1),
    visibility: float = 1.0,
    view: np.ndarray | None = None,
) -> DetDataSample:
    """A replica of the source: as it is, mirrored, or as ``view`` moves it.

    Some instances may be lost; boxes are cut at the edges of the image.
    """
    height, width = SHAPE
    if view is None:
        view = FLIP if flip else IDENTITY
    count = len(instances)
    whole = reference.move_boxes([BOXES[i] for i in instances], [view] * count)
    boxes = whole.clip(0, [width, height] * 2)
    cut = [reference.sides_in_source(sides, view) for sides in (boxes != whole).tolist()]
    facts = dict(
        source_id=source_id,
        source_shape=SHAPE,
        recorded_shape=SHAPE,
        img_shape=SHAPE,
        pad_shape=SHAPE,
        ori_shape=SHAPE,
        scale_factor=(1.0, 1.0),
        img_path=f'{source_id}.png',
        source_matrix=view,
    )
    gt = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32),
        labels=torch.tensor(LABELS)[list(instances)].reshape(-1),
        source_ids=torch.tensor([[source_id, i] for i in instances], dtype=torch.int64).reshape(
            -1, 2
        ),
        source_matrices=torch.tensor(view).expand(count, 3, 3).clone(),
        visibility=torch.full((count,), visibility),
        cut_sides=torch.tensor(cut, dtype=torch.bool).reshape(-1, 4),
        source_boxes=torch.tensor([BOXES[i] for i in instances], dtype=torch.float32).reshape(
            -1, 4
        ),
    )
    gt.set_metainfo(facts)
    gt.masks = _filled(gt.bboxes)
    sample = DetDataSample(gt_instances=gt, metainfo=facts)
    sample.ignored_instances = InstanceData(
        bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
    )
    return sample


def _filled(boxes: torch.Tensor) -> BitmapMasks:
    """Masks that fill the upper left half of their boxes."""
    masks = np.zeros((len(boxes), *SHAPE), dtype=np.uint8)
    ys, xs = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.tolist()):
        across, down = (xs - x1) / (x2 - x1), (ys - y1) / (y2 - y1)
        mask[(across >= 0) & (down >= 0) & (across + down <= 1)] = 1
    return BitmapMasks(masks, *SHAPE)


def to_source(box: torch.Tensor, view: Any) -> torch.Tensor:
    """A box (4,) of a replica in the source, corner after corner, in float64."""
    back = torch.tensor(reference.inverse(view))
    corners = [
        back @ torch.stack([x, y, torch.ones_like(x)])
        for x in box.double()[0::2]
        for y in box.double()[1::2]
    ]
    xs, ys = zip(*(corner[:2] / corner[2] for corner in corners))
    return torch.stack([min(xs), min(ys), max(xs), max(ys)])


def roi_inputs(
    samples: list[DetDataSample], seed: int = 0
) -> tuple[tuple[torch.Tensor], list[InstanceData]]:
    """Features and proposals around the objects, the same for equal seeds."""
    generator = torch.Generator().manual_seed(seed)
    height, width = SHAPE
    features = torch.randn(len(samples), 8, height // 8, width // 8, generator=generator)
    proposals = []
    for sample in samples:
        near = sample.gt_instances.bboxes.repeat_interleave(6, dim=0)
        near = near + 4 * torch.randn(near.shape, generator=generator)
        far = 30 * torch.rand(20, 4, generator=generator)
        far[:, 2:] += far[:, :2] + 1
        proposals.append(InstanceData(bboxes=torch.cat([near, far])))
    return (features.requires_grad_(),), proposals


def roi_losses(
    head: nn.Module, samples: list[DetDataSample], seed: int = 0
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Losses of one step and the features they were computed from."""
    features, proposals = roi_inputs(samples, seed)
    torch.manual_seed(seed)  # the RoI sampler draws
    np.random.seed(seed)
    return head.loss(features, proposals, copy.deepcopy(samples)), features[0]


def sampled_rois(
    head: nn.Module, samples: list[DetDataSample], seed: int = 0, stage: int | None = None
) -> tuple[tuple[torch.Tensor], list[Any]]:
    """Features, and what the head's sampler draws in :func:`roi_losses`.

    Args:
        stage: Which of a cascade's assigners and samplers; they see the proposals.
    """
    features, proposals = roi_inputs(samples, seed)
    assigner, sampler = head.bbox_assigner, head.bbox_sampler
    if stage is not None:
        assigner, sampler = assigner[stage], sampler[stage]
    torch.manual_seed(seed)
    np.random.seed(seed)
    results = []
    for proposal, sample in zip(proposals, samples):
        proposal.priors = proposal.pop('bboxes')
        gt = copy.deepcopy(sample.gt_instances)
        assigned = assigner.assign(proposal, gt, sample.ignored_instances)
        results.append(sampler.sample(assigned, proposal, gt))
    return features, results


def total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    """What MMEngine would sum: every key with 'loss' in it."""
    return sum(value.sum() for key, value in losses.items() if 'loss' in key)


def _with_random_weights(head: nn.Module) -> nn.Module:
    """The same weights for heads of the same kind; none zero, as some are at first."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return head


def build_cls_head(config: dict) -> nn.Module:
    init_default_scope('mmpretrain')
    config = copy.deepcopy(config) if isinstance(config, dict) else config
    return _with_random_weights(MMPRETRAIN_MODELS.build(config))


def cls_samples(source_ids: Sequence[int], labels: Sequence[Any] | None = None) -> list[DataSample]:
    """Recorded classification samples; labels default to the source id modulo 3."""
    samples = []
    for i, source_id in enumerate(source_ids):
        sample = DataSample()
        sample.set_gt_label(source_id % 3 if labels is None else labels[i])
        sample.set_metainfo(dict(source_id=source_id, source_shape=(32, 32)))
        samples.append(sample)
    return samples
