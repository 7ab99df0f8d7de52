"""Converted weights give torchvision's outputs in the stock models of the configs.

Weights are random: what is proved is that every parameter arrives where it has the
same effect, and that the configs set everything else as torchvision does.
"""

import pytest
import torch
import torchvision
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData
from torch import nn

from lt_mm.apis.torchvision_weights import COCO_CATEGORY_IDS, convert
from tests.paths import CONFIGS

# Name in torchvision: config of the equivalent model.
CLASSIFIERS = {
    'resnet50': 'imagenet/resnet50_ft.py',
    'resnext50_32x4d': 'imagenet/resnext50_ft.py',
    'mobilenet_v2': 'imagenet/mobilenet_v2_ft.py',
    'efficientnet_b0': 'imagenet/efficientnet_b0_ft.py',
    'vit_b_16': 'imagenet/vit_b16_ft.py',
}
TWO_STAGE = {
    'fasterrcnn_resnet50_fpn': '_base_/models/faster_rcnn_r50_tv.py',
    'maskrcnn_resnet50_fpn': '_base_/models/mask_rcnn_r50_tv.py',
    'fasterrcnn_mobilenet_v3_large_fpn': '_base_/models/faster_rcnn_mobilenetv3l_tv.py',
}
DETECTORS = {**TWO_STAGE, 'retinanet_resnet50_fpn': '_base_/models/retinanet_r50_tv.py'}
# Height and width of the images: not multiples of 32, so that both libraries pad.
SIZES = dict.fromkeys(DETECTORS, (61, 90))
SIZES['fasterrcnn_mobilenet_v3_large_fpn'] = (125, 190)  # Its RoIs have stride 32.
# Options of both that leave nothing to chance or rounding, and little to compute.
# Samples that hold all candidates are not random. Of RoIs below the stride, which pool
# the same features, rounding would decide which one NMS keeps.
TORCHVISION_OPTIONS = dict(
    rpn_batch_size_per_image=100_000,
    box_batch_size_per_image=100_000,
    rpn_post_nms_top_n_train=200,
    rpn_post_nms_top_n_test=200,
    box_detections_per_img=30,
)
STOCK_OPTIONS = {
    'model.train_cfg.rpn.sampler.num': 100_000,
    'model.train_cfg.rcnn.sampler.num': 100_000,
    'model.train_cfg.rpn_proposal.max_per_img': 200,
    'model.test_cfg.rpn.max_per_img': 200,
    'model.test_cfg.rcnn.max_per_img': 30,
}
NOT_IN_COCO = [i for i in range(1, 91) if i not in COCO_CATEGORY_IDS]


def build(name):
    """The model of torchvision, as it initialises it."""
    options, module = {}, torchvision.models
    if name in DETECTORS:
        module = torchvision.models.detection
        height, width = SIZES[name]
        options = dict(weights_backbone=None, min_size=height, max_size=width)
        if name in TWO_STAGE:
            options.update(TORCHVISION_OPTIONS)
    return getattr(module, name)(weights=None, **options).eval()


def torchvision_model(name):
    """The model with random weights and statistics, in eval mode."""
    model = build(name)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.1)
                # Down to 1e-4, where another eps shows.
                part.running_var.uniform_(-4, 0).copy_(10**part.running_var)
                part.weight.uniform_(0.3, 0.6).mul_(part.running_var.sqrt())
                part.bias.normal_(0, 0.1)
        for key, value in model.named_parameters():
            if key.endswith('bias') and value.eq(0).all():
                value.normal_(0, 0.1)
    return model


def stock_model(config, **options):
    cfg = Config.fromfile(str(CONFIGS / config))
    cfg.merge_from_dict(options)
    init_default_scope('mmpretrain' if 'imagenet' in config else 'mmdet')
    if 'data_preprocessor' in cfg:  # MMPretrain's Runner puts it into the model.
        cfg.model.data_preprocessor = dict(type='ClsDataPreprocessor', **cfg.data_preprocessor)
    return MODELS.build(cfg.model).eval()


def assert_equal(found, expected, tolerance=1e-5):
    """Equal up to float32's rounding, relative to the largest value."""
    scale = max(expected.abs().max().item(), 1.0) if expected.numel() else 1.0
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_classifiers_give_equal_logits(name):
    model = torchvision_model(name)
    if name == 'vit_b_16':  # made with zeros
        nn.init.normal_(model.heads.head.weight, std=0.1)
        nn.init.normal_(model.class_token)
    stock = stock_model(CLASSIFIERS[name])
    stock.load_state_dict(convert(name, model.state_dict()), strict=True)
    size = (224, 224) if name == 'vit_b_16' else (64, 96)
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    normalized = torchvision.transforms.functional.normalize(images / 255, mean, std)
    # mmpretrain loads images as BGR.
    inputs = stock.data_preprocessor(dict(inputs=images.flip(1)))['inputs']
    with torch.no_grad():
        expected = model(normalized)
        found = stock.head(stock.extract_feat(inputs))
    assert expected.std() > 0.01
    assert_equal(found, expected)


# Mean and standard deviation of what the last layers give, so that detections differ.
LAST_LAYERS = {
    'rpn.head.cls_logits': (0, 1),
    'rpn.head.bbox_pred': (0, 0.3),
    'roi_heads.box_predictor.cls_score': (0, 2.5),
    'roi_heads.box_predictor.bbox_pred': (0, 1),
    'head.classification_head.cls_logits': (-4, 1.5),
    'head.regression_head.bbox_reg': (0, 0.3),
}


@torch.no_grad()
def standardize_last_layers(model, image):
    """Gives each channel of the last layers the mean and deviation of LAST_LAYERS."""

    def standardize(layer, inputs, output):
        handles.pop(layer).remove()
        mean, deviation = targets[layer]
        channels = output.transpose(0, 1).flatten(1)
        gain = deviation / channels.std(1)
        layer.bias.copy_((layer.bias - channels.mean(1)) * gain + mean)
        layer.weight.mul_(gain.view(-1, *[1] * (layer.weight.ndim - 1)))
        return layer(*inputs)

    targets = {
        model.get_submodule(name): target
        for name, target in LAST_LAYERS.items()
        if name in dict(model.named_modules())
    }
    handles = {layer: layer.register_forward_hook(standardize) for layer in targets}
    model([image])
    assert not handles


class Pair:
    """A detector of torchvision, its stock twin, and one image for both."""

    def __init__(self, name):
        coarse = torch.randint(0, 256, (1, 3, 8, 12), dtype=torch.uint8)
        self.image = nn.functional.interpolate(coarse, SIZES[name])[0]
        self.model = torchvision_model(name)
        options = {}
        if name in TWO_STAGE:
            smallest = 32.0 if 'mobilenet' in name else 4.0
            self.model.rpn.min_size = smallest
            options = {
                'model.train_cfg.rpn_proposal.min_bbox_size': smallest,
                'model.test_cfg.rpn.min_bbox_size': smallest,
                **STOCK_OPTIONS,
            }
        if 'resnet' in name:  # as torchvision does for its COCO weights
            for part in self.model.modules():
                if isinstance(part, nn.BatchNorm2d):
                    part.eps = 0.0
        standardize_last_layers(self.model, self.image / 255)
        self._avoid_what_is_not_in_coco()
        self.stock = stock_model(DETECTORS[name], **options)
        self.stock.load_state_dict(convert(name, self.model.state_dict()), strict=True)
        sample = DetDataSample(
            metainfo=dict(img_shape=SIZES[name], ori_shape=SIZES[name], scale_factor=(1.0, 1.0))
        )
        # mmdet loads images as BGR.
        self.data = self.stock.data_preprocessor(
            dict(inputs=[self.image.flip(0)], data_samples=[sample])
        )
        self.images, _ = self.model.transform([self.image / 255])
        with torch.no_grad():
            self.maps = self.model.backbone(self.images.tensors)
            self.levels = list(self.maps.values())
            self.stock_levels = self.stock.extract_feat(self.data['inputs'])

    @torch.no_grad()
    def _avoid_what_is_not_in_coco(self):
        """As training does; the stock model has no logits for these ids."""
        if hasattr(self.model, 'roi_heads'):
            self.model.roi_heads.box_predictor.cls_score.bias[NOT_IN_COCO] = -100
        else:
            bias = self.model.head.classification_head.cls_logits.bias
            bias.view(9, 91)[:, [0, *NOT_IN_COCO]] = -100


@pytest.fixture(scope='module', params=DETECTORS)
def pair(request):
    torch.manual_seed(0)
    return request.param, Pair(request.param)


def test_detectors_see_the_same_levels(pair):
    _, pair = pair
    assert_equal(pair.data['inputs'], pair.images.tensors)
    assert len(pair.stock_levels) == len(pair.levels)
    for found, expected in zip(pair.stock_levels, pair.levels):
        assert_equal(found, expected)


def test_detectors_have_the_same_anchors_and_dense_predictions(pair):
    name, pair = pair
    if name in TWO_STAGE:
        stock, rpn = pair.stock.rpn_head, pair.model.rpn
        generator, predictions = rpn.anchor_generator, rpn.head(pair.levels)
        found = stock(pair.stock_levels)
        for ours, theirs in zip(found, predictions):
            for level, expected in zip(ours, theirs):
                assert_equal(level, expected)
    else:
        stock, head = pair.stock.bbox_head, pair.model.head
        generator, predictions = pair.model.anchor_generator, head(pair.levels)
        logits, deltas = stock(pair.stock_levels)
        expected = predictions['cls_logits'][..., list(COCO_CATEGORY_IDS)]
        assert_equal(_rows(logits, 80), expected)
        assert_equal(_rows(deltas, 4), predictions['bbox_regression'])
    sizes = [level.shape[-2:] for level in pair.levels]
    found = stock.prior_generator.grid_priors(sizes, device='cpu')
    assert torch.equal(torch.cat(found), generator(pair.images, pair.levels)[0])


def _rows(levels, width):
    """(1, locations * anchors, width) of predictions (1, anchors * width, H, W)."""
    return torch.cat([level.permute(0, 2, 3, 1).reshape(1, -1, width) for level in levels], dim=1)


@torch.no_grad()
def test_detections_are_equal(pair):
    _, pair = pair
    expected = pair.model([pair.image / 255])[0]
    found = pair.stock.predict(pair.data['inputs'], pair.data['data_samples'])
    found = found[0].pred_instances
    categories = torch.tensor(COCO_CATEGORY_IDS)[found.labels]
    assert len(found) >= 30 and len(categories.unique()) > 5
    assert found.scores.std() > 0.01
    assert torch.equal(categories, expected['labels'])
    # The made heads multiply rounding in the proposals.
    assert_equal(found.scores, expected['scores'], tolerance=1e-4)
    assert_equal(found.bboxes, expected['boxes'], tolerance=1e-4)


@pytest.mark.parametrize('pair', TWO_STAGE, indirect=True)
@torch.no_grad()
def test_proposals_and_heads_of_two_stages_are_equal(pair):
    name, pair = pair
    maps = pair.maps
    proposals, _ = pair.model.rpn(pair.images, maps)
    found = pair.stock.rpn_head.predict(pair.stock_levels, pair.data['data_samples'])
    assert len(proposals[0]) > 50
    assert_equal(found[0].bboxes, proposals[0])
    roi_heads, sizes = pair.model.roi_heads, pair.images.image_sizes
    logits, deltas = roi_heads.box_predictor(
        roi_heads.box_head(roi_heads.box_roi_pool(maps, proposals, sizes))
    )
    outputs = pair.stock.roi_head._bbox_forward(pair.stock_levels, bbox2roi(proposals))
    kept = [*COCO_CATEGORY_IDS, 0]
    assert_equal(outputs['cls_score'], logits[:, kept])
    deltas = deltas.unflatten(1, (91, 4))[:, kept[:-1]].flatten(1)
    assert_equal(outputs['bbox_pred'], deltas)
    if name == 'maskrcnn_resnet50_fpn':
        few = [proposals[0][:10]]
        masks = roi_heads.mask_predictor(
            roi_heads.mask_head(roi_heads.mask_roi_pool(maps, few, sizes))
        )
        outputs = pair.stock.roi_head._mask_forward(pair.stock_levels, bbox2roi(few))
        assert masks.std() > 0.01
        assert_equal(outputs['mask_preds'], masks[:, list(COCO_CATEGORY_IDS)])


# Not Mask R-CNN: it is Faster R-CNN but for the loss of masks, whose targets are binary in
# mmdet and soft in torchvision.
@pytest.mark.parametrize('pair', [name for name in DETECTORS if 'mask' not in name], indirect=True)
def test_training_losses_and_gradients_are_equal(pair):
    name, pair = pair
    # Far from each other: an anchor that is the best one of an annotation, and nearer to
    # another, belongs to the first in mmdet and to the second in torchvision.
    boxes = torch.tensor([[3.0, 5.0, 38.0, 50.0], [52.0, 8.0, 88.0, 60.0]])
    labels = torch.tensor([0, 79])
    sample = pair.data['data_samples'][0].clone()
    sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
    targets = dict(boxes=boxes, labels=torch.tensor(COCO_CATEGORY_IDS)[labels])
    pair.model.train()
    for part in pair.model.modules():
        if isinstance(part, nn.BatchNorm2d):  # torchvision freezes it in trained models
            part.eval()
    expected = pair.model([pair.image / 255], [targets])
    found = pair.stock.train().loss(pair.data['inputs'], [sample])
    pair.model.eval(), pair.stock.eval()
    pairs = LOSSES if name in TWO_STAGE else DENSE_LOSSES
    found = {key: sum(found[key]) if isinstance(found[key], list) else found[key] for key in pairs}
    expected = {ours: expected[theirs] for ours, theirs in pairs.items()}
    for key, value in expected.items():
        assert value > 0.001
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=0)
    sum(expected.values()).backward()
    sum(found.values()).backward()
    gradient = pair.model.backbone.fpn.inner_blocks[0][0].weight.grad
    stock_gradient = pair.stock.neck.lateral_convs[0].conv.weight.grad
    assert (stock_gradient - gradient).norm() < 1e-3 * gradient.norm()


# Losses of mmdet: of torchvision.
LOSSES = {
    'loss_rpn_cls': 'loss_objectness',
    'loss_rpn_bbox': 'loss_rpn_box_reg',
    'loss_cls': 'loss_classifier',
    'loss_bbox': 'loss_box_reg',
}
DENSE_LOSSES = {'loss_cls': 'classification', 'loss_bbox': 'bbox_regression'}
