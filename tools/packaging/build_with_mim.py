"""Puts the model index, configs and tools into wheels, at the place where mim looks.

That is ``lt_mm/.mim``; ``pyproject.toml`` names this class, and cannot name files outside
of the package. An editable installation has no copies: there mim takes the repository.
"""

from pathlib import Path

from setuptools.command.build_py import build_py

PATTERNS = [
    'model-index.yml',
    'configs/**/*.py',
    'configs/**/*.yml',
    'configs/**/*.md',
    'tools/*.py',
    'tools/analysis/*.py',
    'tools/*_converters/*.py',
    'tools/packaging/*.py',  # this file, for wheels made from an sdist
]


class BuildWithMim(build_py):
    def run(self):
        super().run()
        for source in _files():
            target = Path(self.build_lib, 'lt_mm', '.mim', source)
            self.mkpath(str(target.parent))
            self.copy_file(source, str(target))

    def get_source_files(self):  # what an sdist takes
        return [*super().get_source_files(), *_files()]


def _files():
    return sorted(str(path) for pattern in PATTERNS for path in Path().glob(pattern))
