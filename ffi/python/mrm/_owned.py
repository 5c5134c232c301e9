"""Handles of the C interface that are closed with the last reference to them."""

from __future__ import annotations

import sys
from collections.abc import Callable


class Owned:
    """A handle, and the function that closes it.

    Not closed at the interpreter's exit: other threads may still be reading what it keeps then, and
    the end of the process gives all of it back anyway. ``weakref.finalize`` would do the same, but
    imports a module at its first use, in the middle of a process's first open, and keeps a registry.
    """

    __slots__ = ("_closing", "handle")

    def __init__(self, handle: int, close: Callable[[int], object]) -> None:
        self.handle = handle
        self._closing = [close]

    def close(self) -> None:
        """Closes it, unless that was done."""
        try:
            close = self._closing.pop()  # Of several threads, one gets it.
        except IndexError:
            return
        close(self.handle)

    # Bound here, because a module's names may be gone when it is called.
    def __del__(self, is_exit: Callable[[], bool] = sys.is_finalizing) -> None:
        if not is_exit():
            self.close()
