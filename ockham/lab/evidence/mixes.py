"""Evidence for mixes of formats: the loss of one found by a search, beside one format for all."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from ockham.core.config import EngineConfig
from ockham.core.errors import OckhamError
from ockham.engine.engine import Engine
from ockham.lab.compress.search import Goal, Search, compress
from ockham.lab.compress.units import forms_for
from ockham.lab.evidence.bench import Bench, Outcome, greedy, requests, run
from ockham.lab.evidence.fidelity import fidelity_of
from ockham.lab.evidence.recipe import ENGINE, evidence
from ockham.lab.evidence.row import Row
from ockham.model.loading import plan_model
from ockham.model.packed.packing import plain_format

BITS = 5.0
"""The mix is as large as the format that is nearest to so many bits a weight."""

CLAIM = (
    "Puzzle (paper 366, arXiv:2411.19146): a mixed-integer program picks a variant for each layer "
    "and beats one choice for all; 2.17 times the throughput at 98.4% of the capability, with "
    "training; FineQuant (paper 182, arXiv:2308.09723): a group size for each matrix, minimal loss "
    "of accuracy"
)


@evidence(ENGINE, "compress", "Each tensor has a format of its own, found by a search.")
def mixed(bench: Bench) -> Row:
    """The KL divergence of a mix, and of one format at the same bytes."""
    plain = bench.engine()
    tokenizer = plain.tokenizer
    assert tokenizer is not None, "evidence is measured on models with a tokenizer"
    form, nbytes = _nearest(bench.config, plain)
    with tempfile.TemporaryDirectory(prefix="ockham-mix-") as directory:
        out = Path(directory) / "mix"
        search = Search(
            lambda path, text: tokenizer.encode(text, add_special_tokens=False), fitted_tokens=4096
        )
        config = EngineConfig(model=bench.config.model, threads=bench.config.threads)
        compress(config, out, Goal(nbytes=nbytes), search, bench.tell)
        one, other = bench.engine(quantization=form), bench.engine(model=str(out))
        losses = {id(each): fidelity_of(bench, plain, each) for each in (one, other)}
        wanted = requests(bench.prompts(plain, [32] * 2), [greedy(48)] * 2)

        def decoded(engine: Engine) -> Outcome:
            return dataclasses.replace(run(engine, wanted), observed=losses[id(engine)].kl_mean)

        row = bench.compare(
            ENGINE,
            "compress",
            lambda: decoded(one),
            lambda: decoded(other),
            lambda outcome: outcome.observed,
            exact=False,
            identical=None,
            what=(
                f"predictions of held-out text, and decoding two sequences of 48 tokens; without: "
                f"{form} for all, {_bits(one):.2f} bits a weight; with: a mix of "
                f"{other.model.weight_format}, {_bits(other):.2f} bits a weight"
            ),
            unit="KL divergence from the unquantised model (nats a token)",
            fidelity=losses[id(other)],
            claim=CLAIM,
        )
        bench.release()  # before the files go that its weights are mapped from
    return row


def _nearest(config: EngineConfig, plain: Engine) -> tuple[str, int]:
    """The format whose model takes the bytes nearest to BITS, and those bytes."""
    sizes: dict[str, int] = {}
    for form in forms_for(plain.model.backend.layout, plain_format("bfloat16")):
        try:
            planned = plan_model(EngineConfig(model=config.model, quantization=form))
        except OckhamError:  # whose groups do not divide the model's inputs
            continue
        planned.source.close()
        sizes[form] = planned.measured.bytes
    wanted = BITS * plain.model.parameters / 8
    form = min(sizes, key=lambda each: abs(sizes[each] - wanted))
    return form, sizes[form]


def _bits(engine: Engine) -> float:
    return 8 * engine.model.weight_bytes / engine.model.parameters
