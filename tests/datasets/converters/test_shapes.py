"""The drawn data set keeps every promise of `write_shapes_dataset`."""

import ast
import json
import runpy
import sys
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

import lt_mm.datasets.converters
from lt_mm.datasets.converters import SHAPES_CLASSES, write_shapes_dataset
from tests.paths import TOOLS

PARAMETERS = dict(num_train=40, num_val=24, image_size=((128, 160), (180, 224)), seed=3)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return tmp_path_factory.mktemp('shapes')


@pytest.fixture(scope='module')
def splits(root):
    return write_shapes_dataset(root, **PARAMETERS)


@pytest.fixture(scope='module', params=['train', 'val'])
def split(request, splits):
    return splits[request.param]


@pytest.fixture(scope='module')
def coco(split):
    return COCO(str(split.ann_file))


def masks_of(coco, image_id):
    return [coco.annToMask(annotation).astype(bool) for annotation in coco.imgToAnns[image_id]]


def files_of(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob('*') if path.is_file()}


def test_layout_and_counts(root, splits):
    for name, number in (('train', 40), ('val', 24)):
        split = splits[name]
        coco = json.loads((root / 'annotations' / f'{name}.json').read_text())
        assert split.ann_file == root / 'annotations' / f'{name}.json'
        assert split.image_dir == root / name
        assert len(list((root / name).iterdir())) == len(coco['images']) == number
        assert split.num_images == number
        assert split.num_instances == len(coco['annotations'])
        assert split.num_empty == 2
        assert [c['name'] for c in coco['categories']] == list(SHAPES_CLASSES)
        assert [c['id'] for c in coco['categories']] == [1, 2, 3]
        # pycocotools' evaluation takes a ground truth of id 0 for an unmatched one.
        assert [a['id'] for a in coco['annotations']] == list(range(1, split.num_instances + 1))
    assert not list(root.rglob('*.part'))


def test_images_have_the_stated_size_within_the_range(coco, split):
    sizes = set()
    for info in coco.imgs.values():
        image = cv2.imread(str(split.image_dir / info['file_name']))
        assert image.shape == (info['height'], info['width'], 3)
        assert 128 <= info['height'] <= 160 and 180 <= info['width'] <= 224
        sizes.add(image.shape)
    assert len(sizes) > 10


def test_boxes_and_areas_are_those_of_the_masks(coco):
    assert len(coco.anns) > 50
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        x, y, width, height = annotation['bbox']
        assert (x, x + width) == (columns[0], columns[-1] + 1)
        assert (y, y + height) == (rows[0], rows[-1] + 1)
        assert annotation['area'] == mask.sum()
        assert annotation['iscrowd'] == 0


def test_a_pixel_belongs_to_one_object(coco):
    for image_id in coco.imgs:
        masks = masks_of(coco, image_id)
        if masks:
            assert np.sum(masks, axis=0).max() == 1


def test_masks_lie_where_the_objects_were_painted(coco, split):
    for image_id, info in coco.imgs.items():
        image = cv2.imread(str(split.image_dir / info['file_name']))
        saturation = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)[..., 1]
        masks = masks_of(coco, image_id)
        objects = np.any([np.zeros(saturation.shape, bool), *masks], axis=0)
        assert np.median(saturation[~objects]) < 70
        for mask in masks:
            assert np.median(saturation[mask]) > 150


def test_a_mask_holds_no_pixel_of_an_occluding_object(coco, split):
    compared = 0
    for annotation in coco.anns.values():
        image = cv2.imread(str(split.image_dir / coco.imgs[annotation['image_id']]['file_name']))
        # JPEG blurs colour across two pixels, so the edge of the mask is left out.
        inside = cv2.erode(coco.annToMask(annotation), np.ones((7, 7), np.uint8), borderValue=0) > 0
        if inside.sum() < 50:
            continue
        colours = image[inside].astype(float)
        shares = colours / colours.sum(axis=1, keepdims=True)
        other = np.abs(shares - np.median(shares, axis=0)).max(axis=1) > 0.2
        assert other.mean() < 0.02
        compared += 1
    assert compared > 40


def test_colour_tells_the_class_mostly_but_not_always(coco, split):
    agrees = []
    for annotation in coco.anns.values():
        image = cv2.imread(str(split.image_dir / coco.imgs[annotation['image_id']]['file_name']))
        blue, green, red = np.median(image[coco.annToMask(annotation) > 0], axis=0)
        agrees.append(int(np.argmax((red, green, blue))) == annotation['category_id'] - 1)
    assert 0.75 < np.mean(agrees) < 1


def test_between_one_and_seven_objects_and_a_fixed_share_of_empty_images(coco):
    counts = [len(coco.imgToAnns[image_id]) for image_id in sorted(coco.imgs)]
    assert [i for i, count in enumerate(counts) if count == 0] == [1, 21]
    assert max(counts) <= 7
    assert len(set(counts)) >= 6


def test_every_class_occurs(coco):
    frequency = np.bincount([a['category_id'] for a in coco.anns.values()], minlength=4)[1:]
    assert frequency.min() > 0.15 * frequency.sum()


def test_some_objects_overlap_and_occlude(coco):
    overlapping = occluded = 0
    for annotations in coco.imgToAnns.values():
        for (ax, ay, aw, ah), (bx, by, bw, bh) in combinations([a['bbox'] for a in annotations], 2):
            overlapping += min(ax + aw, bx + bw) > max(ax, bx) and min(ay + ah, by + bh) > max(
                ay, by
            )
        for annotation in annotations:
            mask = coco.annToMask(annotation)
            hull = cv2.convexHull(cv2.findNonZero(mask))
            # The shapes are convex, also where the border cuts them.
            whole = cv2.fillPoly(np.zeros(mask.shape, np.uint8), [hull], 1).sum()
            occluded += annotation['area'] > 200 and mask.sum() < 0.93 * whole
    assert overlapping >= 10
    assert occluded >= 3


def test_some_objects_are_cut_off_by_each_border(coco):
    sides = np.zeros(4, dtype=int)
    for annotation in coco.anns.values():
        x, y, width, height = annotation['bbox']
        info = coco.imgs[annotation['image_id']]
        sides += (x == 0, y == 0, x + width == info['width'], y + height == info['height'])
    assert sides.min() >= 1
    assert sides.sum() < 0.5 * len(coco.anns)


def test_some_objects_are_small_and_most_are_not(coco):
    sides = np.array([max(a['bbox'][2:]) for a in coco.anns.values()])
    scale = 144 / 224  # the least side of these images, about, to that at which sizes are stated
    assert 0.05 < np.mean(sides < 28 * scale) < 0.4
    assert np.mean((sides >= 28 * scale) & (sides <= 110 * scale)) > 0.5


def test_the_same_seed_gives_the_same_files(root, splits, tmp_path):
    write_shapes_dataset(tmp_path, **PARAMETERS)
    assert files_of(tmp_path) == files_of(root)


def test_another_seed_gives_other_images(root, splits, tmp_path):
    write_shapes_dataset(tmp_path, **dict(PARAMETERS, num_train=3, num_val=2, seed=4))
    for path in tmp_path.glob('*/*.jpg'):
        assert path.read_bytes() != (root / path.relative_to(tmp_path)).read_bytes()


def test_the_splits_differ(root, splits):
    assert not (
        {path.read_bytes() for path in (root / 'train').iterdir()}
        & {path.read_bytes() for path in (root / 'val').iterdir()}
    )


def test_a_smaller_data_set_is_the_beginning_of_a_larger_one(root, splits, tmp_path):
    write_shapes_dataset(tmp_path, **dict(PARAMETERS, num_train=5, num_val=2))
    small, large = (
        json.loads((path / 'annotations/train.json').read_text()) for path in (tmp_path, root)
    )
    assert small['images'] == large['images'][:5]
    assert small['annotations'] == large['annotations'][: len(small['annotations'])]
    assert files_of(tmp_path / 'train').items() <= files_of(root / 'train').items()


def test_an_interrupted_run_leaves_no_json_of_the_run_before(tmp_path, monkeypatch):
    write_shapes_dataset(tmp_path, num_train=2, num_val=2)
    monkeypatch.setattr(cv2, 'imencode', lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_shapes_dataset(tmp_path, num_train=2, num_val=2)
    assert not list((tmp_path / 'annotations').iterdir())


def test_annotations_of_another_origin_are_kept(tmp_path):
    (tmp_path / 'annotations').mkdir()
    foreign = tmp_path / 'annotations/val.json'
    foreign.write_text('{"images": []}')
    with pytest.raises(FileExistsError, match='val.json.*choose another output folder'):
        write_shapes_dataset(tmp_path, num_train=2, num_val=2)
    assert foreign.read_text() == '{"images": []}'


@pytest.mark.parametrize(
    'parameters, message',
    [
        (dict(num_train=1), 'num_train is 1'),
        (dict(num_val=0), 'num_val is 0'),
        (dict(seed=-1), 'seed is -1'),
        (dict(image_size=(64, 224)), r'\(64, 224\).*at least 96'),
        (dict(image_size=((200, 150), 224)), 'smaller comes first'),
        (dict(image_size=224), r'image_size is 224; give \(height, width\)'),
        (dict(image_size=(224,)), 'give .height, width.'),
    ],
)
def test_parameters_out_of_range_are_refused(tmp_path, parameters, message):
    with pytest.raises(ValueError, match=message):
        write_shapes_dataset(tmp_path, **parameters)
    assert not list(tmp_path.iterdir())


def test_mmdet_reads_boxes_labels_and_masks(split, coco):
    pytest.importorskip('mmdet')
    from mmdet.datasets import CocoDataset
    from mmdet.datasets.transforms import LoadAnnotations
    from mmdet.utils import register_all_modules

    register_all_modules()
    dataset = CocoDataset(
        ann_file=str(split.ann_file),
        data_prefix=dict(img=str(split.image_dir)),
        metainfo=dict(classes=SHAPES_CLASSES),
        pipeline=[],
    )
    load = LoadAnnotations(with_bbox=True, with_label=True, with_mask=True)
    assert len(dataset) == split.num_images
    for i in range(len(dataset)):
        item = dataset.get_data_info(i)
        item['ori_shape'] = (item['height'], item['width'])
        result = load(item)
        annotations = coco.imgToAnns[item['img_id']]
        masks = masks_of(coco, item['img_id'])
        boxes = [(x, y, x + w, y + h) for x, y, w, h in (a['bbox'] for a in annotations)]
        assert result['gt_bboxes'].tensor.tolist() == [list(box) for box in boxes]
        assert result['gt_bboxes_labels'].tolist() == [a['category_id'] - 1 for a in annotations]
        assert not result['gt_ignore_flags'].any()
        assert len(result['gt_masks'].masks) == len(masks)
        for loaded, mask in zip(result['gt_masks'].masks, masks):
            assert np.array_equal(loaded, mask)


def test_command_line(root, splits, tmp_path, monkeypatch, capsys):
    tool = TOOLS / 'dataset_converters/shapes.py'
    options = '--num-train 3 --num-val 2 --image-size 128:160 180:224 --seed 3'
    monkeypatch.setattr(sys, 'argv', [str(tool), str(tmp_path), *options.split()])
    runpy.run_path(str(tool), run_name='__main__')
    written = json.loads((tmp_path / 'annotations/train.json').read_text())
    assert (
        f'train: 3 images (1 without an object), {len(written["annotations"])} instances'
        in capsys.readouterr().out
    )
    assert files_of(tmp_path / 'train').items() <= files_of(root / 'train').items()


def test_no_mm_framework_is_imported():
    allowed = {'cv2', 'numpy', 'PIL', 'pycocotools', 'lt_mm'} | sys.stdlib_module_names
    files = list(Path(lt_mm.datasets.converters.__file__).parent.glob('*.py'))
    assert len(files) >= 4
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else ([node.module] if isinstance(node, ast.ImportFrom) else [])
            )
            for name in names:
                assert name.split('.')[0] in allowed, (file.name, name)
                assert not name.startswith('lt_mm') or (
                    name.startswith('lt_mm.datasets.converters')
                ), name
