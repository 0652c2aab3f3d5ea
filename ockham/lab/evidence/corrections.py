"""Evidence for corrections: what a sum of low rank takes off the loss of a format, beside a format
of about as many bytes.

The texts that sums are fitted to are those of the evidence for transforms. Both models are measured
off any grid: the lab model in its own floats, SmolLM2 as its twin (real_model.py)."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from ockham.core.config import EngineConfig
from ockham.core.registry import find
from ockham.engine.engine import Engine
from ockham.lab.evidence.bench import Bench
from ockham.lab.evidence.fidelity import fidelity_of
from ockham.lab.evidence.real_model import MISSING, NAME, fidelity_beside, write_twin
from ockham.lab.evidence.recipe import Measure, evidence
from ockham.lab.evidence.row import Fidelity, Row
from ockham.lab.evidence.transforms import TEXT_TOKENS, calibration_text, token_ids
from ockham.model.checkpoint.gguf.tokenizer import read_tokenizer
from ockham.model.converting import CalibrationFile, convert
from ockham.model.loading import plan_model

ROUNDED = "int4:64"
"""What models are rounded to: fitted to the text (GPTQ) where the sum is fitted to it too."""
BESIDE = ("int4:32",)
"""Formats of more bytes, of which a user may take one instead."""
ITEMS = 1
"""Of each task that the lab model is compared on: the real model is compared on more."""

CLAIMS = {
    "lorc": "ZeroQuant-V2 (arXiv:2303.08302): low-rank compensation recovers more of a model's "
    "quality with a minimal increase of its size, on models of 125 million to 176 billion weights",
    "weighted": "QERA (arXiv:2410.06040): 2.97% higher accuracy of 4-bit Llama-3.1-70B than with "
    "ZeroQuant-V2, and a perplexity 0.28 lower than with LQER",
}


def _corrected(name: str) -> Measure:
    def measure(bench: Bench) -> Row:
        exact = bench.engine(quantization="fp32")
        others = {
            form: (
                _bits(bench.config, form),
                fidelity_of(bench, exact, bench.engine(quantization=form), ITEMS),
            )
            for form in BESIDE
        }
        found, answers = [], list[list[float]]()
        for correction in (None, name):
            with _converted(bench.config, name, correction) as path:
                engine = bench.engine(model=path)
                found.append((fidelity_of(bench, exact, engine, ITEMS), _size(engine)))
                answers.append(bench.scores_of(engine, bench.suite.short))
        (before, plain_bits), (after, bits) = found
        told = f"at {bits:.2f} bits a weight; {_told(others)}"
        real: dict[str, object] = {"real_model": MISSING}
        if bench.real_model is not None:
            real_told, fidelity = _real(bench, bench.real_model, name)
            real = {"real_model": f"{NAME} (its twin)", "real_fidelity": fidelity}
            told += f". On {NAME}: {real_told}"
        row = msgspec.convert(
            {
                "seam": "correction",
                "name": name,
                "exact": False,
                "what": f"{ROUNDED} with a sum of rank 32 beside {ROUNDED} alone "
                f"({plain_bits:.2f} bits a weight), {told}",
                "unit": "KL in nats that rounding costs",
                "without": before.kl_mean,
                "with_": after.kl_mean,
                "fidelity": after,
                "claim": CLAIMS[name],
                "model": bench.config.model,
                **real,
            },
            Row,
        )
        row.compare_answers(*answers)
        return row

    return measure


def _real(bench: Bench, file: Path, name: str) -> tuple[str, Fidelity]:
    """The same of the real model's twin: in words, and with the sum."""
    exact = {"model": str(file), "quantization": "fp32"}
    with tempfile.TemporaryDirectory(prefix="ockham-twin-") as folder:
        twin = Path(folder)
        write_twin(file, twin, bench.seed)
        backend, tokenizer, _ = read_tokenizer(file)
        backend.save(str(twin / "tokenizer.json"))
        (twin / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        config = msgspec.structs.replace(bench.config, model=str(twin), revision=None)
        found = {}
        for form in BESIDE:
            candidate = {"model": str(twin), "quantization": form}
            fidelity = fidelity_beside(exact, candidate, config, bench.seed)
            found[form] = _bits(config, form), fidelity
        for label, correction in ((f"{ROUNDED} alone", None), ("with it", name)):
            with _converted(config, name, correction) as path:
                fidelity = fidelity_beside(exact, {"model": path}, config, bench.seed)
                bits = _bits(msgspec.structs.replace(config, model=path), None)
            found[label] = bits, fidelity
    return _told(found), found["with it"][1]


def _told(found: dict[str, tuple[float, Fidelity]]) -> str:
    return ", ".join(
        f"{form} has {bits:.2f} at {fidelity.kl_mean:.4f} nats"
        for form, (bits, fidelity) in found.items()
    )


def _bits(config: EngineConfig, form: str | None) -> float:
    """Bits a weight of a model in one format, from its files' headers."""
    planned = plan_model(
        EngineConfig(model=config.model, quantization=form, max_model_len=config.max_model_len)
    )
    planned.source.close()
    return 8 * planned.measured.bytes / planned.measured.parameters


def _size(engine: Engine) -> float:
    return 8 * engine.model.weight_bytes / engine.model.parameters


@contextmanager
def _converted(config: EngineConfig, name: str, correction: str | None) -> Iterator[str]:
    """The directory of a model that is rounded and corrected, or only rounded as for the correction
    `name`."""
    with tempfile.TemporaryDirectory(prefix="ockham-corrected-") as folder:
        out, text = Path(folder) / "model", Path(folder) / "text.txt"
        text.write_text(calibration_text(), encoding="utf-8")
        asked = msgspec.structs.replace(config, quantization=ROUNDED, tokenizer=None)
        file = None
        if find("correction", name).cls.needs_text:  # type: ignore[attr-defined]
            file = CalibrationFile(text, TEXT_TOKENS, token_ids(asked))
        convert(asked, out, lambda line: None, file, correction=correction)
        yield str(out)


for _name in CLAIMS:
    evidence("correction", _name)(_corrected(_name))
