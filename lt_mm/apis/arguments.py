"""Command line arguments that several tools take."""

import argparse
import os
import os.path as osp
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


def measurement_parser(description: str, name: str) -> argparse.ArgumentParser:
    """A parser with the arguments of the tools that measure a checkpoint on validation images.

    Args:
        description: What the tool does.
        name: Of the folder that it writes to unless told otherwise, see :func:`pop_out_folder`.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config with LossTransform, or without')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out', help=f'folder to write to (default: work_dirs/<name of the config>/{name})'
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of what is drawn at random')
    add_config_options(parser)
    return parser


def add_baseline(parser: argparse.ArgumentParser) -> None:
    """Adds the option for a second model."""
    parser.add_argument(
        '--baseline', nargs=2, metavar=('CONFIG', 'CHECKPOINT'), help='what to compare with'
    )


def add_thresholds(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say which detections count, and which of them match."""
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


def pop_out_folder(options: dict[str, Any], name: str) -> str:
    """Takes ``out`` out of the options; by default a folder with the name of the config."""
    config = osp.splitext(osp.basename(options['config']))[0]
    return options.pop('out') or osp.join('work_dirs', config, name)


def parse_launch_args(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Parses the command line; tells MMEngine the local rank, which is not returned."""
    args = vars(parser.parse_args())
    os.environ.setdefault('LOCAL_RANK', str(args.pop('local_rank')))
    return args
