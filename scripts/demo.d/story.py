"""What happens in the demonstration, in its order, and what it finds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from statistics import median, quantiles
from typing import Any

import memory
from figures import show_figures
from node import Child, Failed, Node, until
from parts import EXAMPLES, Parts
from say import Report, Speaker, mb, span

MODEL = "sentence/minilm"
HERE = os.path.dirname(os.path.abspath(__file__))
LATER_CLIENTS = ["Python"] * 3 + ["C"] * 3 + ["Rust"] * 2
PAGE_BYTES = 4096
SHARE_LIMIT = 1.1
RELEASE_LIMIT_MS = 100.0
READS_COLD, READS_WARM = 5, 5


class Story:
    """Tells it, and collects the figures on the way."""

    def __init__(self, speaker: Speaker, node: Node, parts: Parts) -> None:
        self.speaker, self.node, self.parts = speaker, node, parts
        self.report: Report = {"model": MODEL, "model_bytes": parts.weights.stat().st_size}
        self.clients: list[Child] = []
        self.shm_before = memory.shm_names()

    def tell(self) -> Report:
        self.speaker.step("starting mrmd on a runtime directory of its own")
        self.node.start(self.parts.mrmd, {MODEL: self.parts.weights})
        self._first_open()
        self._eight_more()
        self._again_and_again()
        self._share()
        self._without_mrm()
        for words in (["status"], ["ls"], ["show", MODEL]):
            self._mrm(*words)
        self._kill_one()
        self._evict()
        self._load_again()
        self._stop()
        show_figures(self.speaker, self.report)
        self.report["broken_promises"] = self.speaker.broken
        return self.report

    # One process.

    def _first_open(self) -> None:
        self.speaker.step("a first Python process opens the model, and encodes three sentences")
        self._drop_file()
        first = self._spawn("Python")
        said = first.said()
        self.speaker.promise(said["origin"] == "loaded", "the first open made mrmd load the model")
        self.report["cold_ms"] = said["open_us"] / 1e3
        for sentence, row in zip(said["sentences"], said["similarities"]):
            self.speaker.line(" ".join(f"{value:6.3f}" for value in row) + "  " + sentence)
        self.speaker.step("the same encoder, on tensors that the safetensors package reads")
        of_file = self._minilm("--reader", "safetensors", "--path", str(self.parts.weights))
        self.reference = self.node.spawn("the reference", of_file)
        self.similarities = self.reference.said()["similarities"]
        self.reference.leave()
        self.report["similarities"] = said["similarities"]
        self._compare([said])

    def _compare(self, saids: list[Report]) -> None:
        """Similarities against those of the safetensors package."""
        found = [value for said in saids for row in said["similarities"] for value in row]
        expected = [value for _ in saids for row in self.similarities for value in row]
        worst = max(abs(a - b) for a, b in zip(found, expected, strict=True))
        worst = max(worst, self.report.get("similarity_max_abs_diff", 0.0))
        self.report["similarity_max_abs_diff"] = worst
        self.speaker.promise(worst == 0.0, f"similarities agree exactly: max abs diff {worst}")

    # Nine processes.

    def _eight_more(self) -> None:
        self.speaker.step("eight more processes open it at the same time: 3 Python, 3 C, 2 Rust")
        later = [self._spawn(label) for label in LATER_CLIENTS]
        saids = [child.said() for child in later]
        for child, said in zip(later, saids):
            self.speaker.line(f"{child.label:<6} process {child.pid:>7}: {span(said['open_us'])}")
        hits_us = [said["open_us"] for said in saids]
        counters = self.node.ask("/v1/status")["counters"]
        self.report["clients"] = len(self.clients)
        self.report["hit_us"] = hits_us
        self.report["hit_us_p50"] = median(hits_us)
        self.report["loaded_bytes"] = counters["loaded_bytes_total"]
        self.report["misses"] = counters["misses_total"]
        self.report["hits"] = counters["hits_total"]
        self._compare([said for said in saids if "similarities" in said])
        expected = sum(self.parts.weights.read_bytes()[::PAGE_BYTES])
        wrong = [said for said in saids if said.get("checksum", expected) != expected]
        self.speaker.promise(not wrong, "the C and Rust processes see the bytes of the file")
        self.speaker.promise(
            counters["misses_total"] == 1 and counters["hits_total"] == len(later),
            f"nine opens: {counters['misses_total']} load, {counters['hits_total']} hits",
        )

    def _again_and_again(self) -> None:
        self.speaker.step("one more process opens and closes it 200 times")
        found = self._ask_script("again.py", MODEL)
        self.report["reopen_us_p50"] = median(found["opens_us"])
        self.report["reopen_us_p99"] = quantiles(found["opens_us"], n=100)[98]
        self.report["kept_us_p50"] = median(found["kept_us"])
        self.speaker.promise(found["origins"] == ["hit"], "each of them was a hit")

    def _share(self) -> None:
        """Proportional memory of the nine."""
        pids = [client.pid for client in self.clients]
        self.report["pss_total_bytes"] = sum(memory.pss_bytes(pid) for pid in pids)
        model_bytes = sum(memory.model_pss_bytes(pid) for pid in pids)
        self.report["pss_model_bytes"] = model_bytes
        # It maps memory that it makes ready for loads as long as it is at it.
        self.report["daemon_pss_bytes"] = memory.own_pss_bytes(self.node.daemon.pid)
        ratio = model_bytes / self.report["model_bytes"]
        self.speaker.promise(
            2 - SHARE_LIMIT <= ratio <= SHARE_LIMIT,
            f"nine processes map one copy: {mb(model_bytes)}, {ratio:.3f} of the file",
        )

    # What it would be without.

    def _without_mrm(self) -> None:
        self.speaker.step("the same file by the safetensors package, each time in a fresh process")
        cold_us = []
        for _ in range(READS_COLD):
            self._drop_file()
            cold_us.append(self._private()["load_us"])
        warm_us = [self._private()["load_us"] for _ in range(READS_WARM)]
        self.report["safetensors_cold_ms"] = median(cold_us) / 1e3
        self.report["safetensors_cold_ms_all"] = [us / 1e3 for us in cold_us]
        self.report["safetensors_ms"] = median(warm_us) / 1e3
        self.speaker.step("nine processes with private copies")
        children = [self._spawn_private() for _ in self.clients]
        grown = [child.said()["grown_bytes"] for child in children]
        self.report["private_pss_total_bytes"] = sum(memory.pss_bytes(c.pid) for c in children)
        self.report["private_model_bytes"] = sum(grown)
        for child in children:
            child.leave()

    def _private(self) -> Report:
        return self._ask_script("private.py", str(self.parts.weights))

    def _spawn_private(self) -> Child:
        script = os.path.join(HERE, "private.py")
        command = [sys.executable, script, str(self.parts.weights), "hold"]
        return self.node.spawn("a private copy", command)

    # The end of clients, and of all.

    def _kill_one(self) -> None:
        victim = next(client for client in self.clients if client.label == "C")
        self.speaker.step(f"SIGKILL for the C process {victim.pid}")
        before = self.node.session_pids()
        start = time.perf_counter()
        os.kill(victim.pid, signal.SIGKILL)
        until("its lease to be gone", lambda: victim.pid not in self.node.session_pids())
        released_ms = (time.perf_counter() - start) * 1e3
        self.report["killed_client_released_ms"] = released_ms
        victim.kill()
        self.clients.remove(victim)
        leases = self.node.ask("/v1/status")["leases"]
        self.speaker.line(f"sessions: {len(before)} before, {len(self.node.session_pids())} after")
        self.speaker.promise(
            victim.pid in before and leases == len(self.clients),
            f"its lease is gone, the other {leases} are not",
        )
        self.speaker.promise(
            released_ms <= RELEASE_LIMIT_MS, f"that took {released_ms:.1f} ms, 100 at most"
        )

    def _evict(self) -> None:
        refused = self._mrm("evict", MODEL)
        self.speaker.promise(refused == 1, "what is held cannot be evicted")
        for client in self.clients:
            client.leave()
        self.clients.clear()
        self._await_no_sessions()
        self.speaker.line("the clients have left")
        evicted = self._mrm("evict", MODEL)
        until("the memory to be free", self._holds_its_stock_alone)
        charged = self.node.ask("/v1/status")["host"]["charged_bytes"]
        self.speaker.promise(
            evicted == 0 and charged == 0, "what nobody holds is evicted; mrmd holds no memory"
        )

    def _holds_its_stock_alone(self) -> bool:
        """Memory that is made ready for loads is there whatever was evicted."""
        stock = self.node.ask("/v1/status")["host"]["stock_bytes"]
        return memory.model_bytes(self.node.daemon.pid) == stock

    def _load_again(self) -> None:
        """Loads more often, for a median: from the disk, then from the page cache."""
        self.speaker.step("evicting and loading it some more times, for the table")
        cold_ms = [self.report["cold_ms"]]
        cold_ms += [self._load_once(from_disk=True) for _ in range(READS_COLD - 1)]
        warm_ms = [self._load_once(from_disk=False) for _ in range(READS_WARM)]
        self.report["cold_ms_all"], self.report["cold_ms_p50"] = cold_ms, median(cold_ms)
        self.report["cold_cached_ms_p50"] = median(warm_ms)

    def _load_once(self, from_disk: bool) -> float:
        self._mrm("--quiet", "evict", MODEL)
        if from_disk:
            self._drop_file()
        child = self._spawn("C")
        open_ms = child.said()["open_us"] / 1e3
        self.clients.remove(child)
        child.leave()
        self._await_no_sessions()
        return float(open_ms)

    def _stop(self) -> None:
        self.speaker.step("SIGTERM for mrmd, with the model resident")
        files = memory.model_files(self.node.daemon.pid)
        status, self.report["stop_ms"] = self.node.stop()
        self.speaker.promise(status == 0, f"mrmd ended in {self.report['stop_ms']:.0f} ms")
        left = memory.leftovers(self.node.runtime_dir, files, self.shm_before)
        self.report["leftovers"] = left
        self.speaker.promise(
            not left and bool(files),
            "nothing is left: " + ("; ".join(left) or "no process, no socket, no file, no memory"),
        )

    # Tools.

    def _drop_file(self) -> None:
        left = memory.drop_from_page_cache(self.parts.weights)
        self.report["cold_page_cache_bytes"] = max(
            left, self.report.get("cold_page_cache_bytes", 0)
        )
        if left:
            self.speaker.line(f"note: the kernel keeps {mb(left)} of the file in its page cache")

    def _await_no_sessions(self) -> None:
        until("all sessions to end", lambda: not self.node.session_pids())

    def _minilm(self, *words: str) -> list[str]:
        script = [sys.executable, str(EXAMPLES / "minilm.py")]
        return [*script, "--tokenizer", str(self.parts.tokenizer), "--json", "--hold", *words]

    def _spawn(self, label: str) -> Child:
        """A client that opens the model and holds it."""
        commands: dict[str, list[str]] = {
            "Python": self._minilm("--model", MODEL),
            "C": [str(self.parts.c_client), MODEL],
            "Rust": [str(self.parts.rust_client), MODEL],
        }
        child = self.node.spawn(label, commands[label])
        self.clients.append(child)
        return child

    def _ask_script(self, script: str, *words: str) -> dict[str, Any]:
        """Runs one of our scripts to its end, and returns what it said."""
        child = self.node.spawn(script, [sys.executable, os.path.join(HERE, script), *words])
        said = child.said()
        child.leave()
        return said

    def _mrm(self, *words: str) -> int:
        """Runs `mrm`, shows what it says, and returns its exit status."""
        quiet = "--quiet" in words
        if not quiet:
            self.speaker.step("mrm " + " ".join(words))
        done = subprocess.run(
            [str(self.parts.mrm), *words],
            env=self.node.environment,
            stdout=self.speaker.out,
            stderr=self.speaker.out,
            start_new_session=True,
        )
        if quiet and done.returncode:
            raise Failed(f"mrm {' '.join(words)} ended with status {done.returncode}")
        return done.returncode
