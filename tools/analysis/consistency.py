"""Measures how alike predictions for augmented copies of validation images are.

Prints a table and writes ``consistency.json``, ``consistency.csv`` (a row for each image)
and ``consistency.png``. They hold the KL of the predictions to their mean and the
agreement of the classes, or the overlap of the matched boxes, and what the stock
evaluation gives without and with test-time augmentation.
"""

import argparse
from collections.abc import Sequence

from lt_mm.apis.arguments import add_thresholds, measurement_parser, pop_out_folder
from lt_mm.apis.consistency import measure_consistency, table_of, write_consistency


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = measurement_parser(__doc__.splitlines()[0], 'consistency')
    parser.add_argument(
        '--num-replicas', type=int, default=4, help='copies of each image (default: 4)'
    )
    images = parser.add_mutually_exclusive_group()
    images.add_argument('--indices', type=int, nargs='+', help='validation images to take')
    images.add_argument(
        '--max-images',
        type=int,
        help='at most so many validation images, evenly spaced (default: all)',
    )
    add_thresholds(parser)
    parser.add_argument(
        '--no-stock', dest='with_stock', action='store_false', help='leave out the stock evaluation'
    )
    return parser.parse_args(args)


def main(args: Sequence[str] | None = None) -> None:
    options = vars(parse_args(args))
    out = pop_out_folder(options, 'consistency')
    report = measure_consistency(**options, work_dir=out)
    write_consistency(report, out)
    print(f'{table_of(report)}\nwritten to {out}')


if __name__ == '__main__':
    main()
