"""Draws replicas of the training data with their record, and what was lost in them."""

import argparse

from mmengine.config import DictAction

from lt_mm.apis.browse import browse_replicas


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of a detector or a classifier')
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        '--out',
        metavar='DIR',
        help='folder for the pictures (default: replicas, in the work dir of the config)',
    )
    place.add_argument('--show', action='store_true', help='open windows instead')
    parser.add_argument('--num-sources', type=int, default=8, help='sources to draw (default: 8)')
    parser.add_argument(
        '--num-replicas',
        type=int,
        metavar='M',
        help="replicas of each source (default: the sampler's num_repeats, or 4)",
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of the draws')
    parser.add_argument(
        '--min-visibility',
        type=float,
        help="less visible instances are failures (default: the head's number, or 0.3)",
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings to override, key=value; lists as key="[a,b]" or key=a,b',
    )
    return parser.parse_args()


def main() -> None:
    summary, _ = browse_replicas(**vars(parse_args()))
    print(summary)


if __name__ == '__main__':
    main()
