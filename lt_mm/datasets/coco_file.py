"""COCO annotation files: their schema, and what is wrong with one, before training.

msgspec checks the schema while it parses, nine times as fast as the standard library parses
alone, and passes over what the schema does not name. Segmentations are not named: they are
examined when they are loaded, see :mod:`lt_mm.datasets.transforms.annotation_cleaning`.
"""

import gc
import json
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec

from lt_mm.datasets.reporting import DataSetError

CLASSES_HINT = (
    'set the names that the annotation file uses, in its order: train_dataloader.dataset.metainfo'
    "=dict(classes=('name', ...)), with a comma after a single one, and num_classes of "
    'the head to their number'
)
_KEYS = ('images', 'annotations', 'categories')
_Id = int | float | str  # some writers give whole numbers as floats
_Flag = int | float | bool | None
_Side = Annotated[float, msgspec.Meta(ge=1)]


class _Image(msgspec.Struct, gc=False):
    id: _Id
    file_name: Annotated[str, msgspec.Meta(min_length=1)]
    height: _Side
    width: _Side


class _Annotation(msgspec.Struct, gc=False):
    id: _Id
    image_id: _Id
    category_id: _Id
    bbox: tuple[float, float, float, float]
    area: float
    iscrowd: _Flag = 0
    ignore: _Flag = 0


class _Category(msgspec.Struct, gc=False):
    id: _Id
    name: str


class _CocoFile(msgspec.Struct):
    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Annotation] = []  # a file for images without labels has none


class _WithId(msgspec.Struct, gc=False):
    id: _Id


class _ImageIds(msgspec.Struct):
    images: list[_WithId]


_EXPECTED = {
    'id': 'a whole number or a text',
    'image_id': 'the id of an image',
    'category_id': 'the id of a category',
    'file_name': 'the path of the file below data_prefix',
    'height': 'a whole number of pixels, 1 or more',
    'width': 'a whole number of pixels, 1 or more',
    'bbox': 'four numbers, [x, y, width, height]',
    'area': 'a number of pixels',
    'iscrowd': '0 or 1',
    'ignore': '0 or 1',
    'name': 'a text',
}


def check_coco_file(
    path: str | Path, classes: Sequence[str], filter_cfg: Mapping[str, Any]
) -> list[str]:
    """Makes sure that mmdet's ``CocoDataset`` loads from a file what the file means.

    Args:
        path: The annotation file.
        classes: Names of the classes that are to be trained on; none for all.
        filter_cfg: The data set's, for example ``dict(filter_empty_gt=True, min_size=32)``.

    Returns:
        What the stock data set leaves out without a word, for the log.

    Raises:
        DataSetError: If it loads something else, or nothing; the message names the place in
            the file, its value, and what to change.
        OSError: If the file cannot be read.
    """
    data = Path(path).read_bytes()
    try:
        coco = _parsed(data)
        if not isinstance(classes, (list, tuple)) or not all(isinstance(c, str) for c in classes):
            name = classes if isinstance(classes, str) else 'name'
            raise DataSetError(
                f'is to be read for classes={classes!r}; expected a tuple of names, with a comma '
                f'after a single one: classes=({name!r}, )'
            )
        _check_ids(coco)
        _check_categories(coco.categories, classes)
        _check_something_is_left(coco, classes, filter_cfg)
        return [f'{path}: {note}' for note in [*_check_references(coco), *_left_out(coco, classes)]]
    except DataSetError as error:
        raise DataSetError(f'{path} {error}') from error.__cause__


def check_image_ids(path: str | Path) -> None:
    """Makes sure that no two images of a file in the form of COCO's have the same id.

    Nothing else is expected of the file; what is not in this form is not checked.

    Raises:
        DataSetError: If two have; the message names their places.
        OSError: If the file cannot be read.
    """
    with suppress(msgspec.MsgspecError):
        images = msgspec.json.decode(Path(path).read_bytes(), type=_ImageIds).images
        try:
            _check_different('images', [each.id for each in images])
        except DataSetError as error:
            raise DataSetError(f'{path} {error}') from None


# -- the schema --------------------------------------------------------------


def _parsed(data: bytes) -> _CocoFile:
    """Parses a file; one that is not as it should be a second time, to name the place."""
    try:
        return msgspec.json.decode(data, type=_CocoFile)
    except msgspec.ValidationError:
        is_json = True
    except (ValueError, ArithmeticError, RecursionError):
        is_json = False
    was_on = gc.isenabled()
    gc.disable()  # it would walk again and again through all that was parsed
    try:
        return _checked(_content_of(data, is_json))
    finally:
        if was_on:
            gc.enable()


def _content_of(data: bytes, is_json: bool) -> Any:
    if is_json:  # at least up to the first fault
        with suppress(ValueError, ArithmeticError, RecursionError):
            return msgspec.json.decode(data)
    try:
        # The standard library also reads NaN and infinity, and so does pycocotools.
        return json.loads(data.decode('utf-8'))
    except RecursionError as error:
        raise DataSetError('is nested too deeply. Download or write it again') from error
    except ValueError as error:  # the bytes are not text, or the text is not json
        raise DataSetError(
            f'is not complete, valid json ({error}); it has {len(data)} bytes. '
            'Download or write it again'
        ) from error


def _checked(content: Any) -> _CocoFile:
    """The content in the types of the schema."""
    if not isinstance(content, dict):
        raise DataSetError(
            f'holds a {type(content).__name__}; expected COCO json, an object with keys {_KEYS}'
        )
    for key in _KEYS:
        if not isinstance(content.get(key, () if key == 'annotations' else None), (list, tuple)):
            raise DataSetError(
                f'has no list {key!r}, but the keys {reprlib.repr(list(content))}; expected COCO '
                f'json, an object with keys {_KEYS}. Check train_dataloader.dataset.ann_file'
            )
    try:
        return msgspec.convert(content, type=_CocoFile)
    except msgspec.ValidationError as error:
        raise DataSetError(_schema_fault(str(error), content)) from error


def _schema_fault(message: str, content: dict) -> str:
    """Names the place, its value and what was expected, from an error of msgspec."""
    what, _, place = message.partition(' - at `$.')
    place = place.rstrip('`')
    value: Any = content
    for name, row in re.findall(r'(\w+)|\[(\d+)\]', place):
        value = value[name] if name else value[int(row)]
    missing = re.search('required field `(.*)`', what)
    field = missing[1] if missing else re.sub(r'\[\d+\]$', '', place).rpartition('.')[2]
    without = f' without {field}' if missing else ''
    expected = _EXPECTED.get(field, 'an object')
    return (
        f'has {place}{without}: {reprlib.repr(value)}. {what}; for {field!r} expected {expected}. '
        'Correct the entry or take it out of the file'
    )


# -- ids ---------------------------------------------------------------------


def _check_ids(coco: _CocoFile) -> None:
    for name in _KEYS:
        _check_different(name, [each.id for each in getattr(coco, name)])
    for row, image in enumerate(coco.images):
        if image.height % 1 or image.width % 1:
            raise DataSetError(
                f'has images[{row}] of {image.width} x {image.height} pixels; expected whole '
                'numbers. Write the size that the image file has'
            )


def _check_different(name: str, ids: Sequence[_Id]) -> None:
    places: dict[Hashable, int] = {}
    for row, own in enumerate(ids):
        if isinstance(own, float) and not own.is_integer():
            raise DataSetError(
                f'has {name}[{row}].id = {own}; expected {_EXPECTED["id"]}. Give it another one'
            )
        first = places.setdefault(own, row)
        if first != row:
            raise DataSetError(
                f'has {name}[{row}] with the id {own!r} of another one, {name}[{first}], so '
                'that one of them would be taken for the other; expected ids that are all '
                f'different. Number the {name} anew, or take out what is there twice'
            )


def _check_references(coco: _CocoFile) -> Iterable[str]:
    """Refuses ids of another type, such as '1' for 1; notes those that do not exist."""
    for field, name in (('image_id', 'images'), ('category_id', 'categories')):
        ids = {each.id for each in getattr(coco, name)}
        strays = [
            (row, own)
            for row, each in enumerate(coco.annotations)
            if (own := getattr(each, field)) not in ids
        ]
        texts = {str(own): own for own in ids} if strays else {}
        for row, own in strays:
            if str(own) in texts:
                raise DataSetError(
                    f'has annotations[{row}].{field} = {own!r}, which is not the id '
                    f'{texts[str(own)]!r} of {name}, so that the annotation would belong to none; '
                    f'expected the same type. Write both as numbers'
                )
        if strays:
            row, own = strays[0]
            yield (
                f'{len(strays)} annotations have no entry in {name}, and are left out; the first '
                f'is annotations[{row}].{field} = {own!r}'
            )


# -- classes -----------------------------------------------------------------


def _check_categories(categories: Sequence[_Category], classes: Sequence[str]) -> None:
    """Labels are numbered in the order of the file, whatever the order of the classes is."""
    names = [each.name for each in categories if not classes or each.name in classes]
    counts = Counter(names)
    for row, each in enumerate(categories):
        if counts[each.name] > 1:
            raise DataSetError(
                f'has the name {each.name!r} of categories[{row}] more than once, so that it gets '
                'two labels; expected names that are all different. Join the categories'
            )
    if not names:
        raise DataSetError(
            f'has none of the classes {briefly(classes)}; its categories are '
            f'{briefly([each.name for each in categories])}. Set train_dataloader.dataset.metainfo='
            'dict(classes=(...)), and num_classes of the head to their number'
        )
    if not classes:
        return
    for label, name in enumerate(names):
        if classes[label] != name:
            raise DataSetError(
                f'gives the label {label} to {name!r}, since its categories are in the order '
                f'{briefly(names)}, but classes[{label}] is {classes[label]!r}; '
                f'expected {CLASSES_HINT.removeprefix("set ")}. Here: classes={tuple(names)}'
            )


def _check_something_is_left(
    coco: _CocoFile, classes: Sequence[str], filter_cfg: Mapping[str, Any]
) -> None:
    kept = _ids_of(coco.categories, classes)
    annotated = {each.image_id for each in coco.annotations if each.category_id in kept}
    min_size = filter_cfg.get('min_size', 0)
    if not isinstance(min_size, (int, float)):
        raise DataSetError(
            f'is to be filtered by min_size={min_size!r}; expected a number of pixels. Check '
            'train_dataloader.dataset.filter_cfg'
        )
    large = [image for image in coco.images if min(image.width, image.height) >= min_size]
    if not large or (
        filter_cfg.get('filter_empty_gt') and not (annotated & {image.id for image in large})
    ):
        raise DataSetError(
            f'has no image that is left: of its {len(coco.images)} images {len(large)} are at '
            f'least {min_size} pixels wide and high, and {len(annotated)} have annotations of the '
            f'classes {briefly(classes)}. Check train_dataloader.dataset.filter_cfg='
            f'{dict(filter_cfg)}'
        )


def _ids_of(categories: Iterable[_Category], classes: Collection[str]) -> set[_Id]:
    return {each.id for each in categories if not classes or each.name in classes}


# -- what the stock data set leaves out ----------------------------------------


def _left_out(coco: _CocoFile, classes: Sequence[str]) -> Iterable[str]:
    """Counts the annotations of the classes that ``CocoDataset`` drops for their box."""
    images = {each.id: each for each in coco.images}
    kept = _ids_of(coco.categories, classes)
    reasons: dict[str, Callable[[_Annotation, _Image], bool]] = {
        'their box lies outside the image, or is not a number': _is_outside,
        'their area is not above 0, or their box is less than a pixel wide or high': _is_too_small,
    }
    rows: dict[str, list[int]] = {reason: [] for reason in reasons}
    for row, each in enumerate(coco.annotations):
        image = images.get(each.image_id)
        if image is None or each.category_id not in kept or each.ignore:
            continue
        for reason, applies in reasons.items():
            if applies(each, image):
                rows[reason].append(row)
                break
    for reason, found in rows.items():
        if found:
            first = coco.annotations[found[0]]
            yield (
                f'{len(found)} annotations are left out because {reason}; the first is '
                f'annotations[{found[0]}] with bbox {list(first.bbox)} and area {first.area}'
            )


def _is_outside(each: _Annotation, image: _Image) -> bool:
    # As in CocoDataset.parse_data_info, where the order of the arguments decides for NaN.
    x, y, width, height = each.bbox
    inter_w = max(0, min(x + width, image.width) - max(x, 0))
    inter_h = max(0, min(y + height, image.height) - max(y, 0))
    return inter_w * inter_h == 0


def _is_too_small(each: _Annotation, image: _Image) -> bool:
    return each.area <= 0 or each.bbox[2] < 1 or each.bbox[3] < 1


def briefly(names: Sequence[str]) -> str:
    """At most five of the names, for a message."""
    shown = ', '.join(map(repr, names[:5]))
    return f'({shown}{", ..." if len(names) > 5 else ""})'
