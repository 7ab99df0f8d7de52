"""Weights of other libraries as state dicts of stock MM models. Imports no mm*."""
from lt_mm.weights.torchvision import WrongModelError, convert, convert_file

__all__ = ['WrongModelError', 'convert', 'convert_file']
