"""Evidence for adapters that share a base model."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ockham.core.registry import make_asks
from ockham.core.seams import MatrixPart
from ockham.engine.messages import Request
from ockham.lab.evidence.bench import Bench, Outcome, greedy, requests, run
from ockham.lab.evidence.recipe import evidence
from ockham.lab.evidence.row import Row

ADAPTERS, RANK, PROMPT, GENERATED = 8, 16, 32, 32
WHAT = (
    f"{ADAPTERS} requests of {PROMPT} tokens for {GENERATED} more, each with an adapter of rank "
    f"{RANK} of its own for all dense matrices: in one batch, against one model after the other"
)
SLORA = (
    "S-LoRA (paper 345, arXiv:2311.03285): up to 4 times the throughput of adapters served one "
    "after the other, and thousands of them"
)


@evidence("adapter", "lora")
def lora(bench: Bench) -> Row:
    """Requests with an adapter each, in one batch, against each adapter's requests in turn."""
    setting = f"lora:max_loras={ADAPTERS},max_lora_rank={RANK}"
    engine = bench.engine(adapter=setting)
    prompts = bench.prompts(engine, [PROMPT] * ADAPTERS)
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / str(number) for number in range(ADAPTERS)]
        for number, path in enumerate(paths):
            write_random_adapter(path, engine.model.program.parts.items(), RANK, number)

        def wanted() -> list[Request]:
            every = requests(prompts, [greedy(GENERATED)] * ADAPTERS)
            for request, path in zip(every, paths, strict=True):
                ask = {"name": path.name, "path": str(path)}
                request.asks = make_asks({"adapter/lora": ask})
            return every

        def serve(at_once: int) -> Outcome:
            return run(engine, wanted(), at_once=at_once)

        return bench.compare(
            "adapter",
            "lora",
            lambda: serve(1),
            lambda: serve(ADAPTERS),
            lambda outcome: outcome.ledger.weight_bytes,
            exact=False,
            what=WHAT,
            unit="bytes of weights read",
            claim=SLORA,
        )


SPREAD = 0.1
"""Standard deviation of what a random adapter holds."""


def write_random_adapter(
    directory: Path, parts: Iterable[tuple[str, MatrixPart]], rank: int, seed: int
) -> None:
    """An adapter of these modules in PEFT's files, in fp32: as large as a trained one, and it says
    nothing."""
    rng = np.random.default_rng(seed)
    entries: dict[str, object] = {}
    values: list[bytes] = []
    end = 0
    for name, shape in _factors(parts, rank):
        data = (SPREAD * rng.standard_normal(shape)).astype(np.float32).tobytes()
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
        values.append(data)
    header = json.dumps(entries).encode()
    directory.mkdir(parents=True)
    with (directory / "adapter_model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.writelines(values)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps(config))


def _factors(
    parts: Iterable[tuple[str, MatrixPart]], rank: int
) -> Iterator[tuple[str, tuple[int, int]]]:
    for module, part in parts:
        yield f"base_model.model.{module}.lora_A.weight", (rank, part.inputs)
        yield f"base_model.model.{module}.lora_B.weight", (part.outputs, rank)
