"""The public extension point: families of heads, wrapping without a config, printing."""

import re

import numpy as np
import pytest
import torch
from mmdet.models.dense_heads import RetinaHead
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, init_default_scope

from lt_mm.core.consistency import bernoulli_consistency, box_consistency
from lt_mm.models.heads import (
    AnchorConsistency,
    ConsistencyMixin,
    head_families,
    register_head_family,
    wrap_head,
)
from lt_mm.structures.errors import UnsupportedHeadError
from tests.models.heads import dense_data
from tests.models.heads.head_data import (
    FLIP,
    SHAPE,
    build_roi_head,
    det_sample,
    roi_head_config,
    total,
)
from tests.paths import DOCS
from tests.reference import inverse, move_box

GUIDE = DOCS / 'heads.md'


@pytest.fixture
def families(monkeypatch):
    """Families that a test registers are forgotten after it."""
    monkeypatch.setattr(head_families, '_FAMILIES', list(head_families._FAMILIES))


@pytest.fixture
def guide(families):
    """What the code of the guide's section on heads of one's own defines."""
    section = GUIDE.read_text().split('## A head of your own')[1]
    names = {}
    codes = re.findall(r'^```python\n(.*?)^```', section, flags=re.MULTILINE | re.DOTALL)
    for code in codes:
        exec(code, names)
    yield dict(names, codes=codes)
    from mmdet.registry import MODELS as DETECTION_MODELS

    DETECTION_MODELS._module_dict.pop('CellHead')


def test_the_family_of_the_guide_is_short(guide):
    assert len(guide['codes'][1].splitlines()) < 40


@pytest.mark.parametrize('by_config', [True, False], ids=['config', 'wrap_head'])
def test_the_family_of_the_guide_pairs_and_compares(guide, by_config):
    init_default_scope('mmdet')
    config = dict(type='CellHead', num_classes=3, in_channels=4, stride=8)
    torch.manual_seed(0)
    if by_config:
        head = MODELS.build(dict(type='lt_mm.LossTransformHead', head=config, strength='plain'))
    else:
        del config['type']
        head = wrap_head(guide['CellHead'](**config), rho=1.0, strength='plain')
    samples = [det_sample(3), det_sample(3, view=FLIP), det_sample(8)]
    height, width = (side // 8 for side in SHAPE)
    features = (torch.randn(3, 4, height, width),)
    losses = head.loss(features, samples)
    scores, distances = head(features)
    logits, restored, groups = [], [], []
    for image, sample in enumerate(samples):
        gt = sample.gt_instances
        cells, _, _ = head._get_targets_single(gt, width)
        logits.append(scores[image].flatten(1)[:, cells].T)
        boxes = head.decode(cells, width, distances[image].flatten(1)[:, cells].T)
        restored += [
            move_box(box.tolist(), inverse(matrix.numpy()))
            for box, matrix in zip(boxes, gt.source_matrices)
        ]
        groups += [10 * sample.source_id + row for row in range(len(gt))]
    count, groups = len(groups), torch.tensor(groups)
    term = bernoulli_consistency(torch.cat(logits), groups, avg_factor=count)
    torch.testing.assert_close(losses['loss_lt_cls'], term)
    boxes = torch.tensor(np.array(restored))
    term = box_consistency(boxes, groups, avg_factor=count)
    torch.testing.assert_close(losses['loss_lt_bbox'].double(), term, rtol=1e-4, atol=0)
    assert losses['lt_num_paired'] == 2 * len(samples[0].gt_instances)
    total(losses).backward()
    assert head.conv.weight.grad.abs().sum() > 0


class OtherTargets(RetinaHead):
    """Claimed by the family of its base class, which refuses it."""

    def _get_targets_single(self, *args, **kwargs):
        return super()._get_targets_single(*args, **kwargs)


def retina(cls):
    init_default_scope('mmdet')
    config = {key: value for key, value in dense_data.HEADS['RetinaNet'].items() if key != 'type'}
    return cls(**ConfigDict(config))


def test_a_family_that_is_registered_later_is_asked_first(families):
    with pytest.raises(UnsupportedHeadError, match='OtherTargets .*_get_targets_single'):
        wrap_head(retina(OtherTargets))

    @register_head_family(OtherTargets)
    class OtherConsistency(AnchorConsistency):
        pass

    assert isinstance(wrap_head(retina(OtherTargets)), OtherConsistency)
    assert not isinstance(wrap_head(retina(RetinaHead)), OtherConsistency)
    assert AnchorConsistency.lt_heads[0].__name__ == 'AnchorHead'


def test_what_is_no_family_is_refused(families):
    with pytest.raises(TypeError, match='expected the classes of the heads'):
        register_head_family()
    with pytest.raises(TypeError, match='expected the classes of the heads'):
        register_head_family(retina)
    with pytest.raises(TypeError, match='does not derive from ConsistencyMixin'):
        register_head_family(RetinaHead)(RetinaHead)


def test_wrap_head_takes_the_options_alone():
    head = wrap_head(retina(RetinaHead), rho=0.5, pairing='gt_mean', rho_bbox=2)
    assert head.lt_options.rho_now('cls') == 0.5 and head.lt_options.rho_now('bbox') == 2
    with pytest.raises(TypeError, match='rhoo'):
        wrap_head(retina(RetinaHead), rhoo=1)
    with pytest.raises(ValueError, match="pairing is 'gtt'"):
        wrap_head(retina(RetinaHead), pairing='gtt')
    with pytest.raises(TypeError, match='LossTransformRetinaHead has the consistency term'):
        wrap_head(head)


def test_a_printed_model_shows_the_options():
    shown = repr(wrap_head(retina(RetinaHead), rho=0.25, pairing='gt_mean'))
    assert shown.startswith('LossTransformRetinaHead(')
    for text in ('rho=0.25', "pairing='gt_mean'", 'detach_mean=False', 'mask_grid=28'):
        assert text in shown
    assert '(retina_cls)' in shown


def test_every_addition_to_a_stock_head_is_marked():
    """A name without the prefix could hide one of the stock head."""
    for mixin in head_families._FAMILIES:
        own = {
            name
            for cls in mixin.__mro__
            if issubclass(cls, ConsistencyMixin)
            for name in vars(cls)
            if not name.startswith(('lt_', '_lt_', '__'))
        }
        # Heads of masks alone have no loss_and_predict, which all dense heads share.
        stock = set(dir(mixin.lt_heads[0])) | {'extra_repr', 'prefix', 'loss_and_predict'}
        assert own <= stock, mixin


def test_a_misspelt_option_is_named():
    init_default_scope('mmdet')
    config = dict(dense_data.HEADS['RetinaNet'], type='RetinaHead')
    for name in ('roh', 'pairings', 'rho_boxes'):
        with pytest.raises(TypeError, match=rf'{name} .*RetinaHead.*no option'):
            MODELS.build(dict(type='lt_mm.LossTransformHead', head=config, **{name: 1.0}))


def test_settings_beside_the_head_are_merged_into_it():
    """As a child config writes them: roi_head=dict(bbox_head=dict(num_classes=7))."""
    wrap = dict(type='lt_mm.LossTransformHead', head=roi_head_config())
    head = build_roi_head(dict(wrap, bbox_head=dict(num_classes=7)))
    assert head.bbox_head.num_classes == 7 and head.bbox_head.fc_cls.out_features == 8
    assert head.bbox_head.fc_reg.out_features == 28
    other = dict(roi_head_config()['bbox_head'], fc_out_channels=4)
    assert build_roi_head(dict(wrap, bbox_head=other)).bbox_head.fc_cls.in_features == 4
