"""Counts which configs of the installed MMDetection and MMPretrain can be wrapped and train.

Every config is wrapped; a step is taken for each kind of model (the classes of neck, heads and
losses), on made images and with a stand-in for the backbone.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lt_mm.apis.zoo import cover, table_of


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--cache',
        default='work_dirs/zoo.jsonl',
        help='file of what was tried, from which a stopped run goes on (default: %(default)s)',
    )
    parser.add_argument('--out', help='file of the table (default: standard output)')
    parser.add_argument('--libraries', nargs='+', default=['mmdet', 'mmpretrain'])
    parser.add_argument('--build-only', action='store_true', help='wrap, and take no step')
    parser.add_argument('--configs', nargs='+', default=[], help='parts of the paths to try')
    parser.add_argument('--seconds', type=float, default=150, help='limit of a single trial')
    return parser.parse_args(args)


def main(args: Sequence[str] | None = None) -> None:
    options = vars(parse_args(args))
    out = options.pop('out')
    table = table_of(cover(**options))
    if out:
        Path(out).write_text(table + '\n', encoding='utf-8')
    else:
        print(table)


if __name__ == '__main__':
    main()
