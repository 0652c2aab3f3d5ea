"""Evidence for completions that are given up: what is spared, and what is lost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec

from ockham.core.errors import ConfigError
from ockham.core.outputs import RequestOutput
from ockham.core.registry import make_asks
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.lab.evidence.bench import Bench, Outcome, outcome_of
from ockham.lab.evidence.recipe import evidence
from ockham.lab.evidence.row import Row
from ockham.lab.running import drive
from ockham.lab.tasks import TASKS, items

LINES, EDITS = 160, 32
"""Lines of code that are completed, and edits that are answered; half of each to learn from."""
LONGEST, ANSWERED = 24, 200
"""Tokens of the completion of a line, and of an answer."""
CUTS = 4
"""Lines that are taken from a text."""
BEFORE_CHARS, LEAST_CHARS = 800, 6
"""Characters of text before a line is broken off, and of what is to be completed."""
LOSE = (0.02, 0.05, 0.1, 0.2)
"""Shares of the accepted completions that may be lost."""
TIMED = 0.05
AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt, and what makes of a completion one that is accepted."""

    prompt: list[int]
    params: SamplingParams
    truth: str
    item: Any = None

    def accepts(self, text: str) -> bool:
        """Whether a completion is what the user wanted."""
        if self.item is not None:
            return bool(TASKS["edit"].score(self.item, text) == 1.0)
        return text.rstrip() == self.truth.rstrip()


@evidence("search", "give_up")
def give_up(bench: Bench) -> Row:
    """Lines of code that are completed as somebody types, and given up where the model is not
    sure."""
    engine = bench.engine()
    if engine.tokenizer is None:
        raise ConfigError("completions are compared as text: measure with a tokenizer.")
    parts, timed, threshold = [], [], 0.0
    for what, cases in (("lines", _lines(engine, bench.seed)), ("edits", _edits(engine, bench))):
        told, found, others = _learned(engine, cases)
        parts.append(f"{what}: {told}")
        if what == "lines":
            timed, threshold = others, found
    ask = {"threshold": threshold}
    row = bench.compare(
        "search",
        "give_up",
        lambda: _run(engine, timed, None)[0],
        lambda: _run(engine, timed, ask)[0],
        lambda outcome: outcome.ledger.generated_tokens,
        exact=False,
        identical=None,
        what=f"completions of {len(timed)} lines of code that the model has not read, broken off "
        f"anywhere; one is accepted if it is the rest of the line. The threshold is learned from "
        f"as many others so that {TIMED:.0%} of the accepted ones are lost. On those that it was "
        f"not learned from, {'; '.join(parts)}",
        unit="tokens generated",
        claim="paper 83 (Sun et al. 2024, arXiv:2401.09964): completions that are stopped early "
        "would be accepted in 4.2% of the cases; with layers left out 11.2% faster",
    )
    row.compare_answers(
        *(
            [float(each) for each in map(_accepted, timed, _run(engine, timed, asked)[1])]
            for asked in (None, ask)
        )
    )
    return row


def _learned(engine: Engine, cases: list[Case]) -> tuple[str, float, list[Case]]:
    """What thresholds that are learned from half of the cases do with the others, in words; the
    threshold for `TIMED`; and those others."""
    half = len(cases) // 2
    learning, others = cases[:half], cases[half:]
    _, outputs = _run(engine, learning, {"watch": True})
    examples = [
        (_report(output)["lowest"][0] or 0.0, _accepted(case, output))
        for case, output in zip(learning, outputs, strict=True)
    ]
    whole, outputs = _run(engine, others, {"watch": True})
    accepted = sum(map(_accepted, others, outputs))
    told, timed = [], 0.0
    for lose in LOSE:
        ended, outputs = _run(engine, others, {"examples": examples, "lose": lose})
        given_up = sum(_report(output)["given_up"][0] for output in outputs)
        kept = sum(map(_accepted, others, outputs))
        spared = 1 - ended.ledger.generated_tokens / whole.ledger.generated_tokens
        told.append(
            f"with {lose:.0%} to be lost {given_up} are given up, {spared:.0%} of the tokens "
            f"spared and {accepted - kept} of {accepted} lost"
        )
        timed = _report(outputs[0])["threshold"] if lose == TIMED else timed
    rejected = len(others) - accepted
    return f"{rejected} of {len(others)} are rejected; {', '.join(told)}", timed, others


def _accepted(case: Case, output: RequestOutput) -> bool:
    report = (output.outputs[0].report or {}).get("give_up")
    return case.accepts(output.outputs[0].text) and not (report and report["given_up"][0])


def _report(output: RequestOutput) -> dict[str, Any]:
    report: dict[str, Any] = (output.outputs[0].report or {})["give_up"]
    return report


def _run(
    engine: Engine, cases: Sequence[Case], ask: dict[str, Any] | None
) -> tuple[Outcome, list[RequestOutput]]:
    """Complete all, a few at a time; what that took, and the completions."""
    outputs: dict[str, RequestOutput] = {}
    asks = {} if ask is None else make_asks({"search/give_up": ask})
    wanted = [
        Request(request_id=str(n), prompt_token_ids=case.prompt, params=case.params, asks=asks)
        for n, case in enumerate(cases)
    ]
    started = time.perf_counter()
    for begin in range(0, len(wanted), AT_ONCE):
        drive(
            engine,
            [msgspec.structs.replace(each) for each in wanted[begin : begin + AT_ONCE]],
            lambda output: outputs.update({output.request_id: output}),
        )
    found = [outputs[request.request_id] for request in wanted]
    return outcome_of(found, started), found


def _lines(engine: Engine, seed: int) -> list[Case]:
    """Lines of held-out code, each broken off somewhere."""
    tokenizer, rng, found = engine.tokenizer, Random(f"lines {seed}"), list[Case]()
    assert tokenizer is not None, "checked before"
    params = SamplingParams(temperature=0.0, max_tokens=LONGEST, stop=["\n"])
    for item in items("code", seed, LINES // CUTS):
        lines = (item.text or "").split("\n")
        long = [
            (number, len(line) - len(line.lstrip()))
            for number, line in enumerate(lines)
            if number >= len(lines) // 2 and len(line.strip()) > 2 * LEAST_CHARS
        ]
        for number, start in rng.sample(long, min(CUTS, len(long))):
            line = lines[number].rstrip()
            cut = rng.randrange(start + LEAST_CHARS, len(line) - LEAST_CHARS + 1)
            before = "\n".join([*lines[:number], line[:cut]])[-BEFORE_CHARS:]
            prompt = tokenizer.encode(before, add_special_tokens=False)
            found.append(Case(prompt, params, line[cut:]))
    rng.shuffle(found)
    return found


def _edits(engine: Engine, bench: Bench) -> list[Case]:
    """Edits that are asked for."""
    tokenizer = engine.tokenizer
    assert tokenizer is not None, "checked before"
    found = []
    for item in items("edit", bench.seed, EDITS):
        text = tokenizer.apply_chat_template([dict(message) for message in item.messages])
        prompt = tokenizer.encode(text, add_special_tokens=False)
        params = SamplingParams(temperature=0.0, max_tokens=min(ANSWERED, item.max_tokens))
        found.append(Case(prompt, params, "", item))
    return found
