"""What the invertible pipeline records of each stock transform.

``test_pipeline.py`` proves every line of :data:`CASES`, and :func:`support_matrix`
turns the proved lines into a table of the documentation:

    python -m tests.datasets.transforms.transform_cases > docs/transforms.md
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform

EXACT, INEXACT, REFUSED = 'exact', 'inexact', 'refused'


@dataclass(frozen=True)
class Case:
    """Transforms and what is recorded of them.

    Attributes:
        name: As it stands in the table.
        transforms: Configs, put between loading and packing.
        expected: ``EXACT``: boxes go back to the source by the inverse matrix alone.
            ``INEXACT``: the matrix is exact, but a box that was rotated or sheared
            comes back as a hull. ``REFUSED``: the pipeline stops with an error.
        without_boxes: Whether the matrix of an image without boxes is known.
        is_still: Whether no pixel is moved.
        masks: None, 'bitmap' or 'polygon': loaded with the boxes.
        is_mixing: Whether several images are merged (``MultiImageMixDataset``).
        to_float32: Whether the transform wants an image of floats.
        recomputes: Whether boxes are made anew from what is left of their masks, or
            cut at more than the edge of the image: they may lie inside the moved box.
        hides: Whether pixels of an instance may be covered.
        note: For the table.
    """

    name: str
    transforms: list[Any]
    expected: str = EXACT
    without_boxes: bool = True
    is_still: bool = False
    masks: str | None = None
    is_mixing: bool = False
    to_float32: bool = False
    recomputes: bool = False
    hides: bool = False
    note: str = ''


class AddProposals(BaseTransform):
    """What LoadProposals gives, of other boxes than those of the annotations."""

    def transform(self, results: dict) -> dict:
        results['proposals'] = np.array([[3, 5, 30, 41], [20, 8, 66, 30]], dtype=np.float32)
        results['proposals_scores'] = np.array([0.9, 0.4], dtype=np.float32)
        return results


def _still(name: str, **kwargs: Any) -> Case:
    return Case(name, [dict(type=name, **kwargs)], is_still=True)


def _recomputing(masks: str) -> Case:
    crop = dict(type='RandomCrop', crop_size=(40, 30), recompute_bbox=True)
    return Case(
        f'RandomCrop(recompute_bbox=True), {masks} masks', [crop], masks=masks, recomputes=True
    )


_RESIZE = dict(type='Resize', scale=(97, 61))
_FLIP = dict(type='RandomFlip', prob=1.0)
_CROP = dict(type='RandomCrop', crop_size=(50, 40))
_GEOMETRIC = dict(prob=1.0, reversal_prob=0.5, img_border_value=0)
_ERASING = dict(type='RandomErasing', n_patches=2, ratio=0.3)
_PASTE = dict(type='CopyPaste', max_num_pasted=3)
_CENTER_CROP = dict(
    type='RandomCenterCropPad',
    crop_size=(70, 50),
    ratios=(0.8, 1.0, 1.2),
    border=10,
    mean=[0, 0, 0],
    std=[1, 1, 1],
    to_rgb=True,
    test_pad_mode=None,
)
_AFFINE = dict(type='RandomAffine', border_val=(0, 0, 0))

CASES = [
    Case('Resize', [_RESIZE]),
    Case('Resize(keep_ratio=True)', [dict(_RESIZE, keep_ratio=True)]),
    Case('Resize(clip_object_border=False)', [dict(_RESIZE, clip_object_border=False)]),
    Case(
        'RandomResize', [dict(type='RandomResize', scale=[(50, 40), (160, 120)], keep_ratio=True)]
    ),
    Case(
        'RandomChoiceResize',
        [dict(type='RandomChoiceResize', scales=[(50, 40), (77, 99), (160, 120)])],
    ),
    Case('FixShapeResize', [dict(type='FixShapeResize', width=101, height=55)]),
    Case(
        'FixShapeResize(keep_ratio=True)',
        [dict(type='FixShapeResize', width=101, height=55, keep_ratio=True)],
    ),
    Case('FixScaleResize', [dict(type='FixScaleResize', scale=(101, 55))]),
    Case(
        'FixScaleResize(keep_ratio=True)',
        [dict(type='FixScaleResize', scale=(101, 55), keep_ratio=True)],
    ),
    Case('ResizeShortestEdge', [dict(type='ResizeShortestEdge', scale=43)]),
    Case("RandomFlip, 'horizontal'", [_FLIP]),
    Case("RandomFlip, 'vertical'", [dict(_FLIP, direction='vertical')]),
    Case("RandomFlip, 'diagonal'", [dict(_FLIP, direction='diagonal')]),
    Case('RandomFlip_GLIP', [dict(_FLIP, type='RandomFlip_GLIP')], without_boxes=False),
    Case(
        'RandomFlip, several directions',
        [dict(_FLIP, prob=[0.3, 0.3, 0.3], direction=['horizontal', 'vertical', 'diagonal'])],
    ),
    Case('RandomShift', [dict(type='RandomShift', prob=1.0, max_shift_px=20)]),
    Case("RandomCrop, 'absolute'", [_CROP]),
    Case(
        "RandomCrop, 'absolute_range'",
        [dict(_CROP, crop_size=(30, 60), crop_type='absolute_range')],
    ),
    Case("RandomCrop, 'relative'", [dict(_CROP, crop_size=(0.6, 0.7), crop_type='relative')]),
    Case(
        "RandomCrop, 'relative_range'",
        [dict(_CROP, crop_size=(0.4, 0.5), crop_type='relative_range')],
    ),
    Case(
        'RandomCrop(allow_negative_crop=True)',
        [dict(_CROP, crop_size=(15, 12), allow_negative_crop=True)],
    ),
    Case('RandomCrop(bbox_clip_border=False)', [dict(_CROP, bbox_clip_border=False)]),
    _recomputing('bitmap'),
    _recomputing('polygon'),
    Case('Expand', [dict(type='Expand', prob=1.0, ratio_range=(1, 3))]),
    Case('MinIoURandomCrop', [dict(type='MinIoURandomCrop')], without_boxes=False),
    Case('RandomCenterCropPad', [_CENTER_CROP], without_boxes=False, to_float32=True),
    Case('Pad', [dict(type='Pad', size=(128, 96))], is_still=True),
    Case('Rotate', [dict(type='Rotate', max_mag=30.0, **_GEOMETRIC)], INEXACT),
    Case('ShearX', [dict(type='ShearX', max_mag=30.0, **_GEOMETRIC)], INEXACT),
    Case('ShearY', [dict(type='ShearY', max_mag=30.0, **_GEOMETRIC)], INEXACT),
    Case('TranslateX', [dict(type='TranslateX', max_mag=0.3, **_GEOMETRIC)]),
    Case('TranslateY', [dict(type='TranslateY', max_mag=0.3, **_GEOMETRIC)]),
    Case('RandomAffine', [_AFFINE], INEXACT, without_boxes=False),
    Case(
        'RandomAffine, no rotation and no shear',
        [dict(_AFFINE, max_rotate_degree=0, max_shear_degree=0)],
        without_boxes=False,
    ),
    Case('AutoAugment', [dict(type='AutoAugment')], INEXACT, recomputes=True),
    Case('RandAugment', [dict(type='RandAugment')], INEXACT, recomputes=True),
    Case('Mosaic', [dict(type='Mosaic', img_scale=(70, 64))], without_boxes=False, is_mixing=True),
    Case(
        'CachedMosaic',
        [dict(type='CachedMosaic', img_scale=(70, 64))],
        without_boxes=False,
        is_mixing=True,
    ),
    Case(
        'MixUp',
        [dict(type='MixUp', img_scale=(70, 64))],
        without_boxes=False,
        is_mixing=True,
        recomputes=True,
    ),
    Case(
        'CachedMixUp',
        [dict(type='CachedMixUp', img_scale=(70, 64))],
        without_boxes=False,
        is_mixing=True,
        recomputes=True,
    ),
    Case(
        'CopyPaste',
        [_PASTE],
        without_boxes=False,
        masks='bitmap',
        is_mixing=True,
        recomputes=True,
        hides=True,
    ),
    Case(
        'CopyPaste(paste_by_box=True)',
        [dict(_PASTE, paste_by_box=True)],
        without_boxes=False,
        is_mixing=True,
        recomputes=True,
        hides=True,
    ),
    _still('PhotoMetricDistortion'),
    _still('mmcv.RandomGrayscale', prob=1.0, keep_channels=True),
    _still('YOLOXHSVRandomAug'),
    *(
        _still(name, prob=1.0)
        for name in (
            'AutoContrast',
            'Brightness',
            'Color',
            'ColorTransform',
            'Contrast',
            'Equalize',
            'Invert',
            'Posterize',
            'Sharpness',
            'Solarize',
            'SolarizeAdd',
        )
    ),
    Case(
        'CutOut', [dict(type='CutOut', n_holes=2, cutout_shape=(12, 9))], is_still=True, hides=True
    ),
    Case('RandomErasing', [_ERASING], is_still=True, hides=True),
    Case(
        'FilterAnnotations', [dict(type='FilterAnnotations', min_gt_bbox_wh=(26, 1))], is_still=True
    ),
    Case('RandomApply', [dict(type='RandomApply', transforms=[_FLIP, _CROP])]),
    Case(
        'RandomApply of transforms unknown without boxes',
        [dict(type='RandomApply', prob=0.9, transforms=[dict(type='MinIoURandomCrop')])],
        without_boxes=False,
    ),
    Case(
        'RandomChoice', [dict(type='RandomChoice', transforms=[[_FLIP], [_RESIZE], [_FLIP, _CROP]])]
    ),
    Case(
        'RandomOrder',
        [
            dict(
                type='RandomOrder',
                transforms=[_FLIP, _RESIZE, dict(_CROP, allow_negative_crop=True)],
            )
        ],
    ),
    Case(
        'KeyMapper',
        [dict(type='mmcv.KeyMapper', mapping=dict(img='img'), transforms=[_FLIP])],
        without_boxes=False,
    ),
    Case(
        'TransformBroadcaster',
        [
            dict(
                type='mmcv.TransformBroadcaster',
                mapping=dict(img=['img']),
                auto_remap=True,
                transforms=[_FLIP],
            )
        ],
        without_boxes=False,
    ),
    Case(
        'ProposalBroadcaster',
        [dict(type=AddProposals), dict(type='ProposalBroadcaster', transforms=[_RESIZE, _FLIP])],
        without_boxes=False,
    ),
    Case(
        'MultiBranch',
        [dict(type='MultiBranch', branch_field=['sup'], sup=[_FLIP, dict(type='PackDetInputs')])],
        REFUSED,
        note='it packs several samples',
    ),
    Case('SegRescale', [dict(type='SegRescale')], is_still=True, without_boxes=False),
    Case(
        'GTBoxSubOne_GLIP', [dict(type='GTBoxSubOne_GLIP')], REFUSED, note='it makes the boxes anew'
    ),
    Case(
        'RandomApply or RandomChoice with RandomErasing inside',
        [dict(type='RandomApply', prob=1.0, transforms=[_ERASING])],
        REFUSED,
        note='it rebuilds the boxes from numbers, out of sight',
    ),
]

# Refused for what they do to the boxes; ``test_pipeline.py`` makes one of each kind.
REFUSED_KINDS = [
    ('Albu', REFUSED, 'it rebuilds the boxes from numbers'),
    ("Albu, image_only=['Albu']", EXACT, 'moves nothing, boxes found again; else refused'),
    ('a transform that writes into gt_bboxes.tensor or its numpy view', REFUSED, ''),
    ('a transform that returns gt_bboxes as an array or as new boxes', REFUSED, ''),
    ('a transform that mirrors boxes onto themselves by writing', REFUSED, ''),
    ('a transform that drops gt_bboxes', REFUSED, ''),
    ('annotations loaded after the image was moved', REFUSED, ''),
    (
        'InstaBoost, or annotations changed before they are loaded',
        REFUSED,
        'no box tells how they were moved',
    ),
    ('a transform that returns the recorded boxes in a new dict', EXACT, ''),
]

_HEAD = """\
# What is recorded of each transform

Generated from the tests:
`python -m tests.datasets.transforms.transform_cases > docs/transforms.md`.
`tests/configs/test_stock_pipelines.py` runs the training pipelines of all stock configs of
MMDetection for images with boxes: each is recorded, or refused by name.

- *exact*: a box goes back to its source image by the inverse matrix alone.
- *inexact*: the matrix is exact, but an axis-aligned box that was rotated or sheared
  comes back as the hull of its corners; points come back exactly.
- *refused*: the pipeline stops with a `LostRecordError` that names the transform.
- *Image without boxes*: whether the sample's metainfo still has a `source_matrix`. Where
  images are merged it never has one; each instance has its own.

| Transform | Boxes | Image without boxes |
|---|---|---|
"""


def support_matrix() -> str:
    """The table of the documentation, as Markdown."""
    rows = [_HEAD]
    for case in CASES:
        boxes = case.expected + (', moves nothing' if case.is_still else '')
        boxes += f' ({case.note})' if case.note else ''
        known = 'recorded' if case.without_boxes else 'unknown'
        rows.append(f'| {case.name} | {boxes} | {"" if case.expected == REFUSED else known} |\n')
    for name, expected, note in REFUSED_KINDS:
        rows.append(f'| {name} | {expected}{f" ({note})" if note else ""} | |\n')
    return ''.join(rows)


if __name__ == '__main__':
    print(support_matrix(), end='')
