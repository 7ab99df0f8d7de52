"""Made images, samples and data sets for the tests of the invertible pipeline.

An image is black with one filled rectangle per instance, each in a colour channel of
its own, so that the pixels tell where an instance went.
"""

import copy
import random

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.datasets import MultiImageMixDataset
from mmengine.dataset import BaseDataset

from lt_mm.datasets.transforms.invertible_pipeline import InvertiblePipeline
from tests import reference

SHAPE = (60, 80)
# One rectangle for each colour channel; no two touch.
BOXES = ((5, 8, 30, 28), (44, 6, 72, 34), (20, 36, 58, 55))
LABELS = (3, 0, 7)
PACK = dict(type='PackDetInputs')


class LoadMadeImage(BaseTransform):
    """Loads the image that the sample carries in memory.

    Attributes:
        calls: How often an image was loaded.
    """

    def __init__(self, to_float32=False):
        self.to_float32 = to_float32
        self.calls = 0

    def transform(self, results):
        self.calls += 1
        dtype = np.float32 if self.to_float32 else np.uint8
        results['img'] = results['made_image'].astype(dtype)
        results['img_shape'] = results['ori_shape'] = results['img'].shape[:2]
        return results


class MadeDataset(BaseDataset):
    """A data set of made samples; mmengine gives them their ``sample_idx``."""

    def __init__(self, samples, pipeline, **kwargs):
        self.samples = samples
        super().__init__(pipeline=pipeline, serialize_data=False, **kwargs)

    def load_data_list(self):
        return copy.deepcopy(self.samples)


def paint(boxes, shape=SHAPE):
    """A black image with a rectangle for each of up to three boxes."""
    image = np.zeros((*shape, 3), np.uint8)
    for channel, (x1, y1, x2, y2) in enumerate(boxes):
        image[y1:y2, x1:x2, channel] = 255
    return image


def polygon(box):
    """The outline of a box as a list with one polygon."""
    x1, y1, x2, y2 = map(float, box)
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def make_sample(boxes=BOXES, labels=None, ignored=(), shape=SHAPE, image=None, sample_idx=None):
    """A sample as a data set gives it, before loading."""
    labels = LABELS if labels is None else labels
    instances = [
        dict(
            bbox=[float(v) for v in box],
            bbox_label=int(label),
            ignore_flag=int(row in ignored),
            mask=polygon(box),
        )
        for row, (box, label) in enumerate(zip(boxes, labels))
    ]
    sample = dict(
        made_image=paint(boxes, shape) if image is None else image,
        instances=instances,
        height=shape[0],
        width=shape[1],
    )
    if sample_idx is not None:
        sample['sample_idx'] = sample_idx
    return sample


def loaders(masks=None, to_float32=False):
    """Transforms that load a made sample.

    Args:
        masks: None, 'bitmap' or 'polygon'.
        to_float32: Whether the image is loaded in floats.
    """
    return [
        LoadMadeImage(to_float32),
        dict(
            type='LoadAnnotations',
            with_bbox=True,
            with_mask=masks is not None,
            poly2mask=masks == 'bitmap',
        ),
    ]


def pipeline_of(transforms, masks=None, to_float32=False, pack=PACK, **kwargs):
    """An invertible pipeline from loading a made sample to packing it."""
    transforms = [*loaders(masks, to_float32), *copy.deepcopy(transforms)]
    kwargs = dict(draws_nothing=['LoadMadeImage'], **kwargs)
    return InvertiblePipeline([*transforms, pack] if pack else transforms, **kwargs)


def mixed_dataset(samples, inner, outer, wrapped, masks=None):
    """A stock ``MultiImageMixDataset`` around invertible pipelines.

    Args:
        samples: What the inner data set holds.
        inner: Transforms between loading and mixing.
        outer: Transforms that mix.
        wrapped: Whether the outer list is wrapped whole, or only its packing.
    """
    dataset = MadeDataset(samples, [pipeline_of(inner, masks, pack=None)])
    outer = copy.deepcopy(outer)
    if wrapped:
        outer = [dict(type='lt_mm.InvertiblePipeline', transforms=[*outer, PACK])]
    else:
        outer.append(dict(type='lt_mm.InvertiblePipeline', transforms=[PACK]))
    return MultiImageMixDataset(dataset, outer)


def seed_all(seed):
    """Seeds what the stock transforms draw from."""
    np.random.seed(seed)
    random.seed(seed)


def run(pipeline, sample, seed=0):
    """The packed output for a copy of ``sample``."""
    seed_all(seed)
    return pipeline(copy.deepcopy(sample))


def all_instances(packed):
    """Every packed instance, of both groups, as a dict of numpy values."""
    sample, rows = packed['data_samples'], []
    for group, is_ignored in ((sample.gt_instances, 0), (sample.ignored_instances, 1)):
        for row in range(len(group)):
            rows.append(
                dict(
                    box=group.bboxes.tensor[row].numpy(),
                    label=int(group.labels[row]),
                    source=tuple(group.source_ids[row].tolist()),
                    is_ignored=is_ignored,
                    matrix=group.source_matrices[row].numpy(),
                    visibility=float(group.visibility[row]),
                )
            )
    return rows


def blob(image, channel):
    """Box around the pixels of one colour channel: (4,), or None without any.

    Args:
        image: (C, H, W) tensor, as packed.
        channel: Which colour; grey pixels do not count.
    """
    pixels = image.numpy().astype(np.float64)
    others = np.delete(pixels, channel, axis=0).max(axis=0)
    ys, xs = np.nonzero(pixels[channel] - others > 60)
    if len(xs) == 0:
        return None
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])


def lies_inside(box, outer, tolerance):
    """Whether no side of ``box`` lies outside ``outer`` by more than the tolerance."""
    return np.all(box[:2] >= outer[:2] - tolerance) and np.all(box[2:] <= outer[2:] + tolerance)


def moved_annotation(row, samples):
    """The instance's annotation box moved by its matrix: (4,) float64."""
    image, index = row['source']
    annotation = samples[image]['instances'][index]
    assert annotation['bbox_label'] == row['label']
    assert annotation['ignore_flag'] == row['is_ignored']
    return reference.move_box(annotation['bbox'], row['matrix'])
