"""Conversion of Penn-Fudan: made trees and archives, and the real archive where it is at hand."""

import json
import os
import re
import runpy
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from lt_mm.datasets.converters import PENNFUDAN_CLASSES, convert_pennfudan, split_names
from tests.paths import REPOSITORY, TOOLS

DATA_DIR = Path(os.environ.get('LT_MM_DATA_DIR', REPOSITORY.parent / 'shared' / 'data'))
REAL_ZIP = DATA_DIR / 'PennFudanPed.zip'


def made_labels():
    """Two masks. Labels 1 and 2 occur in both, touch, and their boxes overlap; 5 has a hole."""
    first = np.zeros((40, 60), np.uint8)
    first[5:20, 10:30] = 1
    first[15:35, 20:45] = 2
    second = np.zeros((50, 30), np.uint8)
    second[0:10, 0:8] = 2
    second[20:45, 5:25] = 5
    second[25:30, 10:15] = 0
    second[49, 29] = 1
    return dict(FudanPed00001=first, PennPed00001=second)


# (x, y, w, h) and area of every label above, counted by hand.
MADE = dict(
    FudanPed00001=[([10, 5, 20, 15], 20 * 15 - 10 * 5), ([20, 15, 25, 20], 25 * 20)],
    PennPed00001=[([29, 49, 1, 1], 1), ([0, 0, 8, 10], 80), ([5, 20, 20, 25], 500 - 25)],
)


@pytest.fixture
def tree(tmp_path):
    """A folder as it is unpacked: PennFudanPed/ with PNGImages and PedMasks."""
    base = tmp_path / 'PennFudanPed'
    for part in ('PNGImages', 'PedMasks', 'Annotation'):
        (base / part).mkdir(parents=True)
    (base / 'readme.txt').write_text('readme')
    rng = np.random.default_rng(0)
    for name, labels in made_labels().items():
        pixels = rng.integers(0, 256, (*labels.shape, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(base / 'PNGImages' / f'{name}.png')
        Image.fromarray(labels).save(base / 'PedMasks' / f'{name}_mask.png')
    return base


def zipped(tree):
    path = tree.parent / 'made.zip'
    with zipfile.ZipFile(path, 'w') as archive:
        for file in sorted(tree.rglob('*')):
            archive.write(file, file.relative_to(tree.parent))
    return path


def source_of(tree, kind):
    return dict(folder=tree, parent=tree.parent, zip=zipped(tree))[kind]


def assert_split_is(out_dir, split, name, tree):
    coco = COCO(str(out_dir / 'annotations' / f'{split}.json'))
    labels = made_labels()[name]
    (image,) = coco.imgs.values()
    assert (image['file_name'], image['height'], image['width']) == (f'{name}.png', *labels.shape)
    copied = (out_dir / 'images' / image['file_name']).read_bytes()
    assert copied == (tree / 'PNGImages' / f'{name}.png').read_bytes()
    annotations = [coco.anns[i] for i in sorted(coco.anns)]
    assert [(a['bbox'], a['area']) for a in annotations] == MADE[name]
    for annotation, label in zip(annotations, sorted(set(labels[labels > 0]))):
        assert np.array_equal(coco.annToMask(annotation), labels == label)
        assert (annotation['category_id'], annotation['iscrowd']) == (1, 0)
        assert isinstance(annotation['segmentation']['counts'], str)
    assert [a['id'] for a in annotations] == list(range(1, len(annotations) + 1))


@pytest.mark.parametrize('kind', ['folder', 'parent', 'zip'])
def test_made_data_set(tree, kind, tmp_path):
    out_dir = tmp_path / 'out'
    splits = convert_pennfudan(source_of(tree, kind), out_dir, num_val=1)
    train, val = split_names(MADE, num_val=1)
    assert sorted(train + val) == sorted(MADE)
    assert_split_is(out_dir, 'train', train[0], tree)
    assert_split_is(out_dir, 'val', val[0], tree)
    for name, split in splits.items():
        assert split.image_dir == out_dir / 'images'
        assert split.num_instances == len(MADE[dict(train=train, val=val)[name][0]])
        assert (split.num_images, split.num_empty) == (1, 0)
    assert sorted(p.name for p in out_dir.iterdir()) == ['annotations', 'images']
    assert len(list((out_dir / 'images').iterdir())) == 2


def test_image_ids_are_unique_over_the_splits(tree, tmp_path):
    splits = convert_pennfudan(tree, tmp_path / 'out', num_val=1)
    ids = [
        image['id']
        for split in splits.values()
        for image in json.loads(split.ann_file.read_text())['images']
    ]
    assert sorted(ids) == [1, 2]


def test_an_image_without_a_pedestrian_is_kept(tree, tmp_path):
    Image.new('L', (60, 40)).save(tree / 'PedMasks' / 'FudanPed00001_mask.png')
    splits = convert_pennfudan(tree, tmp_path / 'out', num_val=1)
    assert sum(split.num_empty for split in splits.values()) == 1
    assert sum(split.num_images for split in splits.values()) == 2


def test_files_that_macos_adds_are_not_images(tree, tmp_path):
    path = zipped(tree)
    with zipfile.ZipFile(path, 'a') as archive:
        archive.writestr('__MACOSX/PennFudanPed/PNGImages/._FudanPed00001.png', b'junk')
    splits = convert_pennfudan(path, tmp_path / 'out', num_val=1)
    assert sum(split.num_images for split in splits.values()) == 2


def test_split_is_stratified_and_depends_on_names_and_seed_only():
    names = [f'A{i:03d}' for i in range(30)] + [f'B{i:03d}' for i in range(60)]
    train, val = split_names(names, num_val=30)
    assert Counter(name[0] for name in val) == dict(A=10, B=20)
    assert sorted(train + val) == names
    assert (train, val) == split_names(names[::-1], num_val=30)
    assert val != split_names(names, num_val=30, seed=1)[1]
    # 7 of 90: the shares are 2.33 and 4.67, so that the remainder goes to B.
    assert Counter(name[0] for name in split_names(names, num_val=7)[1]) == dict(A=2, B=5)
    # Written out, so that a change of the rule, which would move images between splits, shows.
    assert split_names(['A1', 'A2', 'A3', 'A4', 'A5', 'A6'], num_val=2) == (
        ['A1', 'A2', 'A5', 'A6'],
        ['A3', 'A4'],
    )


@pytest.mark.parametrize('num_val', [-1, 0, 2, 3])
def test_a_split_without_images_is_refused(tree, tmp_path, num_val):
    with pytest.raises(ValueError, match=f'num_val is {num_val} and there are 2 images'):
        convert_pennfudan(tree, tmp_path / 'out', num_val=num_val)
    assert not (tmp_path / 'out').exists()


def test_source_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match='absent.zip does not exist; expected PennFudanPed'):
        convert_pennfudan(tmp_path / 'absent.zip', tmp_path / 'out')


def test_source_that_is_no_zip(tmp_path):
    (tmp_path / 'page.zip').write_text('<html>404</html>')
    with pytest.raises(ValueError, match=r'page.zip \(16 bytes\) is no zip archive.*Download'):
        convert_pennfudan(tmp_path / 'page.zip', tmp_path / 'out')


@pytest.mark.parametrize('keep', [0.5, 0.98])
def test_truncated_zip(tree, tmp_path, keep):
    path = zipped(tree)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(ValueError, match='made.zip.*truncated, damaged .*one.*Download it'):
        convert_pennfudan(path, tmp_path / 'out', num_val=1)
    assert not (tmp_path / 'out').exists()


def test_zip_with_a_damaged_entry(tree, tmp_path):
    path = zipped(tree)
    data = bytearray(path.read_bytes())
    start = data.index((tree / 'PNGImages' / 'PennPed00001.png').read_bytes())
    data[start + 500 : start + 520] = bytes(20)
    path.write_bytes(data)
    with pytest.raises(ValueError, match='damaged or .*one, at its entry .*PennPed00001.png'):
        convert_pennfudan(path, tmp_path / 'out', num_val=1)
    assert not (tmp_path / 'out' / 'annotations').exists()


@pytest.mark.parametrize(
    'entry',
    [
        '../PNGImages/evil.png',
        '/PNGImages/evil.png',
        'a/../../PedMasks/evil_mask.png',
        '..\\evil.png',
        'C:\\evil.png',
    ],
)
def test_zip_entry_that_points_outside(tree, tmp_path, entry):
    path = zipped(tree)
    with zipfile.ZipFile(path, 'a') as archive:
        archive.writestr(entry, b'evil')
    before = set(tmp_path.rglob('*'))
    with pytest.raises(ValueError, match='evil.*points out of the archive'):
        convert_pennfudan(path, tmp_path / 'out', num_val=1)
    assert set(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('kind', ['folder', 'zip'])
def test_missing_mask(tree, tmp_path, kind):
    (tree / 'PedMasks' / 'PennPed00001_mask.png').unlink()
    with pytest.raises(ValueError, match='lacks 1 of 2 masks.*PedMasks/PennPed00001_mask.png'):
        convert_pennfudan(source_of(tree, kind), tmp_path / 'out', num_val=1)
    assert not (tmp_path / 'out').exists()


def test_nothing_found(tmp_path):
    (tmp_path / 'photos').mkdir()
    with pytest.raises(ValueError, match='found no PNGImages/.*photos; expected .*PNGImages/NAME'):
        convert_pennfudan(tmp_path / 'photos', tmp_path / 'out')


def test_two_data_sets_in_one_folder(tree, tmp_path):
    (tmp_path / 'Other' / 'PNGImages').mkdir(parents=True)
    Image.new('RGB', (4, 4)).save(tmp_path / 'Other' / 'PNGImages' / 'x.png')
    with pytest.raises(ValueError, match='several data sets.*Other/.*PennFudanPed/'):
        convert_pennfudan(tmp_path, tmp_path / 'out', num_val=1)


def test_mask_of_another_size(tree, tmp_path):
    Image.new('L', (40, 60)).save(tree / 'PedMasks' / 'FudanPed00001_mask.png')
    with pytest.raises(ValueError, match=r'FudanPed00001_mask.png.*\(60, 40\).*\(40, 60\)'):
        convert_pennfudan(tree, tmp_path / 'out', num_val=1)


def test_mask_in_colour(tree, tmp_path):
    Image.new('RGB', (60, 40)).save(tree / 'PedMasks' / 'FudanPed00001_mask.png')
    with pytest.raises(ValueError, match=r'\(40, 60, 3\); expected one channel'):
        convert_pennfudan(tree, tmp_path / 'out', num_val=1)


@pytest.mark.parametrize('part', ['PNGImages/PennPed00001.png', 'PedMasks/PennPed00001_mask.png'])
def test_truncated_image_in_a_folder(tree, tmp_path, part):
    data = (tree / part).read_bytes()
    (tree / part).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=f'{part}.*cannot be read as an image'):
        convert_pennfudan(tree, tmp_path / 'out', num_val=1)
    assert not (tmp_path / 'out' / 'annotations').exists()


def test_annotations_of_another_origin_are_kept(tree, tmp_path):
    foreign = tmp_path / 'out' / 'annotations' / 'train.json'
    foreign.parent.mkdir(parents=True)
    foreign.write_text('{"info": {"generator": "other"}}')
    with pytest.raises(FileExistsError, match="train.json.*'other'"):
        convert_pennfudan(tree, tmp_path / 'out', num_val=1)
    assert foreign.read_text() == '{"info": {"generator": "other"}}'


def test_a_second_run_replaces_the_first(tree, tmp_path):
    first = convert_pennfudan(tree, tmp_path / 'out', num_val=1, seed=0)
    files = [split.ann_file.read_bytes() for split in first.values()]
    again = convert_pennfudan(zipped(tree), tmp_path / 'out', num_val=1, seed=0)
    assert [split.ann_file.read_bytes() for split in again.values()] == files
    assert again == first


def test_command_line(tree, tmp_path, monkeypatch, capsys):
    tool = TOOLS / 'dataset_converters/pennfudan.py'
    arguments = [zipped(tree), tmp_path / 'out', '--num-val', 1]
    monkeypatch.setattr(sys, 'argv', [str(part) for part in (tool, *arguments)])
    runpy.run_path(str(tool), run_name='__main__')
    printed = capsys.readouterr().out
    train, val = split_names(MADE, num_val=1)
    for split, (name,) in (('train', train), ('val', val)):
        assert f'{split}: 1 images (0 without an object), {len(MADE[name])} instances' in printed


def load_through_mmdet(split, poly2mask):
    """What mmdet's `LoadAnnotations` makes of every image, with the image's id."""
    from mmdet.datasets import CocoDataset
    from mmdet.datasets.transforms import LoadAnnotations
    from mmdet.utils import register_all_modules

    register_all_modules()
    dataset = CocoDataset(
        ann_file=str(split.ann_file),
        data_prefix=dict(img=str(split.image_dir)),
        metainfo=dict(classes=PENNFUDAN_CLASSES),
        pipeline=[],
    )
    load = LoadAnnotations(with_bbox=True, with_mask=True, poly2mask=poly2mask)
    for i in range(len(dataset)):
        item = dataset.get_data_info(i)
        assert Path(item['img_path']).is_file()
        item['ori_shape'] = (item['height'], item['width'])
        yield item['img_id'], load(item)


def test_mmdet_reads_the_made_data_set(tree, tmp_path):
    pytest.importorskip('mmdet')
    splits = convert_pennfudan(tree, tmp_path / 'out', num_val=1)
    names = sorted(MADE)
    seen = 0
    for split in splits.values():
        for image_id, result in load_through_mmdet(split, poly2mask=True):
            labels = made_labels()[names[image_id - 1]]
            expected = [labels == label for label in sorted(set(labels[labels > 0]))]
            assert np.array_equal(result['gt_masks'].masks, expected)
            assert not result['gt_ignore_flags'].any()
            seen += len(expected)
    assert seen == 5


def test_mmdet_ignores_every_instance_where_polygons_are_asked_for(tree, tmp_path):
    """The limit that the documentation states: with `poly2mask=False` RLE is not read."""
    pytest.importorskip('mmdet')
    splits = convert_pennfudan(tree, tmp_path / 'out', num_val=1)
    for split in splits.values():
        for _, result in load_through_mmdet(split, poly2mask=False):
            assert result['gt_ignore_flags'].all()


@pytest.fixture(scope='module')
def real(tmp_path_factory):
    if not REAL_ZIP.is_file():
        pytest.skip(f'no {REAL_ZIP.name} in {DATA_DIR}; set LT_MM_DATA_DIR to its folder')
    return convert_pennfudan(REAL_ZIP, tmp_path_factory.mktemp('pennfudan'))


def test_real_counts(real):
    assert (real['train'].num_images, real['val'].num_images) == (120, 50)
    assert real['train'].num_instances + real['val'].num_instances == 423
    assert real['train'].num_empty == real['val'].num_empty == 0
    assert len(list(real['val'].image_dir.iterdir())) == 170


def test_real_split_is_stratified_and_disjoint(real):
    names = {
        split: [
            image['file_name'] for image in json.loads(real[split].ann_file.read_text())['images']
        ]
        for split in real
    }
    assert not set(names['train']) & set(names['val'])
    assert Counter(name[:5] for name in names['val']) == dict(Fudan=22, PennP=28)
    assert Counter(name[:5] for name in names['train']) == dict(Fudan=52, PennP=68)


def test_real_boxes_against_the_archive_s_own_annotations(real):
    """The text files count pixels from 1 and name first and last pixel: (x+1, y+1) - (x+w, y+h).

    16 of their boxes differ from the masks, by 6 pixels at most; the conversion follows the masks.
    """
    box = re.compile(r'\(Xmin, Ymin\) - \(Xmax, Ymax\) : \((\d+), (\d+)\) - \((\d+), (\d+)\)')
    differences = []
    with zipfile.ZipFile(REAL_ZIP) as archive:
        for split in real.values():
            coco = COCO(str(split.ann_file))
            for image_id, image in coco.imgs.items():
                text = archive.read(f'PennFudanPed/Annotation/{image["file_name"][:-4]}.txt')
                stated = np.array(box.findall(text.decode('latin-1')), dtype=float)
                x, y, w, h = np.transpose([a['bbox'] for a in coco.imgToAnns[image_id]])
                found = np.stack((x + 1, y + 1, x + w, y + h), axis=1)
                differences += np.abs(found - stated).max(axis=1).tolist()
    assert len(differences) == 423
    assert differences.count(0) == 407
    assert max(differences) == 6


def test_mmdet_reads_the_real_data_set(real):
    """All masks of both splits are those of the archive's PNGs, pixel for pixel."""
    pytest.importorskip('mmdet')
    seen = 0
    with zipfile.ZipFile(REAL_ZIP) as archive:
        for split in real.values():
            names = {
                image['id']: image['file_name'][:-4]
                for image in json.loads(split.ann_file.read_text())['images']
            }
            for image_id, result in load_through_mmdet(split, poly2mask=True):
                mask_file = f'PennFudanPed/PedMasks/{names[image_id]}_mask.png'
                with archive.open(mask_file) as file:
                    labels = np.array(Image.open(file))
                masks = result['gt_masks'].masks
                numbers = np.arange(1, len(masks) + 1, dtype=np.uint8)
                assert np.array_equal((masks * numbers[:, None, None]).sum(axis=0), labels)
                assert np.array_equal(
                    result['gt_masks'].get_bboxes(dst_type='hbox').tensor,
                    result['gt_bboxes'].tensor,
                )
                assert not result['gt_ignore_flags'].any()
                seen += len(masks)
    assert seen == 423


@pytest.mark.timeout(60)
def test_a_mask_of_many_labels_takes_seconds(tmp_path):
    """One pass over the image, rather than one for each label."""
    for part in ('PNGImages', 'PedMasks'):
        (tmp_path / 'in' / part).mkdir(parents=True)
    labels = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    masks = dict(few=np.eye(512, dtype=np.uint16), many=labels.repeat(2, 0).repeat(2, 1))
    for name, mask in masks.items():
        Image.new('RGB', mask.shape[::-1]).save(tmp_path / 'in' / 'PNGImages' / f'{name}.png')
        Image.fromarray(mask).save(tmp_path / 'in' / 'PedMasks' / f'{name}_mask.png')
    written = convert_pennfudan(tmp_path / 'in', tmp_path / 'out', num_val=1)
    assert sorted(split.num_instances for split in written.values()) == [1, 2**16 - 1]


def test_a_pipe_is_not_waited_for(tree):
    os.mkfifo(tree / 'PedMasks' / 'PennPed00002_mask.png')
    Image.new('RGB', (9, 9)).save(tree / 'PNGImages' / 'PennPed00002.png')
    with pytest.raises(ValueError, match='lacks 1 of 3.*PennPed00002_mask.png'):
        convert_pennfudan(tree, tree.parent / 'out', num_val=1)
