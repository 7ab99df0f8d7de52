"""Made images in the place of the data sets that the configs name."""

import copy
import os.path as osp
import tempfile
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from mmdet.datasets import MultiImageMixDataset
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.structures import InstanceData, PixelData
from mmpretrain.structures import DataSample

from lt_mm.datasets.held_pipelines import hold_pipelines

_BOXES = np.array([[0.06, 0.13, 0.38, 0.47], [0.55, 0.1, 0.9, 0.57], [0.25, 0.6, 0.72, 0.92]])
_NUM_REPLICAS = 2


class MadeImages(BaseDataset):
    """Three images of random pixels, with three boxes and masks each, as files."""

    def __init__(self, shape: tuple[int, int], pipeline: Sequence[Any]) -> None:
        self.shape = shape
        self.has_proposals = 'LoadProposals' in str(pipeline)
        self.folder = tempfile.TemporaryDirectory()
        super().__init__(pipeline=list(pipeline), serialize_data=False)

    def load_data_list(self) -> list[dict]:
        """Writes the images; returns their annotations, as ``CocoDataset`` has them."""
        return [self._sample(number) for number in range(3)]

    def _sample(self, number: int) -> dict:
        height, width = self.shape
        path = osp.join(self.folder.name, f'{number}.png')
        image = np.random.default_rng(number).integers(0, 256, (height, width, 3))
        cv2.imwrite(path, image.astype(np.uint8))
        boxes = np.round(_BOXES * [width, height, width, height])
        instances = [
            dict(bbox=[*box], bbox_label=0, ignore_flag=0, mask=[[x, y, z, y, z, w, x, w]])
            for box in boxes.tolist()
            for x, y, z, w in [box]
        ]
        return dict(
            img_path=path,
            img_id=number,
            height=height,
            width=width,
            instances=instances,
            gt_label=0,
            **self.further_fields(boxes.astype(np.float32)),
        )

    def further_fields(self, boxes: np.ndarray) -> dict:
        """What pipelines need that load more than images and annotations."""
        if not self.has_proposals:
            return {}
        return dict(proposals=dict(bboxes=boxes, scores=np.ones(len(boxes), dtype=np.float32)))


def try_pipeline(inner: list, outer: list | None) -> None:
    """Runs a stock pipeline, wrapped, on made images.

    Args:
        inner: The pipeline that loads.
        outer: That of the ``MultiImageMixDataset`` around, or None.

    Raises:
        LostRecordError: If it cannot be recorded.
    """
    dataset: Any = MadeImages((240, 320), _recorded(inner))
    if outer:
        dataset = MultiImageMixDataset(dataset, _recorded(outer))
        hold_pipelines(dataset)
    for index in (0, 0, 1, 2):
        packed = dataset[index]
        if 'source_id' not in packed['data_samples']:
            raise KeyError('its samples carry no record')


def detection_batch(size: int, has_masks: bool) -> dict:
    """Two images, twice each, packed with their record and what a detector may ask for."""
    loading = dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=has_masks)
    flip = dict(type='mmdet.RandomFlip', prob=0.5)
    pack = dict(type='mmdet.PackDetInputs')
    dataset = MadeImages(
        (size, size), _recorded([dict(type='LoadImageFromFile'), loading, flip, pack])
    )
    packed = [dataset[index] for index in np.repeat(range(2), _NUM_REPLICAS)]
    for each in packed:
        sample = each['data_samples']
        instances = sample.gt_instances
        sample.proposals = InstanceData(
            bboxes=instances.bboxes.tensor.clone(), scores=torch.ones(len(instances))
        )
        sample.gt_sem_seg = PixelData(sem_seg=torch.zeros(1, size, size, dtype=torch.int64))
    return pseudo_collate(packed)


def classification_batch(size: int) -> dict:
    """Two sources, twice each, with labels and the record of a classification sample."""
    generator = torch.Generator().manual_seed(0)
    packed = []
    for source in np.repeat(range(2), _NUM_REPLICAS).tolist():
        sample = DataSample(metainfo=dict(source_id=source, num_replicas=_NUM_REPLICAS))
        sample.set_gt_label(source)
        image = torch.randint(0, 256, (3, size, size), generator=generator, dtype=torch.uint8)
        packed.append(dict(inputs=image, data_samples=sample))
    return pseudo_collate(packed)


def _recorded(pipeline: list) -> list:
    return [dict(type='lt_mm.InvertiblePipeline', transforms=copy.deepcopy(pipeline))]
