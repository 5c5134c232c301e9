"""What every process does without mrm: `safetensors` reads the file into memory of its own.

Prints one line of JSON; with `hold` as second argument it then waits until its input ends.
"""

import json
import sys
import time

from memory import pss_bytes
from safetensors.numpy import load_file

before_bytes = pss_bytes("self", "Pss_Anon")
start = time.perf_counter()
tensors = load_file(sys.argv[1])
first = next(iter(tensors.values())).reshape(-1)[0]
load_us = (time.perf_counter() - start) * 1e6
grown_bytes = pss_bytes("self", "Pss_Anon") - before_bytes
print(json.dumps({"load_us": load_us, "grown_bytes": grown_bytes}), flush=True)
if sys.argv[2:] == ["hold"]:
    sys.stdin.read()
