"""Text from elsewhere, on a terminal of ours."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


def write(text: str) -> None:
    """Write a model's text to stdout at once. A terminal gets no control characters: they could steer it."""
    if sys.stdout.isatty():
        text = "".join(char for char in text if char.isprintable() or char in "\n\t")
    sys.stdout.write(text)
    sys.stdout.flush()


def note(text: str) -> None:
    """Say something beside the output, on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def read_prompt() -> str:
    """What was piped into the command; empty where stdin is a terminal."""
    return "" if sys.stdin.isatty() else sys.stdin.read()


def table_console() -> Console:
    """Prints tables to stdout; wide enough not to break lines where a program or a file reads them."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 200, highlight=False)


def cell(text: object) -> Text:
    """A table's cell for a name that somebody else chose: no markup, no control characters."""
    from rich.text import Text

    return Text("".join(char for char in str(text) if char.isprintable()))
