"""A function that starts cold pays for every module that is imported."""

import os
import subprocess
import sys

# What takes milliseconds, and is not needed.
HEAVY = {"pathlib", "urllib.parse", "dataclasses", "inspect", "json", "logging", "asyncio"}


def brought(before, by, **environment):
    """The modules that a script brings which are not there after another one."""
    script = f"""
import sys
{before}
before = set(sys.modules)
{by}
print(*sorted(set(sys.modules) - before))
"""
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(run.stdout.split())


def test_importing_the_package_imports_nothing_heavy():
    modules = brought("", "import mrm")
    assert "mrm._ffi" in modules
    assert not modules & HEAVY


def test_the_first_open_imports_nothing(daemon):
    opens = """
model = mrm.open("small")
assert model["floats"].shape == (3, 4)
"""
    assert brought("import mrm, numpy", opens, MRM_SOCKET=str(daemon.socket)) == set()
