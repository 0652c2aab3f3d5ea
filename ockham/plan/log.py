"""The log of measurements: what one plan measured, the next one knows.

Measurements of the same model, workload and machine are taken over as they are. Those of others
teach which settings tend to cost how much quality (`plan/expecting.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from ockham.lab.journal import Journal
from ockham.plan.space import Point, Value

VERSION = 1

Kind = Literal["context", "distance", "score", "rates", "refused"]


class Record(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One measurement of one configuration.

    `context` is the digest of what decides its result besides the configuration's changes: model,
    workload, and for seconds the machine. `kind` says what it is: `distance` from the exact
    configuration at the positions of one case (`agree` positions of `kl`), `score` of one case of
    `task`, `refused` by the engine for the reason in `text`, `rates` of the kernel that `text`
    names on a machine, or `context`, whose `facts` describe a digest.
    """

    context: str
    kind: Kind
    changes: dict[str, Value] = {}
    case: str = ""
    task: str = ""
    agree: int = 0
    kl: list[float] = []
    score: float = 0.0
    figures: dict[str, float] = {}
    text: str = ""
    facts: dict[str, str | float] = {}

    @property
    def point(self) -> Point:
        return Point.of(self.changes)


def digest(facts: Mapping[str, object]) -> str:
    """A short name of what decides results."""
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()


class Log:
    """Every record so far, of the file and of this run.

    A file that cannot be written any more, on a full disk for one, does not end a plan: `warn` is
    told once, and the rest is kept in memory. Raises ConfigError for a file that is no such log.
    """

    def __init__(self, path: Path | None = None, warn: Callable[[str], None] = lambda _: None):
        self._journal = Journal(
            path,
            {"version": VERSION},
            Record,
            kind="ockham plan log",
            what="a plan's log",
            flag="--log",
        )
        self._path, self._warn, self._writes = path, warn, path is not None
        self.records: list[Record] = list(self._journal.results)

    @property
    def is_kept(self) -> bool:
        """Whether there is a file that the next plan finds it all in."""
        return self._writes

    def add(self, record: Record) -> None:
        """Keep a record, in the file too as long as it can be written."""
        self.records.append(record)
        if not self._writes:
            return
        try:
            self._journal.add(record)
        except OSError as error:
            self._writes = False
            self._warn(
                f"The log {self._path} cannot be written any more ({error.strerror}). The plan "
                "goes on; what it measures from here on is not kept."
            )

    def of(self, context: str, *kinds: Kind) -> Iterator[Record]:
        """The records of a context, of these kinds."""
        return (r for r in self.records if r.context == context and r.kind in kinds)

    def describe(self, context: str, facts: Mapping[str, str | float]) -> None:
        """Say what a context is, once."""
        if not any(self.of(context, "context")):
            self.add(Record(context=context, kind="context", facts=dict(facts)))

    def close(self) -> None:
        try:
            self._journal.close()
        except OSError as error:
            self._warn(f"The log {self._path} was not written to its end ({error.strerror}).")
