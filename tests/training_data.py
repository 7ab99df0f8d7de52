"""Small trainings with the real Runner, on made data."""

from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

import tests.quick_configs  # noqa: F401 (takes effect when it is imported)
from lt_mm.apis import train as api
from tests.paths import CONFIGS


@HOOKS.register_module()
class RecordOutputs(Hook):
    """Keeps what every training step gave."""

    priority = 'LOW'

    def __init__(self) -> None:
        self.outputs = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.outputs.append({key: float(value.detach()) for key, value in outputs.items()})


def recorded(runner):
    return next(hook for hook in runner.hooks if isinstance(hook, RecordOutputs)).outputs


def write_pictures(root: Path) -> Path:
    """A folder a class, with six images each, which the class colours."""
    rng = np.random.default_rng(0)
    for label, color in enumerate([(255, 0, 0), (0, 255, 0)]):
        (root / str(label)).mkdir(parents=True)
        for i in range(6):
            image = rng.integers(0, 120, (32, 32, 3)) + np.array(color) // 2
            cv2.imwrite(str(root / str(label) / f'{i}.png'), image.astype(np.uint8))
    return root


def detector_options(shapes, **more):
    """Makes the demo small: few RoIs, small images, no worker processes."""
    options = {
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
        'val_dataloader.num_workers': 0,
        'val_dataloader.persistent_workers': False,
        'train_dataloader.dataset.data_root': str(shapes),
        'val_dataloader.dataset.data_root': str(shapes),
        'val_evaluator.ann_file': str(shapes / 'annotations' / 'val.json'),
        'test_dataloader.dataset.data_root': str(shapes),
        'test_dataloader.num_workers': 0,
        'test_dataloader.persistent_workers': False,
        'test_evaluator.ann_file': str(shapes / 'annotations' / 'val.json'),
        'model.backbone.base_channels': 16,
        'model.backbone.stem_channels': 16,
        'model.neck.in_channels': [16, 32, 64, 128],
        'model.train_cfg.rpn_proposal.max_per_img': 50,
        'train_cfg.max_epochs': 1,
        'train_cfg.val_interval': 1,
        'default_hooks.logger.interval': 1,
        'custom_hooks': [dict(type='RecordOutputs')],
    }
    return {**options, **more}


def train_demo(shapes, work_dir, config='faster_rcnn_r18_lt_demo.py', resume=None, **more):
    return api.train(
        str(CONFIGS / config),
        work_dir=str(work_dir),
        resume=resume,
        cfg_options=detector_options(shapes, **more),
    )


def classifier_config(pictures, tmp_path, **more):
    cfg = Config.fromfile(str(CONFIGS / 'resnet18_cifar10_lt.py'))
    dataset = cfg.train_dataloader.dataset
    loading = [dict(type='LoadImageFromFile')]
    pipeline = dataset.pipeline
    pipeline[0].transforms = loading + list(pipeline[0].transforms)
    folder = dict(type='CustomDataset', data_root=str(pictures), _delete_=True)
    cfg.merge_from_dict(
        {
            'train_dataloader.dataset': dict(folder, pipeline=pipeline),
            'train_dataloader.batch_size': 8,
            'train_dataloader.num_workers': 0,
            'train_dataloader.persistent_workers': False,
            'val_dataloader': None,
            'val_cfg': None,
            'val_evaluator': None,
            'test_dataloader': None,
            'test_cfg': None,
            'test_evaluator': None,
            'train_cfg.max_epochs': 1,
            'model.backbone.base_channels': 8,
            'model.backbone.stem_channels': 8,
            'model.head.head.in_channels': 64,
            'model.head.head.num_classes': 2,
            'data_preprocessor.num_classes': 2,
            'optim_wrapper.optimizer.lr': 0.01,
            'custom_hooks': [dict(type='RecordOutputs')],
            'randomness': dict(seed=0),
            'work_dir': str(tmp_path),
            **more,
        }
    )
    return cfg
