"""Convert the segmentation part of PASCAL VOC 2012 to COCO json with instance masks."""

import argparse

from lt_mm.datasets.converters import convert_voc2012


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'source', help='VOCtrainval_11-May-2012.tar, or the folder VOC2012 unpacked from it'
    )
    parser.add_argument('out', help='folder to write to')
    parser.add_argument(
        '--instances',
        choices=('components', 'object'),
        default='components',
        help='connected components of the class masks, or the true objects (%(default)s)',
    )
    parser.add_argument(
        '--min-area',
        type=int,
        default=16,
        help='instances of fewer pixels are left out (%(default)s)',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    splits = convert_voc2012(args.source, args.out, args.instances, args.min_area)
    for name, split in splits.items():
        print(
            f'{name}: {split.num_images} images ({split.num_empty} without an object), '
            f'{split.num_instances} instances, {split.num_dropped} smaller ones left out '
            f'-> {split.ann_file}'
        )


if __name__ == '__main__':
    main()
