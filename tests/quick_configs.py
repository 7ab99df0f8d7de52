"""MMEngine's configs, without what takes longer than the small runs of the tests.

Importing this module is all. conftest.py does, and the modules from which processes of
their own start, because those do not read conftest.py.
"""

import functools

import mmengine
from mmengine.config import utils
from yapf.yapflib import yapf_api

# Each base such as `mmdet::...` reads all of MMDetection's metafiles.
utils.load = functools.cache(mmengine.load)


def _unformatted(code: str, **style: object) -> tuple[str, bool]:
    return code, False


# Each runner formats its config three times, for its log, its checkpoints, and its folder.
yapf_api.FormatCode = _unformatted
