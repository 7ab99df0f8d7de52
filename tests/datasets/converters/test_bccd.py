"""Conversion of BCCD: a made folder and archive, and the real archive where it is at hand."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from lt_mm.datasets.converters import BCCD_CLASSES, convert_bccd, split_names
from tests.paths import REPOSITORY

DATA_DIR = Path(os.environ.get('LT_MM_DATA_DIR', REPOSITORY.parent / 'shared' / 'data'))
# How many images each split has; the ids of the images are mixed over the splits, from 1.
SIZES = dict(train=6, val=2, test=1)
WIDTH, HEIGHT = 40, 30


def made_coco():
    """For each split its COCO json; image number i has a cell of class 1 + i % 3 at (i, 2)."""
    numbers = iter((4, 2, 9, 1, 7, 5, 3, 8, 6))
    splits = {}
    for split, size in SIZES.items():
        ids = [next(numbers) for _ in range(size)]
        splits[split] = dict(
            images=[
                dict(id=i, file_name=f'BloodImage_{i:05d}.jpg', width=WIDTH, height=HEIGHT)
                for i in ids
            ],
            annotations=[
                dict(
                    id=row,
                    image_id=i,
                    iscrowd=0,
                    category_id=1 + i % 3,
                    bbox=[float(i), 2.0, 10.0, 12.0],
                    area=120.0,
                )
                for row, i in enumerate(ids, start=1)
            ],
            categories=[dict(id=i, name=name) for i, name in enumerate(BCCD_CLASSES, start=1)],
        )
    return splits


@pytest.fixture
def tree(tmp_path):
    """A folder as it is unpacked: bccd/ with annotations and images."""
    base = tmp_path / 'bccd'
    for part in ('annotations', 'images'):
        (base / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, coco in made_coco().items():
        (base / 'annotations' / f'{split}.json').write_text(json.dumps(coco))
        for image in coco['images']:
            pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(base / 'images' / image['file_name'])
    # The archive holds this as well; it is not read.
    (base / 'annotations' / 'trainval.json').write_text('{}')
    return base


def zipped(tree):
    path = tree.parent / 'made.zip'
    with zipfile.ZipFile(path, 'w') as archive:
        for file in sorted(tree.rglob('*')):
            archive.write(file, file.relative_to(tree.parent))
    return path


def change(tree, split, edit):
    path = tree / 'annotations' / f'{split}.json'
    coco = json.loads(path.read_text())
    edit(coco)
    path.write_text(json.dumps(coco))


def names_of(split):
    images = json.loads(split.ann_file.read_text())['images']
    return sorted(Path(image['file_name']).stem for image in images)


@pytest.mark.parametrize('kind', ['folder', 'parent', 'zip'])
def test_made_data_set(tree, kind, tmp_path):
    source = dict(folder=tree, parent=tree.parent, zip=zipped(tree))[kind]
    out = tmp_path / 'out'
    splits = convert_bccd(source, out)
    assert list(splits) == ['train', 'val', 'test', 'train_quarter']
    for name, made in made_coco().items():
        split, coco = splits[name], COCO(str(splits[name].ann_file))
        assert list(coco.imgs.values()) == made['images']
        assert list(coco.anns.values()) == made['annotations']
        assert [c['name'] for c in coco.cats.values()] == list(BCCD_CLASSES)
        assert (split.num_images, split.num_instances, split.num_empty) == (
            (len(made['images']), len(made['annotations']), 0)
        )
        for image in made['images']:
            copied = (split.image_dir / image['file_name']).read_bytes()
            assert copied == (tree / 'images' / image['file_name']).read_bytes()
    assert sorted(path.name for path in out.iterdir()) == ['annotations', 'images']
    assert len(list((out / 'images').iterdir())) == sum(SIZES.values())


def test_the_quarter_is_chosen_by_names_and_seed(tree, tmp_path):
    """6 training images: 2 of them, and their own annotations only."""
    names = names_of(convert_bccd(tree, tmp_path / 'out')['train'])
    chosen = {}
    for seed in range(4):
        splits = convert_bccd(tree, tmp_path / 'out', seed)
        quarter = splits['train_quarter']
        assert names_of(quarter) == split_names(names, 2, seed)[1]
        coco = COCO(str(quarter.ann_file))
        assert coco.dataset['info']['seed'] == seed
        train = COCO(str(splits['train'].ann_file))
        for image_id in coco.imgs:
            (own,), (whole,) = coco.imgToAnns[image_id], train.imgToAnns[image_id]
            assert own | dict(id=0) == whole | dict(id=0)
        assert len(coco.anns) == 2
        chosen[tuple(names_of(quarter))] = seed
    assert len(chosen) > 1


def test_mmdet_reads_the_quarter(tree, tmp_path):
    from mmdet.datasets import CocoDataset

    quarter = convert_bccd(tree, tmp_path / 'out')['train_quarter']
    dataset = CocoDataset(
        ann_file=str(quarter.ann_file),
        data_prefix=dict(img=str(quarter.image_dir)),
        metainfo=dict(classes=BCCD_CLASSES),
        pipeline=[],
    )
    assert len(dataset) == 2
    for row in range(2):
        info = dataset.get_data_info(row)
        assert Path(info['img_path']).is_file()
        (instance,) = info['instances']
        i = info['img_id']
        assert instance['bbox'] == [i, 2, i + 10, 14] and instance['bbox_label'] == i % 3


def delete_image(tree):
    (tree / 'images' / 'BloodImage_00003.jpg').unlink()


def resize_image(tree):
    Image.new('RGB', (WIDTH, HEIGHT + 1)).save(tree / 'images' / 'BloodImage_00003.jpg')


def truncate_image(tree):
    path = tree / 'images' / 'BloodImage_00003.jpg'
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize(
    'damage, words',
    [
        (delete_image, 'lacks 1 of 2 images.*BloodImage_00003.jpg'),
        (resize_image, r'BloodImage_00003.jpg.*\(40, 31\).*val.json says \(40, 30\)'),
        (truncate_image, 'BloodImage_00003.jpg.*cannot be read.*complete JPEG'),
        (lambda tree: (tree / 'annotations/test.json').unlink(), 'lacks 1 of 1 annotations.*test'),
        (
            lambda tree: (tree / 'annotations/val.json').write_text('{"images": []}'),
            "val.json.*is not COCO json.*KeyError.*'categories'",
        ),
        (
            lambda tree: change(tree, 'val', lambda coco: coco['categories'].pop()),
            "val.json.*categories.*WBC.*expected .*'Platelets'",
        ),
        (
            lambda tree: change(tree, 'train', lambda coco: coco['images'].pop(0)),
            r'train.json.*annotates the image ids \[4\]',
        ),
    ],
)
def test_a_damaged_source_is_refused(tree, tmp_path, damage, words):
    damage(tree)
    with pytest.raises(ValueError, match=words):
        convert_bccd(tree, tmp_path / 'out')
    assert not (tmp_path / 'out' / 'annotations').exists()


def test_annotations_of_another_origin_are_kept(tree, tmp_path):
    foreign = tmp_path / 'out' / 'annotations' / 'train_quarter.json'
    foreign.parent.mkdir(parents=True)
    foreign.write_text('{"info": {"generator": "other"}}')
    with pytest.raises(FileExistsError, match="train_quarter.json.*'other'"):
        convert_bccd(tree, tmp_path / 'out')
    assert [path.name for path in foreign.parent.iterdir()] == ['train_quarter.json']


def test_a_second_run_replaces_the_first(tree, tmp_path):
    first = convert_bccd(tree, tmp_path / 'out')
    files = [split.ann_file.read_bytes() for split in first.values()]
    again = convert_bccd(zipped(tree), tmp_path / 'out')
    assert [split.ann_file.read_bytes() for split in again.values()] == files
    assert again == first


def test_real_counts(tmp_path):
    archive = DATA_DIR / 'bccd.zip'
    if not archive.is_file():
        pytest.skip(f'no {archive.name} in {DATA_DIR}; set LT_MM_DATA_DIR to its folder')
    splits = convert_bccd(archive, tmp_path)
    assert {name: (split.num_images, split.num_instances) for name, split in splits.items()} == (
        dict(train=(205, 2804), val=(87, 1137), test=(72, 945), train_quarter=(52, 735))
    )
    assert set(names_of(splits['train_quarter'])) < set(names_of(splits['train']))
    assert len(list((tmp_path / 'images').iterdir())) == 205 + 87 + 72
