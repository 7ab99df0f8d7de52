"""Convert a torchvision weights file to a checkpoint for MMDetection or MMPretrain."""

import argparse

from lt_mm.apis.torchvision_layers import ARCHITECTURES
from lt_mm.apis.torchvision_weights import convert_file


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'model',
        choices=sorted(ARCHITECTURES),
        help='name in torchvision.models or torchvision.models.detection',
    )
    parser.add_argument('source', metavar='IN.pth', help='file of torchvision')
    parser.add_argument(
        'target', metavar='OUT.pth', help="file to write, for `load_from` and init_cfg 'Pretrained'"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    convert_file(args.model, args.source, args.target)


if __name__ == '__main__':
    main()
