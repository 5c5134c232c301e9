"""What the checks share: the wheel that came with the bundle, and lines of JSON."""

from __future__ import annotations

import glob
import importlib
import json
import os
import sys
import zipfile


def say(**what: object) -> None:
    """Tells the step one thing."""
    print(json.dumps(what), flush=True)


def package(name: str):
    """The host's package, else the one in the bundle, else None and why."""
    try:
        return importlib.import_module(name), ""
    except ImportError as error:
        why = str(error)
    for wheel in glob.glob(os.path.join(os.environ.get("MRM_GPU_WHEELS", ""), name + "-*.whl")):
        unpacked = os.path.join(os.environ["MRM_GPU_SCRATCH"], "wheels", name)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        sys.path.append(unpacked)
        importlib.invalidate_caches()
        try:
            return importlib.import_module(name), ""
        except ImportError as error:
            why = f"the bundle's own: {error}"
    return None, why
