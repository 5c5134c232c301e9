"""The tables at the end."""

from __future__ import annotations

from say import Report, Speaker, mb, span


def show_figures(speaker: Speaker, report: Report) -> None:
    """All figures, against those of the `safetensors` package in the same run."""
    _times(speaker, report)
    _memory(speaker, report)


def _times(speaker: Speaker, report: Report) -> None:
    def ms(key: str) -> str:
        return span(report[key] * 1e3)

    rows = [
        ("", "from disk", "from page cache", "resident"),
        ("safetensors load_file", ms("safetensors_cold_ms"), ms("safetensors_ms"), ""),
        ("mrm, first open", ms("cold_ms_p50"), ms("cold_cached_ms_p50"), ""),
        ("mrm, hit, eight processes at once", "", "", span(report["hit_us_p50"])),
        ("mrm, hit, 200 in one Python process", "", "", span(report["reopen_us_p50"])),
        ("mrm, open of what the process has open", "", "", span(report["kept_us_p50"])),
    ]
    title = f"from the call to the first byte, of {mb(report['model_bytes'])}, p50"
    speaker.table(title, rows)
    faster = report["safetensors_ms"] * 1e3 / report["hit_us_p50"]
    speaker.line(f"a hit is {faster:.0f} times as fast as safetensors from the page cache")


def _memory(speaker: Speaker, report: Report) -> None:
    def row(what: str, ours: int, private: int) -> tuple[str, ...]:
        return (what, mb(ours), mb(private), f"{private / ours:.1f} x")

    rows = [
        ("", "mrm", "private copies", "less"),
        row("the model", report["pss_model_bytes"], report["private_model_bytes"]),
        row("all", report["pss_total_bytes"], report["private_pss_total_bytes"]),
    ]
    speaker.table(f"proportional memory (PSS) of {report['clients']} processes", rows)
    speaker.line(f"mrmd itself: {mb(report['daemon_pss_bytes'])}")
    released_ms = report["killed_client_released_ms"]
    speaker.line(f"lease of a killed client: released in {released_ms:.1f} ms")
