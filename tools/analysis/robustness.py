"""Measures what is left of the accuracy of a checkpoint where images are corrupted.

Runs the evaluation of the config on 15 kinds of corruption at 5 severities each, prints a table and
writes ``robustness.json``: the metric for each kind, its mean (mPC), and the share that this is of
the metric on the images as they are (rPC); of classifiers with --baseline the mean corruption error
(mCE). Needs ``pip install imagecorruptions-imaug``.
"""

import argparse
import os.path as osp
from collections.abc import Sequence

from mmengine.fileio import dump
from mmengine.utils import mkdir_or_exist

from lt_mm.apis.arguments import add_baseline, measurement_parser, pop_out_folder
from lt_mm.apis.steadiness.robustness import KINDS, SEVERITIES, measure_robustness, table_of


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = measurement_parser(__doc__.splitlines()[0], 'robustness')
    add_baseline(parser)
    parser.add_argument('--kinds', nargs='+', choices=KINDS, default=KINDS, help='default: all')
    parser.add_argument('--severities', type=int, nargs='+', choices=SEVERITIES, default=SEVERITIES)
    parser.add_argument(
        '--max-images',
        type=int,
        help='at most so many validation images, evenly spaced; classifiers alone (default: all)',
    )
    parser.add_argument('--metric', help='name of the stock metric (default: AP, or top-1)')
    return parser.parse_args(args)


def main(args: Sequence[str] | None = None) -> None:
    options = vars(parse_args(args))
    out = options['work_dir'] = pop_out_folder(options, 'robustness')
    model = options.pop('config'), options.pop('checkpoint')
    baseline = options.pop('baseline')
    first = measure_robustness(*baseline, **options) if baseline else None
    report = measure_robustness(*model, **options)
    mkdir_or_exist(out)
    numbers = dict(report.numbers(first), values=report.values.tolist(), left_out=report.left_out)
    if first is not None:
        numbers['baseline'] = dict(first.numbers(), values=first.values.tolist())
    dump(numbers, osp.join(out, 'robustness.json'), indent=2)
    print(f'{table_of(report, first)}\nwritten to {out}')


if __name__ == '__main__':
    main()
