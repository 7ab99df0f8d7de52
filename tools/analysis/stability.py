"""Measures how steady the predictions of a checkpoint are while a camera moves slowly.

Prints a table and writes ``stability.json`` and a picture: of detectors ``flicker.gif``, the
frames of the image that flickers most with the boxes, of classifiers ``flicker.png``, strips of
frames with the predicted classes. With --baseline, both have it on the left or above.
"""

import argparse
from collections.abc import Sequence

from lt_mm.apis.arguments import add_baseline, add_thresholds, measurement_parser, pop_out_folder
from lt_mm.apis.steadiness.stability import measure_stability, table_of, write_stability


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = measurement_parser(__doc__.splitlines()[0], 'stability')
    add_baseline(parser)
    parser.add_argument(
        '--num-frames', type=int, default=16, help='frames of each image (default: 16)'
    )
    parser.add_argument(
        '--max-images',
        type=int,
        default=50,
        help='at most so many validation images, evenly spaced (default: 50)',
    )
    add_thresholds(parser)
    parser.add_argument(
        '--num-replicas',
        type=int,
        default=0,
        help='measure the consistency of so many augmented copies too, 2 or more (default: not)',
    )
    return parser.parse_args(args)


def main(args: Sequence[str] | None = None) -> None:
    options = vars(parse_args(args))
    out = options['work_dir'] = pop_out_folder(options, 'stability')
    model = options.pop('config'), options.pop('checkpoint')
    baseline = options.pop('baseline')
    models = [baseline, model] if baseline else [model]
    reports = [measure_stability(*each, **options) for each in models]
    picture = write_stability(reports, out)
    print(f'{table_of(reports)}\nwritten to {out}; see {picture}')


if __name__ == '__main__':
    main()
