"""Convert BCCD, blood cells with boxes, to COCO json with a quarter of the training images."""

import argparse

from lt_mm.datasets.converters import convert_bccd


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', help='bccd.zip, or the folder unpacked from it')
    parser.add_argument('out', help='folder to write to')
    parser.add_argument('--seed', type=int, default=0, help='chooses the quarter (%(default)s)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    for name, split in convert_bccd(args.source, args.out, args.seed).items():
        print(
            f'{name}: {split.num_images} images ({split.num_empty} without an object), '
            f'{split.num_instances} instances -> {split.ann_file}'
        )


if __name__ == '__main__':
    main()
