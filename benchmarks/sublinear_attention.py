"""HyperAttention and Combiner by their definitions, in place of a model's attention: what is lost.

    python benchmarks/sublinear_attention.py [--model lab] [--tokens 1000] [--items 20]

Both promise attention in less than quadratic time without a choice of keys by place. Neither is a
technique of Ockham: this measures why. A prompt is computed on the reference backend, and each
layer's attention is replaced by the definition; beside them stand full attention, and a window of
as many keys with the first block (`streaming`). Told are answers to questions of `recall`, the
perplexity of `code`, and the share of query-key products that is left.

- *HyperAttention* (Han et al. 2023, arXiv:2310.05869): queries and keys are hashed by the signs of
  7 random projections and sorted by the hash's rank in Gray code, so that neighbours differ in one
  bit; attention is exact within blocks of the sorted order, and uniformly sampled keys stand for
  all others. Causal by recursive halving, exact below `--exact` tokens.
- *Combiner* (Ren et al. 2021, arXiv:2107.05768), the variant "fixed": keys of the own block are
  seen directly, and each block before it as one key, its keys' maximum (or mean, with the logarithm
  of their number), and one value, their mean weighted by a query that is pooled alike.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np

from ockham.cache.state import State
from ockham.core.arrays import Floats, Longs
from ockham.core.config import EngineConfig
from ockham.core.rows import build_step
from ockham.kernels.ops import Attend
from ockham.kernels.reference.planes import sides
from ockham.lab.tasks import TASKS
from ockham.model.hub import resolve
from ockham.model.loading import LoadedModel, load_model
from ockham.text.tokenizer import Tokenizer

PROJECTIONS = 7

Attention = Callable[[Floats, Floats, Floats], tuple[Floats, float]]
"""q, k and v (n, E) of one head, q scaled, to the output (n, E) and the number of products."""


def full(q: Floats, k: Floats, v: Floats) -> tuple[Floats, float]:
    """Causal attention."""
    scores = q @ k.T
    scores[~np.tril(np.ones(scores.shape, bool))] = -np.inf
    return _softmax(scores) @ v, len(q) * (len(q) + 1) / 2


def windowed(window: int, first: int) -> Attention:
    """The first keys and the latest ones."""

    def attend(q: Floats, k: Floats, v: Floats) -> tuple[Floats, float]:
        places = np.arange(len(q))
        behind = places[:, None] - places
        seen = (behind >= 0) & ((behind < window) | (places < first))
        scores = np.where(seen, q @ k.T, -np.inf)
        return _softmax(scores) @ v, float(seen.sum())

    return attend


def hyper(block: int, samples: int, exact: int, seed: int = 0) -> Attention:
    """HyperAttention with sorted blocks of so many keys, and so many sampled ones."""

    def attend(q: Floats, k: Floats, v: Floats) -> tuple[Floats, float]:
        rng = np.random.default_rng(seed)
        projections = rng.standard_normal((q.shape[1], PROJECTIONS)).astype(np.float32)
        out, _, products = causal(q, k, v, block, samples, exact, projections, rng)
        return out, products

    return attend


Part = tuple[Floats, Floats, float]
"""Outputs (n, E), logarithms of their sums (n,), and the number of products."""


def causal(
    q: Floats,
    k: Floats,
    v: Floats,
    block: int,
    samples: int,
    exact: int,
    projections: Floats,
    rng: np.random.Generator,
) -> Part:
    """By halves: what each does for itself, and what the second sees of the first."""
    if len(q) <= exact:
        scores = q @ k.T
        scores[~np.tril(np.ones(scores.shape, bool))] = -np.inf
        return _softmax(scores) @ v, _log_sum(scores), len(q) * (len(q) + 1) / 2
    half = len(q) // 2
    settings = (block, samples, exact, projections, rng)
    early = causal(q[:half], k[:half], v[:half], *settings)
    late = causal(q[half:], k[half:], v[half:], *settings)
    across = sorted_blocks(q[half:], k[:half], v[:half], block, samples, projections, rng)
    merged = _merge(late, across)
    return (
        np.concatenate([early[0], merged[0]]),
        np.concatenate([early[1], merged[1]]),
        early[2] + merged[2],
    )


def sorted_blocks(
    q: Floats,
    k: Floats,
    v: Floats,
    block: int,
    samples: int,
    projections: Floats,
    rng: np.random.Generator,
) -> Part:
    """Attention that is not causal: exact within blocks of the sorted order, and keys that are
    sampled for all others."""
    if len(k) <= block + samples:
        scores = q @ k.T
        return _softmax(scores) @ v, _log_sum(scores), float(scores.size)
    queries, keys = (np.argsort(ranks(x, projections), kind="stable") for x in (q, k))
    count = max(1, len(k) // block)
    of_query = np.empty(len(q), np.int64)
    of_query[queries] = np.arange(len(q)) * count // len(q)
    of_key = np.empty(len(k), np.int64)
    of_key[keys] = np.arange(len(k)) * count // len(k)
    same = of_query[:, None] == of_key
    inside = np.where(same, q @ k.T, -np.inf)
    drawn = rng.integers(0, len(k), samples)
    scores = q @ k[drawn].T + math.log(len(k) / samples)
    scores[same[:, drawn]] = -np.inf
    both = np.concatenate([inside, scores], axis=1)
    out = _softmax(both) @ np.concatenate([v, v[drawn]])
    return out, _log_sum(both), float(same.sum()) + len(q) * (samples + PROJECTIONS)


def ranks(x: Floats, projections: Floats) -> Longs:
    """The place of each row's hash in Gray code, where neighbours differ in one bit."""
    bits = (x @ projections > 0).astype(np.int64)
    found: Longs = np.zeros(len(x), np.int64)
    above = np.zeros(len(x), np.int64)
    for bit in bits.T:
        above ^= bit
        found = 2 * found + above
    return found


def combiner(block: int, pooling: str) -> Attention:
    """Combiner with such blocks, by their keys' "max" or "mean"."""

    def attend(q: Floats, k: Floats, v: Floats) -> tuple[Floats, float]:
        blocks = len(k) // block
        whole = k[: blocks * block].reshape(blocks, block, -1)
        values = v[: blocks * block].reshape(blocks, block, -1)
        asked = q[: blocks * block].reshape(blocks, block, -1)
        pool = np.max if pooling == "max" else np.mean
        summaries, asking = pool(whole, axis=1), pool(asked, axis=1)
        weights = _softmax(np.einsum("be,bje->bj", asking, whole))
        summed = np.einsum("bj,bje->be", weights, values)
        own = np.arange(len(q)) // block
        direct = (own[:, None] == own) & np.tril(np.ones((len(q), len(q)), bool))
        scores = np.where(direct, q @ k.T, -np.inf)
        regions = q @ summaries.T + (math.log(block) if pooling == "mean" else 0.0)
        regions[np.arange(blocks) >= own[:, None]] = -np.inf
        both = np.concatenate([scores, regions], axis=1)
        products = float(np.isfinite(both).sum()) + blocks * block
        return _softmax(both) @ np.concatenate([v, summed]), products

    return attend


def _softmax(scores: Floats) -> Floats:
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    found: Floats = e / e.sum(axis=-1, keepdims=True)
    return found


def _log_sum(scores: Floats) -> Floats:
    peak = scores.max(axis=-1, keepdims=True)
    found: Floats = peak[:, 0] + np.log(np.exp(scores - peak).sum(axis=-1))
    return found


def _merge(one: Part, other: Part) -> Part:
    share = 1.0 / (1.0 + np.exp(other[1] - one[1]))
    out = share[:, None] * one[0] + (1 - share)[:, None] * other[0]
    return out, np.logaddexp(one[1], other[1]), one[2] + other[2]


class Model:
    """A model whose attention can be replaced."""

    def __init__(self, name: str, longest: int) -> None:
        self.loaded: LoadedModel = load_model(
            EngineConfig(
                model=name,
                backend="reference",
                max_model_len=longest,
                max_num_seqs=1,
                max_num_batched_tokens=longest,
                kv_cache_memory_bytes=256 << 20,
            )
        )
        planes = self.loaded.backend.allocate(self.loaded.layouts)
        self.executor = self.loaded.backend.bind(self.loaded.program, planes)
        self.state = State(planes, self.loaded.layouts, longest, self.loaded.numerics_id)

    def logits(self, tokens: list[int], attention: Attention | None) -> tuple[Floats, float]:
        """Of every row, and the share of products that a causal attention would have done."""
        view = self.state.new_view()
        places = np.arange(len(tokens), dtype=np.int32)
        self.state.reserve(view, len(tokens))
        step = build_step(
            np.array(tokens, np.int32),
            places,
            np.zeros(len(tokens), np.int32),
            self.state.tables([view]),
            self.state.page_tokens,
            wants_logits=places,
        )
        run = self.executor.begin(step)
        done = whole = 0.0
        for place, op in enumerate(self.loaded.program.ops):
            if attention is None or not isinstance(op, Attend):
                self.executor.run(run, place, place + 1)
                continue
            layout = self.loaded.layouts[op.group]
            stored = self.state.planes.read(op.group, self.state.slots(view, op.group, places))
            of_layer = stored[layout.layers.index(op.layer)]
            keys, values = (
                side.codec.widen(np.ascontiguousarray(side.stored))
                for side in sides(of_layer, layout.spec.planes)
            )
            out = np.empty_like(run.q)  # type: ignore[attr-defined]
            for head in range(op.heads):
                q = run.q[:, head] * np.float32(op.scale)  # type: ignore[attr-defined]
                own = head * op.kv_heads // op.heads
                out[:, head], products = attention(q, keys[:, own], values[:, own])
                done, whole = done + products, whole + len(q) * (len(q) + 1) / 2
            run.a = out.reshape(len(tokens), -1)  # type: ignore[attr-defined]
        logits = self.executor.finish(run).logits
        self.state.release(view)
        return logits, done / whole if whole else 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="lab")
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--items", type=int, default=20)
    parser.add_argument("--block", type=int, default=64)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--exact", type=int, default=256)
    given = parser.parse_args()
    tokenizer = Tokenizer(resolve(given.model))
    model = Model(given.model, given.tokens + 64)
    ways: dict[str, Attention | None] = {
        "full": None,
        "window": windowed(2 * given.block, given.block),
        "HyperAttention": hyper(given.block, given.samples, given.exact),
        "Combiner, max": combiner(given.block, "max"),
        "Combiner, mean": combiner(given.block, "mean"),
    }
    questions = []
    for number in range(given.items):
        item = TASKS["recall"].item(0, number, "test", level=f"tokens={given.tokens}")
        text = tokenizer.apply_chat_template([dict(message) for message in item.messages])
        prompt = tokenizer.encode(text, add_special_tokens=False)
        questions.append((prompt, tokenizer.encode(item.answer, add_special_tokens=False)))
    text = ""
    for number in range(20):
        text += TASKS["code"].item(0, number, "test").text or ""
    passage = tokenizer.encode(text, add_special_tokens=False)[: given.tokens]
    print("| attention | products | recall | perplexity of code |")
    print("|---|---|---|---|")
    for name, attention in ways.items():
        right = 0
        for prompt, answer in questions:
            logits, share = model.logits(prompt + answer, attention)
            foretold = logits[len(prompt) - 1 : -1].argmax(axis=1).tolist()
            right += foretold == answer
        logits, share = model.logits(passage, attention)
        surprise = _log_sum(logits[:-1]) - logits[np.arange(len(passage) - 1), passage[1:]]
        perplexity = math.exp(float(surprise[len(passage) // 2 :].mean()))
        print(f"| {name} | {share:.0%} | {right / len(questions):.0%} | {perplexity:.2f} |")


if __name__ == "__main__":
    main()
