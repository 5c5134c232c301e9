"""The demonstration: one copy of a real model in nine processes. Started by `scripts/demo`."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from node import Failed, Node
from parts import CACHE, prepare
from say import Speaker
from story import Story

INTERRUPTED = 130
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: A socket's path has 107 bytes at most.
TEMPORARY_BYTES_MAX = 60


def temporary_directories() -> tuple[Path, Path]:
    """One for what is built, where programs may run, and one for sockets, whose path is short."""
    CACHE.mkdir(parents=True, exist_ok=True)
    scratch = tempfile.mkdtemp(prefix="demo-", dir=CACHE)
    short = len(tempfile.gettempdir()) <= TEMPORARY_BYTES_MAX
    sockets = tempfile.mkdtemp(prefix="mrm-demo-", dir=None if short else "/tmp")
    return Path(scratch), Path(sockets)


def run(speaker: Speaker) -> dict[str, object]:
    """The whole of it; ends what it has started, and removes what it has written."""
    scratch, sockets = temporary_directories()
    node = Node(scratch, sockets / "run")
    try:
        return Story(speaker, node, prepare(speaker, scratch)).tell()
    except Failed as failure:
        raise Failed(f"{failure}\n{node.log_tail()}".rstrip()) from None
    finally:
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)
        node.abandon()
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(sockets, ignore_errors=True)


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    as_json = "--json" in sys.argv[1:]
    speaker = Speaker(as_json)
    for number in ENDING:
        signal.signal(number, interrupted)
    try:
        report = run(speaker)
    except Failed as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, BrokenPipeError):
        print("interrupted; everything that was started is ended", file=sys.stderr)
        return INTERRUPTED
    if as_json:
        print(json.dumps(report, indent=2))
    for promise in speaker.broken:
        print(f"error: broken promise: {promise}", file=sys.stderr)
    return 1 if speaker.broken else 0


if __name__ == "__main__":
    sys.exit(main())
