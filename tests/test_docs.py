"""What the guides show works as they say."""

import re

import numpy as np
import pytest
from mmdet.registry import TRANSFORMS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from lt_mm.structures.errors import LostRecordError
from tests.paths import DOCS


def code_of(name):
    return re.findall(
        r'^```python\n(.*?)^```', (DOCS / name).read_text(), flags=re.MULTILINE | re.DOTALL
    )


@pytest.fixture
def guide():
    """What the code of the guide on transforms defines."""
    init_default_scope('mmdet')
    names = {}
    for code in code_of('invertible_transforms.md'):
        exec(code, names)
    yield names
    TRANSFORMS._module_dict.pop('RandomStretch')


def sample(boxes):
    return dict(
        sample_idx=5,
        img=np.zeros((60, 80, 3), np.uint8),
        img_shape=(60, 80),
        ori_shape=(60, 80),
        height=60,
        width=80,
        img_path='made.png',
        img_id=5,
        instances=[dict(bbox=box, bbox_label=0, ignore_flag=0) for box in boxes],
    )


def test_the_transform_of_the_guide_is_recorded(guide):
    boxes = [[3.5, 4, 20, 30], [40, 10, 79, 59.25]]
    np.random.seed(0)
    for most in (1.5, 4.0):
        error = guide['largest_error'](dict(type='RandomStretch', most=most), sample(boxes))
        assert error < 1e-3


def test_what_the_guide_says_loses_the_record(guide):

    class Shifts(guide['BaseTransform']):
        def transform(self, results):
            results['gt_bboxes'].tensor[:, 0] += 4
            return results

    with pytest.raises(LostRecordError, match='Shifts'):
        guide['largest_error'](Shifts(), sample([[3, 4, 20, 30]]))


def test_the_overrides_of_the_guide_make_a_config(tmp_path):
    """All three in one file, on a stock config."""
    overrides = '\n'.join(code_of('wrap_your_config.md')[:3])
    base = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
    # One file sets a variable once; the guide shows its parts one by one.
    parts = re.split(r'^train_dataloader = ', overrides, flags=re.MULTILINE)
    text = parts[0].replace('my_config.py', base) + 'train_dataloader = ' + parts[1]
    (tmp_path / 'first.py').write_text(text)
    (tmp_path / 'second.py').write_text("_base_ = 'first.py'\ntrain_dataloader = " + parts[2])
    cfg = Config.fromfile(str(tmp_path / 'second.py'))
    assert cfg.train_dataloader.sampler.type == 'lt_mm.GroupedRepeatAugSampler'
    (pipeline,) = cfg.train_dataloader.dataset.pipeline
    assert next(step['type'] for step in pipeline['transforms']) == 'LoadImageFromFile'
    head = cfg.model.roi_head
    assert head.type == 'lt_mm.LossTransformHead' and head.head.type == 'StandardRoIHead'
