"""The file of results: what was measured, one record a line, written as it comes."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.peers.peers import Configuration

Record = dict[str, Any]

START = b'{"kind": "'
"""What every line begins with."""

DISTURBED_SHARE = 0.05
"""A run beside which others used more of the machine than this does not count."""


class Results:
    """The file of results, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Record] = read_records(path)
        self._repaired = False

    def add(self, **record: Any) -> None:
        self.records.append(record)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            if not self._repaired:  # a call that was killed may have left half a line
                file.seek(0)
                stored = file.read()
                whole = stored.rfind(b"\n") + 1
                if not START.startswith(stored[whole : whole + len(START)]):
                    raise ValueError(f"{self.path} is no file of results; name another.")
                file.truncate(whole)
                self._repaired = True
            file.write(json.dumps(record).encode() + b"\n")

    def has(self, round_: int, workload: str, configurations: list[Configuration]) -> bool:
        """Whether a cell is whole: an undisturbed run of each that has not failed."""
        there = {
            each["configuration"]
            for each in self.records
            if each["kind"] == "run"
            and (each["round"], each["workload"]) == (round_, workload)
            and each["others_share"] <= DISTURBED_SHARE
        }
        return there | self.failed >= {each.name for each in configurations}

    def expected_s(self, workload: str, bits: int) -> float:
        """What a cell is expected to take, loading included: the longest of its kind so far; where
        there was none, of its workload at another number of bits, or of any; 0 at the beginning."""
        cells = [each for each in self.records if each["kind"] == "cell"]
        alike = [each for each in cells if each["workload"] == workload]
        same = [each for each in alike if each["bits"] == bits]
        return max((each["seconds"] for each in same or alike or cells), default=0.0)

    @property
    def failed(self) -> set[str]:
        """Configurations that failed at any time. They are not tried again in the same file."""
        return {each["configuration"] for each in self.records if each["kind"] == "failure"}


def read_records(path: Path) -> list[Record]:
    """What a file of results holds; a last line that was cut short is left out."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def beside_bytes_per_s(record: Record) -> float:
    """The bandwidth that a run had: the mean of its pauses', which are equally far apart, so that
    its product with the run's time is what could have been read in it; of a run without pauses that
    of before and after it."""
    rates = record.get("read_rates")
    return float(statistics.fmean(rates) if rates else record["limits"]["read_bytes_per_s"])
