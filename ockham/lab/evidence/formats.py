"""Evidence for weight formats: bytes read, time of decoding, and distance to the model's own."""

from __future__ import annotations

from ockham.core.registry import techniques
from ockham.lab.evidence.bench import Bench, greedy, requests, run
from ockham.lab.evidence.fidelity import fidelity_of
from ockham.lab.evidence.real_model import MISSING, NAME, real_fidelity
from ockham.lab.evidence.recipe import Measure, evidence
from ockham.lab.evidence.row import Row
from ockham.lab.tasks.suites import LAB
from ockham.weights.block_format import BlockFormat
from ockham.weights.sparse import Sparse

CLAIMS = {
    "fp32": "",
    "bf16": "",
    "int8": "SmoothQuant (arXiv:2211.10438): 8-bit weights and activations at a negligible loss of "
    "accuracy, up to 1.56 times as fast with half the memory",
    "int4": "GPTQ (arXiv:2210.17323): 3 or 4 bits a weight at negligible loss of accuracy; QServe "
    "(arXiv:2405.04532): 4-bit weights with 8-bit activations, 1.2 to 3.5 times the throughput of "
    "TensorRT-LLM",
    "int4dq": "QServe (arXiv:2405.04532): dequantising costs 4-bit kernels 20% to 90% of their "
    "time on GPUs, and integer scales of groups under one scale a channel keep that low; QLoRA "
    "(arXiv:2305.14314): quantising the scales saves 0.37 bits a weight",
    "codebook3": "SqueezeLLM (arXiv:2306.07629): at 3 bits the gap in perplexity to FP16 is up to "
    "2.1 times smaller than that of other methods at equal memory; up to 2.3 times as fast as FP16",
    "codebook4": "SqueezeLLM (arXiv:2306.07629): weights in few bits by codebooks, up to 2.3 times "
    "as fast as FP16",
    "fp8": "FP8 Formats for Deep Learning (arXiv:2209.05433): E4M3 loses nothing measurable where "
    "weights of models trained in 16 bits are rounded to it",
    "fp4": "ZeroQuant-FP (arXiv:2307.09782): FP4 weights are as good as INT4 or better, and scales "
    "that are powers of two cost little",
    "ternary": "BitNet b1.58 (arXiv:2402.17764): ternary weights match full precision from 3 "
    "billion parameters on, if the model is trained with them",
    "nf4": "QLoRA (arXiv:2305.14314): NormalFloat keeps more quality than other types of 4 bits",
}


def _measure(name: str, exact: bool) -> Measure:
    def measure(bench: Bench) -> Row:
        one = bench.engine(**_counterfactual(bench, name))
        other = bench.engine(quantization=name)
        wanted = requests(bench.prompts(one, [32] * 2), [greedy(48)] * 2)
        row = bench.compare(
            "format",
            name,
            lambda: run(one, wanted),
            lambda: run(other, wanted),
            lambda outcome: outcome.ledger.weight_bytes,
            exact=exact,
            identical=None,
            what=f"decoding two sequences of 48 tokens; against {one.model.weight_format}",
            unit="bytes of weights read",
            fidelity=fidelity_of(bench, one, other),
            claim=CLAIMS.get(name, ""),
            **({} if exact else _real_facts(bench, name)),
        )
        if not exact:
            row.compare_answers(*bench.answers(one, other))
        return row

    return measure


def _counterfactual(bench: Bench, name: str) -> dict[str, str]:
    """What a format is compared with: bf16 is mostly the model's own, and so is compared with the
    wider one; a model that was quantised before is compared with its values in 16 bits."""
    if name == "bf16":
        return {"quantization": "fp32"}
    return {} if bench.suite is LAB or name == "fp32" else {"quantization": "bf16"}


def _real_facts(bench: Bench, name: str) -> dict[str, object]:
    """What a row says of the real model; that it is not installed, where it is not."""
    if bench.real_model is None:
        return {"real_model": MISSING}
    plain, twin = real_fidelity(bench.real_model, name, bench.config, bench.seed)
    return {"real_model": NAME, "real_fidelity": plain, "twin_fidelity": twin}


for _technique in techniques("format"):
    # Blocks are in blocks.py, and what does not store zeros in pruned.py.
    if not issubclass(_technique.cls, BlockFormat | Sparse):
        evidence("format", _technique.name)(_measure(_technique.name, _technique.exact))
