"""Evidence for masks of weights and for formats that do not store zeros: what a pruned model has
lost and what it reads, beside formats of few bits that read as much."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from ockham.lab.evidence.bench import Bench, greedy, requests, run
from ockham.lab.evidence.fidelity import fidelity_of
from ockham.lab.evidence.real_model import MISSING, NAME, fidelity_beside
from ockham.lab.evidence.recipe import Measure, evidence
from ockham.lab.evidence.row import Fidelity, Row
from ockham.lab.evidence.transforms import ITEMS, rewritten

MASK = "sparsegpt"
"""Of the masks the one that loses least."""
STORED = "sparse8"
"""What pruned models are stored in."""
EQUAL = "int4:32"
"""The dense format that is nearest to it with half of the weights, and reads less."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A format that does not store zeros: the one of the same values that does, and a claim."""

    dense: str
    claim: str


FORMATS = {
    "sparse8": Kind(
        "int8",
        "Flash-LLM (arXiv:2309.10285): with 70%, 80% and 90% of the weights zero 1.4, 1.7 and 2.1 "
        "times as fast as dense products of fp16 on a GPU",
    ),
    "sparse16": Kind(
        "bf16",
        "Flash-LLM (arXiv:2309.10285): with 70%, 80% and 90% of the weights zero 1.4, 1.7 and 2.1 "
        "times as fast as dense products of fp16 on a GPU",
    ),
}
MASKS = {
    "magnitude": "",
    "wanda": "Wanda (arXiv:2306.11695): at 50% a perplexity of 7.26 of LLaMA-7B, 17.29 by "
    "magnitude, 7.22 of SparseGPT, 5.68 dense",
    "sparsegpt": "SparseGPT (arXiv:2301.00774): at least 50% of the weights of models of 175 "
    "billion removed at a minimal loss of accuracy",
}


def _of_format(name: str, kind: Kind) -> Measure:
    exact = name != STORED

    def measure(bench: Bench) -> Row:
        with rewritten(bench.config, MASK, None) as path:
            one = bench.engine(model=path, quantization=kind.dense)
            other = bench.engine(model=path, quantization=name)
            wanted = requests(bench.prompts(one, [32] * 2), [greedy(48)] * 2)
            return bench.compare(
                "format",
                name,
                lambda: run(one, wanted),
                lambda: run(other, wanted),
                lambda outcome: outcome.ledger.weight_bytes,
                exact=exact,
                what="decoding two sequences of 48 tokens; a model with half of its weights zero "
                f"({MASK}), against the same in {kind.dense}",
                unit="bytes of weights read",
                fidelity=fidelity_of(bench, one, other),
                claim=kind.claim,
                **({} if exact else {"identical": None}),
            )

    return measure


def _of_mask(name: str) -> Measure:
    def measure(bench: Bench) -> Row:
        one, beside = bench.engine(quantization="int8"), bench.engine(quantization=EQUAL)
        exact = bench.engine(quantization="fp32")
        wanted = requests(bench.prompts(one, [32] * 2), [greedy(48)] * 2)
        equal = fidelity_of(bench, exact, beside, ITEMS)
        share = run(beside, wanted).ledger.weight_bytes / run(one, wanted).ledger.weight_bytes
        told = f"{EQUAL} reads {share:.0%} of int8's bytes at {equal.kl_mean:.4f} nats of KL"
        facts: dict[str, object] = {"real_model": MISSING}
        if bench.real_model is not None:
            plain, pruned = _real(bench, name)
            facts = {"real_model": NAME, "real_fidelity": pruned}
            told += f", and at {plain.kl_mean:.4f} on {NAME}"
        with rewritten(bench.config, name, None) as path:
            other = bench.engine(model=path, quantization=STORED)
            row = bench.compare(
                "transform",
                name,
                lambda: run(one, wanted),
                lambda: run(other, wanted),
                lambda outcome: outcome.ledger.weight_bytes,
                exact=False,
                identical=None,
                what="decoding two sequences of 48 tokens with half of the weights zero, in "
                f"{STORED}, against int8; {told}",
                unit="bytes of weights read",
                fidelity=fidelity_of(bench, exact, other, ITEMS),
                claim=MASKS[name],
                **facts,
            )
            row.compare_answers(*bench.answers(exact, other))
            return row

    return measure


def _real(bench: Bench, name: str) -> tuple[Fidelity, Fidelity]:
    """What the dense format costs the real model, and the mask."""
    assert bench.real_model is not None
    exact = {"model": str(bench.real_model), "quantization": "fp32"}
    config = msgspec.structs.replace(bench.config, model=str(bench.real_model), revision=None)
    before = fidelity_beside(exact, {**exact, "quantization": EQUAL}, config, bench.seed)
    with rewritten(config, name) as pruned:
        candidate = {"model": pruned, "quantization": STORED}
        return before, fidelity_beside(exact, candidate, config, bench.seed)


for _name, _kind in FORMATS.items():
    evidence("format", _name)(_of_format(_name, _kind))
for _name in MASKS:
    evidence("transform", _name)(_of_mask(_name))
