"""The MiniLM example, on the real weights where they are in the cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Daemon

EXAMPLES = ROOT / "ffi" / "python" / "examples"


def run(*arguments: str) -> dict[str, object]:
    """What the example says."""
    script = [sys.executable, str(EXAMPLES / "minilm.py"), "--json", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run(script, capture_output=True, check=True, env=environment)
    return json.loads(done.stdout)


def test_both_readers_give_the_same_similarities(daemon: Daemon) -> None:
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    sys.path.insert(0, str(EXAMPLES))
    try:
        from fetch_minilm import cache_dir
    finally:
        sys.path.remove(str(EXAMPLES))
    model: Path = cache_dir() / "model.safetensors"
    if not model.exists():
        pytest.skip(f"{model} is not there: run {EXAMPLES / 'fetch_minilm.py'}")
    lent = run("--path", str(model))
    read = run("--path", str(model), "--reader", "safetensors")
    assert (lent["reader"], read["reader"], lent["tensors"]) == ("mrm", "safetensors", 104)
    assert lent["similarities"] == read["similarities"], "exactly, not nearly"
    food, meal, kernel = lent["similarities"]  # type: ignore[misc]
    assert food[1] == meal[0] > 0.5 > kernel[0]
