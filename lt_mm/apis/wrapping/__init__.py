"""Child configs that make a stock config a LossTransform run: ``tools/wrap_config.py``."""

from lt_mm.apis.wrapping.overrides import Override, WrapOptions, head_place, overrides_of
from lt_mm.apis.wrapping.wrap_config import WrittenConfig, wrap_config
from lt_mm.apis.wrapping.writing import child_config

__all__ = [
    'Override',
    'WrapOptions',
    'WrittenConfig',
    'child_config',
    'head_place',
    'overrides_of',
    'wrap_config',
]
