"""Small heads whose predictions are queries, or whose classes are tokens of a text."""

import copy

import torch
from mmdet.models.dense_heads import atss_vlfusion_head
from torch import nn

from tests.models.heads.dense_data import CHANNELS, DENOISING, HEADS, HEIGHT, LAYERS, WIDTH
from tests.models.heads.zoo_kinds import SIZES, Kind, without

MATCHING = 12
# Of the 8 places for tokens two are beside the text.
TOKENS, TEXT = 8, 6
# The tokens of each class.
PHRASES = [[0, 1], [3], [4, 5]]


class Queries(Kind):
    """DINO and its descendants: denoising queries, matching ones, dense ones."""

    dense = 0

    @property
    def dn_meta(self) -> dict:
        return dict(
            num_denoising_queries=DENOISING, num_denoising_groups=1, num_dense_queries=self.dense
        )

    def outputs(self, head, images):
        generator = torch.Generator().manual_seed(0)
        count = DENOISING + MATCHING + self.dense
        scores = 2 * torch.rand(LAYERS, images, count, self.columns(head), generator=generator) - 1
        boxes = 0.2 + 0.5 * torch.rand(LAYERS, images, count, 4, generator=generator)
        leaves = [scores.requires_grad_(), boxes.requires_grad_()]
        return tuple(leaves), leaves

    def columns(self, head):
        return head.cls_out_channels

    def losses(self, head, outputs, samples):
        torch.manual_seed(0)
        samples = copy.deepcopy(samples)
        return head.loss_by_feat(
            *outputs,
            None,
            None,
            [sample.gt_instances for sample in samples],
            [sample.metainfo for sample in samples],
            self.dn_meta,
        )

    def inputs(self, images):
        generator = torch.Generator().manual_seed(0)
        count = DENOISING + MATCHING + self.dense
        references = [
            0.2 + 0.5 * torch.rand(images, count, 4, generator=generator) for _ in range(LAYERS + 1)
        ]
        return torch.randn(LAYERS, images, count, CHANNELS, generator=generator), references

    def losses_of_inputs(self, head, samples):
        outputs = head(*self.inputs(len(samples)))
        return self.losses(head, outputs, samples)

    def mirrored(self, head, outputs):
        scores, boxes = (each[:, :1] for each in outputs)
        flipped = torch.cat([1 - boxes[..., :1], boxes[..., 1:]], dim=-1)
        return torch.cat([scores, scores], dim=1), torch.cat([boxes, flipped], dim=1)

    def raw(self, head, outputs, number, image, row):
        return outputs[number][-1][image, DENOISING + row]

    def box(self, head, outputs, image, row):
        x, y, w, h = self.raw(head, outputs, 1, image, row).double()
        x, y, w, h = x * WIDTH, y * HEIGHT, w * WIDTH, h * HEIGHT
        return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2])

    def positives(self, head, outputs, samples):
        assigned, stock = [], head.assigner.assign

        def noted(*args, **kwargs):
            assigned.append(stock(*args, **kwargs))
            return assigned[-1]

        head.assigner.assign = noted
        self.losses(head, outputs, samples)
        last = assigned[(LAYERS - 1) * len(samples) : LAYERS * len(samples)]
        return [
            [(row, k - 1) for row, k in enumerate(one.gt_inds.tolist()) if k > 0] for one in last
        ]


class DDQ(Queries):
    """Every third query is like another one in the last layer, and is not matched there."""

    dense = 5
    distinct = torch.arange(MATCHING) % 3 != 1

    def build(self, **options):
        head = super().build(**options)
        head.cache_dict = dict(
            num_dense_queries=self.dense,
            num_heads=1,
            # The last one is that of the prediction.
            distinct_query_mask=[
                *[self.distinct.expand(5, 1, -1)] * (LAYERS - 1),
                torch.ones(5, 1, DENOISING + MATCHING + self.dense, dtype=torch.bool),
            ],
        )
        return head

    def positives(self, head, outputs, samples):
        rows = self.distinct.nonzero()[:, 0].tolist()
        return [
            [(rows[row], k) for row, k in own] for own in super().positives(head, outputs, samples)
        ]


def with_phrases(samples: list) -> list:
    """Copies of the samples whose annotations have the tokens of their class."""
    samples = copy.deepcopy(samples)
    for sample in samples:
        gt = sample.gt_instances
        gt.positive_maps = torch.zeros(len(gt), TOKENS)
        for row, label in enumerate(gt.labels.tolist()):
            gt.positive_maps[row, PHRASES[label]] = 1.0
        gt.text_token_mask = torch.arange(TOKENS).expand(len(gt), -1) < TEXT
        sample.token_positive_map = {
            label + 1: list(tokens) for label, tokens in enumerate(PHRASES)
        }
    return samples


class Phrases(Kind):
    """Whose class score is that of the phrase of the annotation."""

    def choose(self, positives: list, samples: list) -> list:
        self.labels = {
            (image, row): int(samples[image].gt_instances.labels[k])
            for image, own in enumerate(positives)
            for row, k in own
        }
        return positives

    def logits(self, head, outputs, image, row):
        tokens = self.tokens(head, outputs, image, row)
        probability = tokens[PHRASES[self.labels[image, row]]].sigmoid().mean()
        return (probability / (1 - probability)).log()[None]

    def tokens(self, head, outputs, image, row):
        return self.raw(head, outputs, 0, image, row)


class GroundingDINO(Phrases, Queries):
    def columns(self, head):
        return TOKENS

    def outputs(self, head, images):
        outputs, leaves = super().outputs(head, images)
        outputs[0].data[..., TEXT:] = -torch.inf
        return outputs, leaves

    def losses(self, head, outputs, samples):
        head.text_masks = torch.ones(len(samples), TEXT, dtype=torch.bool)
        return super().losses(head, outputs, with_phrases(samples))

    def inputs(self, images):
        generator = torch.Generator().manual_seed(2)
        text = torch.randn(images, TEXT, CHANNELS, generator=generator)
        return (*super().inputs(images), text, torch.ones(images, TEXT, dtype=torch.bool))

    def positives(self, head, outputs, samples):
        return self.choose(super().positives(head, outputs, samples), samples)


class _Fusion(nn.Module):
    """In the place of the language model of GLIP."""

    def __init__(self, in_channels, feat_channels, num_base_priors, **kwargs):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(in_channels, count, 1) for count in (4, 1, feat_channels)
        )

    def forward(self, visual_feats, language_feats):
        boxes, centres, tokens = ([conv(feat) for feat in visual_feats] for conv in self.convs)
        return boxes, centres, [each.flatten(2).transpose(1, 2) for each in tokens]


class GLIP(Phrases):
    channels = (4, 1)

    def build(self, **options):
        stock = atss_vlfusion_head.VLFusionModule
        atss_vlfusion_head.VLFusionModule = _Fusion
        try:
            return super().build(**options)
        finally:
            atss_vlfusion_head.VLFusionModule = stock

    def num_class_channels(self, head):
        return TOKENS

    def outputs(self, head, images):
        (tokens, *others), leaves = super().outputs(head, images)
        return ([each.flatten(2).transpose(1, 2) for each in tokens], *others), leaves

    def losses(self, head, outputs, samples):
        head.text_masks = torch.ones(len(samples), TOKENS)
        return super().losses(head, outputs, with_phrases(samples))

    def inputs(self, images):
        return (*super().inputs(images), dict(masks=torch.ones(images, TOKENS)))

    def losses_of_inputs(self, head, samples):
        return head.loss(*self.inputs(len(samples)), with_phrases(samples))

    def mirrored(self, head, outputs):
        maps = [each.transpose(1, 2).unflatten(2, size) for each, size in zip(outputs[0], SIZES)]
        tokens, *others = super().mirrored(head, (maps, *outputs[1:]))
        return ([each.flatten(2).transpose(1, 2) for each in tokens], *others)

    def tokens(self, head, outputs, image, row):
        return torch.cat(outputs[0], dim=1)[image, row]

    def positives(self, head, outputs, samples):
        return self.choose(super().positives(head, outputs, samples), samples)


_DINO = without(HEADS['DINO'])
QUERY_KINDS: dict[str, Kind] = {
    'DDQ': DDQ(dict(_DINO, type='DDQDETRHead', aux_num_pos=2)),
    'Grounding DINO': GroundingDINO(
        dict(
            _DINO,
            type='GroundingDINOHead',
            contrastive_cfg=dict(max_text_len=TOKENS),
            train_cfg=dict(
                assigner=dict(
                    type='HungarianAssigner',
                    match_costs=[
                        dict(type='BinaryFocalLossCost', weight=2.0),
                        dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
                        dict(type='IoUCost', iou_mode='giou', weight=2.0),
                    ],
                )
            ),
        )
    ),
    'GLIP': GLIP(
        dict(
            HEADS['ATSS'],
            type='ATSSVLFusionHead',
            # The stock anchors are not symmetric; all near an object are positive so.
            train_cfg=dict(HEADS['ATSS']['train_cfg'], assigner=dict(type='ATSSAssigner', topk=24)),
            lang_model_name='none',
            loss_centerness=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0),
        )
    ),
}
