"""Evidence for transforms: what rounding costs a rewritten model, and what a smaller one has lost.

Texts that transforms read are Python's own documentation and sources, which are on every machine
and in no text that is measured on."""

from __future__ import annotations

import pydoc_data.topics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.lab.evidence.bench import Bench, greedy, requests, run
from ockham.lab.evidence.fidelity import fidelity_of
from ockham.lab.evidence.real_model import MISSING, NAME, fidelity_beside
from ockham.lab.evidence.recipe import Measure, evidence
from ockham.lab.evidence.row import Fidelity, Row
from ockham.model.converting import CalibrationFile, convert
from ockham.model.rewriting.applying import Rewriting
from ockham.text.tokenizer import load_tokenizer

ROUNDED = "int4:64"
"""What rewritten models are rounded to."""
BESIDE = "int8"
"""What smaller models are compared with: it saves more bytes than they do."""
CHAINS = {"width": ("nest", "width:0.75")}
"""Transforms that mean something after another only."""
ITEMS = 3
"""Of each task that a rewritten model is compared on: there are many of these rows."""
TEXT_TOKENS = 2048
MOST_CHARACTERS = 40_000

MOVING = {
    "rotate": "QuaRot (arXiv:2404.00456): 4-bit weights, activations and state at no more than "
    "0.63 of perplexity on Llama 2; SpinQuant (arXiv:2405.16406): within 2.9 points of full "
    "precision",
    "smoothquant": "SmoothQuant (arXiv:2211.10438): 8-bit weights and activations at a negligible "
    "loss of accuracy, where large models have outliers",
    "nest": "Once-for-All (arXiv:1908.09791): sorting channels costs nothing",
    "awq": "AWQ (arXiv:2306.00978): 4-bit weights better than rounding to nearest and than GPTQ on "
    "models of 7 to 70 billion weights",
}
SMALLER = {
    "slicegpt": "SliceGPT (arXiv:2401.15024): up to 25% of the parameters removed at 99% (70B), "
    "99% (66B) and 90% (2.7B) of the accuracy",
    "heapr": "HEAPr (arXiv:2509.22299): nearly lossless at 20% to 25% of the experts' parameters",
    "loraprune": "LoRAPrune (arXiv:2305.18403): at 50%, 8.0 and 16.05 of perplexity less than "
    "LLM-Pruner, and 52.6% less memory to prune",
    "mfac": "M-FAC (arXiv:2107.03356): state of the art in pruning of its time, by products of "
    "vectors in place of matrices",
    "wanda_channels": "Wanda (arXiv:2306.11695): better than magnitudes at 50%, of single weights",
    "magnitude_channels": "",
    "width": "MatFormer (arXiv:2310.07707): smaller models from one, as good as trained alone",
}


def _moving(name: str) -> Measure:
    def measure(bench: Bench) -> Row:
        exact = bench.engine(quantization="fp32")
        before = fidelity_of(bench, exact, bench.engine(quantization=ROUNDED), ITEMS)
        with rewritten(bench.config, name) as path:
            other = bench.engine(model=path, quantization=ROUNDED)
            after = fidelity_of(bench, exact, other, ITEMS)
            answers = bench.answers(bench.engine(quantization=ROUNDED), other)
        facts: dict[str, object] = {"real_model": MISSING}
        if bench.real_model is not None:
            plain, moved = _real(bench, bench.real_model, name, ROUNDED, ROUNDED)
            facts = {"real_model": NAME, "real_fidelity": moved, "what": _told(plain)}
        told = facts.pop("what", "")
        row = msgspec.convert(
            {
                "seam": "transform",
                "name": name,
                "exact": False,
                "what": f"{ROUNDED} of the rewritten model beside {ROUNDED} of the original, both "
                f"beside its own weights{told}",
                "unit": "KL in nats that rounding costs",
                "without": before.kl_mean,
                "with_": after.kl_mean,
                "fidelity": after,
                "claim": MOVING[name],
                "model": bench.config.model,
                **facts,
            },
            Row,
        )
        row.compare_answers(*answers)
        return row

    return measure


def _told(fidelity: Fidelity) -> str:
    """What rounding alone costs the real model."""
    return f"; on {NAME} rounding alone costs {fidelity.kl_mean:.4f} nats"


def _smaller(name: str) -> Measure:
    def measure(bench: Bench) -> Row:
        one, beside = bench.engine(), bench.engine(quantization=BESIDE)
        wanted = requests(bench.prompts(one, [32] * 2), [greedy(48)] * 2)
        at_equal = fidelity_of(bench, one, beside, ITEMS)
        share = run(beside, wanted).ledger.weight_bytes / run(one, wanted).ledger.weight_bytes
        real: dict[str, object] = {"real_model": MISSING}
        told = f"{BESIDE} has {share:.0%} of the bytes at {at_equal.kl_mean:.4f} nats of KL"
        if bench.real_model is not None:
            plain, smaller = _real(bench, bench.real_model, name, BESIDE, "fp32")
            real = {"real_model": NAME, "real_fidelity": smaller}
            told += f", and {plain.kl_mean:.4f} on {NAME}"
        with rewritten(bench.config, name, dtype=None) as path:
            other = bench.engine(model=path)
            row = bench.compare(
                "transform",
                name,
                lambda: run(one, wanted),
                lambda: run(other, wanted),
                lambda outcome: outcome.ledger.weight_bytes,
                exact=False,
                identical=None,
                what=f"decoding two sequences of 48 tokens, as smaller as by default; {told}",
                unit="bytes of weights read",
                fidelity=fidelity_of(bench, one, other, ITEMS),
                claim=SMALLER[name],
                **real,
            )
            row.compare_answers(*bench.answers(one, other))
            return row

    return measure


def _real(bench: Bench, path: Path, name: str, plain: str, own: str) -> tuple[Fidelity, Fidelity]:
    """What the format `plain` costs the real model, and the transform with the format `own`."""
    config = msgspec.structs.replace(bench.config, model=str(path), revision=None)
    exact = {"model": str(path), "quantization": "fp32"}
    before = fidelity_beside(exact, {**exact, "quantization": plain}, config, bench.seed)
    with rewritten(config, name) as other:
        candidate = {"model": other, "quantization": own}
        return before, fidelity_beside(exact, candidate, config, bench.seed)


@contextmanager
def rewritten(config: EngineConfig, transform: str, dtype: str | None = "float32") -> Iterator[str]:
    """The directory of a model after a transform with its own settings."""
    with tempfile.TemporaryDirectory(prefix="ockham-rewritten-") as folder:
        out, text = Path(folder) / "model", Path(folder) / "text.txt"
        text.write_text(calibration_text(), encoding="utf-8")
        plain = msgspec.structs.replace(config, quantization=None, tokenizer=None)
        rewriting = Rewriting(CHAINS.get(transform, (transform,)), dtype, widen=True)
        file = CalibrationFile(text, TEXT_TOKENS, token_ids(plain), for_any=True)
        convert(plain, out, lambda line: None, file, rewriting=rewriting)
        yield str(out)


def token_ids(config: EngineConfig) -> Callable[[Path, str], list[int]]:
    def encode(checkpoint: Path, text: str) -> list[int]:
        tokenizer = load_tokenizer(config, checkpoint)
        if tokenizer is None:
            raise ConfigError("evidence for transforms needs a model with a tokenizer.")
        return tokenizer.encode(text, add_special_tokens=False)

    return encode


def calibration_text() -> str:
    """Prose and code that come with Python, in turns."""
    prose = "\n".join(pydoc_data.topics.topics.values())[: MOST_CHARACTERS // 2]
    code = "\n".join(
        (Path(tempfile.__file__).parent / name).read_text(encoding="utf-8")
        for name in ("argparse.py", "textwrap.py")
    )[: MOST_CHARACTERS // 2]
    pieces = [
        text[at : at + 2000]
        for at in range(0, MOST_CHARACTERS // 2, 2000)
        for text in (prose, code)
    ]
    return "\n".join(pieces)


for _name in MOVING:
    evidence("transform", _name)(_moving(_name))
for _name in SMALLER:
    evidence("transform", _name)(_smaller(_name))
