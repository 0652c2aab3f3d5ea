"""What a configuration costs in quality: the distance between two configurations of a model.

The *baseline* is what is taken to be right (the model's own precision, unless asked otherwise), the
*candidate* is what is judged. Both complete the same prompts greedily. Then both are shown the
baseline's tokens, and their distributions over the whole vocabulary are compared at every position
that predicts one of them (of a text that is only scored: at its last positions). The models are
loaded one after the other, so that two need no more memory than one; the baseline's logits wait in
a temporary file.

How the baseline's tokens are shown is in `lab/forced.py`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from ockham.core.arrays import Floats
from ockham.core.errors import ConfigError
from ockham.engine.engine import Engine
from ockham.lab.cases import Case
from ockham.lab.difference import Comparison, Difference, difference, distance
from ockham.lab.evaluate import Progress, Result, evaluate
from ockham.lab.forced import forced_logits

BASELINE, CANDIDATE = "baseline", "candidate"
POSITIONS = 128
"""Positions of a case that are compared, at most."""
_DISK_SHARE = 0.8


class Entry(msgspec.Struct, omit_defaults=True):
    """One line of a journal: a result, or a comparison."""

    result: Result | None = None
    comparison: Comparison | None = None


class Comparing:
    """A comparison under way: what is known so far, and what is still to be done.

    `keep` is given every new entry, to be journaled; entries of an earlier run come with `known`.
    Used as `with Comparing(...) as of: of.baseline(engine); of.candidate(other)`.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        known: Sequence[Entry],
        keep: Callable[[Entry], None],
        *,
        positions: int = POSITIONS,
        progress: Progress = lambda done: None,
    ) -> None:
        self._cases = list(cases)
        self._keep = keep
        self._positions = positions
        self._progress = progress
        self.results: dict[str, dict[str, Result]] = {BASELINE: {}, CANDIDATE: {}}
        self.comparisons: dict[str, Comparison] = {}
        for entry in known:
            self._take(entry)
        self._files: dict[str, Path] = {}
        self._vocabulary = 0

    def __enter__(self) -> Comparing:
        self._made = tempfile.TemporaryDirectory(
            prefix="ockham-fidelity-", ignore_cleanup_errors=True
        )
        self._directory = Path(self._made.name)
        return self

    def __exit__(self, *_: object) -> None:
        self._made.cleanup()

    def baseline(self, engine: Engine) -> None:
        """Complete the cases with the baseline, and keep its logits where they are compared.

        Raises ConfigError if they would not fit on the disk.
        """
        self._complete(BASELINE, engine)
        self._vocabulary = engine.vocabulary
        pending = [case for case in self._cases if case.key not in self.comparisons]
        self._check_space(pending, engine.vocabulary)
        for key, logits in forced_logits(engine, pending, self._answers):
            path = self._files[key] = self._directory / f"{len(self._files)}.npy"
            np.save(path, logits)

    def candidate(self, engine: Engine) -> None:
        """Complete the cases with the candidate, and compare its logits with those kept.

        Raises ConfigError if its vocabulary is another.
        """
        if engine.vocabulary != self._vocabulary:
            raise ConfigError(
                f"the baseline has a vocabulary of {self._vocabulary} tokens and the candidate "
                f"one of {engine.vocabulary}; only models with the same can be compared."
            )
        self._complete(CANDIDATE, engine)
        pending = [case for case in self._cases if case.key in self._files]
        by_key = {case.key: case for case in pending}
        for key, logits in forced_logits(engine, pending, self._answers):
            path = self._files[key]
            for comparison in self._compared(by_key[key], np.load(path), logits):
                self._add(Entry(comparison=comparison))
            path.unlink()

    def _compared(self, case: Case, before: Floats, after: Floats) -> Iterator[Comparison]:
        """The comparisons of a case, (positions, vocabulary): one, or of questions over one context
        that of the later ones, and that of the first."""
        lengths = [len(answer) for answer in self._answers(case)]
        first = lengths[0] if case.interview is not None else len(before)
        parts = [(case.part, slice(0, first))]
        if case.interview is not None:
            parts.insert(0, (1, slice(first, None)))
        for part, own in parts:
            agree, kl = distance(before[own], after[own])
            yield Comparison(
                source=case.source, index=case.index, part=part, agree=agree, kl=kl.tolist()
            )

    def differences(self, seed: int = 0) -> list[Difference]:
        """The figures of each source, and last those of all together. The first of several
        questions over one context stands apart from the later ones."""
        found: list[Difference] = []
        for source in sorted({case.source for case in self._cases}):
            own = [case for case in self._cases if case.source == source]
            if own[0].interview is None:
                found.append(self._difference(source, None, [case.key for case in own], seed))
                continue
            later = [f"{case.source}/{case.index}/1" for case in own]
            asked = len(own[0].questions)
            found.append(self._difference(source, "question 1", [case.key for case in own], seed))
            found.append(self._difference(source, f"questions 2 to {asked}", later, seed))
        if len(found) > 1:
            keys = [key for key in self.results[BASELINE] if key in self.results[CANDIDATE]]
            found.append(self._difference(None, None, sorted(keys), seed))
        return found

    def _difference(
        self, source: str | None, level: str | None, keys: Sequence[str], seed: int
    ) -> Difference:
        before, after = self.results[BASELINE], self.results[CANDIDATE]
        return difference(
            source,
            [(before[key], after[key]) for key in keys],
            [self.comparisons[key] for key in keys if key in self.comparisons],
            seed,
            level=level,
        )

    # -- the two models ------------------------------------------------------------------------

    def _complete(self, run: str, engine: Engine) -> None:
        done = self.results[run]
        todo = [case for case in self._cases if case.key not in done]
        self._progress(len(self._cases) - len(todo))
        evaluate(engine, todo, lambda result: self._add(Entry(result=result)), run=run)

    def _answers(self, case: Case) -> list[list[int]]:
        """The tokens whose predictions are compared, of each answer."""
        if case.interview is not None:
            first, later = (
                self.results[BASELINE][f"{case.source}/{case.index}/{part}"] for part in (0, 1)
            )
            return [*first.token_ids, *later.token_ids]
        if case.max_tokens:
            return [self.results[BASELINE][case.key].token_ids[0][: self._positions]]
        return [list(case.tokens[max(1, len(case.tokens) - self._positions) :])]

    def _check_space(self, cases: Sequence[Case], vocabulary: int) -> None:
        positions = sum(len(answer) for case in cases for answer in self._answers(case))
        check_space(self._directory, positions, vocabulary)

    def _add(self, entry: Entry) -> None:
        self._take(entry)
        self._keep(entry)
        if entry.result is not None:
            self._progress(1)

    def _take(self, entry: Entry) -> None:
        if entry.result is not None:
            self.results[entry.result.run][entry.result.key] = entry.result
        if entry.comparison is not None:
            self.comparisons[entry.comparison.key] = entry.comparison


def check_space(directory: Path, positions: int, vocabulary: int) -> None:
    """Raise ConfigError unless the logits of so many positions fit into a directory."""
    needed = positions * vocabulary * 4
    free = shutil.disk_usage(directory).free
    if needed > _DISK_SHARE * free:
        raise ConfigError(
            f"comparing needs {needed / 1e9:.1f} GB for the baseline's logits, and "
            f"{directory.parent} has {free / 1e9:.1f} GB free; set TMPDIR to a larger disk, or "
            "compare fewer items or positions."
        )
