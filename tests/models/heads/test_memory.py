"""``memory=dict(...)``: wrapped heads against a dictionary of means, from epoch to epoch."""

import copy
import math

import pytest
import torch
from mmengine.logging import MessageHub
from torch.distributions import kl_divergence

from lt_mm.models import LossTransformHead
from lt_mm.models.memory import MemoryOptions
from lt_mm.structures.errors import MissingRecordError
from tests import reference_losses as twin
from tests.models.heads.dense_data import HEADS, build, losses_of, made_outputs
from tests.models.heads.head_data import (
    FLIP,
    SHEAR,
    ZOOM,
    build_cls_head,
    build_roi_head,
    cascade_config,
    cls_samples,
    det_sample,
    mask_roi_head_config,
    roi_losses,
)

MOMENTUM = 0.7
# What each epoch shows of two sources: one replica each, as a stock sampler gives them; in the
# third epoch, two of one; in the last, boxes that are not restored exactly.
EPOCHS = [
    [det_sample(3), det_sample(8)],
    [det_sample(3, flip=True), det_sample(8, view=ZOOM)],
    [det_sample(8), det_sample(8, flip=True), det_sample(3, instances=(1,))],
    [det_sample(3, view=FLIP @ ZOOM), det_sample(8, instances=(0,), visibility=0.1)],
    [det_sample(3, view=SHEAR), det_sample(8, view=FLIP)],
]


@pytest.fixture
def epoch():
    """Sets the epoch that the message hub tells."""
    hub = MessageHub.get_current_instance()
    before = dict(hub.runtime_info)
    yield lambda number: hub.update_info('epoch', number)
    hub.runtime_info.clear()
    hub.runtime_info.update(before)


class Spy:
    """Takes note of the columns of the batch, whose values other tests compare."""

    def __init__(self, head):
        self.stock, self.columns = head.lt_gather, None
        head.lt_gather = self

    def __call__(self, part):
        batch = self.stock(part)
        self.columns = batch.columns
        self.avg_factor = batch.avg_factor
        return batch


class Naive:
    """The running means of one head, entry after entry, in float64."""

    def __init__(self, pairing, sigmoid, momentum=MOMENTUM):
        self.pairing, self.sigmoid, self.momentum = pairing, sigmoid, momentum
        self.classes, self.boxes = {}, {}

    def kept(self, columns):
        """{instance: [rows of each replica]}, of which the mean is taken."""
        replicas = {}
        for row, may in enumerate(columns['may_pair'].tolist()):
            if may:
                key = tuple(columns['instances'][row].tolist()), int(columns['images'][row])
                replicas.setdefault(key, []).append(row)
        kept = {}
        for (instance, _), rows in replicas.items():
            if self.pairing in ('gt', 'gt_score'):
                rows = [min(rows, key=lambda row: float(columns['distances'][row]))]
            kept.setdefault(instance, []).append(rows)
        return kept

    def step(self, columns):
        """The sums of both KLs, and how many predictions (or means) have one."""
        logits = columns['logits'].detach().double()
        p = logits.sigmoid() if self.sigmoid else logits.softmax(dim=1)
        known = columns['whole_sides'] & columns['exact'][:, None]
        boxes = torch.where(known, columns['restored'].detach().double(), math.nan)
        sums, paired = [0.0, 0.0], 0
        for instance, replicas in self.kept(columns).items():
            means = [p[rows].mean(dim=0) for rows in replicas]
            sides = [boxes[rows].mean(dim=0) for rows in replicas]
            for own in means:
                target = self.joined(self.classes.get(instance), means)
                paired += not target.isnan().all()
                sums[0] += float(self.divergence(target, own).nan_to_num().sum())
            for own in sides:
                target = self.joined(self.boxes.get(instance), sides)
                sums[1] += self.box_divergence(target, own)
            self.classes[instance] = self.moved(self.classes.get(instance), means).half().double()
            if not self.sigmoid:
                self.classes[instance] /= self.classes[instance].sum()
            self.boxes[instance] = self.moved(self.boxes.get(instance), sides).float().double()
        return sums, paired

    def joined(self, stored, present):
        """Entry after entry: the mean of what is known, if it is more than the present one."""
        stored = torch.full_like(present[0], math.nan) if stored is None else stored
        result = torch.full_like(stored, math.nan)
        for place in range(len(result)):
            own = [float(each[place]) for each in present if not each[place].isnan()]
            old = [] if stored[place].isnan() else [float(stored[place])]
            if len(own) >= 2:
                result[place] = sum(old + own) / len(old + own)
            elif old:
                result[place] = old[0]
        return result

    def moved(self, stored, present):
        result = torch.full_like(present[0], math.nan) if stored is None else stored.clone()
        for place in range(len(result)):
            own = [float(each[place]) for each in present if not each[place].isnan()]
            if own:
                mean = sum(own) / len(own)
                old = result[place]
                result[place] = (
                    mean if old.isnan() else (self.momentum * old + (1 - self.momentum) * mean)
                )
        return result

    def divergence(self, target, own):
        if self.sigmoid:
            return bernoulli(target, own) + bernoulli(1 - target, 1 - own)
        return bernoulli(target, own)

    @staticmethod
    def box_divergence(target, own):
        total = 0.0
        for low, high in ((0, 2), (1, 3)):
            if not (target + own)[[low, high]].isnan().any():
                mean, mine = (twin.gaussian(each[low], each[high]) for each in (target, own))
                total += float(kl_divergence(mean, mine).log1p())
        return total


def bernoulli(mean, p):
    return torch.where(mean > 0, mean * (mean / p).log(), 0 * mean)


def last(losses, name):
    """A value of the loss dict, without the prefixes of stages and RPNs."""
    return next(value for key, value in losses.items() if key.endswith(name))


@pytest.mark.parametrize('pairing', ['gt', 'gt_score', 'gt_mean'])
@pytest.mark.parametrize('kind', HEADS)
def test_dense_heads_against_a_dictionary(kind, pairing, epoch):
    head = build(kind, rho=0.5, pairing=pairing, memory=dict(momentum=MOMENTUM))
    spy, naive = Spy(head), None
    for number, samples in enumerate(EPOCHS):
        epoch(number)
        outputs, leaves = made_outputs(kind, head, len(samples), seed=number)
        losses = losses_of(kind, head, outputs, samples)
        naive = naive or Naive(pairing, head.lt_is_sigmoid())
        expected, paired = naive.step(spy.columns)
        found = [float(last(losses, f'lt_kl_{name}').detach()) for name in ('cls', 'bbox')]
        assert found == pytest.approx(
            [each / spy.avg_factor for each in expected], rel=2e-4, abs=1e-6
        ), number
        assert number == 0 or (paired > 0 and found[0] > 0)
        assert number or found == [0, 0]
        assert float(last(losses, 'lt_num_paired')) == paired
        rpn = 'rpn_' if kind == 'RPN' else ''
        total = losses[f'loss_{rpn}lt_cls'] + losses[f'loss_{rpn}lt_bbox']
        assert float(total.detach()) == pytest.approx(0.5 * sum(found), rel=1e-5)
        gradients = torch.autograd.grad(total, leaves, allow_unused=True)
        moved = [each for each in gradients if each is not None and each.abs().max() > 0]
        assert bool(moved) == (number > 0)
        assert all(each.isfinite().all() for each in gradients if each is not None)


@pytest.mark.parametrize(
    'config', [mask_roi_head_config(), cascade_config()], ids=['masks', 'cascade']
)
def test_each_stage_of_a_roi_head_has_a_memory(config, epoch):
    head = build_roi_head(
        dict(
            type='lt_mm.LossTransformHead', head=config, strength='plain', memory=dict(momentum=0.5)
        )
    )
    boxes = head.bbox_head if isinstance(head.bbox_head, torch.nn.ModuleList) else [head.bbox_head]
    spies = [Spy(each) for each in boxes]
    naives = [Naive('gt', False, momentum=0.5) for _ in boxes]
    for number, samples in enumerate(EPOCHS):
        epoch(number)
        losses, features = roi_losses(head, samples, seed=number)
        for stage, (spy, naive) in enumerate(zip(spies, naives)):
            prefix = f's{stage}.' if len(boxes) > 1 else ''
            sums, _ = naive.step(spy.columns)
            found = [float(losses[f'{prefix}lt_kl_{name}'].detach()) for name in ('cls', 'bbox')]
            expected = [each / spy.avg_factor for each in sums]
            assert found == pytest.approx(expected, rel=2e-4, abs=1e-6)
            assert number == 0 or found[0] > 0
        sum(value for key, value in losses.items() if 'loss_lt' in key).backward()
        assert (features.grad.abs().max() > 0) == (number > 0)


def test_masks_are_compared_on_one_grid_in_all_epochs(epoch):
    """However the replica lies; a side that was cut away says nothing."""
    head = build_roi_head(
        dict(
            type='lt_mm.LossTransformHead',
            head=mask_roi_head_config(),
            memory=dict(momentum=0.0),
            mask_grid=4,
        )
    )
    kept = []
    compare = head.mask_head.lt_memory.compare

    def spy(ids, keep, checks, codes, values):
        targets = compare(ids, keep, checks, codes, values)
        kept.append((ids, keep, values['mask'], targets['mask']))
        return targets

    head.mask_head.lt_memory.compare = spy
    before = {}
    for number, samples in enumerate(EPOCHS):
        epoch(number)
        losses, _ = roi_losses(head, samples, seed=number)
        ids, keep, values, targets = kept[-1]
        terms, latest = 0.0, {}
        for row in keep.nonzero()[:, 0].tolist():
            latest.setdefault(tuple(ids[row].tolist()), []).append(values[row])
        for key, own in latest.items():
            for p in own:
                mean = Naive('gt', True).joined(
                    before[key].flatten() if key in before else None,
                    [each.flatten() for each in own],
                )
                p, both = p.flatten(), ~mean.isnan() & ~p.flatten().isnan()
                if both.any():
                    divergence = bernoulli(mean, p) + bernoulli(1 - mean, 1 - p)
                    terms += float(divergence[both].mean())
            stacked = torch.stack(own)
            mean = torch.where(stacked.isnan(), 0, stacked).sum(0) / (~stacked.isnan()).sum(0)
            old = before.get(key, torch.full_like(mean, math.nan))
            before[key] = torch.where(mean.isnan(), old, mean)
        found = float(losses['lt_kl_mask'].detach()) * len(keep)
        # A byte a cell: 2e-5 of KL in each, and what follows from it.
        assert found == pytest.approx(terms, rel=0.03, abs=1e-3)
        assert number == 0 or found > 0
    assert targets.isnan().any() and not targets.isnan().all()


def classifier(**options):
    return build_cls_head(
        dict(
            type='lt_mm.LossTransformHead',
            head=dict(type='LinearClsHead', num_classes=3, in_channels=4),
            **options,
        )
    )


def cls_losses(head, sources, seed):
    features = torch.randn(len(sources), 4, generator=torch.Generator().manual_seed(seed))
    features.requires_grad_()
    return head.loss((features,), cls_samples(sources)), features


def test_a_classifier_compares_with_its_earlier_predictions(epoch):
    head = classifier(rho=2.0, memory=dict(momentum=0.5), temperature=2.0)
    means = {}
    for number, sources in enumerate([[4, 7, 9], [9, 4, 7], [7, 7, 2], [2, 4, 7]]):
        epoch(number)
        losses, features = cls_losses(head, sources, number)
        with torch.no_grad():
            p = (head.fc(features) / 2).double().softmax(dim=1)
        expected, paired = 0.0, 0
        for source in set(sources):
            own = [p[row] for row, each in enumerate(sources) if each == source]
            old = [means[source]] if source in means else []
            together = old + own if len(own) > 1 else old
            for each in own if together else []:
                mean = sum(together) / len(together)
                expected += float((mean * (mean / each).log()).sum())
                paired += 1
            now = sum(own) / len(own)
            means[source] = (0.5 * old[0] + 0.5 * now) if old else now
            means[source] = means[source].half().double()
            means[source] /= means[source].sum()
        found = losses['lt_kl_cls'].detach()
        assert float(found) == pytest.approx(expected / 3, rel=1e-4, abs=1e-7)
        assert losses['loss_lt_cls'].detach() == 2 * found
        assert losses['lt_num_paired'] == paired
        losses['loss_lt_cls'].backward()
        assert (features.grad.abs().max() > 0) == (number > 0)


def test_what_is_remembered_is_no_part_of_the_state_and_not_copied():
    head = classifier(memory=dict(momentum=0.5))
    keys = list(head.state_dict())
    cls_losses(head, [1, 2], 0)
    assert list(head.state_dict()) == keys
    assert len(head.lt_memory) == 2 and head.lt_memory.num_bytes > 0
    assert len(copy.deepcopy(head).lt_memory) == 0 and len(head.lt_memory) == 2


def test_the_state_goes_on_bit_for_bit(epoch):
    one, other = (classifier(memory=dict(momentum=0.5)) for _ in range(2))
    epoch(0)
    cls_losses(one, [5, 3, 8], 0)
    other.lt_memory.load_state_dict(one.lt_memory.state_dict())
    assert other.lt_memory.state_dict().keys() == one.lt_memory.state_dict().keys()
    for number in (1, 2):
        epoch(number)
        mine, theirs = (cls_losses(each, [8, 3, 1], number)[0] for each in (one, other))
        assert mine['lt_kl_cls'] > 0 and torch.equal(mine['lt_kl_cls'], theirs['lt_kl_cls'])
    states = [each.lt_memory.state_dict() for each in (one, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_another_annotation_under_the_same_id_is_refused_in_a_run(epoch):
    """And begun anew, with a word, if the memory was saved with other data."""
    head = classifier(memory=dict(momentum=0.5))
    epoch(0)
    cls_losses(head, [5], 0)
    samples = cls_samples([5])
    samples[0].set_metainfo(dict(img_path='data/other/2.png'))
    with pytest.raises(MissingRecordError, match='source_id 5 .*two images have the same id'):
        head.loss((torch.randn(1, 4),), samples)
    resumed = classifier(memory=dict(momentum=0.5))
    resumed.lt_memory.load_state_dict(head.lt_memory.state_dict())
    epoch(1)
    assert resumed.loss((torch.randn(1, 4),), samples)['lt_kl_cls'] == 0
    assert resumed.loss((torch.randn(1, 4),), samples)['lt_kl_cls'] > 0


def test_an_image_may_be_moved_to_another_folder(epoch):
    head = classifier(memory=dict(momentum=0.5))
    for number, root in enumerate(('/data/a', 'elsewhere/b')):
        epoch(number)
        samples = cls_samples([5])
        samples[0].set_metainfo(dict(img_path=f'{root}/cat/2.png'))
        losses = head.loss((torch.randn(1, 4),), samples)
    assert losses['lt_kl_cls'] > 0


def test_entries_grow_too_old(epoch):
    head = classifier(memory=dict(momentum=0.5, max_age=2))
    found = []
    for number in (0, 2, 5, 6):
        epoch(number)
        found.append(float(cls_losses(head, [5], number)[0]['lt_num_paired']))
    assert found == [0, 1, 0, 1]


def test_a_term_that_stays_empty_is_not_reported_before_the_first_epoch_is_over(epoch, monkeypatch):
    said = []
    monkeypatch.setattr(
        'lt_mm.models.heads.empty_terms.print_log', lambda message, **_: said.append(message)
    )
    for first, warned in ((0, False), (1, True)):
        head = classifier(memory=dict(momentum=0.5, max_age=1))
        epoch(0)
        cls_losses(head, [0], 0)
        epoch(first)
        for _ in range(60):
            head.lt_watch_term('cls', {'no pair': torch.zeros(1, dtype=torch.bool)})
        assert ['loss_lt_cls has weight' in message for message in said] == [True] * warned


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(memory=dict(momentum=0.99)), 'memory.momentum is 0.99'),
        (dict(memory=dict(decay=0.5)), r"memory has \['decay'\]"),
        (dict(memory=0.5), 'memory is 0.5; expected None or a dict'),
        (dict(memory=dict(max_age=0)), 'memory.max_age is 0'),
        (dict(memory=dict(momentum=0.5), pairing='iou'), "pairing is 'iou' and there is a memory"),
        (dict(memory=dict(momentum=0.5), pairing='gt_all'), "pairing is 'gt_all' and there is"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        LossTransformHead(dict(type='LinearClsHead', num_classes=3, in_channels=4), **options)
    assert MemoryOptions().momentum == MOMENTUM


@pytest.mark.parametrize('kind', ['LinearClsHead', 'MultiLabelLinearClsHead'])
def test_mixed_images_are_refused(kind):
    head = build_cls_head(
        dict(
            type='lt_mm.LossTransformHead',
            head=dict(type=kind, num_classes=3, in_channels=4),
            memory=dict(momentum=0.5),
        )
    )
    samples = cls_samples([1, 2])
    for sample in samples:
        sample.set_gt_score(torch.tensor([0.0, 1.0, 0.0]))
    head.loss((torch.randn(2, 4),), samples)  # whole images
    for sample in samples:
        sample.set_gt_score(torch.tensor([0.5, 0.5, 0.0]))
    with pytest.raises(ValueError, match='remove model.train_cfg.augments'):
        head.loss((torch.randn(2, 4),), samples)
