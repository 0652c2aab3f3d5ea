"""Evidence for keys and values in fewer bits: bytes read, time, and distance to bfloat16."""

from __future__ import annotations

from ockham.lab.evidence.bench import Bench, greedy, requests, run
from ockham.lab.evidence.fidelity import fidelity_of
from ockham.lab.evidence.real_model import MISSING, NAME, real_state_fidelity
from ockham.lab.evidence.recipe import ENGINE, Measure, evidence
from ockham.lab.evidence.row import Row

TEXT, TOKENS, SEQUENCES = 900, 32, 8
"""Of each prompt, of each answer, and how many there are at once."""

CLAIMS = {
    "int8": "FlexGen (arXiv:2303.06865): weights and keys and values even in 4 bits at a "
    "negligible loss of accuracy",
    "int4": "QuaRot (arXiv:2404.00456): rotated, weights, activations, keys and values in 4 bits "
    "lose at most 0.47 of perplexity (LLaMA-2 70B)",
    "k=int8,v=int4": "KIVI (arXiv:2402.02750): values bear few bits by token, keys by channel",
}

SUMMARIES = {
    "int8": "Keys and values in 8 bits, a scale for each token and head.",
    "int4": "Keys and values in 4 bits, rotated, a scale and a zero for each token and head.",
    "k=int8,v=int4": "Keys in 8 bits and values in 4.",
}


def _measure(name: str, dtype: str) -> Measure:
    def measure(bench: Bench) -> Row:
        settings = {"reuse": "prefix", "scheduling_policy": "fcfs"}
        one, other = (bench.engine(kv_cache_dtype=each, **settings) for each in ("bfloat16", dtype))
        length = min(TEXT, one.max_model_len - TOKENS - 1)
        wanted = requests(bench.prompts(one, [length] * SEQUENCES), [greedy(TOKENS)] * SEQUENCES)
        facts: dict[str, object] = {"real_model": MISSING}
        if bench.real_model is not None:
            found = real_state_fidelity(bench.real_model, dtype, bench.config, bench.seed)
            facts = {"real_model": NAME, "real_fidelity": found}
        row = bench.compare(
            ENGINE,
            name,
            lambda: run(one, wanted),
            lambda: run(other, wanted),
            lambda outcome: outcome.ledger.state_read_bytes,
            exact=False,
            identical=None,
            what=f"{SEQUENCES} sequences of {length} cached tokens that decode {TOKENS} each; "
            "against keys and values in bfloat16",
            unit="bytes of keys and values read",
            fidelity=fidelity_of(bench, one, other),
            claim=CLAIMS[dtype],
            **facts,
        )
        row.compare_answers(*bench.answers(one, other))
        return row

    return measure


for _dtype, _summary in SUMMARIES.items():
    _name = "state-" + _dtype.replace("k=", "").replace(",v=", "-")
    evidence(ENGINE, _name, _summary)(_measure(_name, _dtype))
