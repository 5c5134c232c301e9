"""Builds the wheel: the Python files, and the `libmrm.so` that cargo makes, as `mrm/_lib`.

MRM_LIBRARY names a library that is built already. Without it, cargo builds a release.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
WORKSPACE = HERE.parent.parent


def version() -> str:
    """The version of the workspace."""
    manifest = (WORKSPACE / "Cargo.toml").read_text()
    found = re.search(r'^version = "([^"]+)"', manifest, re.MULTILINE)
    if found is None:
        raise SystemExit(f"{WORKSPACE / 'Cargo.toml'} names no version")
    return found.group(1)


def library() -> Path:
    """The library to ship."""
    named = os.environ.get("MRM_LIBRARY")
    if named:
        return Path(named)
    cargo = os.environ.get("CARGO", "cargo")
    subprocess.run([cargo, "build", "--release", "-p", "mrm-ffi"], cwd=WORKSPACE, check=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR", WORKSPACE / "target"))
    return target / "release" / "libmrm.so"


class BuildWithLibrary(build_py):
    """Adds the library to the package."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            into = Path(self.build_lib) / "mrm" / "_lib"
            into.mkdir(parents=True, exist_ok=True)
            shutil.copy2(library(), into / "libmrm.so")


class AnyPython(bdist_wheel):
    """One wheel for every Python 3, because the library does not link with it."""

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return "py3", "none", platform


class WithLibrary(Distribution):
    """Not pure: the wheel is for one platform."""

    def has_ext_modules(self) -> bool:
        return True


setup(
    version=version(),
    distclass=WithLibrary,
    cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": AnyPython},
)
