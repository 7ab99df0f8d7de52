"""The modules of torchvision's models, and the names that they have in stock MM models."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

# A buffer that frozen batch normalisations lack.
COUNTER = 'num_batches_tracked'
_PARAMETERS = {
    'conv': ('weight',),
    'affine': ('weight', 'bias'),
    'norm': ('weight', 'bias', 'running_mean', 'running_var', COUNTER),
}


@dataclass(frozen=True)
class Layer:
    """A module with parameters of its own.

    Args:
        source: Name in torchvision.
        target: Name in the stock MM model.
        kind: 'conv' (a weight), 'affine' (weight and bias), 'norm' (batch
            normalisation), 'attention' (weight and bias of query, key and value in one)
            or 'parameter' (the names are those of a parameter itself).
        rows: 'keep', or how the first dimension depends on the classes:
            'background_first' (logits; background moves from the first row to the last),
            'boxes' (4 rows a class, background too), 'masks' (a row a class, background
            too) or 'anchors' (for each anchor a row a class, without background).
    """

    source: str
    target: str
    kind: str
    rows: str = 'keep'

    def names(self) -> Iterable[tuple[str, str]]:
        """Pairs of names of parameters and buffers, torchvision's first."""
        if self.kind == 'attention':
            return [
                (f'{self.source}.in_proj_{name}', f'{self.target}.qkv.{name}')
                for name in _PARAMETERS['affine']
            ]
        if self.kind == 'parameter':
            return [(self.source, self.target)]
        return [
            (f'{self.source}.{name}', f'{self.target}.{name}') for name in _PARAMETERS[self.kind]
        ]


@dataclass(frozen=True)
class Architecture:
    """What is known of one torchvision model.

    Args:
        layers: All its modules with parameters.
        shapes: Shapes of parameters that tell it from models with the same names.
        old_names: Patterns and replacements that turn the names of older files into
            the current ones, as torchvision does when it loads them.
        logits: Name of a parameter with one entry for each class and each of ``anchors``
            anchors; empty where classes are not reordered.
        anchors: Number of anchors at a location of a dense head; 1 elsewhere.
    """

    layers: Sequence[Layer]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    old_names: Sequence[tuple[str, str]] = ()
    logits: str = ''
    anchors: int = 1


def _conv_norm(source: str, target: str) -> list[Layer]:
    """Torchvision's Conv2dNormActivation to mmcv's ConvModule."""
    return [
        Layer(f'{source}.0', f'{target}.conv', 'conv'),
        Layer(f'{source}.1', f'{target}.bn', 'norm'),
    ]


def _resnet50_trunk(source: str) -> list[Layer]:
    """ResNet-50 and ResNeXt-50 without the last layer; the names are the same."""
    names = [('conv1', 'conv'), ('bn1', 'norm')]
    for stage, num_blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(num_blocks):
            path = f'layer{stage}.{block}'
            for i in (1, 2, 3):
                names += [(f'{path}.conv{i}', 'conv'), (f'{path}.bn{i}', 'norm')]
            if block == 0:
                names += [(f'{path}.downsample.0', 'conv'), (f'{path}.downsample.1', 'norm')]
    return [Layer(source + name, f'backbone.{name}', kind) for name, kind in names]


def _resnet50_classifier() -> list[Layer]:
    return _resnet50_trunk('') + [Layer('fc', 'head.fc', 'affine')]


def _mobilenet_v2() -> list[Layer]:
    layers = _conv_norm('features.0', 'backbone.conv1')
    index = 1
    for stage, num_blocks in enumerate((1, 2, 3, 4, 3, 3, 1), start=1):
        for block in range(num_blocks):
            source = f'features.{index}.conv'
            target = f'backbone.layer{stage}.{block}.conv'
            last = 1 if index == 1 else 2  # The first block does not expand.
            for i in range(last):
                layers += _conv_norm(f'{source}.{i}', f'{target}.{i}')
            layers += [
                Layer(f'{source}.{last}', f'{target}.{last}.conv', 'conv'),
                Layer(f'{source}.{last + 1}', f'{target}.{last}.bn', 'norm'),
            ]
            index += 1
    layers += _conv_norm(f'features.{index}', 'backbone.conv2')
    return layers + [Layer('classifier.1', 'head.fc', 'affine')]


def _efficientnet_b0() -> list[Layer]:
    layers = _conv_norm('features.0', 'backbone.layers.0')
    # mmpretrain keeps stages of one resolution together: the second number of each
    # pair is its stage.
    stages = ((1, 1), (2, 2), (2, 3), (3, 4), (3, 4), (4, 5), (1, 5))
    done = {stage: 0 for _, stage in stages}
    for index, (num_blocks, stage) in enumerate(stages, start=1):
        for block in range(num_blocks):
            layers += _mb_conv(
                f'features.{index}.{block}.block',
                f'backbone.layers.{stage}.{done[stage]}',
                expands=index > 1,
            )
            done[stage] += 1
    layers += _conv_norm('features.8', 'backbone.layers.6')
    return layers + [Layer('classifier.1', 'head.fc', 'affine')]


def _mb_conv(source: str, target: str, expands: bool) -> list[Layer]:
    layers = _conv_norm(f'{source}.0', f'{target}.expand_conv') if expands else []
    i = int(expands)
    return layers + [
        *_conv_norm(f'{source}.{i}', f'{target}.depthwise_conv'),
        Layer(f'{source}.{i + 1}.fc1', f'{target}.se.conv1.conv', 'affine'),
        Layer(f'{source}.{i + 1}.fc2', f'{target}.se.conv2.conv', 'affine'),
        *_conv_norm(f'{source}.{i + 2}', f'{target}.linear_conv'),
    ]


def _vit_b_16() -> list[Layer]:
    layers = [
        Layer('class_token', 'backbone.cls_token', 'parameter'),
        Layer('encoder.pos_embedding', 'backbone.pos_embed', 'parameter'),
        Layer('conv_proj', 'backbone.patch_embed.projection', 'affine'),
    ]
    for i in range(12):
        source, target = f'encoder.layers.encoder_layer_{i}', f'backbone.layers.{i}'
        layers += [
            Layer(f'{source}.ln_1', f'{target}.ln1', 'affine'),
            # Both stack query, key and value in this order.
            Layer(f'{source}.self_attention', f'{target}.attn', 'attention'),
            Layer(f'{source}.self_attention.out_proj', f'{target}.attn.proj', 'affine'),
            Layer(f'{source}.ln_2', f'{target}.ln2', 'affine'),
            Layer(f'{source}.mlp.0', f'{target}.ffn.layers.0.0', 'affine'),
            Layer(f'{source}.mlp.3', f'{target}.ffn.layers.1', 'affine'),
        ]
    return layers + [
        Layer('encoder.ln', 'backbone.ln1', 'affine'),
        Layer('heads.head', 'head.layers.head', 'affine'),
    ]


def _mobilenet_v3_large_trunk() -> list[Layer]:
    """TorchvisionBackbone uses torchvision's own names."""
    names = [('0.0', 'conv'), ('0.1', 'norm')]
    for index in range(1, 16):
        with_se = 4 <= index <= 6 or index >= 11
        kinds = [False] * (index > 1) + [False] + [True] * with_se + [False]
        for part, is_se in enumerate(kinds):
            path = f'{index}.block.{part}'
            names += (
                [(f'{path}.fc1', 'affine'), (f'{path}.fc2', 'affine')]
                if is_se
                else [(f'{path}.0', 'conv'), (f'{path}.1', 'norm')]
            )
    names += [('16.0', 'conv'), ('16.1', 'norm')]
    return [
        Layer(f'backbone.body.{name}', f'backbone.features.{name}', kind) for name, kind in names
    ]


def _fpn(num_levels: int) -> list[Layer]:
    return [
        Layer(f'backbone.fpn.{source}.{i}.0', f'neck.{target}.{i}.conv', 'affine')
        for i in range(num_levels)
        for source, target in (('inner_blocks', 'lateral_convs'), ('layer_blocks', 'fpn_convs'))
    ]


def _two_stage_heads() -> list[Layer]:
    box_head = 'roi_head.bbox_head'
    return [
        Layer('rpn.head.conv.0.0', 'rpn_head.rpn_conv', 'affine'),
        Layer('rpn.head.cls_logits', 'rpn_head.rpn_cls', 'affine'),
        Layer('rpn.head.bbox_pred', 'rpn_head.rpn_reg', 'affine'),
        Layer('roi_heads.box_head.fc6', f'{box_head}.shared_fcs.0', 'affine'),
        Layer('roi_heads.box_head.fc7', f'{box_head}.shared_fcs.1', 'affine'),
        Layer(
            'roi_heads.box_predictor.cls_score',
            f'{box_head}.fc_cls',
            'affine',
            rows='background_first',
        ),
        Layer('roi_heads.box_predictor.bbox_pred', f'{box_head}.fc_reg', 'affine', rows='boxes'),
    ]


def _mask_head() -> list[Layer]:
    target = 'roi_head.mask_head'
    return [
        *(
            Layer(f'roi_heads.mask_head.{i}.0', f'{target}.convs.{i}.conv', 'affine')
            for i in range(4)
        ),
        Layer('roi_heads.mask_predictor.conv5_mask', f'{target}.upsample', 'affine'),
        Layer(
            'roi_heads.mask_predictor.mask_fcn_logits',
            f'{target}.conv_logits',
            'affine',
            rows='masks',
        ),
    ]


def _retinanet() -> list[Layer]:
    layers = _resnet50_trunk('backbone.body.') + _fpn(3)
    # mmdet's FPN continues its numbering with the extra levels.
    layers += [
        Layer(f'backbone.fpn.extra_blocks.p{6 + i}', f'neck.fpn_convs.{3 + i}.conv', 'affine')
        for i in range(2)
    ]
    for source, target in (('classification', 'cls'), ('regression', 'reg')):
        layers += [
            Layer(f'head.{source}_head.conv.{i}.0', f'bbox_head.{target}_convs.{i}.conv', 'affine')
            for i in range(4)
        ]
    return layers + [
        Layer(
            'head.classification_head.cls_logits', 'bbox_head.retina_cls', 'affine', rows='anchors'
        ),
        Layer('head.regression_head.bbox_reg', 'bbox_head.retina_reg', 'affine'),
    ]


_OLD_FPN = (r'((?:inner|layer)_blocks\.\d+)\.(weight|bias)$', r'\1.0.\2')
_OLD_RPN = (r'^rpn\.head\.conv\.(weight|bias)$', r'rpn.head.conv.0.0.\1')
_OLD_RETINA = tuple((rf'(_head\.conv)\.{2 * i}\.(weight|bias)$', rf'\1.{i}.0.\2') for i in range(4))
_OLD_MASK = tuple((rf'mask_fcn{i + 1}\.', f'{i}.0.') for i in range(4))
_OLD_MLP = ((r'mlp\.linear_1\.', 'mlp.0.'), (r'mlp\.linear_2\.', 'mlp.3.'))

_BOX_LOGITS = 'roi_heads.box_predictor.cls_score.bias'
_RESNET_SHAPE = {'backbone.body.layer1.0.conv2.weight': (64, 64, 3, 3)}

ARCHITECTURES: dict[str, Architecture] = {
    'resnet50': Architecture(_resnet50_classifier(), {'layer1.0.conv2.weight': (64, 64, 3, 3)}),
    'resnext50_32x4d': Architecture(
        _resnet50_classifier(), {'layer1.0.conv2.weight': (128, 4, 3, 3)}
    ),
    'mobilenet_v2': Architecture(_mobilenet_v2(), {'features.0.0.weight': (32, 3, 3, 3)}),
    'efficientnet_b0': Architecture(_efficientnet_b0(), {'features.0.0.weight': (32, 3, 3, 3)}),
    'vit_b_16': Architecture(
        _vit_b_16(), {'conv_proj.weight': (768, 3, 16, 16)}, old_names=_OLD_MLP
    ),
    'fasterrcnn_resnet50_fpn': Architecture(
        _resnet50_trunk('backbone.body.') + _fpn(4) + _two_stage_heads(),
        _RESNET_SHAPE,
        (_OLD_FPN, _OLD_RPN),
        _BOX_LOGITS,
    ),
    'fasterrcnn_mobilenet_v3_large_fpn': Architecture(
        _mobilenet_v3_large_trunk() + _fpn(2) + _two_stage_heads(),
        old_names=(_OLD_FPN, _OLD_RPN),
        logits=_BOX_LOGITS,
    ),
    'maskrcnn_resnet50_fpn': Architecture(
        _resnet50_trunk('backbone.body.') + _fpn(4) + _two_stage_heads() + _mask_head(),
        _RESNET_SHAPE,
        (_OLD_FPN, _OLD_RPN, *_OLD_MASK),
        _BOX_LOGITS,
    ),
    'retinanet_resnet50_fpn': Architecture(
        _retinanet(),
        _RESNET_SHAPE,
        (_OLD_FPN, *_OLD_RETINA),
        'head.classification_head.cls_logits.bias',
        anchors=9,
    ),
}
