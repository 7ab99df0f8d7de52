"""LossTransform for stock MMDetection 3.x and MMPretrain 1.x.

Importing the package registers its classes, which is what
``custom_imports=dict(imports=['lt_mm'])`` in a config relies on.
"""
from lt_mm.compat import check_dependencies

__version__ = '0.1.0'

check_dependencies()

# After the check, which explains a missing package better than the import does.
from lt_mm import adapters  # noqa: E402,F401  (registers the classes)
