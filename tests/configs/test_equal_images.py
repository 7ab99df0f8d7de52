"""LossTransform-v1 takes as many images a step and an epoch as the plain config."""

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from lt_mm.datasets.converters import write_shapes_dataset
from tests.paths import CONFIGS

# Plain configs; the v1 twin has '_lt_v1' in the place of the last part of the name.
COCO = [
    'coco/faster_rcnn_r50_tv.py',
    'coco/faster_rcnn_mobilenetv3l_tv.py',
    'coco/retinanet_r50_tv.py',
]
IMAGENET = [
    'imagenet/resnet50_ft.py',
    'imagenet/resnext50_ft.py',
    'imagenet/mobilenet_v2_ft.py',
    'imagenet/efficientnet_b0_ft.py',
    'imagenet/vit_b16_ft.py',
]
NUM_IMAGES = {'mmdet': 10, 'mmpretrain': 70}  # the last step of an epoch is not full


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    """Options that put a small data set in COCO format in the place of COCO."""
    root = tmp_path_factory.mktemp('shapes')
    write_shapes_dataset(
        root, num_train=NUM_IMAGES['mmdet'], num_val=2, image_size=(96, 128), seed=0
    )
    return dict(
        data_root=str(root),
        ann_file='annotations/train.json',
        data_prefix=dict(img='train/'),
        filter_cfg=dict(filter_empty_gt=False),
        metainfo=dict(classes=('circle', 'square', 'triangle')),
    )


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """Options that put few images in the place of ImageNet."""
    root = tmp_path_factory.mktemp('imagenet')
    (root / 'train').mkdir()
    lines = []
    for i in range(NUM_IMAGES['mmpretrain']):
        cv2.imwrite(str(root / 'train' / f'{i}.png'), np.full((8, 8, 3), i, np.uint8))
        lines.append(f'{i}.png {i % 3}')
    (root / 'train.txt').write_text('\n'.join(lines))
    return dict(data_root=str(root), ann_file='train.txt')


def steps_of_an_epoch(config, request):
    """The paths of the images of every step of one epoch, from the config's loader."""
    cfg = Config.fromfile(str(CONFIGS / config))
    init_default_scope(cfg.default_scope)
    is_detector = cfg.default_scope == 'mmdet'
    loader = cfg.train_dataloader
    loader.dataset.update(request.getfixturevalue('shapes' if is_detector else 'pictures'))
    # No step looks at the pixels.
    pack = dict(type='PackDetInputs' if is_detector else 'PackInputs')
    loader.dataset.pipeline = [dict(type='LoadImageFromFile'), pack]
    loader.update(num_workers=0, persistent_workers=False)
    return [
        [sample.img_path for sample in batch['data_samples']]
        for batch in Runner.build_dataloader(loader, seed=0)
    ]


@pytest.mark.parametrize('config', COCO + IMAGENET)
def test_steps_and_epochs_of_v1_are_as_long(config, request):
    plain = steps_of_an_epoch(config, request)
    twin = config.rsplit('_', 1)[0] + '_lt_v1.py'
    repeated = steps_of_an_epoch(twin, request)
    assert [len(step) for step in repeated] == [len(step) for step in plain]
    images = [path for step in plain for path in step]
    assert len(images) == len(set(images)) in NUM_IMAGES.values()
    for step in repeated:  # half as many sources, each of them twice
        assert step[::2] == step[1::2] and len(set(step)) == len(step) // 2


@pytest.mark.parametrize('name', ['mobilenet_v2', 'efficientnet_b0'])
def test_m4_repeats_the_epoch_four_times_in_steps_of_equal_size(name, request):
    plain = steps_of_an_epoch(f'imagenet/{name}_m1.py', request)
    repeated = steps_of_an_epoch(f'imagenet/{name}_lt_m4.py', request)
    assert [len(step) for step in plain] == [70]
    assert [len(step) for step in repeated] == [128, 128, 4 * 70 - 2 * 128]
    assert all(len(set(step)) == len(step) // 4 for step in repeated)
