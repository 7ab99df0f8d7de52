"""Backbones that the frameworks do not have."""

from lt_mm.models.backbones.cifar import CifarDenseNet, CifarResNet
from lt_mm.models.backbones.nasnet_mobile import NASNetMobile
from lt_mm.models.backbones.torchvision import TorchvisionBackbone

__all__ = ['CifarDenseNet', 'CifarResNet', 'NASNetMobile', 'TorchvisionBackbone']
