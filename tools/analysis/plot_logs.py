"""Plots losses, terms, pairs and metrics of several runs over the iterations."""

import argparse
import fnmatch
import math
import re
from collections.abc import Sequence

import pandas as pd

from lt_mm.visualization.drawing import colors, new_figure, save_figure
from lt_mm.visualization.training_log import read_log

DASHES = ('-', '--', ':', '-.', (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (7, 3)))
# Titles of panels, and what the keys in them look like.
PANELS = {
    'total loss': r'loss',
    # Not those of a DETR's inner layers, encoder and denoising queries.
    'stock losses': r'(?!.*lt_)(?!d\d|enc_|dn_).*loss_.+',
    'consistency terms, times rho': r'.*loss_(rpn_)?lt_.*',
    'consistency terms (KL)': r'.*lt_kl_.*',
    'paired predictions a step': r'.*lt_num_paired',
    'paired share of the instances': r'.*lt_paired_share',
}


def read_run(work_dir: str) -> pd.DataFrame:
    """What a run logged, by iteration; what a resumed run did again counts as done last.

    In runs that count epochs, a validation is put at the last iteration logged before it.
    """
    entries: list[dict] = []
    for new in read_log(work_dir):
        first = min((entry['iter'] for entry in new if 'iter' in entry), default=math.inf)
        entries = [entry for entry in entries if entry['at'] < first]
        has_epochs = any('epoch' in entry for entry in entries + new)
        for entry in new:
            if 'iter' not in entry:  # a validation, whose times are not those of training
                entry = {key: entry[key] for key in entry if not key.endswith('time')}
            before = entries[-1]['at'] if entries else 0
            at = entry.get('iter', before if has_epochs else entry['step'])
            entries.append(dict(entry, at=at))
    if not entries:
        raise FileNotFoundError(f'{work_dir} holds no log; expected <time>/vis_data/scalars.json')
    return pd.DataFrame(entries).groupby('at').last()


def panels_of(known: list[str], keys: Sequence[str] | None) -> dict[str, list[str]]:
    """The logged keys of each panel, by its title."""
    patterns = {key: fnmatch.translate(key) for key in keys or []}
    if not keys:
        evaluators = sorted({key.split('/')[0] for key in known if '/' in key})
        patterns = PANELS | {f'validation: {name}': f'{name}/.*' for name in evaluators}
    panels = {
        title: [key for key in known if re.fullmatch(pattern, key)]
        for title, pattern in patterns.items()
    }
    if not (all if keys else any)(panels.values()):
        raise ValueError(f'the runs did not log {list(patterns)}; expected some of {known}')
    return {title: found for title, found in panels.items() if found}


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('runs', nargs='+', metavar='RUN', help='work dir')
    parser.add_argument('--out', required=True, metavar='PNG', help='picture to write')
    parser.add_argument('--keys', nargs='+', help="a panel for each, with wildcards: 'loss_lt_*'")
    options = parser.parse_args(args)
    logs = {run: read_run(run) for run in options.runs}
    panels = panels_of(sorted(set().union(*logs.values())), options.keys)
    rows = math.ceil(len(panels) / 3)
    figure = new_figure(15, 3.6 * rows)
    for place, (title, keys) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, 3, place)
        axes.set_title(title, fontsize=9)
        for (run, log), hue in zip(logs.items(), colors(len(logs))):
            for key, dash in zip(keys, DASHES * len(keys)):
                if key in log:
                    axes.plot(log[key].dropna(), marker='.', c=hue, ls=dash, label=f'{run}: {key}')
        axes.legend(fontsize=6)
    save_figure(figure, options.out)
    metrics = {run: log.filter(like='/').ffill().iloc[-1] for run, log in logs.items()}
    print(pd.DataFrame(metrics).to_string(na_rep='-'))


if __name__ == '__main__':
    main()
