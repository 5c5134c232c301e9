"""``safetensors.torch``, for reading."""

from __future__ import annotations

import os

import torch

from ._load import load_file as _load_file


def load_file(
    filename: str | os.PathLike[str], device: str | int = "cpu", *, backend: str = "mmap"
) -> dict[str, torch.Tensor]:
    """Every tensor of ``filename``, in a private copy-on-write mapping or on ``device``."""
    return _load_file(filename, device, framework="pt", backend=backend)
