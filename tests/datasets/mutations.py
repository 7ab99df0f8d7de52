"""Damaged inputs for trials: changed COCO json, and changed image files."""

import copy
import io
import math

import cv2
import numpy as np
from PIL import Image

HEIGHT, WIDTH = 48, 64
CLASSES = ('disc', 'cube', 'cone')
_VALUES = (
    *(None, True, '', '1', 'text', math.nan, math.inf, -math.inf, -1, 0, 1, 2, 0.5, 1e308, 2**70),
    *([], [[]], [1, 2, 3], [[5, 5, 9]], {}, {'counts': 'oO', 'size': [HEIGHT, WIDTH]}),
)


def coco():
    """Four images; every kind of annotation: polygons, both kinds of RLE, a crowd."""
    outline = [5, 5, 25, 5, 25, 21, 5, 21]
    runs = [100, 50, HEIGHT * WIDTH - 150]
    masks = [
        [outline],
        dict(size=[HEIGHT, WIDTH], counts=runs),
        dict(size=[HEIGHT, WIDTH], counts='PXb11lf20001O0O'),
        [outline, [30, 30, 40, 30, 40, 40]],
    ]
    return dict(
        info=dict(year=2024),
        images=[
            dict(id=11 + row, file_name=f'{row}.png', width=WIDTH, height=HEIGHT)
            for row in range(4)
        ],
        annotations=[
            dict(
                id=row + 1,
                image_id=11 + row // 2,
                category_id=row % 3 + 1,
                bbox=[5 + row, 5, 20, 16.5],
                area=330,
                iscrowd=int(row == 3),
                segmentation=copy.deepcopy(masks[row % 4]),
            )
            for row in range(7)
        ],
        categories=[dict(id=row + 1, name=name) for row, name in enumerate(CLASSES)],
    )


def mutated(rng):
    """The data set above with one to three changes.

    Args:
        rng: A ``random.Random``.
    """
    content = coco()
    for _ in range(rng.choice([1, 1, 2, 3])):
        places = list(_places(content))
        if places:
            _change(*rng.choice(places), places, rng)
    return content


def _places(node):
    """All pairs of a list or dict and an index of it."""
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        yield node, key
        if isinstance(node[key], (dict, list)):
            yield from _places(node[key])


def _change(parent, key, places, rng):
    kind = rng.choice(['drop', 'value', 'text', 'nest', 'other', 'twice', 'order', 'scale'])
    value = parent[key]
    if kind == 'drop':
        del parent[key]
    elif kind == 'value':
        parent[key] = copy.deepcopy(rng.choice(_VALUES))
    elif kind == 'text':
        parent[key] = str(value)
    elif kind == 'nest':
        parent[key] = rng.choice([[value], {'value': value}])
    elif kind == 'other':  # such as the id of another entry
        where, other = rng.choice([each for each in places if each[1] == key])
        parent[key] = copy.deepcopy(where[other])
    elif kind == 'twice' and isinstance(parent, list):
        parent.append(copy.deepcopy(value))
    elif kind == 'order' and isinstance(value, list):
        rng.shuffle(value)
    elif isinstance(value, (int, float)):
        parent[key] = value * rng.choice([-1, 0, 0.5, 10, 1e6, 10**25])


def expected_contents(content):
    """What a file means, read in a naive way: (file, height, width, instances) an image.

    An instance is (label, box as xyxy, whether it is a crowd).
    """
    names = {each['id']: each['name'] for each in content['categories']}
    return [
        (
            image['file_name'],
            image['height'],
            image['width'],
            list(_instances(content, image, names)),
        )
        for image in content['images']
    ]


def _instances(content, image, names):
    for each in content.get('annotations', []):
        if each['image_id'] != image['id'] or names.get(each['category_id']) not in CLASSES:
            continue
        x, y, width, height = each['bbox']
        right, bottom = x + width, y + height
        is_inside = x < image['width'] and y < image['height'] and right > 0 and bottom > 0
        if each.get('ignore') or not (
            is_inside and width >= 1 and height >= 1 and each['area'] > 0
        ):
            continue
        label = CLASSES.index(names[each['category_id']])
        yield label, [x, y, right, bottom], bool(each.get('iscrowd'))


def picture():
    """Smooth noise: in every format it has bytes in all of its parts."""
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3))
    return cv2.GaussianBlur(noise.astype(np.uint8), (3, 3), 0)


def image_files():
    """By name, the picture in formats that OpenCV reads."""
    kinds = {
        'JPEG': dict(format='JPEG'),
        'progressive JPEG': dict(format='JPEG', progressive=True),
        'PNG': dict(format='PNG'),
        'BMP': dict(format='BMP'),
        'WebP': dict(format='WEBP'),
        'TIFF': dict(format='TIFF'),
        'deflated TIFF': dict(format='TIFF', compression='tiff_adobe_deflate'),
        'LZW TIFF': dict(format='TIFF', compression='tiff_lzw'),
    }
    files = {}
    for name, options in kinds.items():
        buffer = io.BytesIO()
        Image.fromarray(picture()[..., ::-1].copy()).save(buffer, **options)
        files[name] = buffer.getvalue()
    return files


def damaged(data, rng):
    """The bytes of a file, cut, changed in one or more places, or with bytes put in."""
    changed, size = bytearray(data), len(data)
    # Every second change is in the header, where sizes and places of other things are.
    place = rng.randrange(rng.choice([size, min(size, 64)]))
    kind = rng.choice(['bit', 'byte', 'zeros', 'ones', 'cut', 'insert', 'remove'])
    length = rng.randrange(1, 80)
    if kind == 'bit':
        changed[place] ^= 1 << rng.randrange(8)
    elif kind == 'byte':
        changed[place] = rng.randrange(256)
    elif kind in ('zeros', 'ones'):
        length = min(length, size - place)
        changed[place : place + length] = (b'\0' if kind == 'zeros' else b'\xff') * length
    elif kind == 'cut':
        del changed[place:]
    elif kind == 'insert':
        changed[place:place] = rng.randbytes(length)
    else:
        del changed[place : place + length]
    return bytes(changed)
