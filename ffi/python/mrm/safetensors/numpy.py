"""``safetensors.numpy``, for reading."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ._load import load_file as _load_file


def load_file(
    filename: str | os.PathLike[str], *, backend: str = "mmap"
) -> dict[str, np.ndarray[Any, Any]]:
    """Every tensor of ``filename`` as a read-only array that is not a copy."""
    return _load_file(filename, framework="np", backend=backend)
