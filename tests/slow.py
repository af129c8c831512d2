"""Marks the tests that take long, as measured: `-m "not slow"` is the fast lane.

    pytest --measure      writes slow.txt beside this file; entries of tests that did not run stay

An entry is a test, all its parameters together, or a fixture that several tests share, which marks all that use it.
Seconds are of CPU, its children's included: a busy machine gives the same list. A test that waits is marked by hand.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

LIST = Path(__file__).with_name("slow.txt")
SECONDS = 1.0


def _seconds() -> float:
    return sum(os.times()[:4])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--measure", action="store_true", help=f"measure every test and write {LIST.name}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    listed = {tuple(line.split("::", 1)) for line in LIST.read_text(encoding="utf-8").splitlines()}
    for item in items:
        path, name = item.nodeid.split("[")[0].split("::", 1)
        fixtures = ((place, fixture) for place, fixture in listed if fixture in item.fixturenames)
        if (path, name) in listed or any(path.startswith(place) for place, _ in fixtures):
            item.add_marker("slow")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.measure:
        config.pluginmanager.register(Stopwatch(config))


class Stopwatch:
    """Each process appends what it measured to one file, which the first makes and, at the end, reads."""

    def __init__(self, config: pytest.Config):
        self.log = config.rootpath / ".cache" / "measured.jsonl"
        self.first = not hasattr(config, "workerinput")
        self.shared = 0.0
        if self.first:
            self.log.parent.mkdir(exist_ok=True)
            self.log.unlink(missing_ok=True)

    def _write(self, name: str, seconds: float) -> None:
        with self.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps([name, seconds]) + "\n")

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef) -> Iterator[None]:
        begin = _seconds()
        try:
            return (yield)
        finally:
            if fixturedef.scope != "function":
                self.shared += _seconds() - begin
                self._write(f"{fixturedef.baseid}::{fixturedef.argname}", _seconds() - begin)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        begin, self.shared = _seconds(), 0.0
        try:
            return (yield)
        finally:
            self._write(item.nodeid.split("[")[0], _seconds() - begin - self.shared)

    def pytest_sessionfinish(self) -> None:
        if self.first:
            measured: Counter[str] = Counter()
            for line in self.log.read_text(encoding="utf-8").splitlines():
                name, seconds = json.loads(line)
                measured[name] += seconds
            slow = {name for name in LIST.read_text(encoding="utf-8").splitlines() if name not in measured}
            slow |= {name for name, seconds in measured.items() if seconds > SECONDS}
            LIST.write_text("".join(f"{name}\n" for name in sorted(slow)), encoding="utf-8")
