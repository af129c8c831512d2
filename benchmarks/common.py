"""What the benchmarks share: the machine's description, timing side by side, and the tables they leave behind."""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
TABLES = ROOT / "docs" / "benchmarks"
#: Where quick runs go: their figures are no claims.
QUICK_TABLES = ROOT / "runs" / "benchmarks"
#: What `demo_seeds` leaves; the first is the model that others measure with.
DEMO_MODELS = tuple(QUICK_TABLES / "demo_seeds" / f"seed-{seed}" for seed in (0, 1, 2))
DEMO_MODEL = DEMO_MODELS[0]


def machine() -> dict[str, str | int]:
    """What a reader needs to place a figure: processor, cores, threads in use, versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _processor() -> str:
    """The model's name, and its numbers, which tell generations apart where a hypervisor shortens the name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    first = {}
    for line in lines:
        key, _, value = line.partition(":")
        first.setdefault(key.strip(), value.strip())
    name = first.get("model name") or platform.machine()
    if "cpu family" in first:
        name += f" (family {first['cpu family']}, model {first.get('model', '?')})"
    return name


def interleave(
    contenders: Mapping[str, Callable[[], Any]],
    rounds: int,
    warmup: int = 1,
    before: Callable[[], Any] | None = None,
) -> dict[str, list[float]]:
    """Wall seconds of every contender, round by round: A B, B A, A B, …

    A machine that drifts or is shared slows both sides of a round alike, and turning the order round cancels what
    the first of a round gains or loses. Compare by `ratio`. `before` runs ahead of each, untimed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(-warmup, rounds):
        order = list(contenders.items())
        for name, run in order if number % 2 == 0 else reversed(order):
            if before is not None:
                before()
            start = time.perf_counter()
            run()
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median(seconds: list[float]) -> float:
    """The median, which a disturbed round does not move."""
    return statistics.median(seconds)


def ratio(numerator: list[float], denominator: list[float]) -> float:
    """Median over the rounds of a round's own ratio."""
    return median([a / b for a, b in zip(numerator, denominator, strict=True)])


@dataclass
class Check:
    """A figure that the project claims."""

    what: str
    value: float
    wanted: float
    sense: Literal[">=", "<"]
    format: str = ".2f"

    @property
    def met(self) -> bool:
        """Whether the measured value keeps the claim."""
        return self.value >= self.wanted if self.sense == ">=" else self.value < self.wanted

    def __str__(self) -> str:
        sense = "≥" if self.sense == ">=" else "<"
        verdict = "met" if self.met else "**missed**"
        return f"{self.what}: {self.value:{self.format}} (wanted {sense} {self.wanted:{self.format}}: {verdict})"


@dataclass
class Table:
    """One benchmark's result.

    name: of the files, and of the script unless `script` says otherwise. columns: heading -> format specification.
    rows: one mapping a row, by heading; a missing value is printed as "–". settings: sizes and counts that the figures
    depend on.
    """

    name: str
    title: str
    about: str
    columns: dict[str, str]
    rows: list[dict[str, Any]]
    settings: dict[str, Any]
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    quick: bool = False
    script: str | None = None

    def markdown(self) -> str:
        """The table with its machine, as it is printed and saved."""
        lines = [f"# {self.title}", "", self.about, ""]
        if self.quick:
            lines += ["A quick run on tiny sizes: it shows that the script works and measures nothing.", ""]
        lines += ["| " + " | ".join(self.columns) + " |"]
        lines += ["|" + "|".join("---:" if spec else "---" for spec in self.columns.values()) + "|"]
        for row in self.rows:
            cells = (_cell(row.get(heading), spec) for heading, spec in self.columns.items())
            lines.append("| " + " | ".join(cells) + " |")
        lines += [""] + [f"- {note}" for note in self.notes]
        lines += [] if self.quick else [f"- {check}" for check in self.checks]
        lines += ["", "Settings: " + _listed(self.settings), "", "Machine: " + _listed(machine())]
        lines += ["", f"Made by `benchmarks/{self.script or self.name}.py`."]
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """The same as plain numbers for JSON."""
        return {
            "benchmark": self.name,
            "quick": self.quick,
            "rows": self.rows,
            "checks": [
                {"what": c.what, "value": c.value, "sense": c.sense, "wanted": c.wanted, "met": c.met}
                for c in self.checks
            ],
            "settings": self.settings,
            "machine": machine(),
        }

    def save(self, folder: Path | None = None) -> Path:
        """Write `<name>.md` and `<name>.json`; a quick run never replaces the figures of a full one.

        Returns:
            the folder.
        """
        folder = folder or (QUICK_TABLES if self.quick else TABLES)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.md").write_text(self.markdown(), encoding="utf-8")
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False)
        (folder / f"{self.name}.json").write_text(text + "\n", encoding="utf-8")
        return folder


def _cell(value: Any, spec: str) -> str:
    return "–" if value is None else format(value, spec)


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items()) + "."


def arguments(about: str, rounds: int) -> argparse.ArgumentParser:
    """The options of every benchmark."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--rounds", type=int, default=rounds, help="interleaved rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default: %(default)s)")
    parser.add_argument("--tables", type=Path, help="folder for the tables (default: docs/benchmarks)")
    return parser


def add_part(parser: argparse.ArgumentParser) -> None:
    """`--part i/n` of studies whose cells several processes share: (i, n)."""

    def part(text: str) -> tuple[int, int]:
        place, count = map(int, text.split("/"))
        return place, count

    meaning = "i/n: every n-th cell from i; no table (default: all)"
    parser.add_argument("--part", type=part, default=(0, 1), metavar="i/n", help=meaning)


def finish(table: Table, folder: Path | None = None) -> int:
    """Print and save; the exit status is 1 where a claim was missed (never for a quick run)."""
    print(table.markdown())
    table.save(folder)
    return int(not table.quick and not all(check.met for check in table.checks))
