"""Where things are in the repository."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIGS = REPOSITORY / 'configs'
DOCS = REPOSITORY / 'docs'
TOOLS = REPOSITORY / 'tools'
