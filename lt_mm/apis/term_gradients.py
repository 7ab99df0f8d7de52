"""What the consistency terms do to the gradient of the stock losses, on a checkpoint."""

import os.path as osp
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from torch import Tensor, nn

from lt_mm.core.gradients import compare_gradients
from lt_mm.engine.checkpoints import checkpoint_loading
from lt_mm.engine.hooks.memory_hook import load_memories, memories_of
from lt_mm.engine.launch import build_runner, load_config
from lt_mm.models.heads.options import KINDS
from lt_mm.structures.pair_record import PairRecord, recorded_heads, recording

# Such as loss_lt_cls, s0.loss_lt_cls of a cascade, loss_rpn_lt_cls of an RPN.
_TERM = re.compile(rf'loss_(rpn_)?lt_({"|".join(KINDS)})$')


def measure_term_gradients(
    config: str,
    checkpoint: str,
    num_batches: int = 20,
    seed: int = 0,
    cfg_options: Mapping[str, Any] | None = None,
    work_dir: str | None = None,
    trust_checkpoint: bool = False,
) -> dict[str, Any]:
    """Compares the gradient of each term with that of all stock losses together.

    Both are gradients for all parameters that are trained, on training batches with the
    model in training mode; no optimiser step is taken. The checkpoint may be one of the
    stock config. Runs in one process, without mixed precision.

    Args:
        config: Config file with a LossTransformHead.
        checkpoint: Checkpoint file.
        num_batches: How many batches of the training data to use, 1 or more.
        seed: Seed of the order of the images and of the augmentations.
        cfg_options: Settings of the config to override, keys with dots. A schedule of
            rho is at its start here: give the number that is to be measured.
        work_dir: Folder of the logs; by default that of the config.
        trust_checkpoint: See :func:`lt_mm.engine.checkpoints.checkpoint_loading`.

    Returns:
        ``config``, ``checkpoint``, ``seed``, ``num_batches``, and:

        - ``terms``: for each term its mean ``value`` (rho times the term), the mean
          ``ratio`` of the norm of its gradient to that of all stock losses, the mean
          ``own_ratio`` to that of the stock loss of the same predictions and kind
          (``loss_cls`` for ``loss_lt_cls``, ``loss`` of a classifier; None if that has no
          gradient), and the mean ``cosine`` with all stock losses over the batches where the
          term has a gradient; None without such a batch. Below 0, the term works against
          the stock losses. Batches without the term do not count, such as those that leave
          a cascade before a later stage.
        - ``heads``: for each wrapped head that pairs, by its name in the model, the mean
          number of ``pairs`` a batch (predictions that have a positive), and of those
          the mean ``score`` (probability of the most probable class, background apart)
          and the share that is ``unsure``, with a score below 1/2. For masks, whose
          classes are annotated, the last two are 1 and 0.

    Raises:
        ValueError: If the model has no wrapped head, if no term has a gradient in any
            batch, or if there are fewer batches.
        UntrustedCheckpointError: If the checkpoint holds code.
    """
    if num_batches < 1:
        raise ValueError(f'num_batches is {num_batches}; expected 1 or more')
    cfg = load_config(config, work_dir, cfg_options)
    cfg.pop('runner_type', None)  # what is measured needs no strategy
    cfg.randomness = dict(cfg.get('randomness') or {}, seed=seed)
    with checkpoint_loading(trust_checkpoint):
        runner = build_runner(cfg)
        _check_wrapped(runner.model, config)
        # Not by the runner, whose hooks, such as EMAHook, expect that training has begun.
        load_checkpoint(runner.model, checkpoint, map_location='cpu')
        _load_memories(runner.model, checkpoint)
    with recording(runner.model) as records:
        steps = _steps(runner, cfg, num_batches)
    names = dict.fromkeys(name for step in steps for name in step)
    terms = {name: _term_of([step[name] for step in steps if name in step]) for name in names}
    if not any(term['ratio'] for term in terms.values()):
        raise ValueError(
            f'{", ".join(terms)} have no gradient in {num_batches} batches: nothing is '
            'paired, or rho is 0, as at the start of a schedule; give a number: '
            '--cfg-options model.roi_head.rho=1.0 (model.head.rho, model.bbox_head.rho)'
        )
    return dict(
        config=config,
        checkpoint=checkpoint,
        seed=seed,
        num_batches=num_batches,
        terms=terms,
        # A RoI head records nothing: its box and mask heads form the pairs.
        heads={name: _pairs_of(found, num_batches) for name, found in records.items() if found},
    )


def _load_memories(model: nn.Module, checkpoint: str) -> None:
    """What the heads remembered when the checkpoint was saved."""
    if memories_of(model):
        meta = CheckpointLoader.load_checkpoint(checkpoint, 'cpu').get('meta', {})
        load_memories(model, meta, [osp.dirname(checkpoint)])


def table_of(report: Mapping[str, Any]) -> str:
    """The numbers of :func:`measure_term_gradients` as lines of text."""
    columns = dict(
        ratio='gradient / stock',
        own_ratio='/ its own stock loss',
        pairs='paired a batch',
        unsure='below 1/2',
    )
    tables = [
        pd.DataFrame.from_dict(report[key], orient='index', dtype=float)
        .rename(columns=columns)
        .to_string(float_format='{:.4f}'.format, na_rep='-')
        for key in ('terms', 'heads')
    ]
    heading = (
        f'{report["num_batches"]} training batches, seed {report["seed"]}: {report["checkpoint"]}'
    )
    return '\n\n'.join([heading, *tables])


def _check_wrapped(model: nn.Module, config: str) -> None:
    if not recorded_heads(model):
        raise ValueError(
            f'the model of {config}, {type(model).__name__}, has no LossTransformHead; '
            "wrap its head, dict(type='lt_mm.LossTransformHead', head=<stock head>)"
        )


def _steps(runner: Runner, cfg: Config, num_batches: int) -> list[dict[str, Any]]:
    """Measures each term on each batch."""
    loader = runner.build_dataloader(cfg.train_dataloader, seed=runner.seed)
    runner.model.train()
    steps = [_step(runner.model, batch) for _, batch in zip(range(num_batches), loader)]
    if len(steps) < num_batches:
        raise ValueError(
            f'num_batches is {num_batches}; expected at most {len(steps)}, the batches of an epoch'
        )
    return steps


def _step(model: Any, data_batch: Any) -> dict[str, Any]:
    """The value of each term, and its gradient compared with those of stock losses."""
    data = model.data_preprocessor(data_batch, training=True)
    losses = model(**data, mode='loss')
    weights = [weight for weight in model.parameters() if weight.requires_grad]

    def gradient(*names: str) -> tuple[float, list[Tensor | None]]:
        loss = model.parse_losses({name: losses[name] for name in names})[0]
        return float(loss.detach()), _gradients(loss, weights)

    terms = [name for name in losses if _TERM.search(name)]
    _, of_all = gradient(*(name for name in losses if name not in terms))
    found = {}
    for name in terms:
        value, own = gradient(name)
        stock = [key for key in _stock_keys(name) if key in losses][:1]
        of_same = gradient(*stock)[1] if stock else []
        found[name] = value, compare_gradients(own, of_all), _ratio(own, of_same)
    return found


def _stock_keys(term: str) -> tuple[str, ...]:
    """What the stock loss may be called that has the predictions and the kind of a term."""
    stock = term.replace('lt_', '')
    # YOLOv3 calls its objectness the confidence.
    return stock, stock.replace('loss_obj', 'loss_conf'), _TERM.sub('loss', term)


def _ratio(own: list[Tensor | None], stock: list[Tensor | None]) -> float | None:
    """None where the stock loss has no gradient, such as that of boxes without an object."""
    if not any(each is not None and bool(each.any()) for each in stock):
        return None
    return compare_gradients(own, stock).ratio


def _gradients(loss: Tensor, weights: list[nn.Parameter]) -> list[Tensor | None]:
    if not loss.requires_grad:
        return [None] * len(weights)
    return list(torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True))


def _term_of(found: list[Any]) -> dict[str, float | None]:
    values, compared, own_ratios = zip(*found)
    return dict(
        value=_mean(values),
        ratio=_mean([each.ratio for each in compared]),
        own_ratio=_mean([ratio for ratio in own_ratios if ratio is not None]),
        cosine=_mean([each.cosine for each in compared if each.ratio]),
    )


def _pairs_of(records: list[PairRecord], num_batches: int) -> dict[str, float | None]:
    scores = torch.cat([record.scores[record.paired] for record in records]).tolist()
    return dict(
        pairs=len(scores) / num_batches,
        score=_mean(scores),
        unsure=_mean([float(score < 0.5) for score in scores]),
    )


def _mean(values: Any) -> float | None:
    return sum(values) / len(values) if len(values) else None
