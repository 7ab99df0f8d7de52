"""Evaluates a checkpoint: ``python tools/test.py CONFIG CHECKPOINT``."""

from typing import Any

from lt_mm.apis.arguments import launch_parser, parse_launch_args
from lt_mm.apis.train import test


def parse_args() -> dict[str, Any]:
    parser = launch_parser(__doc__)
    parser.add_argument('checkpoint', help='checkpoint file')
    return parse_launch_args(parser)


if __name__ == '__main__':
    test(**parse_args())
