"""One training step of a stock model with a wrapped head and a backbone that costs nothing."""

import copy
import functools
import operator
import re
from typing import Any

import torch
from mmengine.logging import MessageHub
from torch import Tensor, nn

from lt_mm.apis.zoo.made_batches import classification_batch, detection_batch
from lt_mm.apis.zoo.stock_configs import StockConfig
from lt_mm.registry import MODELS, register

# Smaller images come first; some necks need the larger ones.
_DETECTION_SIZES = (128, 320)
# Larger numbers cost time and change nothing of what is computed: RoIs and proposals of an image,
# by the key of the dict that has them, or by the end of its type.
_MOST_OF_AN_IMAGE = {
    ('Sampler', 'num'): 32,
    ('rpn_proposal', 'nms_pre'): 100,
    ('rpn_proposal', 'max_per_img'): 100,
}


@register(MODELS)
class StandInBackbone(nn.Module):
    """Gives outputs of the shapes of a stock backbone, which depend on the images a little.

    Args:
        shapes: What the backbone gives: ``dict(shape=[...])`` with the batch in front, in lists.
    """

    def __init__(self, shapes: Any) -> None:
        super().__init__()
        self.values = nn.ParameterList()
        self.layout = self._take(shapes)

    def _take(self, shapes: Any) -> Any:
        if shapes is None:  # InceptionV3 without its auxiliary output
            return None
        if isinstance(shapes, dict):
            self.values.append(torch.randn(shapes['shape'][1:]))
            return len(self.values) - 1
        return tuple(self._take(each) for each in shapes)

    def forward(self, images: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The outputs for (B, 3, H, W) images."""
        scale = 1 + 0.1 * images[:, :, 0, 0].float().mean(dim=1).tanh()
        return self._give(self.layout, scale)

    def _give(self, layout: Any, scale: Tensor) -> Any:
        if layout is None:
            return None
        if isinstance(layout, int):
            value = self.values[layout]
            return value * scale.view(-1, *[1] * value.dim())
        return tuple(self._give(each, scale) for each in layout)


def take_step(stock: StockConfig, wrap: bool) -> dict[str, Tensor]:
    """Builds a model, takes the gradient of its losses on replicas, and returns these losses.

    Args:
        stock: The config.
        wrap: Whether the head is wrapped.

    Raises:
        ValueError: If nothing is paired, or if a loss or a gradient is not finite.
        Exception: Whatever else keeps the model from training.
    """
    if stock.library == 'mmpretrain':
        return _step(stock, wrap, _image_size(stock))
    *smaller, largest = _DETECTION_SIZES
    for size in smaller:
        try:
            return _step(stock, wrap, size)
        except (RuntimeError, IndexError, AssertionError):
            continue
    return _step(stock, wrap, largest)


def _step(stock: StockConfig, wrap: bool, size: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    for name in ('epoch', 'iter'):  # of the runner that there is not; some heads look at them
        MessageHub.get_current_instance().update_info(name, 0)
    model = _model(stock, wrap, size)
    model.init_weights()
    model.train()
    if stock.classifies:
        batch = classification_batch(size)
    else:
        batch = detection_batch(size, stock.has_masks)
    data = model.data_preprocessor(batch, True)
    losses = model.loss(data['inputs'], data['data_samples'])
    total, log = model.parse_losses(losses)
    total.backward()
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    if not gradients or not all(bool(each.isfinite().all()) for each in [total, *gradients]):
        raise ValueError(f'the loss is {float(total.detach())}, or its gradient is not finite')
    if wrap and not any(float(log[key]) for key in log if key.endswith('lt_num_paired')):
        raise ValueError('nothing is paired')
    return log


def _model(stock: StockConfig, wrap: bool, size: int) -> Any:
    config = copy.deepcopy(stock.cfg.model)
    part = functools.reduce(operator.getitem, stock.place[:-1], config)
    part.backbone = dict(type='lt_mm.StandInBackbone', shapes=_output_shapes(part.backbone, size))
    for node in (config, part):
        if node.get('data_preprocessor'):
            node.data_preprocessor.pop('batch_augments', None)
        if 'Track' in str(node.get('data_preprocessor')):  # which wants frames of a video
            node.data_preprocessor['type'] = 'DetDataPreprocessor'
            node.data_preprocessor.pop('use_det_processor', None)
    if stock.classifies:
        config.data_preprocessor = copy.deepcopy(stock.cfg.get('data_preprocessor')) or {}
        if wrap and (config.get('train_cfg') or {}).get('augments'):
            config.data_preprocessor['type'] = 'lt_mm.GroupedClsDataPreprocessor'
    if part.get('teacher_config'):
        part.teacher_config = dict(model=stock.teacher())
    lighten('', config)
    if wrap:
        head = part[stock.place[-1]]
        part[stock.place[-1]] = dict(type='lt_mm.LossTransformHead', head=head)
    return MODELS.build(config)


def lighten(name: str, node: Any) -> None:
    """Takes from the config of a model what needs other files, processes or much time, in place.

    Args:
        name: The key of the node in the dict around it.
        node: Some part of the config.
    """
    if isinstance(node, (list, tuple)):
        for each in node:
            lighten(name, each)
    if not isinstance(node, dict):
        return
    kind = str(node.get('type', ''))
    for (end, key), most in _MOST_OF_AN_IMAGE.items():
        if (name == end or kind.endswith(end)) and isinstance(node.get(key), int):
            node[key] = min(node[key], most)
    if kind.endswith('SyncBN'):  # which needs a process group
        node['type'] = 'BN'
    if 'Pretrained' in str(node.get('init_cfg') or {}):
        node['init_cfg'] = None
    for key, below in node.items():
        if isinstance(below, str) and '://' in below:  # weights to be loaded
            node[key] = None
        lighten(key, below)


def _output_shapes(backbone: dict, size: int) -> Any:
    """Shapes of what a backbone gives for a batch of four, from a pass without numbers."""
    config = {key: value for key, value in backbone.items() if key != 'init_cfg'}
    # Some operators know no device without numbers; deformable convolutions end the process.
    for device in ('cpu',) if 'dcn' in str(backbone).lower() else ('meta', 'cpu'):
        try:
            with torch.device(device), torch.no_grad():
                network = MODELS.build(config).to(device)
                network.train()  # ResNet's returns nothing
                return _shapes(network(torch.zeros(4, 3, size, size)))
        except (NotImplementedError, RuntimeError):
            if device == 'cpu':
                raise
    raise AssertionError


def _shapes(outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return dict(shape=list(outputs.shape))
    if outputs is None:
        return None
    return [_shapes(each) for each in outputs]


def _image_size(stock: StockConfig) -> int:
    """The size of the images that a classifier is trained on."""
    size = stock.cfg.model.backbone.get('img_size')
    if size is None:
        text = str((stock.cfg.get('train_dataloader') or {}).get('dataset'))
        found = re.findall(r"'(?:crop_size|scale|size)': (\d+)", text)
        size = found[-1] if found else 224
    return int(size[0] if isinstance(size, (list, tuple)) else size)
