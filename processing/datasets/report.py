"""What was wrong with the data: counted, remembered with file and line, refused above a rate."""

from __future__ import annotations

import json
import os
import tempfile
import uuid
import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

MAX_REMEMBERED = 1000


class DataRefusedError(ValueError):
    """Too many records are bad; the message lists the first few with file and line."""


@dataclass(frozen=True)
class Problem:
    """One bad record: `source` (file, archive member or data set), `line` counted from 1, and the reason.

    `lines` is how many lines it spoils (an unclosed quote in a CSV file swallows several). `incomplete`: the source is
    damaged here, so that more records than this one may be missing; what is absent from it may not be taken for gone.
    """

    source: str
    line: int | None
    reason: str
    lines: int = 1
    incomplete: bool = False

    @property
    def location(self) -> str:
        """`file:line`, or the source alone where there is no line."""
        return self.source if self.line is None else f"{self.source}:{self.line}"

    def __str__(self) -> str:
        return f"{self.location}: {self.reason}"


@dataclass(frozen=True)
class Note(Problem):
    """What is worth telling of a source and spoils no record; it passes wherever problems pass.

    Args:
        counts: of what, and how many; those of equal reasons are added up ("ignored: 2 .svg, 1 .pdf").
    """

    lines: int = 0
    counts: tuple[tuple[str, int], ...] = ()

    @property
    def message(self) -> str:
        """The reason with its counts from most to least."""
        return _with_counts(self.reason, Counter(dict(self.counts)))


class ErrorReport:
    """Counts bad records, at loading and later when pictures are decoded, and decides when to refuse.

    Loading happens in one process; decoding may happen in many data loader workers, which hold copies of this
    object. A worker therefore appends each bad record once to a small spool file in the temporary folder
    (one `O_APPEND` write per record, so workers need no lock), and every process that counts reads it. The
    file exists only if a record is bad, and the process that made the report removes it at its end.

    Args:
        on_error: "skip" leaves bad records out until their share exceeds `max_error_rate`;
            "refuse" raises at the first.
        max_error_rate: largest tolerated share of bad records; 1.0 tolerates all.
        examples: how many are listed in messages.

    Attributes:
        incomplete: a source was damaged, so that records may be missing of which nothing is known.
        quiet: who reads the set tells what was bad himself; nothing is logged at loading.

    Raises:
        ValueError: another `on_error`, or a rate that is no share.
    """

    def __init__(self, on_error: str = "skip", max_error_rate: float = 0.01, examples: int = 5) -> None:
        if on_error not in ("skip", "refuse"):
            raise ValueError(f"on_error is {on_error!r}; use 'skip' or 'refuse'")
        if not 0 <= max_error_rate <= 1:
            raise ValueError(f"max_error_rate is {max_error_rate}; it is a share between 0 and 1")
        self.on_error = on_error
        self.max_error_rate = max_error_rate
        self.examples = examples
        self.seen = 0
        self.loading_errors = 0
        self.problems: list[Problem] = []
        self.incomplete = False
        self.quiet = False
        self._reported = (0, 0, 0)
        self._notes: dict[str, Counter[str]] = {}
        self._recorded: set[str] = set()
        self._spool = Path(tempfile.gettempdir()) / f"r2d2-data-errors-{uuid.uuid4().hex}.jsonl"
        self._finalizer = weakref.finalize(self, _remove, self._spool, os.getpid())

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "_finalizer"}

    # -- loading --------------------------------------------------------------------------------

    def count(self, records: int = 1) -> None:
        """Count records looked at, good or bad."""
        self.seen += records

    def add(self, problem: Problem) -> None:
        """A bad record found while loading, or a `Note`."""
        if isinstance(problem, Note):
            self.note(problem.reason, dict(problem.counts))
            return
        self.loading_errors += problem.lines
        self.incomplete |= problem.incomplete
        if len(self.problems) < MAX_REMEMBERED:
            self.problems.append(problem)

    def note(self, text: str, counts: Mapping[str, int] | None = None) -> None:
        """Something worth telling that spoils no record, such as pictures without a caption; equal ones once."""
        self._notes.setdefault(text, Counter()).update(counts or {})

    @property
    def notes(self) -> list[str]:
        """What was noted, with counts from most to least."""
        return [_with_counts(text, counts) for text, counts in self._notes.items()]

    def check(self) -> None:
        """Raise `DataRefusedError` if the user's choice does not allow this many bad records."""
        errors = self.errors
        if not errors or not self.too_many(errors):
            return
        advice = (
            "Repair them, or skip bad records with on_error='skip'"
            if self.on_error == "refuse"
            else f"More than {self.max_error_rate:.2%} are bad. Repair them, or allow more: "
            "max_error_rate (--max-error-rate)"
        )
        raise DataRefusedError(f"{self.summary()}\n{advice}.")

    def too_many(self, errors: int) -> bool:
        """Whether so many bad records, of those counted so far, are more than the user allows."""
        return self.on_error == "refuse" or errors > self.max_error_rate * max(self.seen, 1)

    # -- access ---------------------------------------------------------------------------------

    def record_access(self, source: str, line: int | None, reason: str) -> None:
        """A record whose picture cannot be decoded, found in any process. Counted once per record.

        Raises:
            DataRefusedError: with this one there are too many.
        """
        problem = Problem(source, line, reason)
        if problem.location not in self._recorded:
            self._recorded.add(problem.location)
            entry = (json.dumps(asdict(problem), ensure_ascii=False) + "\n").encode()
            handle = os.open(self._spool, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(handle, entry)
            finally:
                os.close(handle)
        self.check()

    @property
    def access_problems(self) -> list[Problem]:
        """Records of all processes whose pictures could not be decoded, each once."""
        try:
            lines = self._spool.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        found: dict[str, Problem] = {}
        for line in lines:
            try:
                problem = Problem(**json.loads(line))
            except (ValueError, TypeError):  # another process is still writing it
                continue
            found.setdefault(problem.location, problem)
        return list(found.values())

    # -- telling --------------------------------------------------------------------------------

    @property
    def errors(self) -> int:
        """Bad records so far, from loading and from decoding in all processes."""
        return self.loading_errors + len(self.access_problems)

    def summary(self) -> str:
        """One line of counts, then the first few bad records with file and line."""
        return self._summary(0, 0, 0)

    def tell(self) -> str:
        """The summary of what was not told before, at loading and later when pictures were decoded; "" where nothing is
        new."""
        reported, listable = self._reported, len(self.problems) + len(self.access_problems)
        self._reported = (self.errors, listable, len(self._notes))
        return "" if self._reported == reported else self._summary(*reported)

    def _summary(self, reported: int, skip: int, skip_notes: int) -> str:
        """Without `reported` bad records, the first `skip` of those remembered, and the first notes."""
        access = self.access_problems
        new = self.loading_errors + len(access) - reported
        listed = [*self.problems, *access][skip : skip + self.examples]
        lines = [f"{new} {'more ' if reported else ''}bad of {self.seen} records" + (":" if listed else "")]
        lines += [f"  {problem}" for problem in listed]
        if new > len(listed) > 0:
            lines.append(f"  ... and {new - len(listed)} more")
        return "\n".join(lines + [f"note: {note}" for note in self.notes[skip_notes:]])

    def __repr__(self) -> str:
        return (
            f"ErrorReport(seen={self.seen}, errors={self.errors}, on_error={self.on_error!r}, "
            f"max_error_rate={self.max_error_rate})"
        )


def _with_counts(text: str, counts: Counter[str]) -> str:
    listed = ", ".join(f"{number:,} {what}" for what, number in counts.most_common())
    return f"{text}: {listed}" if listed else text


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner:
        path.unlink(missing_ok=True)
