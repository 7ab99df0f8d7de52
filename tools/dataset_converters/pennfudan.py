"""Convert the Penn-Fudan pedestrian data set to COCO json with instance masks."""

import argparse

from lt_mm.datasets.converters import convert_pennfudan


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', help='PennFudanPed.zip, or the folder unpacked from it')
    parser.add_argument('out', help='folder to write to')
    parser.add_argument('--num-val', type=int, default=50, help='validation images (%(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='chooses the split (%(default)s)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    splits = convert_pennfudan(args.source, args.out, args.num_val, args.seed)
    for name, split in splits.items():
        print(
            f'{name}: {split.num_images} images ({split.num_empty} without an object), '
            f'{split.num_instances} instances -> {split.ann_file}'
        )


if __name__ == '__main__':
    main()
