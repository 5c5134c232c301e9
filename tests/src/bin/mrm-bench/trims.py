"""One inference of the TrIMS experiment, in a process of its own: load, touch every page, compute.

Prints the milliseconds until every page was touched, and those from then on. Ideal is that the
tensors are there when the clock begins: they are touched like any, for an inference reads them.
Arguments: how (mrm, numpy, ideal), file, name of the model, milliseconds of computing. Says when it
has imported what it needs, and begins when it is told a line.
"""

import sys
import time

import numpy

how, path, name, compute_ms = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])

if how == "mrm":
    import mrm
else:
    from safetensors.numpy import load_file


def touched(tensors):
    """Reads a value of each page, as the first inference would."""
    return sum(float(tensor.reshape(-1)[::1024].sum()) for tensor in tensors)


print("ready", flush=True)
sys.stdin.readline()
there = load_file(path) if how == "ideal" else None
start = time.perf_counter()
if how == "mrm":
    model = mrm.open(name, populate=True)  # As whoever is about to read all of it.
    touched(model[key] for key in model)
elif how == "numpy":
    tensors = load_file(path)
    touched(tensors.values())
else:
    touched(there.values())
loaded = time.perf_counter()

# Time on a core, not on the clock: others may be computing at the same time.
end = time.process_time() + compute_ms / 1e3
while time.process_time() < end:
    pass
print((loaded - start) * 1e3, (time.perf_counter() - loaded) * 1e3)
