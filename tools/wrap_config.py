"""Writes the child config that trains a stock config with LossTransform, and checks it."""

import argparse
import sys

from lt_mm.apis.wrapping import WrapOptions, wrap_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help="stock config; 'mmdet::<path>' for one of MMDetection's")
    parser.add_argument('--out', help='the new file (default: <name>_lt.py, in this folder)')
    parser.add_argument('--num-repeats', type=int, default=2, metavar='M', help='default: 2')
    parser.add_argument(
        '--mode',
        choices=('full', 'v1'),
        default='full',
        help='full: M times the steps an epoch; v1: as many steps as before (default: full)',
    )
    parser.add_argument('--rho', type=float, default=1.0, help='weight of the term (default: 1)')
    parser.add_argument(
        '--memory',
        type=float,
        nargs='?',
        const=0.7,
        metavar='MOMENTUM',
        help='compare with predictions of earlier epochs, without repetition (0.7)',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    options = WrapOptions(args.num_repeats, args.mode, args.rho, args.memory)
    written = wrap_config(args.config, args.out, options)
    print(written)
    if written.report.wrong:
        sys.exit(1)


if __name__ == '__main__':
    main()
