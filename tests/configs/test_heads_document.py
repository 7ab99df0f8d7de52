"""What docs/heads.md and README say of stock configs: which are supported, refused, counted."""

import functools
import re
from collections import defaultdict

import pytest
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope

from lt_mm.apis.wrapping import head_place
from lt_mm.apis.zoo import cover, table_of
from lt_mm.apis.zoo.coverage import STOCK, TRAINS, WRAPS, Trials
from lt_mm.apis.zoo.stock_configs import StockConfig, stock_configs
from lt_mm.models.heads import ConsistencyMixin
from lt_mm.registry import class_of
from lt_mm.structures.errors import UnsupportedHeadError
from tests.paths import DOCS, REPOSITORY

DOCUMENT = (DOCS / 'heads.md').read_text()
README = (REPOSITORY / 'README.md').read_text()
SCOPES = dict(MMDetection='mmdet', MMPretrain='mmpretrain')
# A slow machine takes this long for the largest.
SECONDS = 500


def listed(title):
    """(library, part of the model, config, reason) of the lists below lines of this title.

    The reason stands in quotation marks behind the last of the configs that have it.
    """
    found = []
    for library, section in re.findall(
        r'^## Configs of (\w+)$(.*?)(?=^## )', DOCUMENT, flags=re.MULTILINE | re.DOTALL
    ):
        text = re.split(rf'^{title}.*$', section, flags=re.MULTILINE)[1]
        for item in text.split('\n\n')[1].split('\n- '):
            (part,) = re.findall(r'model\.(\w+)`:', item)
            named = re.findall(r'(\w+/[\w.-]+\.py)(?: \("([^"]+)"\))?', ' '.join(item.split()))
            for place, (config, _) in enumerate(named):
                reason = next((quoted for _, quoted in named[place:] if quoted), '')
                found.append((SCOPES[library], part, config, reason))
    return found


def table_of_section(text, title):
    """The rows, in cells, of the table below a heading."""
    return rows_of(text.split(f'\n## {title}\n')[1].split('\n## ')[0])


def rows_of(text):
    """The rows, in cells, of a table."""
    lines = [line for line in text.splitlines() if line.startswith('| ')]
    return [[cell.strip() for cell in line.split('|')[1:-1]] for line in lines[1:]]


SUPPORTED = [each[:3] for each in listed('Supported')]
# (part of the model, class), as README's table of heads names them.
HEADS_OF_README = [
    (part, name)
    for places, heads, _ in table_of_section(README, 'Heads')
    for name in re.findall(r'`(\w+)`', heads)
    for part in [re.findall(r'model\.(\w+)', places)]
]


def stock_config(library, part, config):
    init_default_scope(library)
    return StockConfig(library, config, get_config(f'{library}::{config}'), (part,))


def wrapped(stock):
    config = dict(type='lt_mm.LossTransformHead', head=stock.head, **stock.head_options())
    return MODELS.build(config)


@pytest.mark.parametrize('library, part, config', SUPPORTED)
def test_supported(library, part, config):
    stock = stock_config(library, part, config)
    assert head_place(stock.cfg.model) == stock.place
    assert isinstance(wrapped(stock), ConsistencyMixin)


@pytest.mark.parametrize('library, part, config, reason', listed('Refused'))
def test_refused(library, part, config, reason):
    with pytest.raises(UnsupportedHeadError, match='expected|use ') as error:
        wrapped(stock_config(library, part, config))
    assert len(reason) > 10 and reason in str(error.value)


def test_the_lists_are_read():
    for title, count in (('Supported', 60), ('Refused', 4)):
        libraries = [library for library, *_ in listed(title)]
        assert libraries.count('mmdet') >= count
        assert libraries.count('mmpretrain') >= 4
    assert len(HEADS_OF_README) > 15


@pytest.fixture(scope='module')
def trials(tmp_path_factory):
    return Trials(tmp_path_factory.mktemp('zoo') / 'trials.jsonl', SECONDS)


def assert_trains(stock, trials):
    """Takes a step with pairs, unless the stock framework misses a package for it."""
    init_default_scope('mmpretrain' if stock.classifies else stock.library)
    outcome, reason = trials.step(stock)
    if outcome == STOCK and re.search(r'is not installed|pip install', reason):
        pytest.skip(f'{stock.name}: {reason}')
    assert outcome == TRAINS, f'{stock.name} ({stock.family}): {reason}'


def test_a_head_that_does_not_train_fails_by_name():
    class Untrained:
        def step(self, stock):
            return WRAPS, 'nothing is paired'

    library, part, config = SUPPORTED[0]
    with pytest.raises(AssertionError, match=f'{config} .*: nothing is paired'):
        assert_trains(stock_config(library, part, config), Untrained())


@pytest.mark.slow
@pytest.mark.parametrize('library, part, config', SUPPORTED)
def test_supported_configs_train(library, part, config, trials):
    assert_trains(stock_config(library, part, config), trials)


@functools.cache
def classes_of(library, part, config):
    """The stock classes in a head."""

    def below(node):
        if isinstance(node, dict):
            if 'type' in node:
                yield class_of(node['type'], MODELS)
            node = list(node.values())
        if isinstance(node, (list, tuple)):
            for each in node:
                yield from below(each)

    return [each for each in below(stock_config(library, part, config).head) if each]


@pytest.mark.slow
@pytest.mark.parametrize('parts, name', HEADS_OF_README)
def test_heads_of_the_readme_train(parts, name, trials):
    """There is a supported config with the head, or with a subclass, which trains."""
    configs = [
        each
        for each in SUPPORTED
        if each[1] in parts
        and any(name in [base.__name__ for base in cls.__mro__] for cls in classes_of(*each))
    ]
    assert configs, f'{name}: no supported config in docs/heads.md has it'
    assert_trains(stock_config(*configs[0]), trials)


# -- the table of all configs ----------------------------------------------------------------


COUNTED = table_of_section(DOCUMENT, 'The whole zoo')


def counts_of(table):
    """{(library, family): [configs, trains, wraps, stock fails, refused]}; '' has the sums."""
    counts, library = {}, ''
    for title, *cells in table:
        whole = re.fullmatch(r'\*\*all of (\w+)\*\*', title)
        library = whole[1] if whole else library
        family = '' if whole else title.strip('`')
        counts[library, family] = [int(cell.partition(':')[0] or 0) for cell in cells]
    return counts


def test_the_table_adds_up():
    counts = counts_of(COUNTED)
    assert {library for library, _ in counts} == set(SCOPES.values())
    for row, (configs, *outcomes) in counts.items():
        assert configs == sum(outcomes), row
    for library in SCOPES.values():
        rows = [numbers for row, numbers in counts.items() if row[0] == library and row[1]]
        assert counts[library, ''] == [sum(column) for column in zip(*rows)]
    configs, trains, _, stock, refused = counts['mmdet', '']
    classifiers, trained, *_ = counts['mmpretrain', '']
    assert (
        f"Of MMDetection's {configs} configs with a head {trains} take a training step with pairs, "
        f'{refused} are refused, and in {stock} the stock framework fails here; of '
        f"MMPretrain's {classifiers} classifiers {trained} take one"
    ) in ' '.join(README.split())


def takes_step(found, trials):
    """Whether a config takes a step."""
    (stock,) = (
        each for each in stock_configs(found.library, [found.config]) if each.name == found.config
    )
    init_default_scope('mmpretrain' if stock.classifies else stock.library)
    return trials.step(stock)[0] == TRAINS


@pytest.mark.slow
def test_the_table_is_true(trials):
    """All configs are read, wrapped and recorded; of every row that trains one takes a step."""
    found = cover(trials.path, build_only=True)
    rows = rows_of(table_of(found))
    # How many configs each row has, and why which of them are refused.
    assert [(row[0], row[1], row[5]) for row in rows] == [
        (row[0], row[1], row[5]) for row in COUNTED
    ]
    trials = Trials(trials.path, SECONDS)  # reads what was found
    members = defaultdict(list)
    for each in found:
        if each.outcome == WRAPS:
            members[each.library, each.family].append(each)
    failed = []
    for row, (_, num_trained, *_) in counts_of(COUNTED).items():
        if num_trained and row[1]:
            assert num_trained <= len(members[row]), row
            if not any(takes_step(each, trials) for each in members[row]):
                failed.append(row)
    assert not failed
