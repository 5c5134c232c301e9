"""The functions of the ``safetensors`` package, over the memory that ``mrmd`` keeps.

    >>> from mrm.safetensors import safe_open
    >>> with safe_open("mrm:sentence/minilm", framework="np") as f:   # doctest: +SKIP
    ...     weight = f.get_tensor("pooler.dense.weight")

A file name may be a path, which this process opens and passes to the daemon, or ``mrm:`` and the
name of a registered model. Numpy arrays are read-only and are not copies. Torch tensors lie in a
private copy-on-write mapping: writing into one is allowed, costs memory only for the pages that
are written, and reaches no other process.

On a CUDA device torch tensors are the daemon's own memory, not copies, and the process may only
read them: a write in place (``tensor.add_(1)``) is an illegal access, which ends the process's CUDA
context. Clone what you change. Where the device cannot be had the tensors are copied there, and a
``RuntimeWarning`` says why.
"""

from ._load import load_file
from ._open import SafeSlice, SafetensorError, safe_open

__all__ = ["SafeSlice", "SafetensorError", "load_file", "safe_open"]
