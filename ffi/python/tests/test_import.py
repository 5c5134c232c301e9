"""A function that starts cold pays for every module that the package imports."""

import subprocess
import sys

# What takes milliseconds, and is not needed.
HEAVY = {"pathlib", "urllib.parse", "dataclasses", "inspect", "json", "logging", "asyncio"}


def test_importing_the_package_imports_nothing_heavy():
    script = """
import sys
before = set(sys.modules)
import mrm
print(sorted(set(sys.modules) - before))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    brought = set(run.stdout.strip("[]\n").replace("'", "").split(", "))
    assert "mrm._ffi" in brought
    assert not brought & HEAVY
