"""Measures how steady the predictions of a checkpoint are while a camera moves slowly.

Prints a table and writes ``stability.json`` and a picture: of detectors ``flicker.gif``, the
frames of the image that flickers most with the boxes, of classifiers ``flicker.png``, strips of
frames with the predicted classes. With --baseline, both have it on the left or above.
"""

import argparse
import os.path as osp
from collections.abc import Sequence

from lt_mm.apis.arguments import add_config_options
from lt_mm.apis.steadiness.stability import measure_stability, table_of, write_stability


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='config with LossTransform, or without')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--baseline', nargs=2, metavar=('CONFIG', 'CHECKPOINT'), help='what to compare with'
    )
    parser.add_argument(
        '--out', help='folder to write to (default: work_dirs/<name of the config>/stability)'
    )
    parser.add_argument(
        '--num-frames', type=int, default=16, help='frames of each image (default: 16)'
    )
    parser.add_argument(
        '--max-images',
        type=int,
        default=50,
        help='at most so many validation images, evenly spaced (default: 50)',
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of the paths of the camera')
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
        '--num-replicas',
        type=int,
        default=0,
        help='measure the consistency of so many augmented copies too, 2 or more (default: not)',
    )
    add_config_options(parser)
    return parser.parse_args(args)


def main(args: Sequence[str] | None = None) -> None:
    options = vars(parse_args(args))
    model = options.pop('config'), options.pop('checkpoint')
    baseline = options.pop('baseline')
    name = osp.splitext(osp.basename(model[0]))[0]
    out = options.pop('out') or osp.join('work_dirs', name, 'stability')
    options['work_dir'] = out
    models = [baseline, model] if baseline else [model]
    reports = [measure_stability(*each, **options) for each in models]
    picture = write_stability(reports, out)
    print(f'{table_of(reports)}\nwritten to {out}; see {picture}')


if __name__ == '__main__':
    main()
