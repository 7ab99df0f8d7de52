"""Whether head, sampler and batch augments of a run belong together."""

from typing import Any

from mmpretrain.models.utils import ClsDataPreprocessor
from torch import nn
from torch.utils.data import DataLoader

from lt_mm.datasets.samplers.repeat_aug import num_weak_in, repeats_sources
from lt_mm.engine.checks.report import NOTE, OK, WRONG, Report
from lt_mm.models.batch_augments import GroupedClsDataPreprocessor
from lt_mm.models.weak_copies import comparing_heads_of
from lt_mm.structures import comparing_heads
from lt_mm.structures.errors import HEAD_HINT, PREPROCESSOR_HINT, SAMPLER_HINT

_STOCK_PACKAGES = ('mmengine', 'mmdet', 'mmpretrain', 'torch')


def check_overrides(model: nn.Module, loader: DataLoader | None, report: Report) -> None:
    """Looks at what has to be there together.

    - A sampler that repeats images, and a head that compares them; or a head with a memory.
    - Options of the sampler, and those of the head that go with them.
    - Batch augments of classifiers that treat replicas alike.

    Args:
        model: The built model, not in a wrapper.
        loader: The built training loader, whose batch size was checked already; None where the
            data are not at hand.
        report: Gets the findings.
    """
    heads = comparing_heads_of(model)
    repeats = loader is not None and repeats_sources(loader)
    _check_head(model, heads, repeats, report)
    _check_mixing(model, heads, report)
    if loader is None:
        return
    if repeats:
        _check_replica_sampler(loader, heads, report)
    else:
        _check_stock_sampler(model, loader, heads, report)
    _check_weak_copies(loader.dataset, heads, report)


def _sampler_of(loader: DataLoader) -> Any:
    return getattr(loader.batch_sampler, 'sampler', None)


def _check_head(model: nn.Module, heads: dict[str, Any], repeats: bool, report: Report) -> None:
    if heads:
        options = dict.fromkeys(_described(head.lt_options) for head in heads.values())
        parts = ', '.join(f'{name} ({_stock_name(head)})' for name, head in heads.items())
        report.add(OK, 'head', f'{parts}: {"; ".join(options)}')
    elif any(comparing_heads.has(part) for part in model.modules()):
        report.add(OK, 'head', 'compares the copies by a loss of its own')
    elif repeats:
        text = 'images are repeated, and no head compares the replicas'
        report.add(WRONG, 'head', text, HEAD_HINT)
    else:
        report.add(NOTE, 'head', 'no LossTransformHead: this trains the stock model')


def _described(options: Any) -> str:
    rho = options.rho if isinstance(options.rho, (int, float)) else 'a schedule'
    texts = [f'rho={rho}', f"pairing='{options.pairing}'"]
    if options.memory is not None:
        texts.append(f'memory with momentum {options.memory.momentum}')
    if options.weak_target is not None:
        texts.append('weak target')
    return ', '.join(texts)


def _stock_name(head: Any) -> str:
    return type(head).__name__.removeprefix(head.prefix)


def _check_stock_sampler(
    model: nn.Module, loader: DataLoader, heads: dict[str, Any], report: Report
) -> None:
    kind = type(_sampler_of(loader))
    text = f'{kind.__name__}, batches of {_batch_size(loader)}'
    options = [head.lt_options for head in heads.values()]
    has_own_loss = not heads and any(comparing_heads.has(part) for part in model.modules())
    if not has_own_loss and all(each.memory is not None or each.is_baseline for each in options):
        report.add(OK, 'sampler', text)
    elif kind.__module__.partition('.')[0] in _STOCK_PACKAGES:
        report.add(WRONG, 'sampler', f'{text}: repeats no image, so nothing pairs', SAMPLER_HINT)
    else:
        text = f'{text}: whether it shows replicas together is not known'
        report.add(NOTE, 'sampler', text, 'training stops after ten batches without replicas')


def _check_replica_sampler(loader: DataLoader, heads: dict[str, Any], report: Report) -> None:
    sampler, size = _sampler_of(loader), _batch_size(loader)
    layout = sampler.layout
    m = layout.num_repeats
    text = f'{type(sampler).__name__}, {m} replicas of an image, batches of {size}'
    for name, head in heads.items():
        options = head.lt_options
        if layout.placement == 'spread' and layout.world_size > 1 and not options.across_ranks:
            remedy = f"across_ranks=True in the LossTransformHead, or placement='rank' ({name})"
            report.add(
                WRONG, 'sampler', "replicas lie on several ranks (placement='spread')", remedy
            )
        if layout.repeat_fraction < 1 and not options.allow_unrepeated:
            remedy = f'allow_unrepeated=True in the LossTransformHead ({name})'
            report.add(WRONG, 'sampler', f'repeat_fraction={layout.repeat_fraction}', remedy)
    report.add(OK, 'sampler', text)
    if getattr(sampler, 'mode', None) == 'full' and sampler.unlabelled_share is None:
        text = f"mode='full': an epoch has {m} times the steps of the stock config"
        report.add(NOTE, 'schedule', text, "mode='v1' keeps their number")
    if size == m and layout.placement == 'rank':
        text = 'a batch holds the replicas of a single image'
        report.add(NOTE, 'batch size', text, f'train_dataloader.batch_size={2 * m} or more')


def _batch_size(loader: DataLoader) -> Any:
    return getattr(loader.batch_sampler, 'batch_size', loader.batch_size)


def _check_weak_copies(dataset: Any, heads: dict[str, Any], report: Report) -> None:
    targets = [head.lt_options.weak_target for head in heads.values()]
    if any(targets) and not num_weak_in(dataset):
        remedy = (
            "dict(type='lt_mm.InvertiblePipeline', transforms=<strong>, weak=<weak>) in the "
            'unlabelled part, or in a lt_mm.WithWeakCopies'
        )
        report.add(
            WRONG, 'weak copies', 'the head has a weak_target, the data no weak copy', remedy
        )
    elif num_weak_in(dataset) and not any(
        each.lt_options.weak_target or each.lt_options.supervise == 'one' for each in heads.values()
    ):
        remedy = "weak_target=dict(...) or supervise='one' in the LossTransformHead"
        report.add(WRONG, 'weak copies', 'the data have weak copies that no head asks for', remedy)


def _check_mixing(model: Any, heads: dict[str, Any], report: Report) -> None:
    """Stock augments of MMPretrain mix each replica with another image."""
    preprocessor = getattr(model, 'data_preprocessor', None)
    if not heads or not isinstance(preprocessor, ClsDataPreprocessor):
        return
    augments = getattr(preprocessor.batch_augments, 'augments', None)
    if not augments:
        return
    names = ', '.join(type(each).__name__ for each in augments)
    if isinstance(preprocessor, GroupedClsDataPreprocessor):
        report.add(OK, 'batch augments', f'{names}, alike for all replicas of an image')
    elif any(head.lt_options.mixed_labels == 'refuse' for head in heads.values()):
        text = f'{names} below {type(preprocessor).__name__} mix each replica with another image'
        report.add(WRONG, 'batch augments', text, PREPROCESSOR_HINT)
