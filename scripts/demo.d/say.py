"""What the demonstration says: headings, tables, and the promises that it checks."""

from __future__ import annotations

import sys
from typing import Any, TextIO


class Speaker:
    """Prints for people, on standard output, or on standard error when that is for JSON."""

    def __init__(self, as_json: bool) -> None:
        self.out: TextIO = sys.stderr if as_json else sys.stdout
        self.broken: list[str] = []
        self._bold = ("\033[1m", "\033[0m") if self.out.isatty() else ("", "")

    def step(self, text: str) -> None:
        """A heading. Comes before everything that takes time, so that nobody waits in silence."""
        self._line(f"\n{self._bold[0]}==> {text}{self._bold[1]}")

    def line(self, text: str) -> None:
        """A line of the demonstration."""
        self._line(f"    {text}")

    def promise(self, holds: bool, text: str) -> None:
        """Says whether a promise holds, and remembers it if not."""
        self._line(f"    [{'ok' if holds else 'BROKEN'}] {text}")
        if not holds:
            self.broken.append(text)

    def table(self, title: str, rows: list[tuple[str, ...]]) -> None:
        """Columns: the first to the left, the others to the right."""
        self.step(title)
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        for row in rows:
            cells = [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:])]
            self.line("  ".join([f"{row[0]:<{widths[0]}}", *cells]).rstrip())

    def _line(self, text: str) -> None:
        print(text, file=self.out, flush=True)


def mb(count: float) -> str:
    """Bytes in MB, of 10^6 bytes as file sizes are."""
    return f"{count / 1e6:.1f} MB"


def span(us: float) -> str:
    """A time in the unit that suits it."""
    return f"{us / 1e3:.1f} ms" if us >= 1e3 else f"{us:.0f} us" if us >= 10 else f"{us:.2f} us"


Report = dict[str, Any]
