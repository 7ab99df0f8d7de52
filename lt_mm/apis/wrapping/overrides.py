"""Which lines a stock config needs in order to train with LossTransform, and why."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mmengine.config import Config

from lt_mm.datasets.transforms.invertible_pipeline import InvertiblePipeline
from lt_mm.models.heads import LossTransformHead
from lt_mm.registry import MODELS, TRANSFORMS, configs_of, name_of
from lt_mm.structures.errors import UnsupportedHeadError

# The first that a detector has is wrapped.
_HEADS = ('roi_head', 'bbox_head', 'mask_head', 'panoptic_head', 'rpn_head')
Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Override:
    """One thing that a child config changes.

    Attributes:
        place: Keys and list indices from the config to what is changed.
        kind: The class that goes there, with its scope; None for a plain value.
        wrapped: The argument of that class that gets what the base has there; '' for none.
        options: Its other arguments; for a plain value ``dict(value=...)``.
        in_list: Whether the class stands alone in a list, as a pipeline does.
        merges: Whether it only changes fields of what the base has there.
        reason: Why, for the user.
    """

    place: Place
    kind: str | None
    reason: str
    wrapped: str = ''
    options: dict[str, Any] = field(default_factory=dict)
    in_list: bool = False
    merges: bool = False


@dataclass(frozen=True)
class WrapOptions:
    """How a config is to be wrapped.

    Attributes:
        num_repeats: m, the replicas of an image.
        mode: 'full' or 'v1', of ``GroupedRepeatAugSampler``.
        rho: Weight of the term.
        memory: Momentum of a memory of earlier predictions, which takes the place of repetition;
            None for repetition.
    """

    num_repeats: int = 2
    mode: str = 'full'
    rho: float = 1.0
    memory: float | None = None


def overrides_of(cfg: Config, options: WrapOptions) -> list[Override]:
    """The overrides that a config needs.

    Args:
        cfg: A stock config, as read from its file.
        options: How it is to be wrapped.

    Raises:
        UnsupportedHeadError: If the model has no head to wrap.
        ValueError: If the config is wrapped already, or has no training data.
    """
    if any(configs_of(cfg.get('model'), LossTransformHead, MODELS)):
        raise ValueError(
            'its head is a LossTransformHead already; expected a stock config. Give the one in '
            'its _base_'
        )
    if not (cfg.get('train_dataloader') or {}).get('dataset'):
        raise ValueError('it has no train_dataloader.dataset; expected a config that trains')
    found = (
        [] if options.memory is not None else [*_sampler(cfg, options), *_batch_size(cfg, options)]
    )
    place = ('train_dataloader', 'dataset')
    found += _pipelines(cfg.train_dataloader.dataset, place)
    found += _hooks(cfg)
    found += _preprocessor(cfg)
    return [*found, _head(cfg, options)]


def head_place(model: Any) -> tuple[str, ...] | None:
    """The keys from a model's config to the head that gets the term; None if it has none."""
    if name_of(model.get('type')) == 'ImageClassifier':
        return ('head',) if model.get('head') else None
    for key in _HEADS:
        if model.get(key):
            return (key,)
    inside = head_place(model['detector']) if model.get('detector') else None
    return ('detector', *inside) if inside else None


def _sampler(cfg: Config, options: WrapOptions) -> Iterator[Override]:
    stock = cfg.train_dataloader.get('sampler') or {}
    arguments: dict[str, Any] = dict(num_repeats=options.num_repeats)
    kept = [key for key in ('shuffle', 'seed', 'round_up') if key in stock]
    is_endless = _is_iteration_based(cfg)
    if not is_endless and options.mode != 'full':
        arguments['mode'] = options.mode
    for key in kept:
        default = dict(shuffle=True, seed=None, round_up=True)[key]
        if stock[key] != default and not (is_endless and key == 'round_up'):
            arguments[key] = stock[key]
    name = 'InfiniteGroupedRepeatAugSampler' if is_endless else 'GroupedRepeatAugSampler'
    reason = f'every image {options.num_repeats} times in a row'
    if is_endless:
        reason += '; the loop counts iterations, whose number stays'
    elif options.mode == 'full':
        reason += f', so that an epoch takes {options.num_repeats} times the steps'
    elif options.mode == 'v1':
        reason += ', in as many steps an epoch as before'
    if cfg.train_dataloader.get('batch_size') == options.num_repeats:
        reason += (
            f'. A batch of {options.num_repeats} then holds a single image: a larger batch_size '
            'trains better, and its learning rate with it'
        )
    if 'type' in stock and name_of(stock['type']) not in ('DefaultSampler', 'InfiniteSampler'):
        reason += f'. It takes the place of {name_of(stock["type"])}, and draws all images alike'
    yield Override(('train_dataloader', 'sampler'), f'lt_mm.{name}', reason, options=arguments)


def _is_iteration_based(cfg: Config) -> bool:
    loop = cfg.get('train_cfg') or {}
    return name_of(loop.get('type', '')) == 'IterBasedTrainLoop' or loop.get('by_epoch') is False


def _batch_size(cfg: Config, options: WrapOptions) -> Iterator[Override]:
    m, sizes = options.num_repeats, cfg.train_dataloader.get('batch_size', 1)
    if not isinstance(sizes, int) or sizes % m == 0:
        return
    size = -(-sizes // m) * m
    yield Override(
        ('train_dataloader', 'batch_size'),
        None,
        f'{m} replicas have to fit into a batch of {sizes}; a learning rate that was chosen for '
        f'{sizes} images may need scaling',
        options=dict(value=size),
    )


def _pipelines(dataset: Any, place: Place) -> Iterator[Override]:
    """Wraps the pipelines of a data set and of those inside it."""
    for key in ('dataset', 'labelled', 'unlabelled'):
        if isinstance(dataset.get(key), dict):
            yield from _pipelines(dataset[key], (*place, key))
    for number, part in enumerate(dataset.get('datasets') or ()):
        yield from _pipelines(part, (*place, 'datasets', number))
    if dataset.get('pipeline') and not _has_record(dataset['pipeline']):
        reason = 'the whole pipeline, recorded'
        if dataset.get('dataset'):
            reason = f'the pipeline of {name_of(dataset["type"])}, which mixes images, recorded too'
        yield _recorded((*place, 'pipeline'), reason)


def _recorded(place: Place, reason: str) -> Override:
    kind, wrapped = 'lt_mm.InvertiblePipeline', 'transforms'
    return Override(place, kind, reason, wrapped, in_list=True)


def _has_record(pipeline: Any) -> bool:
    return any(configs_of(pipeline, InvertiblePipeline, TRANSFORMS))


def _hooks(cfg: Config) -> Iterator[Override]:
    """Wraps the pipelines that hooks switch to."""
    for number, hook in enumerate(cfg.get('custom_hooks') or ()):
        place: Place = ('custom_hooks', number)
        reason = f'{name_of(hook.get("type"))} switches to this pipeline during training'
        if hook.get('switch_pipeline'):
            yield _recorded((*place, 'switch_pipeline'), reason)
        for step, recipe in enumerate(hook.get('schedule') or ()):
            if isinstance(recipe, dict) and recipe.get('train_pipeline'):
                yield _recorded((*place, 'schedule', step, 'train_pipeline'), reason)


def _preprocessor(cfg: Config) -> Iterator[Override]:
    """Batch augments act after the pipeline."""
    model = cfg.model
    place = _preprocessor_place(cfg)
    node: Any = cfg
    for key in place:
        node = node.get(key) or {}
    names = ', '.join(name_of(each.get('type')) for each in _as_list(node.get('batch_augments')))
    if names and name_of(node.get('type')) == 'DetDataPreprocessor':
        reason = f'the record follows {names}, which moves boxes after the pipeline'
        yield Override(place, 'lt_mm.RecordingDetDataPreprocessor', reason, merges=True)
    augments = (model.get('train_cfg') or {}).get('augments')
    if name_of(model.get('type')) == 'ImageClassifier' and augments:
        names = ', '.join(name_of(each.get('type')) for each in _as_list(augments))
        reason = f'{names} mix all replicas of an image with the same other one'
        yield Override(place, 'lt_mm.GroupedClsDataPreprocessor', reason, merges=True)


def _preprocessor_place(cfg: Config) -> Place:
    """Where the data preprocessor is that the Runner builds."""
    model = cfg.model
    place: tuple[str, ...] = ('model', 'data_preprocessor')
    if model.get('detector') and not model.get('data_preprocessor'):
        model, place = model.detector, ('model', 'detector', 'data_preprocessor')
    return place if model.get('data_preprocessor') else ('data_preprocessor',)


def _head(cfg: Config, options: WrapOptions) -> Override:
    place = head_place(cfg.model)
    if place is None:
        kind = name_of(cfg.model.get('type'))
        raise UnsupportedHeadError(
            f'{kind} has no roi_head, bbox_head, mask_head, panoptic_head, rpn_head, or head of an '
            'ImageClassifier; expected one of these, which is what gets the term'
        )
    arguments: dict[str, Any] = dict(rho=options.rho)
    reason = 'the stock head, with the term'
    if options.memory is not None:
        arguments['memory'] = dict(momentum=options.memory)
        reason = 'the stock head, with the term, which compares with predictions of earlier epochs'
    kind = 'lt_mm.LossTransformHead'
    return Override(('model', *place), kind, reason, 'head', arguments)


def _as_list(value: Any) -> list:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
