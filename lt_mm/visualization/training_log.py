"""The log of a training, as MMEngine writes it."""

import json
import warnings
from pathlib import Path
from typing import Any


def read_log(work_dir: str | Path) -> list[list[dict[str, Any]]]:
    """What a run logged: a list of entries for each time that it was started, in this order.

    Lines that hold no whole entry are left out: the last one of a process that was killed may be
    cut, and a process that is still running may be writing it. A warning names others.

    Args:
        work_dir: The work directory, which holds ``<time>/vis_data/scalars.json``.
    """
    return [_entries(path) for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json'))]


def _entries(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(errors='replace').splitlines()
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(dict(json.loads(line)))
        except (ValueError, TypeError):  # no JSON, or no object
            if number < len(lines):
                message = f'{path}:{number} is left out, it holds no entry: {line[:40]!r}'
                warnings.warn(message, stacklevel=3)
    return entries
