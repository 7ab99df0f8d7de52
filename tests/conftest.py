"""What every test gets: no state left behind by the one before it."""

import gc
import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

import tests.quick_configs  # noqa: F401 (takes effect when it is imported)
from tests.paths import REPOSITORY

# The same examples in every run; `pytest --hypothesis-profile explore` draws new ones.
hypothesis.settings.register_profile('explore', deadline=None)
hypothesis.settings.register_profile('fixed', deadline=None, derandomize=True)
hypothesis.settings.load_profile('fixed')

# Threads that wait for each other cost more than they give on tiny tensors, and
# each process of a distributed test has as many again. The environment variable
# wins, as it does in torch.
if 'OMP_NUM_THREADS' not in os.environ:
    torch.set_num_threads(min(4, os.cpu_count() or 1))


def pytest_collection_finish() -> None:
    """Leaves the frameworks' objects, which stay, to no later garbage collection.

    MMEngine collects garbage for every data set it builds, which takes longer than reading
    the data sets of the tests.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test draws the same numbers, alone or among others.

    mmengine's ``set_random_seed`` is not used: it would also switch cuDNN's mode.
    """
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _mmengine_globals() -> Iterator[None]:
    """Gives every test mmengine's global instances as they were before it.

    A ``Runner`` or ``init_default_scope`` makes the newest instance the current
    one for the rest of the process: a later test would look its bare names up in
    that scope, or write to that run's logger.
    """
    yield from _restored_globals()


@pytest.fixture(autouse=True, scope='module')
def _mmengine_globals_of_a_module() -> Iterator[None]:
    """The same for what fixtures of a whole module make, before its first test."""
    yield from _restored_globals()


def _restored_globals() -> Iterator[None]:
    managers = (DefaultScope, MessageHub, MMLogger, Visualizer)
    before = [(cls, OrderedDict(cls._instance_dict)) for cls in managers]
    yield
    for cls, instances in before:
        cls._instance_dict = instances


@pytest.fixture(scope='session')
def data_dir() -> Path:
    """The folder with real data; skips where there is none.

    ``LT_MM_DATA_DIR``, or ``shared/data`` beside the repository. A test checks
    for itself that the file it needs is in the folder.
    """
    named = os.environ.get('LT_MM_DATA_DIR')
    folder = Path(named) if named else REPOSITORY.parent / 'shared' / 'data'
    if not folder.is_dir():
        pytest.skip(f'no real data: {folder} is not a folder (LT_MM_DATA_DIR names it)')
    return folder


# The imports inside: tests of the mathematics do without the frameworks.
@pytest.fixture(scope='module')
def shapes(tmp_path_factory) -> Path:
    """A small data set for the demo detectors."""
    from lt_mm.datasets.converters import write_shapes_dataset

    root = tmp_path_factory.mktemp('shapes')
    write_shapes_dataset(root, num_train=8, num_val=4, image_size=(96, 128), seed=0)
    return root


@pytest.fixture(scope='module')
def pictures(tmp_path_factory) -> Path:
    """A small data set for classifiers: a folder a class."""
    from tests.training_data import write_pictures

    return write_pictures(tmp_path_factory.mktemp('pictures'))
