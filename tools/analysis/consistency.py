"""Measures how alike predictions for augmented copies of validation images are.

Prints a table and writes ``consistency.json``, ``consistency.csv`` (a row for each image)
and ``consistency.png``. They hold the KL of the predictions to their mean and the
agreement of the classes, or the overlap of the matched boxes, and what the stock
evaluation gives without and with test-time augmentation.
"""

import argparse
import os.path as osp
from collections.abc import Sequence

from mmengine.config import DictAction

from lt_mm.apis.consistency import measure_consistency, table_of, write_consistency


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='config with LossTransform, or without')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--num-replicas', type=int, default=4, help='copies of each image (default: 4)'
    )
    parser.add_argument(
        '--out', help='folder to write to (default: work_dirs/<name of the config>/consistency)'
    )
    images = parser.add_mutually_exclusive_group()
    images.add_argument('--indices', type=int, nargs='+', help='validation images to take')
    images.add_argument(
        '--max-images',
        type=int,
        help='at most so many validation images, evenly spaced (default: all)',
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of the augmentations')
    parser.add_argument(
        '--score-threshold',
        type=float,
        default=0.5,
        help='smallest confidence of a detection (default: 0.5)',
    )
    parser.add_argument(
        '--iou-threshold',
        type=float,
        default=0.5,
        help='smallest overlap of boxes that match (default: 0.5)',
    )
    parser.add_argument(
        '--no-stock', dest='with_stock', action='store_false', help='leave out the stock evaluation'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings to override, key=value; lists as key="[a,b]" or key=a,b',
    )
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='load checkpoints that hold more than weights, and may run code',
    )
    return parser.parse_args(args)


def main(args: Sequence[str] | None = None) -> None:
    options = vars(parse_args(args))
    name = osp.splitext(osp.basename(options['config']))[0]
    out = options.pop('out') or osp.join('work_dirs', name, 'consistency')
    report = measure_consistency(**options, work_dir=out)
    write_consistency(report, out)
    print(f'{table_of(report)}\nwritten to {out}')


if __name__ == '__main__':
    main()
