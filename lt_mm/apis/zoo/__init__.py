"""Which stock configs can be wrapped and trained: every one of the installed packages is tried."""

from lt_mm.apis.zoo.coverage import Coverage, cover, table_of

__all__ = ['Coverage', 'cover', 'table_of']
