"""Opens a resident model again and again in one process; prints the times in microseconds.

`opens`: each asks the daemon, since the one before was closed. `kept`: the process holds the model
already, so that nobody is asked.
"""

import json
import sys
import time

import mrm

OPENS = 200


def timed(client: mrm.Client, name: str) -> tuple[float, str]:
    start = time.perf_counter_ns()
    model = client.open(name)
    model.raw()[0]
    taken_us = (time.perf_counter_ns() - start) / 1e3
    origin = model.origin
    model.close()
    return taken_us, origin


client, name = mrm.Client(), sys.argv[1]
opens = [timed(client, name) for _ in range(OPENS)]
with client.open(name):
    kept = [timed(client, name) for _ in range(OPENS)]
report = {
    "opens_us": [us for us, _ in opens],
    "kept_us": [us for us, _ in kept],
    "origins": sorted({origin for _, origin in opens}),
}
print(json.dumps(report))
