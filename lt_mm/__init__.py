"""LossTransform for stock MMDetection 3.x and MMPretrain 1.x.

Importing the package registers its classes, which is what
``custom_imports=dict(imports=['lt_mm'])`` in a config relies on. Where none of the
frameworks is installed, ``lt_mm.core``, the mathematics, can be imported all the same.
"""

from lt_mm.compat import check_dependencies, has_frameworks

__version__ = '0.1.0'

if has_frameworks():
    check_dependencies()

    # After the check, which explains a missing package better than the import does.
    from lt_mm import datasets, engine, evaluation, models  # noqa: F401 (register classes)
    from lt_mm.models.heads import register_head_family, wrap_head  # noqa: F401
