"""Evidence for positions beyond those that a model was trained with: perplexity there."""

from __future__ import annotations

import itertools
import math
import time
from statistics import fmean

from ockham.core.errors import ConfigError
from ockham.core.ledger import Ledger
from ockham.core.outputs import RequestOutput
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.lab.evidence.bench import Bench, Outcome
from ockham.lab.evidence.recipe import ENGINE, evidence
from ockham.lab.evidence.row import Row
from ockham.lab.running import drive
from ockham.lab.tasks import TASKS

LONGER = 3.0
"""How many times as long as the texts of training."""
TEXTS = ("code",)

QWEN_1M = (
    "Qwen2.5-1M (paper 155, arXiv:2501.15383), by dual chunk attention (arXiv:2402.17463): texts "
    "of four to eight times the trained length without training"
)


@evidence(
    ENGINE,
    "dual-chunk",
    "Positions beyond the trained ones are taken to be within them, in chunks.",
)
def dual_chunk(bench: Bench) -> Row:
    """Passages one after another, scored where the model has never been."""
    trained = _trained(bench.engine())
    length = int(LONGER * trained)
    settings = {"max_model_len": length, "max_num_seqs": 1}
    plain, yarn, dual = (
        bench.engine(rope_scaling={"rope_type": kind, "factor": LONGER}, **settings)
        for kind in ("default", "yarn", "dual_chunk")
    )
    texts = [_text(plain, name, length) for name in TEXTS]

    def read(engine: Engine) -> Outcome:
        started = time.perf_counter()
        nats = [_nats(engine, text, trained) for text in texts]
        return Outcome([], Ledger(), time.perf_counter() - started, fmean(nats))

    others = {"YaRN": read(yarn).observed}
    others["within the trained length"] = fmean(
        _nats(plain, text[:trained], trained // 2) for text in texts
    )
    told = ", ".join(f"{math.exp(nats):.1f} {name}" for name, nats in others.items())
    row = bench.compare(
        ENGINE,
        "dual-chunk",
        lambda: read(plain),
        lambda: read(dual),
        lambda outcome: outcome.observed,
        exact=False,
        identical=None,
        what=(
            f"{length} tokens of {' and of '.join(TEXTS)}, passages one after another, of which "
            f"those after the first {trained} are scored; without: positions as they are. Beside "
            f"these the perplexity is {told}"
        ),
        unit="nats of a token",
        claim=QWEN_1M,
    )
    row.perplexity = math.exp(row.without), math.exp(row.with_)
    return row


def _trained(engine: Engine) -> int:
    """The positions that the checkpoint was trained with."""
    ropes = [rope for rope in engine.model.description.ropes if rope is not None]
    if not ropes:
        raise ConfigError("no layer of this model rotates its positions; take another.")
    return max(rope.max_positions for rope in ropes)


def _text(engine: Engine, name: str, length: int) -> list[int]:
    if engine.tokenizer is None:
        raise ConfigError("texts are read in this measurement, and there is no tokenizer.")
    found: list[int] = []
    for number in itertools.count():
        text = TASKS[name].item(0, number, "test").text
        assert text is not None, "a passage"
        found += engine.tokenizer.encode(text, add_special_tokens=False)
        if len(found) >= length:
            return found[:length]
    raise AssertionError("passages never end")


def _nats(engine: Engine, tokens: list[int], first: int) -> float:
    """The mean surprise at the tokens from number `first` on."""
    request = Request(
        request_id="reading",
        prompt_token_ids=tokens,
        params=SamplingParams(max_tokens=0, prompt_logprobs=0),
        detokenize=False,
        score_from=first,
    )
    outputs: list[RequestOutput] = []
    drive(engine, [request], outputs.append)
    total = 0.0
    scored = outputs[0].prompt_logprobs or []
    for token, entry in zip(tokens[first:], scored[first:], strict=True):
        assert entry is not None, "every token from the first on is scored"
        total -= entry[token].logprob
    return total / (len(tokens) - first)
