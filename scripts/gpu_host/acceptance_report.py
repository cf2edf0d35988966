"""What came of groups of tests, short enough to be read at the end of a terminal's output."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_TAIL = 3000
_PRINTED = 400


@dataclass
class JobResult:
    """One pytest.

    Attributes:
        name: Of the job.
        log: What it printed; absent if it was not started.
        xml: Its JUnit report; absent if it did not come to an end.
        status: Its exit status; None: it was killed, or not started.
        seconds: From its start to its end.
    """

    name: str
    log: Path
    xml: Path
    status: int | None = None
    seconds: float = 0.0

    @property
    def outcome(self) -> str:
        """In a word or two."""
        if not self.log.exists():
            return "not started"
        if self.status == 0 and all(test.outcome == "skipped" for test in self.tests()):
            return "skipped"
        names = {0: "passed", 1: "FAILED", 2: "INTERRUPTED", None: "KILLED", 5: "NO TESTS"}
        return names.get(self.status, f"EXIT {self.status}")

    def tests(self) -> list[TestResult]:
        """Those that came to an end."""
        if not self.xml.exists():
            return []
        # Written by pytest in this run.
        cases = ET.parse(self.xml).getroot().iter("testcase")  # noqa: S314
        return [TestResult.of(case) for case in cases if case.get("name")]


@dataclass(frozen=True)
class TestResult:
    """One test.

    Attributes:
        name: With its parameters.
        outcome: ``"passed"``, ``"skipped"`` or ``"FAILED"``.
        seconds: With its fixtures.
        text: Why it was skipped, or how it failed.
        printed: What it wrote.
    """

    name: str
    outcome: str
    seconds: float
    text: str
    printed: str

    @classmethod
    def of(cls, case: ET.Element) -> TestResult:
        """From a ``testcase`` of a JUnit report."""
        name, seconds = str(case.get("name")), float(case.get("time", "0"))
        printed = case.findtext("system-out") or ""
        for kind in ("failure", "error"):
            found = case.findall(kind)
            if found:
                return cls(name, "FAILED", seconds, "\n".join(map(_text, found)), printed)
        skipped = case.find("skipped")
        if skipped is not None:
            return cls(name, "skipped", seconds, str(skipped.get("message")), printed)
        return cls(name, "passed", seconds, "", printed)


def report(results: Sequence[JobResult], characters: int | None = None) -> str:
    """The table of jobs and tests, then failures; these share what is left of ``characters``."""
    table = "\n".join(_table(results))
    failures = list(_failures(results))
    if characters is None:
        return "\n".join([table, *(f"----- {name}\n{text}" for name, text in failures)])
    left = max(1500, characters - len(table))
    share = left // max(1, len(failures)) - 100
    return "\n".join([table, *(f"----- {name}\n{_ends(text, share)}" for name, text in failures)])


def _table(results: Sequence[JobResult]) -> Iterator[str]:
    for result in results:
        yield f"{result.name}: {result.outcome}, {result.seconds:.0f} s"
        for test in result.tests():
            yield f"  {test.outcome} {test.seconds:4.0f} s  {test.name}"
            if test.outcome == "skipped":
                yield f"      {test.text}"
            for line in _printed(test.printed):
                yield f"      {line}"


def _printed(text: str) -> list[str]:
    """The lines that a test wrote itself, cut short."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("---")]
    return [line[:_PRINTED] for line in lines[-8:]]


def _failures(results: Sequence[JobResult]) -> Iterator[tuple[str, str]]:
    for result in results:
        failed = [test for test in result.tests() if test.outcome == "FAILED"]
        yield from ((f"{result.name}: {test.name}", test.text) for test in failed)
        if result.log.exists() and result.status != 0 and not (failed and result.status == 1):
            yield result.name, result.log.read_text(errors="replace")[-_TAIL:]


def _text(element: ET.Element) -> str:
    return element.text or str(element.get("message"))


def _ends(text: str, characters: int) -> str:
    """Its first and, mostly, its last characters."""
    if len(text) <= characters:
        return text
    first = characters // 4
    return f"{text[:first]}\n[...]\n{text[-(characters - first) :]}"
