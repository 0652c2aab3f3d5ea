"""A model's predictions while it is shown tokens that it did not choose: its logits at each.

Tokens are read as a prompt, which is fast, and gives what decoding gives. An approximate technique
of the engine's setting may treat a prompt unlike what follows it: with one, the tokens are decoded,
one after the other (`decodes`). So are answers to questions over one context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from ockham.core.arrays import Floats
from ockham.core.config import EngineConfig
from ockham.core.registry import find, name_of, settings_that_alter_state
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.lab.cases import Case
from ockham.lab.interview import Interview, Talk, recital
from ockham.lab.running import drive

Answers = Callable[[Case], list[list[int]]]
"""The tokens of a case that are shown: of each answer, or the last ones of a scored text."""


def decodes(config: EngineConfig) -> list[str]:
    """The approximate techniques of an engine that act on a sequence's own state or rows, by name:
    with one of them, positions are compared while decoding."""
    named = {
        seam: name_of(getattr(config, setting))
        for setting, seam in settings_that_alter_state().items()
    }
    return [name for seam, name in named.items() if not find(seam, name).exact]


def forced_logits(
    engine: Engine, cases: Sequence[Case], answers: Answers
) -> Iterator[tuple[str, Floats]]:
    """Key and logits, (positions, vocabulary), of each case: those that predict the tokens that
    `answers` gives for it. Cases come in no particular order."""
    decoding = bool(decodes(engine.config))
    read = [case for case in cases if not decoding and case.interview is None]
    said = [case for case in cases if decoding or case.interview is not None]
    # A few at a time: logits in memory are of those that run, not of all.
    size = engine.config.max_num_seqs
    for start in range(0, len(read), size):
        requests = [_forced(case, answers) for case in read[start : start + size]]
        rows: dict[str, list[Floats]] = {request.request_id: [] for request in requests}
        with _watching(engine, rows):
            drive(engine, requests, lambda output: None)
        yield from ((key, np.concatenate(parts)) for key, parts in rows.items())
    for start in range(0, len(said), size):
        yield from _decoded(engine, said[start : start + size], answers)


def _decoded(
    engine: Engine, cases: Sequence[Case], answers: Answers
) -> Iterator[tuple[str, Floats]]:
    """The same, of tokens that are decoded one after the other."""
    interviews: dict[str, Interview] = {}
    talks: dict[str, Talk] = {}
    for case in cases:
        shown = answers(case)
        if case.interview is not None:
            interview = case.interview
        elif case.max_tokens:
            interview = recital(case.tokens, shown[0])
        else:
            interview = recital(case.tokens[: len(case.tokens) - len(shown[0])], shown[0])
        interviews[case.key] = interview
        talks[case.key] = Talk(interview, engine.eos, shown)
    requests = [interview.request(key) for key, interview in interviews.items()]
    drive(engine, requests, lambda output: None, talks)
    for key, talk in talks.items():
        found = [talk.predicted(n, engine.vocabulary) for n in range(len(talk.answers))]
        yield key, np.concatenate(found)


def _forced(case: Case, answers: Answers) -> Request:
    """A request that scores tokens as a prompt."""
    (scored,) = answers(case)
    tokens = [*case.tokens, *scored] if case.max_tokens else list(case.tokens)
    return Request(
        request_id=case.key,
        prompt_token_ids=tokens,
        params=SamplingParams(temperature=0.0, max_tokens=0, prompt_logprobs=0),
        detokenize=False,
        score_from=len(tokens) - len(scored),
    )


@contextmanager
def _watching(engine: Engine, rows: dict[str, list[Floats]]) -> Iterator[None]:
    """Copy the logits of scored prompts into `rows` while this lasts."""
    engine.on_scored = lambda request_id, logits: rows[request_id].append(logits.copy())
    try:
        yield
    finally:
        engine.on_scored = None
