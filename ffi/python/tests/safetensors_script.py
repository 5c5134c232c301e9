"""Loads the file named on the command line onto a device with ``mrm.safetensors``, with the stub of
torch, and tells what came as JSON. Run as ``device_script.py`` is.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import warnings

import mrm
import mrm.safetensors
import torch


def main() -> None:
    """Tells what every tensor is."""
    name, device = sys.argv[1:]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = mrm.safetensors.load_file(name, device=device, framework="pt")
    tensors = {}
    for key, tensor in loaded.items():
        if isinstance(tensor, torch.Taken):
            size = mrm.open(name.removeprefix("mrm:"), device=device).info(key).nbytes
            data = ctypes.string_at(tensor.address, size).hex()
            tensors[key] = [f"cuda:{tensor.ordinal}", tensor.code, tensor.bits, data]
        elif isinstance(tensor, torch.Copied):
            tensors[key] = [f"copied to {tensor.device}", 0, 0, tensor.data.hex()]
        else:
            tensors[key] = [f"empty on {tensor.device}", 0, 0, ""]
    loaded.clear()
    tensor = None
    gc.collect()
    leases = mrm.stat(name.removeprefix("mrm:")).leases
    print(json.dumps([tensors, [str(w.message) for w in caught], leases]))


if __name__ == "__main__":
    main()
