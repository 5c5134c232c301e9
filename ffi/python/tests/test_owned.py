"""Handles are closed once: with the last reference, or before, and not at the exit."""

import subprocess
import sys

from mrm._owned import Owned


def test_closed_with_the_last_reference():
    closed = []
    owned = Owned(7, closed.append)
    also = owned
    del owned
    assert closed == []
    del also
    assert closed == [7]


def test_closed_once():
    closed = []
    owned = Owned(7, closed.append)
    owned.close()
    owned.close()
    del owned
    assert closed == [7]


def test_not_closed_at_the_exit():
    script = "from mrm._owned import Owned\nkept = Owned(7, print)\nOwned(8, print)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("8\n", "")
