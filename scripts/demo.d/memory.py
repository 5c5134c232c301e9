"""What the kernel says of memory: page cache of a file, proportional sizes, what is left behind."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

#: How the kernel calls the memory of a model in lists of mappings and descriptors.
MODEL_MAPPING = "/memfd:mrm"
PAGE_BYTES = mmap.PAGESIZE


def drop_from_page_cache(path: Path) -> int:
    """Makes the kernel forget what it has read of a file; returns how many bytes it still has."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return _cached_bytes(file.fileno())


def _cached_bytes(fd: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    # A private writable mapping, because ctypes takes no address of a read-only one.
    with mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapping:
        pages = (ctypes.c_ubyte * -(-len(mapping) // PAGE_BYTES))()
        start = ctypes.c_char.from_buffer(mapping)
        address, length = ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(mapping))
        del start
        if libc.mincore(address, length, pages):
            raise OSError(ctypes.get_errno(), "mincore")
    return sum(page & 1 for page in pages) * PAGE_BYTES


def pss_bytes(pid: int | str, field: str = "Pss") -> int:
    """Proportional set size of a process: a page that n processes map counts 1/n in each."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == field:
            return int(value.split()[0]) * 1024
    raise RuntimeError(f"/proc/{pid}/smaps_rollup has no {field}")


def model_pss_bytes(pid: int) -> int:
    """The part of it that is a model lent by the daemon."""
    of_models, _ = _pss_bytes_of_models_and_the_rest(pid)
    return of_models


def own_pss_bytes(pid: int) -> int:
    """All of it but models, and memory for them."""
    _, rest = _pss_bytes_of_models_and_the_rest(pid)
    return rest


def _pss_bytes_of_models_and_the_rest(pid: int) -> tuple[int, int]:
    of_models, rest, of_model = 0, 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            of_model = len(words) > 5 and words[5].startswith(MODEL_MAPPING)
        elif words[0] == "Pss:" and of_model:
            of_models += int(words[1]) * 1024
        elif words[0] == "Pss:":
            rest += int(words[1]) * 1024
    return of_models, rest


def model_files(pid: int) -> set[tuple[int, int]]:
    """Device and inode of each model's memory of which a process has a descriptor."""
    found = set()
    for link in _descriptors(pid):
        try:
            if os.readlink(link).startswith(MODEL_MAPPING):
                status = os.stat(link)
                found.add((status.st_dev, status.st_ino))
        except OSError:
            continue
    return found


def model_bytes(pid: int) -> int:
    """How long all memory for models is together of which a process has a descriptor."""
    sizes = {}
    for link in _descriptors(pid):
        try:
            if os.readlink(link).startswith(MODEL_MAPPING):
                status = os.stat(link)
                sizes[status.st_dev, status.st_ino] = status.st_size
        except OSError:
            continue
    return sum(sizes.values())


def leftovers(runtime_dir: Path, memory: set[tuple[int, int]], shm_before: set[str]) -> list[str]:
    """Whatever of a daemon is still there: processes, sockets, files, memory."""
    left = []
    # What the daemon remembers of uses is for the next one.
    files = [path for path in sorted(runtime_dir.rglob("*")) if path.name != "statistics"]
    left += [f"file {path}" for path in files]
    sockets = Path("/proc/net/unix").read_text().splitlines()
    left += [f"socket {line.split()[-1]}" for line in sockets if f"{runtime_dir}/" in line]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            left += _left_in_process(int(entry.name), runtime_dir, memory)
    return left + [f"file /dev/shm/{name}" for name in sorted(shm_names() - shm_before)]


def shm_names() -> set[str]:
    """Named shared memory that could be ours."""
    try:
        return {name for name in os.listdir("/dev/shm") if "mrm" in name}
    except FileNotFoundError:
        return set()


def _left_in_process(pid: int, runtime_dir: Path, memory: set[tuple[int, int]]) -> list[str]:
    left = []
    try:
        process = Path(f"/proc/{pid}")
        started_with = [(process / name).read_bytes() for name in ("cmdline", "environ")]
        if any(os.fsencode(runtime_dir) in words for words in started_with):
            left.append(f"process {pid}")
        held = model_files(pid) & memory
        left += [f"memory of inode {inode} in process {pid}" for _, inode in held]
        inodes = {str(inode) for _, inode in memory}
        for line in (process / "maps").read_text().splitlines():
            if MODEL_MAPPING in line and line.split()[4] in inodes:
                left.append(f"mapping of inode {line.split()[4]} in process {pid}")
    except OSError:
        # It has ended, or it is another user's and so cannot be one of ours.
        pass
    return left


def _descriptors(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return []
