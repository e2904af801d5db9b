"""The report: every figure beside its bar, written to `docs/performance.md`."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report. `bar` is what was asked for; `met` is None where there is nothing to compare with."""

    work: str
    figure: str
    against: str = ""
    bar: str = ""
    met: bool | None = None


@dataclass
class Report:
    """Collects rows, and keeps every single measurement for who wants to look."""

    rows: list[Row] = field(default_factory=list)
    samples: dict[str, list[float]] = field(default_factory=dict)

    def sample(self, name: str, seconds: float) -> None:
        self.samples.setdefault(name, []).append(seconds)
        print(f"  {name}: {seconds:.2f} s", flush=True)

    def median(self, name: str) -> float:
        return statistics.median(self.samples[name])

    def ratio(self, work: str, ours: str, theirs: str, at_least: float, *, count: int) -> None:
        """Add how many times as fast as `theirs` we are, by the medians of one run."""
        if ours not in self.samples or theirs not in self.samples:
            return
        mine, other = self.median(ours), self.median(theirs)
        self.rows.append(
            Row(
                work,
                f"**{other / mine:.2f}** ({mine:.2f} s, {count / mine / 1000:.0f} k/s)",
                f"{theirs.partition(': ')[2]} ({other:.2f} s)",
                f"{at_least:.1f}",
                other / mine >= at_least,
            )
        )

    def add(self, work: str, figure: str, bar: str = "", met: bool | None = None, against: str = "") -> None:
        self.rows.append(Row(work, figure, against, bar, met))
        print(f"  {work}: {figure}", flush=True)

    def write(self, path: Path, servers: Sequence[str], command: str) -> None:
        """Write the page, and the single measurements beside it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".json").open("w") as file:
            json.dump(self.samples, file, indent=1)
            file.write("\n")
        path.write_text(self._page(servers, command))

    def _page(self, servers: Sequence[str], command: str) -> str:
        lines = [
            "# Performance",
            "",
            f"Written by `{command}` on {datetime.now(UTC):%Y-%m-%d}. Everything runs on one machine"
            f" ({platform.machine()}, {_cores()} cores, {_memory()} GB), side by side, interleaved; source, target and"
            " log sync to disk. Figures are medians; ratios count, seconds depend on the machine. A command's time"
            " includes its start. After every run both sides were compared, row by row.",
            "",
            f"Servers: {', '.join(servers)}.",
            "",
            "| work | measured | against | at least / at most | met |",
            "|---|---|---|---|---|",
        ]
        for row in self.rows:
            met = {True: "yes", False: "**no**", None: "–"}[row.met]
            lines.append(f"| {row.work} | {row.figure} | {row.against} | {row.bar} | {met} |")
        lines += ["", "Single measurements, in seconds: [performance.json](performance.json).", ""]
        notes = Path(__file__).parent / "notes.md"
        return "\n".join(lines) + "\n" + notes.read_text()


def _cores() -> int:
    return sum(line.startswith("processor") for line in Path("/proc/cpuinfo").read_text().splitlines())


def _memory() -> int:
    return int(Path("/proc/meminfo").read_text().split()[1]) >> 20
