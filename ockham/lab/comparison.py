"""What a configuration costs in quality: the distance between two configurations of a model.

The *baseline* is what is taken to be right (the model's own precision, unless asked otherwise), the
*candidate* is what is judged. Both complete the same prompts greedily. Then both are shown the
baseline's tokens, and their distributions over the whole vocabulary are compared at every position
that predicts one of them (of a text that is only scored: at its last positions). The models are
loaded one after the other, so that two need no more memory than one; the baseline's logits wait in
a temporary file.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np

from ockham.core.arrays import Floats
from ockham.core.errors import ConfigError
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.lab.cases import Case
from ockham.lab.difference import Comparison, Difference, difference, distance
from ockham.lab.evaluate import Progress, Result, evaluate
from ockham.lab.running import drive

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
        for key, logits in self._logits(engine, pending):
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
        for key, logits in self._logits(engine, pending):
            case, path = by_key[key], self._files[key]
            agree, kl = distance(np.load(path), logits)
            path.unlink()
            self._add(
                Entry(
                    comparison=Comparison(
                        source=case.source,
                        index=case.index,
                        part=case.part,
                        agree=agree,
                        kl=kl.tolist(),
                    )
                )
            )

    def differences(self, seed: int = 0) -> list[Difference]:
        """The figures of each source, and last those of all together."""
        sources = sorted({case.source for case in self._cases})
        asked = [*sources, None] if len(sources) > 1 else sources
        return [self._difference(source, seed) for source in asked]

    def _difference(self, source: str | None, seed: int) -> Difference:
        keys = [case.key for case in self._cases if source in (None, case.source)]
        before, after = self.results[BASELINE], self.results[CANDIDATE]
        return difference(
            source,
            [(before[key], after[key]) for key in keys],
            [self.comparisons[key] for key in keys if key in self.comparisons],
            seed,
        )

    # -- the two models ------------------------------------------------------------------------

    def _complete(self, run: str, engine: Engine) -> None:
        done = self.results[run]
        todo = [case for case in self._cases if case.key not in done]
        self._progress(len(self._cases) - len(todo))
        evaluate(engine, todo, lambda result: self._add(Entry(result=result)), run=run)

    def _logits(self, engine: Engine, cases: Sequence[Case]) -> Iterator[tuple[str, Floats]]:
        """Key and logits, (positions, vocabulary), of each case under the baseline's tokens."""
        # A few at a time: logits in memory are of those that run, not of all.
        size = engine.config.max_num_seqs
        for start in range(0, len(cases), size):
            requests = [self._forced(case, engine) for case in cases[start : start + size]]
            rows: dict[str, list[Floats]] = {request.request_id: [] for request in requests}
            with _watching(engine, rows):
                drive(engine, requests, lambda output: None)
            yield from ((key, np.concatenate(parts)) for key, parts in rows.items())

    def _forced(self, case: Case, engine: Engine) -> Request:
        """A request that scores the baseline's tokens where they are compared."""
        if case.max_tokens:
            completion = self.results[BASELINE][case.key].token_ids[0][: self._positions]
            tokens, first = [*case.tokens, *completion], len(case.tokens)
        else:
            tokens = list(case.tokens)
            first = max(1, len(tokens) - self._positions)
        return Request(
            request_id=case.key,
            prompt_token_ids=tokens,
            params=SamplingParams(temperature=0.0, max_tokens=0, prompt_logprobs=0),
            detokenize=False,
            score_from=first,
        )

    def _check_space(self, cases: Sequence[Case], vocabulary: int) -> None:
        positions = sum(
            len(self.results[BASELINE][case.key].token_ids[0])
            if case.max_tokens
            else len(case.tokens) - 1
            for case in cases
        )
        needed = min(positions, len(cases) * self._positions) * vocabulary * 4
        free = shutil.disk_usage(self._directory).free
        if needed > _DISK_SHARE * free:
            raise ConfigError(
                f"comparing needs {needed / 1e9:.1f} GB for the baseline's logits, and "
                f"{self._directory.parent} has {free / 1e9:.1f} GB free; set TMPDIR to a larger "
                "disk, or compare fewer items or positions."
            )

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


@contextmanager
def _watching(engine: Engine, rows: dict[str, list[Floats]]) -> Iterator[None]:
    """Copy the logits of scored prompts into `rows` while this lasts."""
    engine.on_scored = lambda request_id, logits: rows[request_id].append(logits.copy())
    try:
        yield
    finally:
        engine.on_scored = None
