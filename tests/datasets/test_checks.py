"""The frameworks' data set classes read what the converters write and what CIFAR ships."""

import json
import pickle
import struct
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset, XMLDataset
from mmdet.registry import DATASETS as MMDET_DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.datasets import CIFAR10, CIFAR100
from mmpretrain.registry import DATASETS, MODELS
from PIL import Image

from lt_mm.datasets import checks
from lt_mm.datasets.checks import check_annotation_files, explained
from lt_mm.datasets.converters import VOC_CLASSES, convert_voc2012
from lt_mm.datasets.reporting import DataSetError
from tests.paths import CONFIGS

# -- equal ids in data sets with parsers of their own -------------------------------


class OwnParser(CocoDataset):
    def parse_data_info(self, raw_data_info):
        return super().parse_data_info(raw_data_info)


def write_coco(path, image_ids=(1, 2)):
    """A file with a box in each image, without the areas that LVIS need not have."""
    category = dict(id=1, name='cat')
    images = [
        dict(id=own, file_name=f'{row}.jpg', height=9, width=9) for row, own in enumerate(image_ids)
    ]
    annotations = [
        dict(id=row, image_id=own, category_id=1, bbox=[0, 0, 5, 5], area=25, iscrowd=0)
        for row, own in enumerate(image_ids)
    ]
    content = dict(images=images, annotations=annotations, categories=[category])
    path.write_text(json.dumps(content))
    return dict(
        ann_file=str(path), data_prefix=dict(img=''), metainfo=dict(classes=('cat',)), pipeline=[]
    )


@pytest.mark.parametrize('test_mode', [False, True])
def test_equal_ids_of_images_are_refused_whatever_parses_them(test_mode, tmp_path):
    path = tmp_path / 'a.json'
    check_annotation_files(OwnParser(**write_coco(path), test_mode=test_mode))
    dataset = OwnParser(**write_coco(path, (1, 2, 1)), test_mode=test_mode)
    with pytest.raises(DataSetError, match=r'a.json has images\[2\] with the id 1 of another one'):
        check_annotation_files(dataset)


def test_a_fault_in_the_validation_file_names_the_validation_loader(tmp_path):
    options = write_coco(tmp_path / 'val.json', (1, 1))
    cfg = dict(options, type='CocoDataset', test_mode=True)
    with pytest.raises(DataSetError, match='val.json has images'), explained(cfg, 'val_dataloader'):
        check_annotation_files(CocoDataset(**options, test_mode=True))
    (tmp_path / 'val.json').write_text('{"images": []')
    with (
        pytest.raises(DataSetError, match='val_dataloader.dataset: .*val.json is not complete'),
        explained(cfg, 'val_dataloader'),
    ):
        CocoDataset(**options, test_mode=True)
    other = write_coco(tmp_path / 'val.json')
    other['metainfo'] = dict(classes=('dog',))
    with (
        pytest.raises(DataSetError, match='Set val_dataloader.dataset.metainfo'),
        explained(dict(other, type='CocoDataset'), 'val_dataloader'),
    ):
        check_annotation_files(CocoDataset(**other, test_mode=True))


def test_images_that_a_list_of_voc_names_twice_are_logged(tmp_path, monkeypatch):
    (tmp_path / 'Annotations').mkdir()
    for name in 'ab':
        (tmp_path / 'Annotations' / f'{name}.xml').write_text(
            '<a><size><width>9</width><height>9</height></size></a>'
        )
    (tmp_path / 'list.txt').write_text('a\nb\na\n')
    dataset = XMLDataset(
        ann_file=str(tmp_path / 'list.txt'),
        data_prefix=dict(sub_data_root=str(tmp_path)),
        metainfo=dict(classes=('cat',)),
        pipeline=[],
    )
    notes = []
    monkeypatch.setattr(checks, 'warn', notes.append)
    check_annotation_files(dataset)
    (note,) = notes
    assert 'list.txt lists 1 images more than once' in note and "'a'" in note


# -- PASCAL VOC 2012 ---------------------------------------------------------------


@pytest.fixture
def voc(tmp_path):
    """Two images; the only one of the validation split has no object."""
    base = tmp_path / 'VOC2012'
    for part in ('ImageSets/Segmentation', 'JPEGImages', 'SegmentationClass'):
        (base / part).mkdir(parents=True)
    masks = dict(train=np.zeros((30, 40), np.uint8), val=np.zeros((20, 20), np.uint8))
    masks['train'][2:12, 3:13] = 15
    masks['train'][4:10, 5:9] = 0  # a hole, which a polygon could not express
    masks['train'][12:20, 20:30] = 1
    masks['train'][10:14, 30:39] = 20
    for split, mask in masks.items():
        Image.new('RGB', mask.shape[::-1]).save(base / 'JPEGImages' / f'{split}.jpg')
        (base / 'ImageSets' / 'Segmentation' / f'{split}.txt').write_text(split)
        save_indices(mask, base / 'SegmentationClass' / f'{split}.png')
    return masks, convert_voc2012(base, tmp_path / 'out')


def save_indices(mask, path):
    image = Image.frombytes('P', mask.shape[::-1], mask.tobytes())
    image.putpalette([i // 3 for i in range(768)])
    image.save(path)


def test_mmdet_reads_voc2012_with_masks(voc):
    masks, splits = voc
    init_default_scope('mmdet')
    loading = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    ]
    packing = dict(type='PackDetInputs', meta_keys=('img_id', 'ori_shape'))
    for split, mask in masks.items():
        dataset = MMDET_DATASETS.build(
            dict(
                type='CocoDataset',
                ann_file=str(splits[split].ann_file),
                data_prefix=dict(img=str(splits[split].image_dir)),
                metainfo=dict(classes=VOC_CLASSES),
                filter_cfg=dict(filter_empty_gt=False),
                pipeline=[dict(type='lt_mm.InvertiblePipeline', transforms=[*loading, packing])],
            )
        )
        assert len(dataset) == 1
        instances = dataset[0]['data_samples'].gt_instances
        expected = [label for label in np.unique(mask) if label > 0]
        assert [int(label) + 1 for label in instances.labels] == expected
        for found, label, box in zip(instances.masks.masks, expected, instances.bboxes):
            assert np.array_equal(found, mask == label)
            ys, xs = np.nonzero(mask == label)
            assert box.tensor.flatten().tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert instances.source_ids[:, 1].tolist() == list(range(len(expected)))


# -- CIFAR as pickles --------------------------------------------------------------


class _Python2Pickler(pickle._Pickler):
    """Writes text and bytes as Python 2's str, as the archives have them."""

    dispatch = dict(pickle._Pickler.dispatch)

    def _save_str(self, obj):
        data = obj.encode('latin1') if isinstance(obj, str) else obj
        self.write(pickle.BINSTRING + struct.pack('<i', len(data)) + data)
        self.memoize(obj)

    dispatch[str] = dispatch[bytes] = _save_str


def write_batch(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('wb') as file:
        _Python2Pickler(file, protocol=2).dump(content)
    # The name of NumPy's module when the archives were written.
    path.write_bytes(path.read_bytes().replace(b'numpy._core', b'numpy.core'))


# Without checksums, which only the real files have; None is the stock way to say so.
class MadeCIFAR10(CIFAR10):
    train_list = [[name, None] for name, _ in CIFAR10.train_list]
    test_list = [[name, None] for name, _ in CIFAR10.test_list]


class MadeCIFAR100(CIFAR100):
    train_list = [[name, None] for name, _ in CIFAR100.train_list]
    test_list = [[name, None] for name, _ in CIFAR100.test_list]


@pytest.fixture(
    params=[(MadeCIFAR10, 'labels', 10), (MadeCIFAR100, 'fine_labels', 100)],
    ids=['cifar10', 'cifar100'],
)
def cifar(request, tmp_path):
    """Pickles of three images each: rows of 1024 red, 1024 green and 1024 blue bytes."""
    cls, key, count = request.param
    rng = np.random.default_rng(0)
    expected = {}
    for split in ('train', 'test'):
        images, labels = [], []
        for name, _ in getattr(cls, f'{split}_list'):
            own = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
            own_labels = rng.integers(0, count, 3).tolist()
            content = {
                'batch_label': f'{split}ing batch of 1',
                key: own_labels,
                'data': own.transpose(0, 3, 1, 2).reshape(3, 3072),
                'filenames': ['leptodactylus_pentadactylus_s_000004.png'] * 3,
            }
            if key == 'fine_labels':
                content['coarse_labels'] = [0, 0, 0]
            write_batch(tmp_path / cls.base_folder / name, content)
            images.append(own)
            labels += own_labels
        expected[split] = np.concatenate(images), labels
    return cls, tmp_path, expected


@pytest.mark.parametrize('split', ['train', 'test'])
def test_cifar_pickles(cifar, split):
    cls, root, expected = cifar
    init_default_scope('mmpretrain')
    dataset = cls(
        data_root=str(root),
        split=split,
        download=False,
        pipeline=[dict(type='lt_mm.InvertiblePipeline', transforms=[dict(type='PackInputs')])],
    )
    images, labels = expected[split]
    assert len(dataset) == len(images)
    assert len(dataset.CLASSES) == (10 if cls is MadeCIFAR10 else 100)
    for i, (image, label) in enumerate(zip(images, labels)):
        packed = dataset[i]
        assert torch.equal(packed['inputs'], torch.from_numpy(image).permute(2, 0, 1))
        sample = packed['data_samples']
        assert sample.gt_label == label
        assert (sample.source_id, sample.source_shape) == (i, (32, 32))


def test_the_stock_classes_check_the_files(cifar):
    """Why the test above makes subclasses: made files have other checksums."""
    cls, root, _ = cifar
    with pytest.raises(RuntimeError, match='Cannot find CIFAR10'):
        cls.__base__(data_root=str(root), download=False, pipeline=[])


# -- CIFAR as folders --------------------------------------------------------------


def folder_config(root):
    cfg = Config.fromfile(str(CONFIGS / 'resnet18_cifar10_folder_lt.py'))
    init_default_scope(cfg.default_scope)
    cfg.train_dataloader.dataset.data_root = str(root / 'train')
    cfg.val_dataloader.dataset.data_root = str(root / 'test')
    return cfg


def assert_folders_are_read(root, classes):
    cfg = folder_config(root)
    train = DATASETS.build(cfg.train_dataloader.dataset)
    val = DATASETS.build(cfg.val_dataloader.dataset)
    assert tuple(train.CLASSES) == tuple(val.CLASSES) == tuple(classes)
    preprocessor = MODELS.build(dict(cfg.data_preprocessor, type='ClsDataPreprocessor'))
    mean, std = np.array(cfg.data_preprocessor.mean), np.array(cfg.data_preprocessor.std)
    for i in range(len(val)):
        item = val[i]
        path = Path(item['data_samples'].img_path)
        assert item['data_samples'].gt_label == classes.index(path.parent.name)
        data = preprocessor(dict(inputs=[item['inputs']], data_samples=[item['data_samples']]))
        rgb = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        expected = torch.from_numpy((rgb - mean) / std).permute(2, 0, 1).float()
        torch.testing.assert_close(data['inputs'][0], expected)
    for i in range(len(train)):
        replicas = [train[i]['data_samples'] for _ in range(2)]
        for sample in replicas:
            assert sample.source_id == i and sample.img_shape[:2] == (32, 32)
            folder = Path(sample.img_path).parent.name
            assert sample.gt_label == classes.index(folder)
    return train, val


def test_cifar_folders(tmp_path):
    rng = np.random.default_rng(0)
    for split in ('train', 'test'):
        for name in ('cat', 'airplane', 'dog'):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(2):
                # Smooth, and of a colour that tells the channels apart.
                coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
                cv2.imwrite(str(folder / f'{i:04d}.jpg'), cv2.resize(coarse, (32, 32)))
    train, val = assert_folders_are_read(tmp_path, ['airplane', 'cat', 'dog'])
    assert len(train) == len(val) == 6


def test_real_cifar_folders(data_dir, tmp_path):
    """Folder names in alphabetical order are CIFAR-10's classes in their order."""
    path = data_dir / 'cifar10-jpg.zip'
    if not path.is_file():
        pytest.skip(f'no {path.name} in {data_dir}')
    classes = list(CIFAR10.METAINFO['classes'])
    with zipfile.ZipFile(path) as archive:
        for split in ('train', 'test'):
            for name in classes:
                archive.extract(f'cifar10-jpg/{split}/{name}/0000.jpg', tmp_path)
    train, _ = assert_folders_are_read(tmp_path / 'cifar10-jpg', classes)
    assert len(train) == 10
