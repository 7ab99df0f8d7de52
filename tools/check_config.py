"""Says whether a config trains what it means to, on one screen, before anything is trained."""

import argparse
import sys

from lt_mm.apis.arguments import add_config_options
from lt_mm.apis.check_config import check_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    add_config_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    report = check_config(args.config, args.cfg_options)
    print(report)
    if report.wrong:
        sys.exit(1)


if __name__ == '__main__':
    main()
