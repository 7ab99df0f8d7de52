"""The table of stock configs that train, and of those that are refused and why."""

import copy
import functools
import hashlib
import json
import re
import signal
import textwrap
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import init_default_scope

from lt_mm.apis.zoo.made_batches import try_pipeline
from lt_mm.apis.zoo.steps import lighten, take_step
from lt_mm.apis.zoo.stock_configs import LIBRARIES, StockConfig, stock_configs
from lt_mm.registry import MODELS
from lt_mm.structures.errors import LostRecordError, UnsupportedHeadError

TRAINS, WRAPS, REFUSED, STOCK = 'trains', 'wraps', 'refused', 'stock fails'
_MAX_REASON = 160
_REFUSALS = (UnsupportedHeadError, LostRecordError)
# What the stock framework says where it refuses, or where a package or an operator is missing.
_STOCK_REFUSALS = ('NotImplementedError', 'install', 'for device')


@dataclass
class Coverage:
    """What became of a config.

    Attributes:
        library: 'mmdet' or 'mmpretrain'.
        config: Path below the configs of the package.
        family: The classes of its head.
        outcome: 'trains'; 'wraps': no step was taken, because none was asked for or because the
            made data do not do without the wrap either; 'refused'; 'stock fails': the stock
            framework does not build the head or refuses to train it, or a package or an operator
            that it needs is not installed.
        reason: Why it does not train, or is not known to; empty where no step was asked for.
    """

    library: str
    config: str
    family: str
    outcome: str
    reason: str = ''


def cover(
    cache: str | Path,
    libraries: Sequence[str] = LIBRARIES,
    build_only: bool = False,
    configs: Sequence[str] = (),
    seconds: float = 150,
) -> list[Coverage]:
    """Wraps every config of the installed frameworks and trains a step of each kind.

    Heads and pipelines that were tried before are taken from the cache, so that a run that was
    stopped goes on. Delete the cache when the package has changed.

    Args:
        cache: A file, made if there is none; one line for each head, pipeline or step tried.
        libraries: Some of 'mmdet' and 'mmpretrain'.
        build_only: Whether no step is to be taken.
        configs: Only configs whose path contains one of these; all if empty.
        seconds: What a single trial may take.
    """
    trials = Trials(cache, seconds)
    found = []
    for library in libraries:
        for stock in stock_configs(library, configs):
            init_default_scope('mmpretrain' if stock.classifies else library)
            outcome, reason = _outcome(stock, trials, build_only)
            found.append(Coverage(library, stock.name, stock.family, outcome, reason))
    return found


def table_of(found: Sequence[Coverage]) -> str:
    """A Markdown table of families, with the sums of each library."""
    rows = ['| head | configs | trains | wraps, no step | stock fails | refused |']
    rows.append('|---|---|---|---|---|---|')
    for library in dict.fromkeys(each.library for each in found):
        members = [each for each in found if each.library == library]
        rows.append(_row(f'**all of {library}**', members, with_reasons=False))
        families = defaultdict(list)
        for each in members:
            families[each.family].append(each)
        for family, group in sorted(families.items()):
            rows.append(_row(f'`{family}`', group, with_reasons=True))
    return '\n'.join(rows)


def _row(title: str, members: Sequence[Coverage], with_reasons: bool) -> str:
    cells = [title, str(len(members))]
    for outcome in (TRAINS, WRAPS, STOCK, REFUSED):
        reasons = Counter(each.reason for each in members if each.outcome == outcome)
        cell = str(reasons.total() or '')
        if with_reasons and any(reasons):
            cell += ': ' + '; '.join(f'{reason} ({count})' for reason, count in reasons.items())
        cells.append(cell)
    return f'| {" | ".join(cells)} |'


def _outcome(stock: StockConfig, trials: 'Trials', build_only: bool) -> tuple[str, str]:
    """What becomes of a config: the first refusal, else what the step says."""
    head = stock.library, stock.place[-1], stock.head, stock.head_options()
    tried = [trials.get(('head', *head), lambda: _wrapped(stock))]
    tried.append(trials.get(('augments', _augments(stock)), lambda: _try_augments(stock)))
    if not stock.classifies:
        for inner, outer in stock.pipelines():
            key = ('pipeline', inner, outer)
            tried.append(trials.get(key, functools.partial(_try_pipeline, inner, outer)))
    for wanted in (STOCK, REFUSED):
        for outcome, reason in tried:
            if outcome == wanted:
                return outcome, reason
    if build_only:
        return WRAPS, ''
    outcome, reason = trials.step(stock)
    unknown = [why for what, why in tried if what == WRAPS and why]
    return (WRAPS, unknown[0]) if outcome == TRAINS and unknown else (outcome, reason)


def _wrapped(stock: StockConfig) -> tuple[str, str]:
    """Whether the head can be wrapped."""
    config = dict(head=copy.deepcopy(stock.head), **copy.deepcopy(stock.head_options()))
    lighten('', config)
    try:
        MODELS.build(dict(type='lt_mm.LossTransformHead', **config))
    except _REFUSALS as error:
        return REFUSED, str(error)
    except Exception as error:
        return _if_stock_does(
            lambda: MODELS.build({**config.pop('head'), **config}), REFUSED, error
        )
    return TRAINS, ''


def _augments(stock: StockConfig) -> Any:
    """The batch augments of a config."""
    if stock.classifies:
        return (stock.cfg.model.get('train_cfg') or {}).get('augments')
    return (stock.detector.get('data_preprocessor') or {}).get('batch_augments')


def _try_augments(stock: StockConfig) -> tuple[str, str]:
    """Whether the batch augments can be recorded, or treat all replicas alike."""
    augments = copy.deepcopy(_augments(stock))
    if not augments:
        return TRAINS, ''
    options: dict[str, Any] = dict(type='lt_mm.RecordingDetDataPreprocessor')
    options['batch_augments'] = augments
    if stock.classifies:
        augments = augments if isinstance(augments, list) else [augments]
        options = dict(type='lt_mm.GroupedClsDataPreprocessor', num_classes=2)
        options['batch_augments'] = dict(augments=augments)
    try:
        MODELS.build(options)
    except (TypeError, LostRecordError) as error:
        return REFUSED, str(error)
    except KeyError as error:  # an augment of a name that stock does not know
        return STOCK, _described(error)
    return TRAINS, ''


def _try_pipeline(inner: list, outer: list | None) -> tuple[str, str]:
    """Whether a pipeline is recorded; it may need what made images do not have."""
    try:
        try_pipeline(inner, outer)
    except LostRecordError as error:
        return REFUSED, str(error)
    except Exception as error:
        return _stock_failure(f'its pipeline was not run: {_described(error)}')
    return TRAINS, ''


def _try_step(stock: StockConfig) -> tuple[str, str]:
    """Whether a step with the wrapped head trains; if not, whether the stock head does."""
    try:
        take_step(stock, wrap=True)
    except _REFUSALS as error:
        return REFUSED, str(error)
    except Exception as error:
        outcome, reason = _if_stock_does(lambda: take_step(stock, wrap=False), WRAPS, error)
        return _stock_failure(reason) if outcome == STOCK else (outcome, reason)
    return TRAINS, ''


def _stock_failure(reason: str) -> tuple[str, str]:
    """The outcome for an error of the stock framework, which the made data may have caused."""
    return STOCK if any(part in reason for part in _STOCK_REFUSALS) else WRAPS, reason


def _if_stock_does(run: Callable[[], Any], outcome: str, error: Exception) -> tuple[str, str]:
    """The outcome for an error with the wrap, unless the stock framework raises one too."""
    try:
        run()
    except Exception as stock_error:
        return STOCK, _described(stock_error)
    return outcome, f'no step: {_described(error)}'


def _described(error: BaseException) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f'{type(error).__name__}: {error} ({Path(place.filename).stem}.{place.name})'


def _shortened(reason: str) -> str:
    """A reason on one line of a table: whole words, without the head and what a user is to do."""
    reason = re.sub(r'^LossTransformHead cannot wrap \w+: ', '', reason)
    reason = reason.replace('|', '/').partition('; expected')[0].partition(', please install it')[0]
    return textwrap.shorten(reason, _MAX_REASON, placeholder=' ...')


class Trials:
    """Outcomes that are kept in a file; of several lines of a trial the last one counts.

    Args:
        path: The file, made if there is none.
        seconds: What a single trial may take.
    """

    def __init__(self, path: str | Path, seconds: float) -> None:
        self.path, self.seconds = Path(path), seconds
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.known: dict[str, tuple[str, str]] = {}
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                key, outcome, reason = json.loads(line)
                self.known[key] = outcome, reason

    def get(self, what: tuple, run: Callable[[], tuple[str, str]]) -> tuple[str, str]:
        """The outcome of a trial, which runs if it is not known yet."""
        key = hashlib.sha256(repr(what).encode()).hexdigest()[:24]
        if key not in self.known:
            torch.manual_seed(0)
            self._keep(key, WRAPS, 'no step: the process ended during it')
            try:
                with _time_limit(self.seconds):
                    outcome, reason = run()
            except TimeoutError:
                outcome, reason = WRAPS, f'no step: it takes more than {self.seconds} s'
            self._keep(key, outcome, _shortened(reason))
        return self.known[key]

    def step(self, stock: StockConfig) -> tuple[str, str]:
        """The outcome of a training step, which configs of one signature share."""
        return self.get(('step', stock.signature()), lambda: _try_step(stock))

    def _keep(self, key: str, outcome: str, reason: str) -> None:
        self.known[key] = outcome, reason
        with self.path.open('a') as file:
            file.write(json.dumps([key, outcome, reason]) + '\n')


class _Late(BaseException):
    """Not caught by what catches errors of a trial."""


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    if not hasattr(signal, 'setitimer'):  # Windows: the trial runs to its end
        yield
        return

    def stop(*_: Any) -> None:
        raise _Late

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _Late:
        raise TimeoutError from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
