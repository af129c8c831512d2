"""Compares the outcome of every test with the list in `reasons.py`."""

import re
from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One reason. `tests`: a regular expression for the whole of `Class::test`; `message`: one to be found in what
    the test said."""

    tests: str
    message: str
    why: str

    def covers(self, name: str) -> bool:
        return re.fullmatch(self.tests, name) is not None

    def explains(self, name: str, message: str) -> bool:
        return self.covers(name) and re.search(self.message, message, re.DOTALL) is not None


class Ledger:
    """A pytest plugin: collects outcomes (of subtests too), then judges them."""

    def __init__(self, complete: bool = True):
        self.complete = complete
        self.outcomes: dict[str, dict[str, list[str]]] = {}
        self.errors: list[str] = []

    def pytest_collectreport(self, report):
        if report.failed:
            self.errors.append(f"not collected: {report.nodeid}\n{report.longreprtext}")

    def pytest_runtest_logreport(self, report):
        name = "::".join(report.nodeid.split("::")[1:])
        outcomes = self.outcomes.setdefault(name, {})
        if report.failed or report.skipped:
            message = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
            outcomes.setdefault(report.outcome, []).append(message)
        elif report.when == "call":
            outcomes.setdefault("passed", [])

    def report(self) -> int:
        """Print the judgement; 0 where every outcome is explained."""
        from reasons import FAILURES, SKIPS

        for entries, outcome in ((FAILURES, "failed"), (SKIPS, "skipped")):
            for name, outcomes in self.outcomes.items():
                for message in outcomes.get(outcome, []):
                    if not any(entry.explains(name, message) for entry in entries):
                        self.errors.append(f"{outcome} without a listed reason: {name}\n{message.strip()[-1500:]}")
            if self.complete:
                for entry in entries:
                    self._check_entry(entry, outcome)
        counts = Counter(self._worst(outcomes) for outcomes in self.outcomes.values())
        for entries, title in ((FAILURES, "Fail, as listed"), (SKIPS, "Skipped, as listed")):
            print(f"\n{title}:")
            outcome = "failed" if entries is FAILURES else "skipped"
            for entry in entries:
                print(f"  {len(self._explained(entry, outcome)):3}  {entry.tests}: {entry.why}")
        for error in self.errors:
            print(f"\nERROR {error}")
        print(
            f"\n{sum(counts.values())} tests: {counts['passed']} passed, {counts['skipped']} skipped and "
            f"{counts['failed']} failed; {len(self.errors)} not as listed in tests/peer/reasons.py"
        )
        return 1 if self.errors or not self.outcomes else 0

    @staticmethod
    def _worst(outcomes: dict[str, list[str]]) -> str:
        return next((o for o in ("failed", "skipped", "passed") if o in outcomes), "passed")

    def _explained(self, entry: Entry, outcome: str) -> list[str]:
        return [
            name
            for name, outcomes in self.outcomes.items()
            if any(entry.explains(name, message) for message in outcomes.get(outcome, []))
        ]

    def _check_entry(self, entry: Entry, outcome: str):
        if not self._explained(entry, outcome):
            self.errors.append(f"the entry {entry.tests!r} ({entry.message!r}) matches no {outcome} test: remove it")
        elif outcome == "failed":
            for name, outcomes in self.outcomes.items():
                if entry.covers(name) and self._worst(outcomes) == "passed":
                    self.errors.append(f"listed as failing but passes: {name}")
