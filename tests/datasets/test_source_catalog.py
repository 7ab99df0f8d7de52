"""Sources and replicas of a data set: restored boxes, and what was lost."""

import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform
from mmdet.datasets import MultiImageMixDataset
from mmengine.dataset import ConcatDataset
from mmengine.registry import TRANSFORMS, init_default_scope

from lt_mm.datasets.display import rgb_image
from lt_mm.datasets.replica_failures import BELOW, INEXACT, LOST, find_failures
from lt_mm.datasets.source_catalog import SourceCatalog, sources_and_replicas
from lt_mm.evaluation.replica_summary import ReplicaSummary
from lt_mm.structures.errors import MissingRecordError
from lt_mm.visualization.browse_figures import source_figure
from lt_mm.visualization.drawing import pixels_of
from tests import reference
from tests.datasets.transforms.pipeline_data import (
    BOXES,
    PACK,
    MadeDataset,
    blob,
    lies_inside,
    make_sample,
    mixed_dataset,
    pipeline_of,
)

FLIP = dict(type='RandomFlip', prob=1.0)
RESIZE = dict(type='Resize', scale=(160, 120), keep_ratio=False)
TURN = dict(type='Rotate', prob=1.0, level=10, max_mag=20.0)
MOSAIC = dict(type='Mosaic', img_scale=(60, 80), prob=1.0)


@TRANSFORMS.register_module()
class CropLeft(BaseTransform):
    """Keeps the left 26 of 80 columns, and the boxes that reach into them."""

    def transform(self, results):
        results['img'] = np.ascontiguousarray(results['img'][:, :26])
        results['img_shape'] = shape = results['img'].shape[:2]
        results['gt_bboxes'].clip_(shape)
        kept = results['gt_bboxes'].is_inside(shape).numpy()
        kept = kept & (results['gt_bboxes'].widths.numpy() > 0)
        for key in ('gt_bboxes', 'gt_bboxes_labels', 'gt_ignore_flags'):
            results[key] = results[key][kept]
        return results


CROP = dict(type='CropLeft')


class Sequence(torch.utils.data.Dataset):
    """A data set that does not derive from MMEngine's."""


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmdet')


def drawn(transforms, num_replicas=2, masks=None, dataset=None, **sample):
    """The one source of a made data set, and its replicas."""
    dataset = dataset or MadeDataset(
        [make_sample(**sample)], [pipeline_of(transforms, masks=masks)]
    )
    ((source, replicas),) = sources_and_replicas(dataset, 1, num_replicas, seed=0)
    return source, replicas


def failures_of(transforms, **options):
    source, replicas = drawn(transforms, **options)
    return find_failures(source, replicas, 0.3)


def counted(source, replicas, failures):
    summary = ReplicaSummary()
    summary.add(source, replicas, failures)
    return summary


def test_the_source_is_what_the_data_set_says():
    source, replicas = drawn([RESIZE, FLIP], ignored=(1,))
    assert source.rows == [0, 2] and source.name == 'source 0'
    np.testing.assert_array_equal(source.boxes, np.array(BOXES, dtype=float)[[0, 2]])
    assert source.names == ['class 3', 'class 7']
    for channel, box in enumerate(BOXES):  # in memory: RGB
        np.testing.assert_array_equal(
            blob(torch.from_numpy(source.image).permute(2, 0, 1), channel), box
        )
    assert [replica.image.shape for replica in replicas] == [(120, 160, 3)] * 2


def test_a_flip_that_was_not_drawn_is_not_named():
    _, (replica,) = drawn([RESIZE, dict(FLIP, prob=0.0)], num_replicas=1)
    assert replica.applied == ['Resize']


def test_restored_boxes_are_the_annotations():
    source, replicas = drawn([RESIZE, FLIP], num_replicas=3)
    assert len(replicas) == 3
    for replica in replicas:
        assert replica.applied == ['Resize', 'RandomFlip (horizontal)']
        instances = replica.instances
        assert [instances.of(0, row) for row in range(3)] == [[0], [1], [2]]
        assert np.abs(instances.restored.numpy() - np.array(BOXES)).max() < 0.01
        np.testing.assert_allclose(
            instances.boxes, reference.move_boxes(BOXES, [replica.matrix] * 3), atol=1e-4
        )
    assert find_failures(source, replicas, 0.3) == []
    summary = counted(source, replicas, [])
    assert (summary.instances, summary.kept, summary.lost) == (9, 9, 0)
    assert summary.largest_error < 0.01
    assert str(summary) == (
        '1 sources, 3 replicas, 9 instances, 9 kept, 0 lost, 0 below visibility, '
        '0 inexact, 0 mixed in; largest restoration error '
        f'{summary.largest_error:.2g} px'
    )


def test_a_wrong_record_is_seen():
    """The error is measured on what the data set says, not on the record."""
    source, _ = drawn([FLIP])
    off = source.boxes + torch.tensor([0.0, 0.0, 3.0, 0.0])
    catalog = SourceCatalog(MadeDataset([make_sample()], [pipeline_of([FLIP])]))
    catalog[0].boxes = off
    packed = MadeDataset([make_sample()], [pipeline_of([FLIP])])[0]
    errors = catalog.replica(packed).instances.errors
    np.testing.assert_allclose(errors, 3, atol=1e-4)


def test_a_crop_loses_what_it_cuts_off():
    found = failures_of([CROP], num_replicas=2)
    assert [(each.number, each.row, each.kinds) for each in found] == [
        (1, 1, (LOST,)),
        (1, 2, (BELOW,)),
        (2, 1, (LOST,)),
        (2, 2, (BELOW,)),
    ]
    assert found[0].reason == 'lost: moved out of the image' and found[0].box is None
    assert found[1].reason == '15.8% visible, less than 30%'
    summary = counted(*drawn([CROP]), found)
    assert (summary.instances, summary.kept, summary.lost) == (6, 4, 2)
    assert (summary.below_visibility, summary.inexact) == (2, 0)
    assert summary.largest_error < 0.01  # what is cut comes back to a part


def test_a_box_that_a_transform_filters_out_is_lost():
    (found,) = failures_of([dict(type='FilterAnnotations', min_gt_bbox_wh=(26, 1))], num_replicas=1)
    assert found.row == 0 and found.kinds == (LOST,)
    assert found.reason == 'lost: removed by a transform, though 100% of it lies inside'


def test_a_turned_box_is_inexact():
    source, replicas = drawn([TURN], num_replicas=1)
    found = find_failures(source, replicas, 0.0)
    assert [(each.row, each.kinds) for each in found] == [
        (0, (INEXACT,)),
        (1, (INEXACT,)),
        (2, (INEXACT,)),
    ]
    assert 'px too large' in found[0].reason
    summary = counted(source, replicas, found)
    assert summary.inexact == 3 and summary.largest_error is None


@pytest.mark.parametrize('wrapped', [True, False])
def test_a_mosaic_has_a_matrix_an_instance(wrapped):
    samples = [make_sample(shape=(60, 80)) for _ in range(4)]
    dataset = mixed_dataset(samples, [FLIP], [MOSAIC], wrapped)
    ((source, replicas),) = sources_and_replicas(dataset, 1, 2, seed=1)
    summary = counted(source, replicas, find_failures(source, replicas, 0.0))
    assert summary.mixed_in > 0 and summary.kept > 0
    assert summary.largest_error < 0.01  # those of the other images too
    for replica in replicas:
        assert replica.matrix is None
        places = replica.instances.of(source.source_id)
        assert places
        for place in places:  # a part of the annotation
            row = int(replica.instances.source_ids[place, 1])
            assert lies_inside(
                replica.instances.restored[place].numpy(), np.array(BOXES[row]), 0.01
            )
    picture = pixels_of(source_figure(source, replicas))
    assert picture.std() > 10


def test_data_sets_whose_ids_are_the_same():
    parts = [
        MadeDataset([make_sample()] * 2, [pipeline_of([FLIP], sample_idx_offset=n)])
        for n in (0, 1, 2)
    ]
    with pytest.raises(MissingRecordError, match='sample_idx_offset'):
        SourceCatalog(ConcatDataset(parts[:2]))
    catalog = SourceCatalog(ConcatDataset(parts[::2]))
    assert catalog[3].source_id == 3


def test_sources_that_are_not_found():
    with pytest.raises(MissingRecordError, match='Sequence'):
        SourceCatalog(Sequence())
    catalog = SourceCatalog(MadeDataset([make_sample()], [pipeline_of([FLIP])]))
    with pytest.raises(MissingRecordError, match='no source 7'):
        catalog[7]


def test_a_data_set_of_which_only_the_outer_pipeline_records():
    inner = MadeDataset([make_sample()], [dict(type='Resize', scale=(9, 9))])
    dataset = MultiImageMixDataset(
        inner, [dict(type='lt_mm.InvertiblePipeline', transforms=[PACK])]
    )
    with pytest.raises(MissingRecordError, match='begins with Resize'):
        SourceCatalog(dataset)


def test_images_to_show():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    packed = torch.from_numpy(image).permute(2, 0, 1)
    np.testing.assert_array_equal(rgb_image(packed, is_bgr=False), image)
    np.testing.assert_array_equal(rgb_image(image, is_bgr=True), image[..., ::-1])
    np.testing.assert_array_equal(rgb_image(image[..., 0], False)[..., 2], image[..., 0])
    stretched = rgb_image(torch.tensor([[[-1.0, 1.0]]]), False)
    assert stretched.min() == 0 and stretched.max() == 255
