"""Everything at once."""

from __future__ import annotations

import os
from typing import Any

from ._open import safe_open


def load_file(
    filename: str | os.PathLike[str],
    device: str | int = "cpu",
    *,
    framework: str = "np",
    backend: str = "mmap",
) -> dict[str, Any]:
    """Every tensor of ``filename``, by name.

    ``mrm.safetensors.numpy`` and ``mrm.safetensors.torch`` have it for one framework, exactly as
    ``safetensors.numpy`` and ``safetensors.torch`` do.
    """
    with safe_open(filename, framework, device, backend=backend) as file:
        return file.get_tensors()
