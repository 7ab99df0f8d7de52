"""Trains a config: ``python tools/train.py configs/faster_rcnn_r50_lt.py``."""

from typing import Any

from lt_mm.apis.arguments import launch_parser, parse_launch_args
from lt_mm.apis.train import train


def parse_args() -> dict[str, Any]:
    parser = launch_parser(__doc__)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='checkpoint to resume from; without a value, the latest in the work dir',
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size'
    )
    return parse_launch_args(parser)


if __name__ == '__main__':
    train(**parse_args())
