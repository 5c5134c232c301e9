"""One side of the benchmark `python`, in a process of its own: does what its input says, line by
line, and prints the milliseconds that each took.

Arguments: the file, the name of the model. Lines: WHAT, of those below. Nothing of one is left when
the next begins.
"""

import gc
import json
import sys
import time

import numpy

path, name = sys.argv[1:3]


def touched(arrays):
    """Reads a value of each page; they are any bits, and so may be no numbers."""
    with numpy.errstate(all="ignore"):
        return sum(float(array.reshape(-1)[::1024].sum()) for array in arrays)


def mapped():
    """The tensors of the file as arrays of its mapping, by hand: as little as can be done."""
    image = numpy.memmap(path, numpy.uint8, "r")
    end = 8 + int.from_bytes(image[:8].tobytes(), "little")
    header = json.loads(image[8:end].tobytes())
    header.pop("__metadata__", None)
    arrays = {}
    for key, entry in header.items():
        first, last = (end + offset for offset in entry["data_offsets"])
        arrays[key] = image[first:last].view("<f4").reshape(entry["shape"])
    return arrays


def opened(populate=False):
    model = mrm.open(name, populate=populate)
    return model, {key: model[key] for key in model}


def load_file():
    return safetensors.numpy.load_file(path)


WORK = {
    "open-one": lambda: (model := mrm.open(name), model[first]),
    "open-all": opened,
    # As whoever is about to read all of it opens it.
    "open-touch": lambda: (both := opened(populate=True), touched(both[1].values())),
    "load": load_file,
    "map-touch": lambda: (arrays := mapped(), touched(arrays.values())),
}

import mrm
import safetensors.numpy

# Not a part of any figure: the first connection, the first import inside a package.
with mrm.open(name) as model:
    first = next(iter(model))
    model[first]
print("ready", flush=True)

for line in sys.stdin:
    work = WORK[line.strip()]
    gc.collect()
    gc.disable()
    start = time.perf_counter()
    kept = work()
    took = (time.perf_counter() - start) * 1e3
    gc.enable()
    del kept
    gc.collect()
    print(took, flush=True)
