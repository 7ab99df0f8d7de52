"""Conversion of PASCAL VOC 2012 on made trees and archives."""

import io
import json
import runpy
import sys
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from lt_mm.datasets.converters import VOC_CLASSES, convert_voc2012
from lt_mm.datasets.converters.coco_json import pixels_by_label
from lt_mm.datasets.converters.voc2012 import connected_components
from tests.paths import TOOLS

CAT, DOG, PERSON = 8, 12, 15


def made_masks():
    """Class and object masks by image name."""
    first = np.zeros((30, 40), np.uint8)
    objects = np.zeros_like(first)
    first[2:12, 3:13], objects[2:12, 3:13] = PERSON, 1  # touches the next by a corner
    first[12:20, 13:20], objects[12:20, 13:20] = PERSON, 2
    first[12:20, 20:30], objects[12:20, 20:30] = DOG, 3  # touches a person by its side
    first[5, 13:25], objects[5, 13:25] = 255, 255  # void
    first[3:8, 25:35], objects[3:8, 25:35] = PERSON, 4
    first[27, 38], objects[27, 38] = PERSON, 4  # a speck of the fourth object
    second = np.zeros((20, 24), np.uint8)
    second[4:16, 2:22] = CAT
    second[4:16, 10:12] = DOG  # cuts the cat in two
    return {
        '2007_000032': (first, objects),
        '2007_000033': (second, np.select([second == CAT, second == DOG], [1, 2], 0)),
        '2009_000001': (np.full((10, 12), 255), np.full((10, 12), 255)),  # all void
    }


LISTS = dict(train=['2007_000032', '2009_000001'], val=['2007_000033'])
# (category, x, y, w, h, area) of the components of at least 16 pixels, counted by hand.
MADE = {
    '2007_000032': [
        (DOG, 20, 12, 10, 8, 80),
        (PERSON, 3, 2, 17, 18, 156),
        (PERSON, 25, 3, 10, 5, 50),
    ],
    '2007_000033': [(CAT, 2, 4, 8, 12, 96), (CAT, 12, 4, 10, 12, 120), (DOG, 10, 4, 2, 12, 24)],
    '2009_000001': [],
}


def save_palette(labels, path):
    height, width = labels.shape
    image = Image.frombytes('P', (width, height), labels.astype(np.uint8).tobytes())
    image.putpalette([(37 * i) % 256 for i in range(768)])
    image.save(path)


@pytest.fixture
def tree(tmp_path):
    """VOCdevkit/VOC2012 as it is unpacked, with an image that no list names."""
    base = tmp_path / 'VOCdevkit' / 'VOC2012'
    for part in (
        'ImageSets/Segmentation',
        'ImageSets/Main',
        'JPEGImages',
        'SegmentationClass',
        'SegmentationObject',
        'Annotations',
    ):
        (base / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, (classes, objects) in made_masks().items():
        pixels = rng.integers(0, 256, (*classes.shape, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(base / 'JPEGImages' / f'{name}.jpg')
        save_palette(classes, base / 'SegmentationClass' / f'{name}.png')
        save_palette(objects, base / 'SegmentationObject' / f'{name}.png')
    Image.new('RGB', (5, 5)).save(base / 'JPEGImages' / '2008_000009.jpg')
    for split, names in LISTS.items():
        (base / 'ImageSets' / 'Segmentation' / f'{split}.txt').write_text(
            ''.join(f'{name}\n' for name in names[::-1])
        )
        (base / 'ImageSets' / 'Main' / f'{split}.txt').write_text('2008_000009\n')
    return base


def tarred(tree):
    path = tree.parents[1] / 'made.tar'
    with tarfile.open(path, 'w') as archive:
        archive.add(tree.parent, 'VOCdevkit')
    return path


def source_of(tree, kind):
    return dict(folder=tree, devkit=tree.parent, parent=tree.parents[1], tar=tarred(tree))[kind]


def convert(source, tmp_path, **options):
    return convert_voc2012(source, tmp_path / 'out', **options)


# -- components --------------------------------------------------------------------


def naive_components(mask):
    """Union-find over pairs of neighbouring pixels, as sets of pixels."""
    pixels = [tuple(p) for p in np.argwhere(mask)]
    parent = {pixel: pixel for pixel in pixels}

    def root(pixel):
        while parent[pixel] != pixel:
            pixel = parent[pixel]
        return pixel

    for y, x in pixels:
        for other in ((y, x + 1), (y + 1, x - 1), (y + 1, x), (y + 1, x + 1)):
            if other in parent:
                parent[root(other)] = root((y, x))
    groups = {}
    for pixel in pixels:
        groups.setdefault(root(pixel), []).append(pixel)
    return sorted(groups.values())


def components(mask):
    numbers = connected_components(mask)
    return [numbers == number for number in range(1, numbers.max() + 1)]


@given(st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=6))
def test_components_against_a_naive_union_find(rows):
    mask = np.array(rows)
    found = components(mask)
    pixels = [[tuple(p) for p in np.argwhere(part)] for part in found]
    assert pixels == naive_components(mask)


def test_pixels_that_touch_at_a_corner_are_connected():
    mask = np.eye(4, dtype=bool)
    assert len(components(mask)) == 1
    mask[1, 1] = False
    assert [part.sum() for part in components(mask)] == [1, 2]


@pytest.mark.timeout(20)
def test_ninety_thousand_components_take_a_second():
    mask = np.zeros((600, 600), bool)
    mask[::2, ::2] = True
    parts = pixels_by_label(connected_components(mask))
    del parts[0]
    assert [pixels.tolist() for pixels in parts.values()] == [
        [600 * x + y] for y in range(0, 600, 2) for x in range(0, 600, 2)
    ]


def test_a_component_of_one_pixel_and_none():
    assert components(np.zeros((3, 3), bool)) == []
    (single,) = components(np.array([[False, True]]))
    assert single.tolist() == [[False, True]]


def test_components_are_in_the_order_of_their_first_pixels():
    # A labelling in two passes meets the right arm of the U first, and the left one later.
    mask = np.array([[0, 0, 0, 1, 0, 1], [1, 0, 0, 1, 0, 0], [1, 1, 1, 1, 0, 1]], bool)
    found = components(mask)
    assert [np.argwhere(part)[0].tolist() for part in found] == [[0, 3], [0, 5], [2, 5]]
    assert [part.sum() for part in found] == [7, 1, 1]


# -- the data set ------------------------------------------------------------------


def annotations_of(split, name):
    coco = COCO(str(split.ann_file))
    (image,) = [image for image in coco.imgs.values() if image['file_name'] == f'{name}.jpg']
    return coco, image, [a for _, a in sorted(coco.anns.items()) if a['image_id'] == image['id']]


@pytest.mark.parametrize('kind', ['folder', 'devkit', 'parent', 'tar'])
def test_made_data_set(tree, kind, tmp_path):
    splits = convert(source_of(tree, kind), tmp_path)
    assert sorted(p.name for p in (tmp_path / 'out' / 'images').iterdir()) == sorted(
        f'{name}.jpg' for name in MADE
    )
    for split, names in LISTS.items():
        assert splits[split].num_instances == sum(len(MADE[name]) for name in names)
        for name in names:
            coco, image, found = annotations_of(splits[split], name)
            classes = made_masks()[name][0]
            assert (image['height'], image['width']) == classes.shape
            copied = (tmp_path / 'out' / 'images' / f'{name}.jpg').read_bytes()
            assert copied == (tree / 'JPEGImages' / f'{name}.jpg').read_bytes()
            assert [(a['category_id'], *a['bbox'], a['area']) for a in found] == MADE[name]
            # Pixel for pixel, and back: what is kept is the class mask without specks.
            rebuilt = np.zeros_like(classes)
            for annotation in found:
                mask = coco.annToMask(annotation).astype(bool)
                assert (classes[mask] == annotation['category_id']).all()
                assert not rebuilt[mask].any()
                rebuilt[mask] = annotation['category_id']
                assert annotation['iscrowd'] == 0
            lost = np.argwhere((rebuilt != classes) & (classes != 255)).tolist()
            assert lost == ([[27, 38]] if name == '2007_000032' else [])
    train, val = splits['train'], splits['val']
    assert (train.num_images, train.num_empty, train.num_dropped) == (2, 1, 1)
    assert (val.num_images, val.num_empty, val.num_dropped) == (1, 0, 0)


def test_categories_ids_and_info(tree, tmp_path):
    splits = convert(tree, tmp_path)
    assert len(VOC_CLASSES) == 20 and tuple(sorted(VOC_CLASSES)) == VOC_CLASSES
    assert (VOC_CLASSES[CAT - 1], VOC_CLASSES[DOG - 1], VOC_CLASSES[PERSON - 1]) == (
        'cat',
        'dog',
        'person',
    )
    contents = {s: json.loads(split.ann_file.read_text()) for s, split in splits.items()}
    for name, content in contents.items():
        assert content['categories'] == [
            dict(id=i, name=label) for i, label in enumerate(VOC_CLASSES, start=1)
        ]
        assert [a['id'] for a in content['annotations']] == list(
            range(1, len(content['annotations']) + 1)
        )
        assert (
            content['info'].items()
            >= dict(
                split=name,
                min_area=16,
                instances='components',
                num_dropped=splits[name].num_dropped,
            ).items()
        )
    assert {
        image['id']: image['file_name'][:-4]
        for content in contents.values()
        for image in content['images']
    } == dict(enumerate(sorted(MADE), start=1))


@pytest.mark.parametrize('min_area, kept, dropped', [(1, 4, 0), (2, 3, 1), (81, 1, 3)])
def test_min_area(tree, tmp_path, min_area, kept, dropped):
    train = convert(tree, tmp_path, min_area=min_area)['train']
    assert (train.num_instances, train.num_dropped) == (kept, dropped)


def test_true_objects(tree, tmp_path):
    splits = convert(tree, tmp_path, instances='object')
    for split, names in LISTS.items():
        for name in names:
            coco, _, found = annotations_of(splits[split], name)
            classes, objects = made_masks()[name]
            numbers = [n for n in np.unique(objects) if 0 < n < 255]
            assert len(found) == len(numbers)
            for annotation, number in zip(found, numbers):
                assert np.array_equal(coco.annToMask(annotation), objects == number)
                assert annotation['category_id'] == classes[objects == number][0]
    # The cat that the dog cuts in two is one object, and the touching persons are two.
    assert splits['val'].num_instances == 2 and splits['train'].num_instances == 4


def test_the_object_masks_are_needed_for_true_objects_only(tree, tmp_path):
    (tree / 'SegmentationObject' / '2007_000033.png').unlink()
    assert convert(tree, tmp_path)['val'].num_instances == 3
    with pytest.raises(ValueError, match='lacks 1 of 9 .*SegmentationObject/2007_000033'):
        convert(tree, tmp_path, instances='object')


def test_a_second_run_replaces_the_first(tree, tmp_path):
    first = convert(tree, tmp_path)
    files = [split.ann_file.read_bytes() for split in first.values()]
    again = convert(tarred(tree), tmp_path)
    assert [split.ann_file.read_bytes() for split in again.values()] == files
    assert again == first


def test_command_line(tree, tmp_path, monkeypatch, capsys):
    tool = TOOLS / 'dataset_converters/voc2012.py'
    arguments = [tarred(tree), tmp_path / 'out', '--min-area', 81]
    monkeypatch.setattr(sys, 'argv', [str(part) for part in (tool, *arguments)])
    runpy.run_path(str(tool), run_name='__main__')
    printed = capsys.readouterr().out
    assert 'train: 2 images (1 without an object), 1 instances, 3 smaller ones left out' in printed
    assert 'val: 1 images (0 without an object), 2 instances, 1 smaller' in printed


# -- what is refused ---------------------------------------------------------------


@pytest.mark.parametrize(
    'options, message',
    [(dict(instances='boxes'), "instances is 'boxes'"), (dict(min_area=0), 'min_area is 0')],
)
def test_bad_arguments(tree, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        convert(tree, tmp_path, **options)


def test_source_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match='absent.tar does not exist; expected VOC'):
        convert(tmp_path / 'absent.tar', tmp_path)


def test_source_that_is_no_tar(tmp_path):
    (tmp_path / 'page.tar').write_text('<html>404</html>')
    with pytest.raises(ValueError, match=r'page.tar \(16 bytes\) is no tar archive'):
        convert(tmp_path / 'page.tar', tmp_path)


def test_compressed_tar(tree, tmp_path):
    path = tmp_path / 'made.tar.gz'
    with tarfile.open(path, 'w:gz') as archive:
        archive.add(tree, 'VOC2012')
    with pytest.raises(ValueError, match='compressed one; expected .*not compressed'):
        convert(path, tmp_path)


@pytest.mark.parametrize('keep', [0.2, 0.5, 0.7])
def test_truncated_tar(tree, tmp_path, keep):
    path = tarred(tree)
    with tarfile.open(path) as archive:
        end = max(member.offset_data + member.size for member in archive)
    path.write_bytes(path.read_bytes()[: int(keep * end)])
    with pytest.raises(ValueError, match='made.tar.*(truncated|lacks|found no)'):
        convert(path, tmp_path)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    'entry',
    [
        '../JPEGImages/evil.jpg',
        '/JPEGImages/evil.jpg',
        'a/../../evil.jpg',
        '..\\evil.jpg',
        'C:\\evil.jpg',
    ],
)
def test_tar_entry_that_points_outside(tree, tmp_path, entry):
    path = tarred(tree)
    with tarfile.open(path, 'a') as archive:
        info = tarfile.TarInfo(entry)
        info.size = 4
        archive.addfile(info, io.BytesIO(b'evil'))
    before = set(tmp_path.rglob('*'))
    with pytest.raises(ValueError, match='evil.*points out of the archive'):
        convert(path, tmp_path)
    assert set(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('name', ['../../evil', '/evil', 'a/b', '..\\evil', '.hidden'])
def test_listed_name_that_points_outside(tree, tmp_path, name):
    (tree / 'ImageSets' / 'Segmentation' / 'val.txt').write_text(f'{name}\n')
    with pytest.raises(ValueError, match='val.txt .* names the image .*expected letters'):
        convert(tree, tmp_path)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('kind', ['folder', 'tar'])
@pytest.mark.parametrize(
    'path', ['JPEGImages/2007_000033.jpg', 'SegmentationClass/2007_000033.png']
)
def test_missing_file(tree, tmp_path, kind, path):
    (tree / path).unlink()
    with pytest.raises(ValueError, match=f'lacks 1 of 6 images and masks, the .*{path}'):
        convert(source_of(tree, kind), tmp_path)
    assert not (tmp_path / 'out').exists()


def test_missing_and_empty_list(tree, tmp_path):
    path = tree / 'ImageSets' / 'Segmentation' / 'val.txt'
    path.write_text('\n')
    with pytest.raises(ValueError, match='val.txt .*is empty'):
        convert(tree, tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match='lacks ImageSets/Segmentation/val.txt'):
        convert(tree, tmp_path)
    (tree / 'ImageSets' / 'Segmentation' / 'train.txt').unlink()
    with pytest.raises(ValueError, match='found no ImageSets/Segmentation/train.txt'):
        convert(tree, tmp_path)


def test_image_in_both_lists(tree, tmp_path):
    (tree / 'ImageSets' / 'Segmentation' / 'val.txt').write_text('2007_000032\n')
    with pytest.raises(ValueError, match='2007_000032 occurs 2 times'):
        convert(tree, tmp_path)


def test_two_data_sets_in_one_folder(tree, tmp_path):
    other = tree.parent / 'VOC2007' / 'ImageSets' / 'Segmentation'
    other.mkdir(parents=True)
    (other / 'train.txt').write_text('000032\n')
    with pytest.raises(ValueError, match='several data sets.*VOC2007/.*VOC2012/'):
        convert(tree.parent, tmp_path)


@pytest.mark.parametrize(
    'path', ['JPEGImages/2007_000033.jpg', 'SegmentationClass/2007_000033.png']
)
def test_truncated_image(tree, tmp_path, path):
    data = (tree / path).read_bytes()
    (tree / path).write_bytes(data[: int(0.8 * len(data))])
    with pytest.raises(ValueError, match=f'{path}.*cannot be read as an image'):
        convert(tree, tmp_path)
    assert not (tmp_path / 'out' / 'annotations').exists()


def test_masks_that_do_not_fit(tree, tmp_path):
    path = tree / 'SegmentationClass' / '2007_000033.png'
    save_palette(np.zeros((20, 25)), path)
    with pytest.raises(ValueError, match=r'\(20, 25\); expected one channel .*\(20, 24\)'):
        convert(tree, tmp_path)
    Image.new('RGB', (24, 20)).save(path)
    with pytest.raises(ValueError, match=r'\(20, 24, 3\); expected one channel'):
        convert(tree, tmp_path)
    save_palette(np.full((20, 24), 21), path)
    with pytest.raises(ValueError, match='has the value 21; expected classes from 0 to 20'):
        convert(tree, tmp_path)
    save_palette(np.zeros((20, 24)), path)
    with pytest.raises(ValueError, match='2007_000033.png .*lies on no class'):
        convert(tree, tmp_path, instances='object')


def test_annotations_of_another_origin_are_kept(tree, tmp_path):
    foreign = tmp_path / 'out' / 'annotations' / 'val.json'
    foreign.parent.mkdir(parents=True)
    foreign.write_text('{"info": {"generator": "other"}}')
    with pytest.raises(FileExistsError, match="val.json.*'other'"):
        convert(tree, tmp_path)
    assert foreign.read_text() == '{"info": {"generator": "other"}}'
