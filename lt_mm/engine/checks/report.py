"""What was looked at, what was found, and what to change, on one screen."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.error import URLError

OK, NOTE, UNKNOWN, WRONG = 'ok', 'note', 'not checked', 'wrong'
_WIDTH = 100


class RunCheckError(ValueError):
    """Something in a config would spoil the run."""


@dataclass
class Finding:
    """One line of a report.

    Attributes:
        level: 'ok'; 'note': right, and worth knowing; 'not checked'; or 'wrong'.
        topic: What was looked at.
        text: What was found.
        remedy: What to change; empty where there is nothing to change, or the text says it.
    """

    level: str
    topic: str
    text: str
    remedy: str = ''


@dataclass
class Report:
    """The findings of a check.

    Attributes:
        findings: In the order in which they were made.
    """

    findings: list[Finding] = field(default_factory=list)

    def add(self, level: str, topic: str, text: str, remedy: str = '') -> None:
        """Adds a finding; see :class:`Finding`."""
        self.findings.append(Finding(level, topic, text, remedy))

    @contextmanager
    def reporting(self, topic: str) -> Iterator[None]:
        """Takes an error within a block as a finding. Files that do not exist are not wrong."""
        try:
            yield
        except (FileNotFoundError, URLError) as error:
            self.add(UNKNOWN, topic, f'the files are not here: {error}')
        except Exception as error:
            kind = '' if isinstance(error, ValueError) else f'{type(error).__name__}: '
            self.add(WRONG, topic, f'{kind}{error}')

    @property
    def wrong(self) -> list[Finding]:
        """The findings that would spoil a run."""
        return [each for each in self.findings if each.level == WRONG]

    def raise_if_wrong(self) -> None:
        """Raises if something is wrong.

        Raises:
            RunCheckError: With the whole report.
        """
        if self.wrong:
            raise RunCheckError(f'the run is not what its config means it to be:\n{self}')

    def __str__(self) -> str:
        return '\n'.join(_lines(each) for each in self.findings)


def _lines(finding: Finding) -> str:
    head = f'{finding.level:11} {finding.topic:14} '
    indent = ' ' * len(head)
    texts = [finding.text] + ([f'-> {finding.remedy}'] if finding.remedy else [])
    lines = [
        line
        for text in texts
        for line in textwrap.wrap(text, _WIDTH - len(indent), break_on_hyphens=False)
    ]
    return textwrap.indent('\n'.join(lines), indent).replace(indent, head, 1)
