"""Measures how strong the consistency terms are beside the stock losses.

On training batches and a checkpoint: the norm of each term's gradient relative to that of
the stock losses, the cosine between them, and how sure the paired predictions are.
"""

import argparse
from collections.abc import Sequence

from mmengine.config import DictAction

from lt_mm.apis.term_gradients import measure_term_gradients, table_of


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='config with a LossTransformHead')
    parser.add_argument('checkpoint', help='checkpoint file, also of the stock config')
    parser.add_argument(
        '--num-batches', type=int, default=20, help='training batches (default: 20)'
    )
    parser.add_argument(
        '--seed', type=int, default=0, help='seed of the order and the augmentations'
    )
    parser.add_argument('--work-dir', help='folder of the logs (default: as training)')
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
    print(table_of(measure_term_gradients(**vars(parse_args(args)))))


if __name__ == '__main__':
    main()
