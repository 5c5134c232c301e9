"""A program without a manager: loads each file that it is told by safetensors, onto the device."""

from __future__ import annotations

import sys
import time

from common import package, say


def main() -> None:
    torch, why = package("torch")
    if torch is None:
        say(skip=why)
        return
    if not torch.cuda.is_available():
        say(skip="torch sees no device")
        return
    safetensors, why = package("safetensors")
    if safetensors is None:
        say(skip=why)
        return
    from safetensors.torch import load_file

    # The context is not what is compared.
    torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    say(ready=True)
    for line in sys.stdin:
        start = time.perf_counter()
        tensors = load_file(line.rstrip("\n"), device="cuda")
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        del tensors
        torch.cuda.empty_cache()
        say(seconds=seconds)


main()
