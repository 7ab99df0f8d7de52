"""Command line arguments that several tools take."""

import argparse
import os
from typing import Any

from mmengine.config import DictAction

from lt_mm.engine.process_groups import LAUNCHERS


def launch_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the arguments of the tools that a launcher may start.

    Its arguments are those of :func:`lt_mm.engine.launch.load_config`, and
    ``trust_checkpoint``. The tool adds its own and calls :func:`parse_launch_args`.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='folder for logs, checkpoints and results')
    add_config_options(parser)
    parser.add_argument('--launcher', choices=LAUNCHERS, default='none')
    # Old versions of torch's launcher pass it; MMEngine reads the environment.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that change the config, and what may be loaded for it."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings to override, key=value; lists as key="[a,b]" or key=a,b',
    )
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='also load checkpoints that hold more than weights, which may run code',
    )


def parse_launch_args(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Parses the command line; tells MMEngine the local rank, which is not returned."""
    args = vars(parser.parse_args())
    os.environ.setdefault('LOCAL_RANK', str(args.pop('local_rank')))
    return args
