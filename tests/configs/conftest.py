"""Reading configs of the stock frameworks costs less here."""

import functools

import mmengine
import pytest
from mmengine.config import utils as config_utils


@functools.cache
def load_once(path: str) -> dict:
    return mmengine.load(path)


@pytest.fixture(autouse=True)
def _metafiles_are_read_once(monkeypatch):
    """MMEngine reads all of MMDetection's for each `mmdet::`, most of the time."""
    monkeypatch.setattr(config_utils, 'load', load_once)
