"""Draws the replicas of an image and their predictions restored to the source."""

import argparse

from lt_mm.apis.draw_replicas import draw_replicas, nothing_drawn


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of a detector')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('out', help='PNG to write')
    parser.add_argument(
        '--index',
        type=int,
        help='number of the validation image (default: one with many instances)',
    )
    parser.add_argument('--num-replicas', type=int, default=4, help='replicas (default: 4)')
    parser.add_argument(
        '--score-threshold', type=float, default=0.4, help='smallest confidence (default: 0.4)'
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of the augmentations')
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='also load checkpoints that hold more than weights, which may run code',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    drawn = draw_replicas(**vars(args))
    print(f'{args.out}: {drawn["boxes"]} predicted boxes, {drawn["paired"]} paired')
    if not drawn['boxes']:
        print(nothing_drawn(args.score_threshold, drawn['best_score']))


if __name__ == '__main__':
    main()
