"""Small stock single-stage heads, predictions for them, and how to read these naively."""

import copy
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from torch import nn

from tests.models.heads.head_data import SHAPE

CHANNELS, CLASSES, STRIDES = 8, 3, (8, 16)
HEIGHT, WIDTH = SHAPE

_PSEUDO = dict(allowed_border=-1, pos_weight=-1, debug=False)
_MAX_IOU = dict(
    assigner=dict(
        type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1
    ),
    sampler=dict(type='PseudoSampler'),
    **_PSEUDO,
)
_ANCHORS = dict(
    type='AnchorGenerator',
    center_offset=0.5,
    ratios=[0.5, 1.0, 2.0],
    octave_base_scale=3,
    scales_per_octave=2,
    strides=list(STRIDES),
)
_SQUARE = dict(
    type='AnchorGenerator',
    center_offset=0.5,
    ratios=[1.0],
    octave_base_scale=4,
    scales_per_octave=1,
    strides=list(STRIDES),
)
_FOCAL = dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0)
_ATSS = dict(assigner=dict(type='ATSSAssigner', topk=4), **_PSEUDO)
_HUNGARIAN = dict(
    assigner=dict(
        type='HungarianAssigner',
        match_costs=[
            dict(type='FocalLossCost', weight=2.0),
            dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
            dict(type='IoUCost', iou_mode='giou', weight=2.0),
        ],
    )
)
_DETR = dict(
    num_classes=CLASSES,
    embed_dims=CHANNELS,
    train_cfg=_HUNGARIAN,
    loss_bbox=dict(type='L1Loss', loss_weight=5.0),
    loss_iou=dict(type='GIoULoss', loss_weight=2.0),
)
_COMMON = dict(num_classes=CLASSES, in_channels=CHANNELS)

HEADS: dict[str, dict] = {
    'RetinaNet': dict(
        type='RetinaHead',
        **_COMMON,
        stacked_convs=1,
        feat_channels=CHANNELS,
        anchor_generator=_ANCHORS,
        loss_cls=_FOCAL,
        loss_bbox=dict(type='L1Loss'),
        train_cfg=_MAX_IOU,
    ),
    'RetinaNet, softmax': dict(
        type='RetinaHead',
        **_COMMON,
        stacked_convs=1,
        feat_channels=CHANNELS,
        anchor_generator=_ANCHORS,
        loss_cls=dict(type='CrossEntropyLoss'),
        reg_decoded_bbox=True,
        loss_bbox=dict(type='GIoULoss'),
        train_cfg=_MAX_IOU,
    ),
    'SSD': dict(
        type='SSDHead',
        num_classes=CLASSES,
        in_channels=(CHANNELS, CHANNELS),
        anchor_generator=dict(
            type='SSDAnchorGenerator',
            scale_major=False,
            input_size=WIDTH,
            min_sizes=[24, 48],
            max_sizes=[48, 80],
            strides=list(STRIDES),
            ratios=[[2], [2, 3]],
        ),
        train_cfg=dict(
            assigner=dict(
                type='MaxIoUAssigner',
                pos_iou_thr=0.5,
                neg_iou_thr=0.5,
                min_pos_iou=0.0,
                ignore_iof_thr=-1,
                gt_max_assign_all=False,
            ),
            sampler=dict(type='PseudoSampler'),
            smoothl1_beta=1.0,
            neg_pos_ratio=3,
            **_PSEUDO,
        ),
    ),
    'ATSS': dict(
        type='ATSSHead',
        **_COMMON,
        stacked_convs=1,
        feat_channels=CHANNELS,
        norm_cfg=None,
        anchor_generator=_SQUARE,
        loss_cls=_FOCAL,
        loss_bbox=dict(type='GIoULoss'),
        train_cfg=_ATSS,
    ),
    'GFL': dict(
        type='GFLHead',
        **_COMMON,
        stacked_convs=1,
        feat_channels=CHANNELS,
        norm_cfg=None,
        anchor_generator=_SQUARE,
        reg_max=6,
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0),
        loss_dfl=dict(type='DistributionFocalLoss', loss_weight=0.25),
        loss_bbox=dict(type='GIoULoss'),
        train_cfg=_ATSS,
    ),
    'FCOS': dict(
        type='FCOSHead',
        **_COMMON,
        stacked_convs=1,
        feat_channels=CHANNELS,
        norm_cfg=None,
        strides=list(STRIDES),
        regress_ranges=((-1, 30), (30, 1e8)),
        loss_cls=_FOCAL,
        loss_bbox=dict(type='IoULoss'),
    ),
    'FCOS, normalised': dict(
        type='FCOSHead',
        **_COMMON,
        stacked_convs=1,
        feat_channels=CHANNELS,
        norm_cfg=None,
        strides=list(STRIDES),
        regress_ranges=((-1, 30), (30, 1e8)),
        norm_on_bbox=True,
        center_sampling=True,
        loss_cls=_FOCAL,
        loss_bbox=dict(type='GIoULoss'),
    ),
    'YOLOX': dict(
        type='YOLOXHead',
        **_COMMON,
        stacked_convs=1,
        feat_channels=CHANNELS,
        strides=list(STRIDES),
        norm_cfg=dict(type='BN'),
        train_cfg=dict(assigner=dict(type='SimOTAAssigner', center_radius=2.5)),
    ),
    'DETR': dict(
        type='DETRHead',
        **_DETR,
        loss_cls=dict(
            type='CrossEntropyLoss',
            bg_cls_weight=0.1,
            use_sigmoid=False,
            loss_weight=1.0,
            class_weight=1.0,
        ),
    ),
    'Deformable DETR': dict(
        type='DeformableDETRHead',
        **_DETR,
        num_pred_layer=3,
        as_two_stage=True,
        share_pred_layer=False,
        sync_cls_avg_factor=True,
        loss_cls=_FOCAL,
    ),
    'DINO': dict(
        type='DINOHead',
        **_DETR,
        num_pred_layer=3,
        as_two_stage=True,
        share_pred_layer=False,
        sync_cls_avg_factor=True,
        loss_cls=_FOCAL,
    ),
    'RTMDet': dict(
        type='RTMDetHead',
        **_COMMON,
        feat_channels=CHANNELS,
        stacked_convs=1,
        with_objectness=False,
        norm_cfg=dict(type='BN'),
        anchor_generator=dict(type='MlvlPointGenerator', offset=0.5, strides=STRIDES),
        bbox_coder=dict(type='DistancePointBBoxCoder'),
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
        train_cfg=dict(assigner=dict(type='DynamicSoftLabelAssigner', topk=6), **_PSEUDO),
    ),
    'RPN': dict(
        type='RPNHead',
        in_channels=CHANNELS,
        feat_channels=CHANNELS,
        anchor_generator=_ANCHORS,
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
        loss_bbox=dict(type='L1Loss'),
        train_cfg=dict(
            assigner=dict(
                type='MaxIoUAssigner',
                pos_iou_thr=0.6,
                neg_iou_thr=0.3,
                min_pos_iou=0.3,
                match_low_quality=True,
                ignore_iof_thr=-1,
            ),
            sampler=dict(
                type='RandomSampler',
                num=48,
                pos_fraction=0.5,
                neg_pos_ub=-1,
                add_gt_as_proposals=False,
            ),
            **_PSEUDO,
        ),
    ),
}
DETR_LIKE = ('DETR', 'Deformable DETR', 'DINO')
FCOS_LIKE = ('FCOS', 'FCOS, normalised')
# Their third output multiplies the class scores in prediction.
FACTORED = ('ATSS', 'YOLOX', *FCOS_LIKE)
QUERIES, DENOISING, LAYERS = 12, 4, 2
DN_META = dict(num_denoising_queries=DENOISING, num_denoising_groups=1)


def build(kind: str, **options: Any) -> nn.Module:
    """The stock head; wrapped where there are options, with the plain formula of the paper."""
    init_default_scope('mmdet')
    config = ConfigDict(copy.deepcopy(HEADS[kind]))
    config.setdefault(
        'test_cfg',
        ConfigDict(
            nms_pre=50,
            min_bbox_size=0,
            score_thr=0.0,
            nms=dict(type='nms', iou_threshold=0.6),
            max_per_img=10,
        ),
    )
    if options:
        config = dict(
            type='lt_mm.LossTransformHead', head=config, **{'strength': 'plain', **options}
        )
    head = MODELS.build(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return head.train()


def made_outputs(
    kind: str, head: nn.Module, images: int, seed: int = 0
) -> tuple[tuple, list[torch.Tensor]]:
    """Raw predictions as the head gives them, and the leaves that get the gradient.

    Made instead of computed, so that a test can mirror one image's.
    """
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int, low: float = -1.0, high: float = 1.0) -> torch.Tensor:
        values = torch.rand(shape, generator=generator) * (high - low) + low
        return values.requires_grad_()

    if kind in DETR_LIKE:
        queries = QUERIES + (DENOISING if kind == 'DINO' else 0)
        scores = leaf(LAYERS, images, queries, head.cls_out_channels)
        boxes = leaf(LAYERS, images, queries, 4, low=0.2, high=0.7)
        leaves, outputs = [scores, boxes], (scores, boxes)
        if kind != 'DETR':
            encoder = (
                leaf(images, 9, head.cls_out_channels),
                leaf(images, 9, 4, low=0.2, high=0.7),
            )
            outputs += encoder
        return outputs, leaves
    sizes = [(HEIGHT // stride, WIDTH // stride) for stride in STRIDES]
    priors, per_prior = priors_of(head), box_channels(kind, head)
    low, high = (0.2, 2.0) if kind in ('RTMDet', *FCOS_LIKE) else (-0.6, 0.6)
    scale = [stride if kind in ('FCOS', 'RTMDet') else 1 for stride in STRIDES]
    scores = [
        leaf(images, count * head.cls_out_channels, *size) for count, size in zip(priors, sizes)
    ]
    boxes = [
        leaf(images, count * per_prior, *size, low=low * factor, high=high * factor)
        for count, size, factor in zip(priors, sizes, scale)
    ]
    outputs = (scores, boxes)
    if kind in FACTORED:
        outputs += ([leaf(images, 1, *size) for size in sizes],)
    return outputs, scores + boxes + (outputs[2] if kind == 'YOLOX' else [])


def score_threshold(kind: str) -> float:
    """A score that some of the made predictions reach."""
    return 0.3 if kind in ('SSD', 'DETR', *FACTORED) else 0.5


def score_factors(kind: str, outputs: tuple) -> list[list[float]] | None:
    """For each image what each prediction's score is multiplied by; None where by nothing."""
    if kind not in FACTORED:
        return None
    return [
        [
            float(logit.sigmoid())
            for level in outputs[2]
            for logit in level[image].detach().flatten()
        ]
        for image in range(len(outputs[2][0]))
    ]


def priors_of(head: nn.Module) -> list[int]:
    """Number of priors of a point, for each level; YOLOX has one."""
    priors = getattr(head, 'num_base_priors', 1)
    return priors if isinstance(priors, list) else [priors] * len(STRIDES)


def box_channels(kind: str, head: nn.Module) -> int:
    """Number of values that say one box."""
    return 4 * (head.reg_max + 1) if kind == 'GFL' else 4


def mirrored(kind: str, head: nn.Module, outputs: tuple) -> tuple:
    """Predictions of two images, the second's being the first's in a mirror."""
    if kind in DETR_LIKE:
        boxes = outputs[1][:, :1]
        flipped = torch.cat([1 - boxes[..., :1], boxes[..., 1:]], dim=-1)
        scores = outputs[0][:, :1]
        rest = tuple(torch.cat([value[:1], value[:1]]) for value in outputs[2:])
        return (torch.cat([scores, scores], dim=1), torch.cat([boxes, flipped], dim=1), *rest)

    def flip(boxes: torch.Tensor) -> torch.Tensor:
        each = boxes.flip(-1).unflatten(1, (-1, box_channels(kind, head)))
        if kind in ('GFL', 'RTMDet', *FCOS_LIKE):  # left and right change places
            sides = each.unflatten(2, (4, -1))[:, :, [2, 1, 0, 3]]
            return sides.flatten(1, 3)
        first = 1 - each[:, :, :1] if kind == 'YOLOX' else -each[:, :, :1]
        return torch.cat([first, each[:, :, 1:]], dim=2).flatten(1, 2)

    scores = [torch.cat([level[:1], level[:1].flip(-1)]) for level in outputs[0]]
    boxes = [torch.cat([level[:1], flip(level[:1])]) for level in outputs[1]]
    rest = tuple(
        [torch.cat([level[:1], level[:1].flip(-1)]) for level in levels] for levels in outputs[2:]
    )
    return (scores, boxes, *rest)


def losses_of(kind: str, head: nn.Module, outputs: tuple, samples: list) -> dict:
    """The head's losses of raw predictions, as ``loss`` gives them on."""
    seed_samplers()
    samples = as_the_head_gets(kind, samples)
    extra = (DN_META,) if kind == 'DINO' else ()
    return head.loss_by_feat(
        *outputs,
        [sample.gt_instances for sample in samples],
        [sample.metainfo for sample in samples],
        *extra,
    )


def as_the_head_gets(kind: str, samples: list) -> list:
    """Copies of the samples; a RPN has one class, as TwoStageDetector.loss makes it."""
    samples = copy.deepcopy(samples)
    if kind == 'RTMDet':  # the stock assigner takes masks for tensors
        for sample in samples:
            sample.gt_instances.pop('masks', None)
    if kind == 'RPN':
        for sample in samples:
            sample.gt_instances.labels = torch.zeros_like(sample.gt_instances.labels)
    return samples


def seed_samplers() -> None:
    """The random sampler of a RPN draws alike after this."""
    torch.manual_seed(0)
    np.random.seed(0)


def made_inputs(kind: str, images: int) -> tuple:
    """What the network before it gives a head, for ``predict``."""
    generator = torch.Generator().manual_seed(0)
    if kind in DETR_LIKE:
        hidden = torch.randn(LAYERS, images, QUERIES, CHANNELS, generator=generator)
        references = [
            torch.rand(images, QUERIES, 4, generator=generator) for _ in range(LAYERS + 1)
        ]
        return (hidden,) if kind == 'DETR' else (hidden, references)
    return (
        tuple(
            torch.randn(images, CHANNELS, HEIGHT // stride, WIDTH // stride, generator=generator)
            for stride in STRIDES
        ),
    )


def losses_of_inputs(kind: str, head: nn.Module, samples: list) -> dict:
    """The head's losses from :func:`made_inputs`: its layers take part."""
    seed_samplers()
    encoder, extra, images = (), (), len(samples)
    if kind in ('Deformable DETR', 'DINO'):
        generator = torch.Generator().manual_seed(1)
        encoder = (
            torch.randn(images, 9, head.cls_out_channels, generator=generator),
            torch.rand(images, 9, 4, generator=generator),
        )
    if kind == 'DINO':
        extra = (DN_META,)
    return head.loss(*made_inputs(kind, images), *encoder, as_the_head_gets(kind, samples), *extra)


def total(losses: dict) -> torch.Tensor:
    """What MMEngine sums."""
    return sum(
        sum(value) if isinstance(value, (list, tuple)) else value.sum()
        for key, value in losses.items()
        if 'loss' in key
    )


def values_of(losses: dict) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of a loss dict, which may hold a list a level."""
    for key, value in losses.items():
        for part in value if isinstance(value, (list, tuple)) else [value]:
            yield key, part


# One prediction at a time. Rows count the predictions of an image: level after level,
# line after line, point after point, prior after prior.


def place_of(head: nn.Module, row: int) -> tuple[int, int, int, int]:
    """Level, y, x and prior of a row."""
    for level, (stride, priors) in enumerate(zip(STRIDES, priors_of(head))):
        height, width = HEIGHT // stride, WIDTH // stride
        if row < height * width * priors:
            point, prior = divmod(row, priors)
            return level, *divmod(point, width), prior
        row -= height * width * priors
    raise IndexError(row)


def _values_at(
    kind: str, head: nn.Module, maps: Any, image: int, row: int, size: int
) -> torch.Tensor:
    if kind in DETR_LIKE:
        return maps[-1][image, row + (DENOISING if kind == 'DINO' else 0)]
    level, y, x, prior = place_of(head, row)
    return maps[level][image, prior * size : (prior + 1) * size, y, x]


def logits_at(kind: str, head: nn.Module, outputs: tuple, image: int, row: int) -> torch.Tensor:
    """Class logits (C,) of a prediction."""
    return _values_at(kind, head, outputs[0], image, row, head.cls_out_channels)


def objectness_at(head: nn.Module, outputs: tuple, image: int, row: int) -> torch.Tensor:
    """Logit (1,) of the objectness of a prediction of YOLOX."""
    return _values_at('YOLOX', head, outputs[2], image, row, 1)


def side_logits_at(
    head: nn.Module, outputs: tuple, image: int, row: int
) -> tuple[list[float], torch.Tensor, list[float]]:
    """Of a GFL prediction: the point, (4, K) logits of its sides, and K distances."""
    level, y, x, _ = place_of(head, row)
    stride, size = STRIDES[level], head.reg_max + 1
    logits = _values_at('GFL', head, outputs[1], image, row, 4 * size)
    center = [(x + 0.5) * stride, (y + 0.5) * stride]
    return center, logits.reshape(4, size), [step * stride for step in range(size)]


def box_at(
    kind: str,
    head: nn.Module,
    outputs: tuple,
    image: int,
    row: int,
    img_shape: tuple[int, int] = SHAPE,
) -> torch.Tensor:
    """The predicted box (4,) in pixels of the replica, in float64."""
    raw = _values_at(kind, head, outputs[1], image, row, box_channels(kind, head)).double()
    if kind in DETR_LIKE:
        height, width = img_shape
        return _around(raw[0] * width, raw[1] * height, raw[2] * width, raw[3] * height)
    if kind in ('YOLOX', 'GFL', 'RTMDet', *FCOS_LIKE):
        level, y, x, _ = place_of(head, row)
        stride = STRIDES[level]
        if kind == 'YOLOX':
            return _around(
                (x + raw[0]) * stride,
                (y + raw[1]) * stride,
                raw[2].exp() * stride,
                raw[3].exp() * stride,
            )
        sides = raw * (stride if kind == 'FCOS, normalised' else 1)
        if kind == 'GFL':
            _, logits, distances = side_logits_at(head, outputs, image, row)
            shares = logits.double().softmax(dim=1)
            sides = (shares * torch.tensor(distances, dtype=torch.float64)).sum(dim=1)
        center_x, center_y = (x + 0.5) * stride, (y + 0.5) * stride
        return torch.stack(
            [center_x - sides[0], center_y - sides[1], center_x + sides[2], center_y + sides[3]]
        )
    return moved_anchor(anchor_at(head, row), raw, head)


def anchor_at(head: nn.Module, row: int) -> torch.Tensor:
    """The anchor (4,) of a row, in float64."""
    return _anchors_of(head.prior_generator)[row].double()


@functools.lru_cache(maxsize=1)
def _anchors_of(prior_generator: Any) -> torch.Tensor:
    sizes = [(HEIGHT // stride, WIDTH // stride) for stride in STRIDES]
    return torch.cat(prior_generator.grid_priors(sizes, device='cpu'))


def moved_anchor(anchor: torch.Tensor, deltas: torch.Tensor, head: nn.Module) -> torch.Tensor:
    """The box (4,) that deltas (4,) make of an anchor."""
    deltas = deltas.double() * torch.tensor(head.bbox_coder.stds, dtype=torch.float64)
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    return _around(
        (anchor[0] + anchor[2]) / 2 + deltas[0] * width,
        (anchor[1] + anchor[3]) / 2 + deltas[1] * height,
        width * deltas[2].exp(),
        height * deltas[3].exp(),
    )


def _around(
    x: torch.Tensor, y: torch.Tensor, width: torch.Tensor, height: torch.Tensor
) -> torch.Tensor:
    return torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
