"""Plots losses, terms, pairs and metrics of several runs over the iterations."""

import argparse

from lt_mm.visualization.log_plots import plot_logs


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('runs', nargs='+', metavar='RUN', help='work dir, or a scalars.json')
    parser.add_argument('--out', required=True, metavar='PNG', help='picture to write')
    parser.add_argument(
        '--keys',
        nargs='+',
        metavar='KEY',
        help="a panel each, with wildcards: 'loss_lt_*' (default: "
        'losses, terms, pairs and metrics)',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    for run in plot_logs(args.runs, args.out, args.keys):
        print(run)


if __name__ == '__main__':
    main()
