"""More small single-stage heads: how each says its boxes, and which predictions are positive.

A :class:`Kind` for each family whose layout differs; ``KINDS`` holds them by name. All numbers
that it gives are read naively, one prediction at a time.
"""

import copy
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.logging import MessageHub
from mmengine.registry import init_default_scope
from torch import nn

from tests import reference_losses as twin
from tests.models.heads.dense_data import (
    CHANNELS,
    CLASSES,
    HEADS,
    HEIGHT,
    STRIDES,
    WIDTH,
    moved_anchor,
    place_of,
    priors_of,
)

SIZES = [(HEIGHT // stride, WIDTH // stride) for stride in STRIDES]
_NARROW = dict(num_classes=CLASSES, in_channels=CHANNELS, feat_channels=CHANNELS)
_ONE_CONV = dict(_NARROW, stacked_convs=1)
_NO_NORM = dict(_ONE_CONV, norm_cfg=None)
_PSEUDO = dict(allowed_border=-1, pos_weight=-1, debug=False)
_FOCAL = HEADS['RetinaNet']['loss_cls']
_ATSS = HEADS['ATSS']['train_cfg']
_SQUARE = HEADS['ATSS']['anchor_generator']
_MAX_IOU = HEADS['RetinaNet']['train_cfg']
_TEST = dict(
    nms_pre=50,
    min_bbox_size=0,
    score_thr=0.0,
    conf_thr=0.0,
    iou_thr=0.5,
    top_k=20,
    mask_thr=0.5,
    nms=dict(type='nms', iou_threshold=0.6),
    max_per_img=10,
)
_APPROX = dict(
    approx_anchor_generator=dict(
        type='AnchorGenerator',
        center_offset=0.5,
        octave_base_scale=4,
        scales_per_octave=1,
        ratios=[0.5, 1.0, 2.0],
        strides=list(STRIDES),
    ),
    square_anchor_generator=dict(
        type='AnchorGenerator', center_offset=0.5, ratios=[1.0], scales=[4], strides=list(STRIDES)
    ),
)


def without(config: dict, *names: str) -> dict:
    return {key: value for key, value in config.items() if key not in names}


class Kind:
    """A head whose outputs are lists of maps, the class scores first, then boxes.

    Attributes:
        config: Of the stock head.
        sigmoid: Whether its classes are sigmoids.
        channels: Of the outputs beside the class scores, for one prior.
        span: Range of the values that say boxes; times the stride, or not.
        boxes: Which output says the boxes.
        first: Whether the sampler's first results count, not its last ones.
        num_predicted: How many images it can predict for at once.
    """

    sigmoid = True
    channels: tuple[int, ...] = (4,)
    span = (-0.5, 0.5)
    by_stride = False
    boxes = 1
    first = False
    epoch = 0
    sizes = SIZES
    num_predicted = 2

    def __init__(self, config: dict, **facts: Any) -> None:
        self.config = config
        vars(self).update(facts)

    def build(self, **options: Any) -> nn.Module:
        """The stock head; wrapped where there are options, with the formula of the paper."""
        init_default_scope('mmdet')
        MessageHub.get_current_instance().update_info('epoch', self.epoch)
        config: Any = ConfigDict(dict(copy.deepcopy(self.config), test_cfg=dict(_TEST)))
        if options:
            config = dict(type='lt_mm.LossTransformHead', head=config, strength='plain') | options
        head = MODELS.build(config)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        return head.train()

    def outputs(self, head: nn.Module, images: int) -> tuple[tuple, list[torch.Tensor]]:
        """Raw predictions, and the leaves that get the gradient."""
        generator = torch.Generator().manual_seed(0)
        found: list[list[torch.Tensor]] = []
        for number, channels in enumerate((self.num_class_channels(head), *self.channels)):
            low, high = self.span if number else (-1.0, 1.0)
            found.append(
                [
                    (
                        low
                        + (high - low)
                        * torch.rand(images, count * channels, *size, generator=generator)
                    )
                    .mul(stride if number and self.by_stride else 1)
                    .requires_grad_()
                    for count, size, stride in zip(priors_of(head), self.sizes, STRIDES)
                ]
            )
        return tuple(found), found[0] + found[self.boxes]

    def losses(self, head: nn.Module, outputs: tuple, samples: list) -> dict:
        torch.manual_seed(0)
        samples = copy.deepcopy(samples)
        return head.loss_by_feat(
            *copy.copy(tuple(map(copy.copy, outputs))),
            [sample.gt_instances for sample in samples],
            [sample.metainfo for sample in samples],
            **self.extra(head, outputs, samples),
        )

    def num_class_channels(self, head: nn.Module) -> int:
        return head.num_classes if self.sigmoid else head.num_classes + 1

    def extra(self, head: nn.Module, outputs: tuple, samples: list) -> dict:
        """Further arguments of ``loss_by_feat``."""
        return {}

    def inputs(self, images: int) -> tuple:
        generator = torch.Generator().manual_seed(0)
        return (
            tuple(torch.randn(images, CHANNELS, *size, generator=generator) for size in self.sizes),
        )

    def losses_of_inputs(self, head: nn.Module, samples: list) -> dict:
        torch.manual_seed(0)
        return head.loss(*self.inputs(len(samples)), copy.deepcopy(samples))

    # ---- two images, the second of which is the first in a mirror

    def mirrored(self, head: nn.Module, outputs: tuple) -> tuple:
        found = []
        for number, levels in enumerate(outputs):
            own = []
            for level, stride in zip(levels, STRIDES):
                flipped = level[:1].flip(-1)
                if number:
                    each = flipped.unflatten(1, (-1, self.channels[number - 1]))
                    flipped = self.flip(number, each, stride).flatten(1, 2)
                own.append(torch.cat([level[:1], flipped]))
            found.append(own)
        return tuple(found)

    def flip(self, number: int, values: torch.Tensor, stride: int) -> torch.Tensor:
        """Values (1, A, c, H, W) in a mirror, already at their places there."""
        if self.channels[number - 1] != 4:
            return values
        return torch.cat([-values[:, :, :1], values[:, :, 1:]], dim=2)

    # ---- one prediction at a time

    def raw(self, head: nn.Module, outputs: tuple, number: int, image: int, row: int) -> Any:
        channels = (self.num_class_channels(head), *self.channels)[number]
        level, y, x, prior = place_of(head, row)
        return outputs[number][level][image, prior * channels : (prior + 1) * channels, y, x]

    def logits(self, head: nn.Module, outputs: tuple, image: int, row: int) -> torch.Tensor:
        return self.raw(head, outputs, 0, image, row)

    def objectness(self, head: nn.Module, outputs: tuple, image: int, row: int) -> Any:
        """Logit (1,) of the objectness of a prediction; None for heads without a loss of it."""
        return None

    def box(self, head: nn.Module, outputs: tuple, image: int, row: int) -> torch.Tensor:
        raw = self.raw(head, outputs, self.boxes, image, row)
        return self.from_raw(head, raw.double(), row)

    def from_raw(self, head: nn.Module, raw: torch.Tensor, row: int) -> torch.Tensor:
        return moved_anchor(self.anchors(head)[row].double(), raw, head)

    def anchors(self, head: nn.Module) -> torch.Tensor:
        return torch.cat(head.prior_generator.grid_priors(SIZES, device='cpu'))

    def point(self, head: nn.Module, row: int) -> tuple[float, float, int]:
        level, y, x, _ = place_of(head, row)
        stride = STRIDES[level]
        return (x + 0.5) * stride, (y + 0.5) * stride, stride

    def positives(self, head: nn.Module, outputs: tuple, samples: list) -> list[list]:
        """(row, annotation) of each positive of each image, as the sampler gave them."""
        sampled, stock = [], head.sampler.sample

        def noted(*args: Any, **kwargs: Any) -> Any:
            sampled.append(stock(*args, **kwargs))
            return sampled[-1]

        head.sampler.sample = noted
        self.losses(head, outputs, samples)
        del head.sampler.sample
        return [
            list(zip(one.pos_inds.tolist(), one.pos_assigned_gt_inds.tolist()))
            for one in (sampled[: len(samples)] if self.first else sampled[-len(samples) :])
        ]

    def normaliser(self, head: nn.Module, positives: list[list], samples: list) -> float:
        return max(sum(map(len, positives)), 1)

    def annotation(self, box: list[float], label: int, sample: Any) -> int:
        gt = sample.gt_instances
        return twin.annotation(box, label, gt.bboxes.tolist(), gt.labels.tolist())


class Sides(Kind):
    """Distances of the four sides from a point, in pixels."""

    span, by_stride = (0.3, 2.0), True

    def flip(self, number: int, values: torch.Tensor, stride: int) -> torch.Tensor:
        return values[:, :, [2, 1, 0, 3]] if values.shape[2] == 4 else values

    def from_raw(self, head: nn.Module, raw: torch.Tensor, row: int) -> torch.Tensor:
        x, y, stride = self.point(head, row)
        left, top, right, bottom = self.distances(head, raw, stride)
        return torch.stack([x - left, y - top, x + right, y + bottom])

    def distances(self, head: nn.Module, raw: torch.Tensor, stride: int) -> torch.Tensor:
        return raw


class SidesByTarget(Sides):
    """Whose targets name the positives by the box to reach."""

    def positives(self, head: nn.Module, outputs: tuple, samples: list) -> list[list]:
        seen, stock = [], head._get_targets_single

        def noted(*args: Any, **kwargs: Any) -> Any:
            seen.append(stock(*args, **kwargs))
            return seen[-1]

        head._get_targets_single = noted
        self.losses(head, outputs, samples)
        del head._get_targets_single
        return [
            [
                (row, self.annotation(box.tolist(), label, sample))
                for row, (label, box) in self.wanted(head, targets).items()
            ]
            for targets, sample in zip(seen, samples)
        ]

    def wanted(self, head: nn.Module, targets: Any) -> dict[int, tuple[int, torch.Tensor]]:
        """Label and box of each positive of an image."""
        raise NotImplementedError


class Fovea(SidesByTarget):
    span, by_stride = (-1.0, 1.0), False

    def distances(self, head, raw, stride):
        return raw.exp() * head.base_edge_list[STRIDES.index(stride)]

    def wanted(self, head, targets):
        labels = torch.cat([level.flatten() for level in targets[0]])
        boxes = torch.cat([level.reshape(-1, 4) for level in targets[1]])
        return {
            row: (int(label), self.from_raw(head, boxes[row].double(), row))
            for row, label in enumerate(labels)
            if label < CLASSES
        }

    def normaliser(self, head, positives, samples):
        return sum(map(len, positives)) + len(samples)


class CondInst(SidesByTarget):
    def wanted(self, head, targets):
        return {
            row: (int(label), self.from_raw(head, targets[1][row].double(), row))
            for row, label in enumerate(targets[0])
            if label < CLASSES
        }


class CenterNet(SidesByTarget):
    span, by_stride = (0.6, 2.0), False

    def distances(self, head, raw, stride):
        return raw * stride

    def wanted(self, head, targets):
        return {
            row: (int(targets[0][row].argmax()), self.from_raw(head, sides.double(), row))
            for row, sides in enumerate(targets[1])
            if (sides >= 0).any()
        }


class TOOD(Sides):
    """Boxes, in strides, and probabilities."""

    span = (0.0, 1.0)

    def outputs(self, head, images):
        (scores, boxes), leaves = super().outputs(head, images)
        for level, stride in zip(boxes, STRIDES):
            ys, xs = (level.new_tensor(range(side)) + 0.5 for side in level.shape[-2:])
            centres = torch.stack([xs.expand(len(ys), -1), ys[:, None].expand(-1, len(xs))] * 2)
            signs = level.new_tensor([-1, -1, 1, 1])[:, None, None]
            # Into probabilities and boxes, in place.
            level.data = centres + signs * (0.3 + 1.5 * level.data / stride)
        for level in scores:
            level.data = level.data.sigmoid()
        return (scores, boxes), leaves

    def mirrored(self, head, outputs):
        boxes = outputs[1]
        mirrored = super().mirrored(head, outputs)
        for level, own, (_, width) in zip(mirrored[1], boxes, SIZES):
            left, top, right, bottom = own[0].flip(-1)
            level[1].copy_(torch.stack([width - right, top, width - left, bottom]))
        return mirrored

    def logits(self, head, outputs, image, row):
        probabilities = self.raw(head, outputs, 0, image, row)
        return (probabilities / (1 - probabilities)).log()

    def from_raw(self, head, raw, row):
        return raw * self.point(head, row)[2]

    def normaliser(self, head, positives, samples):
        weight = self.weight
        return max(weight, 1) * sum(map(len, positives)) / max(weight, 1e-6)

    def positives(self, head, outputs, samples):
        seen, stock = [], head.get_targets
        head.get_targets = lambda *args, **kwargs: seen.append(stock(*args, **kwargs)) or seen[-1]
        found = super().positives(head, outputs, samples)
        self.weight = sum(float(level.double().sum()) for level in seen[0][4])
        return found


class Guided(Kind):
    """Anchors of their own for each image."""

    num_predicted = 0  # masked convolutions need a GPU
    channels = (4, 2, 1)

    def flip(self, number, values, stride):
        return super().flip(number, values, stride) if number == 1 else values

    def box(self, head, outputs, image, row):
        square = torch.cat(head.square_anchor_generator.grid_priors(SIZES, device='cpu'))[row]
        shape = self.raw(head, outputs, 2, image, row).detach().double()
        anchor = moved_anchor(square.double(), torch.cat([shape * 0, shape]), head)
        return moved_anchor(anchor, self.raw(head, outputs, 1, image, row), head)


class RepPoints(Kind):
    channels = (18, 18)
    span = (-3.0, 3.0)
    boxes = 2

    def flip(self, number, values, stride):
        y, x = values[:, :, 0::2], values[:, :, 1::2]
        return torch.stack([y, 1 - x], dim=3).flatten(2, 3)

    def from_raw(self, head, raw, row):
        level, y, x, _ = place_of(head, row)
        ys, xs = raw[0::2] + y, raw[1::2] + x
        half_x, half_y = (
            (torch.std(values) * head.moment_transfer[axis].double().exp()).clamp(min=1)
            for axis, values in enumerate((xs, ys))
        )
        sides = [xs.mean() - half_x, ys.mean() - half_y, xs.mean() + half_x, ys.mean() + half_y]
        return torch.stack(sides) * STRIDES[level]


class Buckets(Kind):
    """SABL: for each side the logits of its buckets, and an offset in each."""

    def outputs(self, head, images):
        self.channels = (4 * head.side_num, 4 * head.side_num)
        (scores, buckets, offsets), _ = super().outputs(head, images)
        return (scores, list(zip(buckets, offsets))), scores + offsets

    def mirrored(self, head, outputs):
        buckets, offsets = zip(*outputs[1])
        scores, buckets, offsets = super().mirrored(head, (outputs[0], buckets, offsets))
        return scores, list(zip(buckets, offsets))

    def flip(self, number, values, stride):  # left, right, top, bottom
        values = values.unflatten(2, (4, -1))[:, :, [1, 0, 2, 3]]
        if number == 2:  # offsets, to the left everywhere
            values = torch.cat([-values[:, :, :2], values[:, :, 2:]], dim=2)
        return values.flatten(2, 3)

    def box(self, head, outputs, image, row):
        outputs = (outputs[0], *zip(*outputs[1]))
        buckets, offsets = (
            self.raw(head, outputs, number, image, row).double().reshape(4, -1) for number in (1, 2)
        )
        square = torch.cat(head.square_anchor_generator.grid_priors(SIZES, device='cpu'))[row]
        x1, y1, x2, y2 = square.double()
        scale = head.bbox_coder.scale_factor
        width, height = (x2 - x1) * scale, (y2 - y1) * scale
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        inwards = []
        for side, length in enumerate((width, width, height, height)):
            best = int(buckets[side].argmax())
            offset = offsets[side, best] * (1 if side % 2 else -1)
            inwards.append((0.5 + best + offset) * length / head.num_buckets)
        left, right, top, bottom = inwards
        return torch.stack(
            [
                x - width / 2 + left,
                y - height / 2 + top,
                x + width / 2 - right,
                y + height / 2 - bottom,
            ]
        )


class PAA(Kind):
    """Of the sampled anchors those of small loss."""

    channels = (4, 1)

    def positives(self, head, outputs, samples):
        kept, stock = [], head.paa_reassign
        head.paa_reassign = lambda *args: kept.append(stock(*args)) or kept[-1]
        found = super().positives(head, outputs, samples)
        del head.paa_reassign
        return [
            [(row, k) for row, k in own if labels[0][row] < CLASSES]
            for own, labels in zip(found, kept)
        ]


class LAD(Kind):
    """Of a teacher: here every anchor that overlaps an annotation enough."""

    def losses_of_inputs(self, head, samples):
        losses = self.losses(head, head(*self.inputs(len(samples))), samples)
        return losses

    channels = (4, 1)

    def positives(self, head, outputs, samples):
        found = []
        for sample in samples:
            own = []
            for row, anchor in enumerate(self.anchors(head).tolist()):
                overlaps = [
                    1 - twin.distance(torch.tensor(anchor), box)
                    for box in sample.gt_instances.bboxes
                ]
                if overlaps and max(overlaps) > 0.3:
                    own.append((row, max(range(len(overlaps)), key=overlaps.__getitem__)))
            found.append(own)
        return found

    def extra(self, head, outputs, samples):
        anchors, chosen = self.anchors(head), self.positives(head, outputs, samples)
        labels = torch.full((len(samples), len(anchors)), CLASSES)
        boxes = torch.zeros(len(samples), len(anchors), 4)
        for image, own in enumerate(chosen):
            gt = samples[image].gt_instances
            for row, k in own:
                labels[image, row], boxes[image, row] = gt.labels[k], gt.bboxes[k]
        labels, boxes = labels.flatten(), boxes.flatten(0, 1)
        rows = (labels < CLASSES).nonzero()[:, 0]
        result = (
            labels,
            torch.ones(len(labels)),
            boxes,
            None,
            rows,
            anchors[rows % len(anchors)],
            len(rows),
        )
        return dict(label_assignment_results=result)


class FSAF(Sides):
    """Of the sampled points those of the level of the smallest loss."""

    by_stride = False

    def flip(self, number, values, stride):  # top, bottom, left, right
        return values[:, :, [0, 1, 3, 2]]

    def distances(self, head, raw, stride):
        return 4 * stride * raw[[2, 0, 3, 1]]

    def positives(self, head, outputs, samples):
        levels, stock = [], head.reweight_loss_single

        def noted(*args, **kwargs):
            levels.append((kwargs['min_levels'], args[4]))
            return stock(*args, **kwargs)

        head.reweight_loss_single = noted
        found = super().positives(head, outputs, samples)
        del head.reweight_loss_single
        best, before, kept = levels[0][0].tolist(), 0, []
        for own, sample in zip(found, samples):
            kept.append([(row, k) for row, k in own if place_of(head, row)[0] == best[before + k]])
            before += len(sample.gt_instances)
        return kept


class Soft(Kind):
    """Without positives: the best of each annotation by score and overlap."""

    def positives(self, head, outputs, samples):
        found = []
        for image, sample in enumerate(samples):
            own = []
            for k, (box, label) in enumerate(
                zip(sample.gt_instances.bboxes, sample.gt_instances.labels)
            ):

                def value(row, box=box, label=label, image=image):
                    overlap = 1 - twin.distance(self.box(head, outputs, image, row), box)
                    score = self.logits(head, outputs, image, row)[label].detach().sigmoid()
                    score = score * self.factor(head, outputs, image, row)
                    return float(score * overlap if overlap > 0 else overlap)

                own.append(
                    (
                        max(
                            range(sum(h * w * a for (h, w), a in zip(SIZES, priors_of(head)))),
                            key=value,
                        ),
                        k,
                    )
                )
            found.append(own)
        return found

    def factor(self, head, outputs, image, row):
        """What multiplies the class scores."""
        return 1.0


class AutoAssign(Soft, Sides):
    """Whose points are the corners of their cells, with an objectness."""

    channels = (4, 1)

    def outputs(self, head, images):
        outputs, leaves = super().outputs(head, images)
        for level, stride in zip(outputs[2], STRIDES):
            level.data = 3 * (level.data / stride - 1)
        return outputs, leaves

    def factor(self, head, outputs, image, row):
        return float(self.raw(head, outputs, 2, image, row).detach().sigmoid())

    def point(self, head, row):
        x, y, stride = super().point(head, row)
        return x - stride / 2, y - stride / 2, stride

    def flip(self, number, values, stride):
        moved = super().flip(number, values, stride)
        if number > 1:
            return moved
        return moved + moved.new_tensor([-stride, 0, stride, 0])[:, None, None]


class Centres(Kind):
    """CenterNet: probabilities, sizes, and where in the cell the centre lies; in cells."""

    channels = (2, 2)
    span = (0.2, 3.0)
    sizes = SIZES[1:]

    def outputs(self, head, images):
        (heat, sizes, offsets), leaves = super().outputs(head, images)
        heat[0].data = heat[0].data.sigmoid()
        return (heat, sizes, offsets), leaves + offsets

    def losses(self, head, outputs, samples):
        return super().losses(head, outputs, self.with_shapes(samples))

    def losses_of_inputs(self, head, samples):
        return super().losses_of_inputs(head, self.with_shapes(samples))

    def with_shapes(self, samples):
        for sample in samples:
            sample.set_metainfo(
                dict(batch_input_shape=(HEIGHT, WIDTH), border=(0, HEIGHT, 0, WIDTH))
            )
        return samples

    def flip(self, number, values, stride):
        if number == 1:
            return values
        return torch.cat([1 - values[:, :, :1], values[:, :, 1:]], dim=2)

    def logits(self, head, outputs, image, row):
        probabilities = self.raw(head, outputs, 0, image, row)
        return (probabilities / (1 - probabilities)).log()

    def raw(self, head, outputs, number, image, row):
        return outputs[number][0][image][(slice(None), *divmod(row, SIZES[1][1]))]

    def box(self, head, outputs, image, row):
        y, x = divmod(row, SIZES[1][1])
        w, h = self.raw(head, outputs, 1, image, row).double().clamp(min=1)
        right, down = self.raw(head, outputs, 2, image, row).double()
        x, y = x + right, y + down
        return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2]) * STRIDES[1]

    def positives(self, head, outputs, samples):
        found = []
        for sample in samples:
            centres = [
                (int((x1 + x2) / 2 // STRIDES[1]), int((y1 + y2) / 2 // STRIDES[1]))
                for x1, y1, x2, y2 in sample.gt_instances.bboxes.tolist()
            ]
            found.append([(y * SIZES[1][1] + x, k) for k, (x, y) in enumerate(centres)])
        return found


class YOLOv3(Kind):
    """One map: x, y, width, height, whether there is an object, and classes."""

    def outputs(self, head, images):
        self.channels = (head.num_attrib,)
        outputs, _ = super().outputs(head, images)
        return outputs[1:], outputs[1]

    def mirrored(self, head, outputs):
        return super().mirrored(head, (outputs[0], *outputs))[1:]

    def flip(self, number, values, stride):  # sigmoid(-x) = 1 - sigmoid(x)
        return torch.cat([-values[:, :, :1], values[:, :, 1:]], dim=2)

    def logits(self, head, outputs, image, row):
        return self.raw(head, ((), *outputs), 1, image, row)[5:]

    def objectness(self, head, outputs, image, row):
        return self.raw(head, ((), *outputs), 1, image, row)[4:5]

    def box(self, head, outputs, image, row):
        x, y, w, h = self.raw(head, ((), *outputs), 1, image, row)[:4].double()
        anchor = self.anchors(head)[row].double()
        level, row_y, row_x, _ = place_of(head, row)
        x, y = (row_x + x.sigmoid()) * STRIDES[level], (row_y + y.sigmoid()) * STRIDES[level]
        w, h = w.exp() * (anchor[2] - anchor[0]), h.exp() * (anchor[3] - anchor[1])
        return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2])

    def normaliser(self, head, positives, samples):
        return 1.0


KINDS: dict[str, Kind] = {
    'PISA RetinaNet': Kind(
        dict(
            HEADS['RetinaNet'],
            type='PISARetinaHead',
            train_cfg=dict(_MAX_IOU, isr=dict(k=2.0, bias=0.0), carl=dict(k=1.0, bias=0.2)),
        )
    ),
    'YOLACT': Kind(
        dict(
            _NARROW,
            type='YOLACTHead',
            anchor_generator=without(HEADS['RetinaNet']['anchor_generator']),
            loss_cls=dict(type='CrossEntropyLoss', reduction='none'),
            num_protos=2,
            train_cfg=dict(_MAX_IOU, neg_pos_ratio=3),
        ),
        channels=(4, 2),
        sigmoid=False,
    ),
    'DDOD': Kind(
        dict(
            _NO_NORM,
            type='DDODHead',
            use_dcn=False,
            anchor_generator=_SQUARE,
            loss_cls=_FOCAL,
            loss_bbox=dict(type='GIoULoss'),
            reg_decoded_bbox=True,
            train_cfg=dict(_ATSS, reg_assigner=dict(type='ATSSAssigner', topk=2)),
        ),
        channels=(4, 1),
        first=True,
    ),
    'SABL RetinaNet': Buckets(
        dict(
            _ONE_CONV,
            type='SABLRetinaHead',
            **_APPROX,
            train_cfg=dict(
                assigner=dict(
                    type='ApproxMaxIoUAssigner',
                    pos_iou_thr=0.5,
                    neg_iou_thr=0.4,
                    min_pos_iou=0.0,
                    ignore_iof_thr=-1,
                ),
                **_PSEUDO,
            ),
        )
    ),
    'GA RetinaNet': Guided(
        dict(
            _ONE_CONV,
            type='GARetinaHead',
            **_APPROX,
            deform_groups=1,
            loc_filter_thr=0.0,
            loss_cls=_FOCAL,
            train_cfg=dict(
                _MAX_IOU,
                ga_assigner=dict(
                    type='ApproxMaxIoUAssigner',
                    pos_iou_thr=0.5,
                    neg_iou_thr=0.4,
                    min_pos_iou=0.4,
                    ignore_iof_thr=-1,
                ),
                ga_sampler=dict(
                    type='RandomSampler',
                    num=256,
                    pos_fraction=0.5,
                    neg_pos_ub=-1,
                    add_gt_as_proposals=False,
                ),
                center_ratio=0.2,
                ignore_ratio=0.5,
            ),
        )
    ),
    'PAA': PAA(
        dict(
            _NO_NORM,
            type='PAAHead',
            topk=4,
            reg_decoded_bbox=True,
            anchor_generator=_SQUARE,
            loss_cls=_FOCAL,
            loss_bbox=dict(type='GIoULoss', loss_weight=1.3),
            loss_centerness=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=0.5),
            train_cfg=dict(
                assigner=dict(
                    type='MaxIoUAssigner',
                    pos_iou_thr=0.1,
                    neg_iou_thr=0.1,
                    min_pos_iou=0,
                    ignore_iof_thr=-1,
                ),
                **_PSEUDO,
            ),
        )
    ),
    'FSAF': FSAF(
        dict(
            _ONE_CONV,
            type='FSAFHead',
            reg_decoded_bbox=True,
            anchor_generator=dict(_SQUARE, octave_base_scale=1),
            bbox_coder=dict(type='TBLRBBoxCoder', normalizer=4.0),
            loss_cls=dict(_FOCAL, reduction='none'),
            loss_bbox=dict(type='IoULoss', eps=1e-6, loss_weight=1.0, reduction='none'),
            train_cfg=dict(
                assigner=dict(
                    type='CenterRegionAssigner', pos_scale=0.4, neg_scale=0.5, min_pos_iof=0.01
                ),
                **_PSEUDO,
            ),
        )
    ),
    'FreeAnchor': Soft(
        dict(
            HEADS['RetinaNet'],
            type='FreeAnchorRetinaHead',
            pre_anchor_topk=10,
            loss_bbox=dict(type='SmoothL1Loss', beta=0.11, loss_weight=0.75),
        )
    ),
    'AutoAssign': AutoAssign(
        dict(
            _NO_NORM,
            type='AutoAssignHead',
            strides=list(STRIDES),
            loss_bbox=dict(type='GIoULoss', loss_weight=5.0),
        )
    ),
    'YOLOv3': YOLOv3(
        dict(
            type='YOLOV3Head',
            num_classes=CLASSES,
            in_channels=(CHANNELS, CHANNELS),
            out_channels=(CHANNELS, CHANNELS),
            featmap_strides=STRIDES,
            anchor_generator=dict(
                type='YOLOAnchorGenerator',
                base_sizes=[[(20, 24), (30, 40)], [(40, 40), (60, 50)]],
                strides=list(STRIDES),
            ),
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True, reduction='sum'),
            loss_conf=dict(type='CrossEntropyLoss', use_sigmoid=True, reduction='sum'),
            loss_xy=dict(
                type='CrossEntropyLoss', use_sigmoid=True, loss_weight=2.0, reduction='sum'
            ),
            loss_wh=dict(type='MSELoss', loss_weight=2.0, reduction='sum'),
            train_cfg=dict(
                assigner=dict(type='GridAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0)
            ),
        )
    ),
    'FoveaBox': Fovea(
        dict(
            _ONE_CONV,
            type='FoveaHead',
            strides=list(STRIDES),
            base_edge_list=[16, 32],
            scale_ranges=((8, 38), (30, 128)),
            sigma=0.4,
            with_deform=False,
            loss_cls=_FOCAL,
            loss_bbox=dict(type='SmoothL1Loss', beta=0.11, loss_weight=1.0),
        )
    ),
    'CondInst': CondInst(
        dict(
            _NO_NORM,
            type='CondInstBboxHead',
            strides=list(STRIDES),
            regress_ranges=((-1, 30), (30, 1e8)),
            num_params=3,
            loss_cls=_FOCAL,
            loss_bbox=dict(type='GIoULoss'),
        ),
        channels=(4, 1, 3),
    ),
    'CenterNet': CenterNet(
        dict(
            _NO_NORM,
            type='CenterNetUpdateHead',
            strides=list(STRIDES),
            regress_ranges=((0, 26), (20, 1e8)),
            more_pos_topk=4,
            loss_cls=dict(
                type='GaussianFocalLoss', pos_weight=0.25, neg_weight=0.75, loss_weight=1.0
            ),
            loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
        )
    ),
    'RepPoints': RepPoints(
        dict(
            _NO_NORM,
            type='RepPointsHead',
            point_feat_channels=CHANNELS,
            point_strides=list(STRIDES),
            train_cfg=dict(
                init=dict(assigner=dict(type='PointAssigner', scale=4, pos_num=1), **_PSEUDO),
                refine=_MAX_IOU,
            ),
        )
    ),
    'VFNet': Sides(
        dict(
            _NO_NORM,
            type='VFNetHead',
            strides=list(STRIDES),
            regress_ranges=((-1, 30), (30, 1e8)),
            anchor_generator=_SQUARE,
            loss_cls=dict(type='VarifocalLoss', use_sigmoid=True, alpha=0.75, gamma=2.0),
            loss_bbox=dict(type='GIoULoss', loss_weight=1.5),
            loss_bbox_refine=dict(type='GIoULoss', loss_weight=2.0),
            train_cfg=_ATSS,
        ),
        channels=(4, 4),
        boxes=2,
    ),
    'TOOD': TOOD(
        dict(
            _ONE_CONV,
            type='TOODHead',
            norm_cfg=None,
            num_dcn=0,
            anchor_generator=_SQUARE,
            loss_cls=dict(
                type='QualityFocalLoss', use_sigmoid=True, activated=True, beta=2.0, loss_weight=1.0
            ),
            initial_loss_cls=dict(
                type='FocalLoss',
                use_sigmoid=True,
                activated=True,
                gamma=2.0,
                alpha=0.25,
                loss_weight=1.0,
            ),
            loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
            train_cfg=dict(
                initial_epoch=4,
                initial_assigner=dict(type='ATSSAssigner', topk=4),
                assigner=dict(type='TaskAlignedAssigner', topk=6),
                alpha=1,
                beta=6,
                **_PSEUDO,
            ),
        )
    ),
}
KINDS['CenterNet, one level'] = Centres(
    dict(
        type='CenterNetHead',
        in_channels=CHANNELS,
        feat_channels=CHANNELS,
        num_classes=CLASSES,
        loss_center_heatmap=dict(type='GaussianFocalLoss', loss_weight=1.0),
        loss_wh=dict(type='L1Loss', loss_weight=0.1),
        loss_offset=dict(type='L1Loss', loss_weight=1.0),
    ),
    num_predicted=0,
)
KINDS['TOOD, later'] = TOOD(KINDS['TOOD'].config, epoch=4)
KINDS['LAD'] = LAD(
    dict(without(KINDS['PAA'].config), type='LADHead', loss_bbox=dict(type='GIoULoss'))
)
