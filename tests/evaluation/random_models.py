"""Small stock models with random weights, and data for them.

Fixtures to import by the names of their functions and to use by their own.
"""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from tests.configs.made_data import write_pictures, write_shapes
from tests.paths import CONFIGS


@pytest.fixture(name='pictures', scope='module')
def pictures_fixture(tmp_path_factory):
    root = tmp_path_factory.mktemp('pictures') / 'all'
    write_pictures(root)
    return root


def classifier_options(pictures):
    """Twelve images of two classes, and a narrow network."""
    options = {'model.backbone.base_channels': 4, 'model.backbone.stem_channels': 4}
    for name in ('train', 'val', 'test'):
        options[f'{name}_dataloader.num_workers'] = 0
        options[f'{name}_dataloader.persistent_workers'] = False
        options[f'{name}_dataloader.dataset.data_root'] = str(pictures)
    return options


def wrapped_options(pictures):
    return dict(
        classifier_options(pictures),
        **{
            'model.head.head.in_channels': 32,
            'model.head.head.num_classes': 2,
            'data_preprocessor.num_classes': 2,
        },
    )


@pytest.fixture(name='classifier', scope='module')
def classifier_fixture(pictures, tmp_path_factory):
    """Config, checkpoint and options of a stock classifier with random weights."""
    config = str(CONFIGS / 'resnet18_cifar10_folder.py')
    options = dict(
        classifier_options(pictures),
        **{
            'model.head.in_channels': 32,
            'model.head.num_classes': 2,
            'data_preprocessor.num_classes': 2,
            'val_evaluator': dict(type='Accuracy'),
        },
    )
    checkpoint = tmp_path_factory.mktemp('weights') / 'classifier.pth'
    save_random_weights(config, options, checkpoint)
    return config, str(checkpoint), options


def save_random_weights(config, options, checkpoint):
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(copy.deepcopy(options))
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        model = registry.build(cfg.model)
    generator = torch.Generator().manual_seed(0)
    for value in model.parameters():
        if value.dim() > 1:  # as large as keeps the size of what goes through
            value.data = (
                torch.randn(value.shape, generator=generator) * (1.5 / value[0].numel()) ** 0.5
            )
    torch.save(dict(state_dict=model.state_dict()), checkpoint)


@pytest.fixture(name='detector', scope='module')
def detector_fixture(tmp_path_factory):
    """The demo detector, narrow, with random weights, on two images."""
    root = tmp_path_factory.mktemp('detector')
    write_shapes(root / 'shapes')
    options = {
        'model.backbone.base_channels': 8,
        'model.backbone.stem_channels': 8,
        'model.neck.in_channels': [8, 16, 32, 64],
        'model.neck.out_channels': 16,
        'model.rpn_head.in_channels': 16,
        'model.rpn_head.feat_channels': 16,
        'model.roi_head.head.bbox_roi_extractor.out_channels': 16,
        'model.roi_head.head.bbox_head.in_channels': 16,
        'model.roi_head.head.bbox_head.fc_out_channels': 16,
        'model.test_cfg.rpn.max_per_img': 20,
        'model.test_cfg.rpn.nms_pre': 50,
        'train_dataloader.dataset.data_root': str(root / 'shapes'),
    }
    for name in ('val', 'test'):
        options[f'{name}_dataloader.dataset.data_root'] = str(root / 'shapes')
        options[f'{name}_dataloader.num_workers'] = 0
        options[f'{name}_dataloader.persistent_workers'] = False
        options[f'{name}_evaluator.ann_file'] = str(root / 'shapes/annotations/val.json')
    config = str(CONFIGS / 'faster_rcnn_r18_lt_demo.py')
    save_random_weights(config, options, root / 'detector.pth')
    return config, str(root / 'detector.pth'), options
