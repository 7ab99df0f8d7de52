"""Draw the small data set of circles, squares and triangles."""

import argparse

from lt_mm.datasets.converters import write_shapes_dataset


def side(text: str) -> int | tuple[int, int]:
    """'224' or, for a side that varies, '192:256'."""
    low, _, high = text.partition(':')
    return (int(low), int(high)) if high else int(low)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('out', help='folder to write to')
    parser.add_argument('--num-train', type=int, default=120, help='training images (%(default)s)')
    parser.add_argument('--num-val', type=int, default=40, help='validation images (%(default)s)')
    parser.add_argument(
        '--image-size',
        type=side,
        nargs=2,
        metavar=('HEIGHT', 'WIDTH'),
        default=(192, 256),
        help='pixels; LEAST:GREATEST for a side that varies (192 256)',
    )
    parser.add_argument('--seed', type=int, default=0, help='(%(default)s)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    splits = write_shapes_dataset(
        args.out, args.num_train, args.num_val, tuple(args.image_size), args.seed
    )
    for name, split in splits.items():
        print(
            f'{name}: {split.num_images} images ({split.num_empty} without an object), '
            f'{split.num_instances} instances -> {split.ann_file}'
        )


if __name__ == '__main__':
    main()
