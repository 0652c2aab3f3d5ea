"""What is compared: ways to read a long prompt, and to decode after it, of two engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.long.workloads import Workload
from benchmarks.peers.peers import OCKHAM
from benchmarks.peers.peers import Configuration as Converted

OPENVINO = "openvino"
CONVERTED = {
    OCKHAM: Converted(OCKHAM, "int8", 8, 8.25),
    OPENVINO: Converted(OPENVINO, "int8", 8, 8),
}
"""The model that each engine has, by the engine's name: weights of 8 bits."""
STEP_TOKENS = 512
"""Of a prompt that both engines read in one step."""
FIRST, LAST = 128, 100
"""Tokens of OpenVINO's TriShape, its defaults: the first ones are read, and the last ones of the
prompt read all. The latest ones before a step, which are read too, fill the budget: with 2,048 they
are the default."""

KINDS = {
    "plain": "Everything is kept and read",
    "budget": "A budget of tokens is kept",
    "chosen": "The prompt reads blocks that are chosen by antidiagonal sums",
    "fixed": "The prompt reads its first and latest tokens",
}


@dataclass(frozen=True)
class Configuration:
    """An engine and what it is set to. `baseline`: the name of the same engine's plain one."""

    name: str
    engine: str
    kind: str
    told: str
    settings: Mapping[str, Any]

    @property
    def is_ockham(self) -> bool:
        return self.engine == OCKHAM

    @property
    def baseline(self) -> str:
        return self.engine


def configurations(workload: Workload) -> tuple[Configuration, ...]:
    """All that do a workload; names are the same in every one of them."""
    budget = workload.budget
    recent = budget - FIRST
    # As many keys as `recent` and a step's own tokens are on the average.
    alike_blocks = (recent + STEP_TOKENS // 2) // 64
    return (
        _openvino("", "plain", "`ContinuousBatchingPipeline`", {}),
        _ockham("", "plain", "`--kv-cache-dtype int8`", {}),
        Configuration(
            "ockham-bf16", OCKHAM, "plain", "keys and values in bf16", {"state": "bfloat16"}
        ),
        _openvino(
            "-eviction",
            "budget",
            f"`use_cache_eviction`, {budget:,} tokens",
            {"eviction": {"start": 32, "recent": 128, "most": budget, "window": 8}},
        ),
        _ockham(
            "-snapkv", "budget", f"`snapkv`, {budget:,} tokens", {"snapkv": {"budget": budget}}
        ),
        _ockham(
            "-expected",
            "budget",
            f"`expected`, {budget:,} tokens",
            {"expected": {"budget": budget}},
        ),
        *_chosen(workload),
        _openvino(
            "-trishape",
            "fixed",
            f"`TRISHAPE`, {FIRST} and {recent:,} tokens",
            {
                "sparse": {
                    "mode": "TRISHAPE",
                    "num_retained_start_tokens_in_cache": FIRST,
                    "num_retained_recent_tokens_in_cache": recent,
                    "num_last_dense_tokens_in_prefill": LAST,
                }
            },
        ),
        _ockham(
            "-triangle",
            "fixed",
            "`triangle` (its defaults: half of the layers)",
            {"triangle": True},
        ),
        _ockham(
            "-triangle-alike",
            "fixed",
            "`triangle`, all layers, as many tokens as TRISHAPE",
            {
                "triangle": {
                    "dense_share": 0.0,
                    "sink_blocks": FIRST // 64,
                    "window_blocks": alike_blocks,
                    "last_tokens": LAST,
                }
            },
        ),
    )


def _chosen(workload: Workload) -> tuple[Configuration, ...]:
    """Where attention is near-uniform, a threshold says nothing: a share is imposed. OpenVINO has
    no such setting, and its threshold should then be about the share of the blocks that it visits.
    Where attention says something, a threshold of 1 should leave nothing out."""
    if (share := workload.imposed_share) is not None:
        return (
            _openvino(
                "-xattention",
                "chosen",
                f"`XATTENTION`, threshold {share}",
                {"sparse": {"mode": "XATTENTION", "xattention_threshold": share}},
            ),
            _ockham(
                "-xattention-alike",
                "chosen",
                f"`xattention`, share {share}, stride 8",
                {"xattention": {"threshold": 1.0, "share": share, "stride": 8}},
            ),
        )
    return (
        _openvino(
            "-xattention",
            "chosen",
            "`XATTENTION`, threshold 0.8, stride 8 (its defaults)",
            {"sparse": {"mode": "XATTENTION"}},
        ),
        _openvino(
            "-xattention-all",
            "chosen",
            "`XATTENTION`, threshold 1",
            {"sparse": {"mode": "XATTENTION", "xattention_threshold": 1.0}},
        ),
        _ockham(
            "-xattention",
            "chosen",
            "`xattention` (its defaults: threshold 0.9, stride 16)",
            {"xattention": True},
        ),
        _ockham(
            "-xattention-alike",
            "chosen",
            "`xattention`, threshold 0.8, stride 8",
            {"xattention": {"threshold": 0.8, "stride": 8}},
        ),
    )


def _openvino(suffix: str, kind: str, told: str, settings: Mapping[str, Any]) -> Configuration:
    return Configuration(f"{OPENVINO}{suffix}", OPENVINO, kind, told, settings)


def _ockham(suffix: str, kind: str, told: str, asks: Mapping[str, Any]) -> Configuration:
    return Configuration(
        f"{OCKHAM}{suffix}", OCKHAM, kind, told, {"state": "int8", "asks": dict(asks)}
    )


def trishape_share(tokens: int, budget: int) -> float:
    """The share of the pairs of a query and a key before it that TriShape computes in a prompt of
    so many tokens, by its rule: a step leaves out all keys before it but the first and the latest
    ones, `budget` together, unless fewer than LAST tokens follow it."""
    visited = 0
    for begin in range(0, tokens, STEP_TOKENS):
        end = min(begin + STEP_TOKENS, tokens)
        rows = end - begin
        before = begin if tokens - end < LAST else min(begin, budget)
        visited += rows * before + rows * (rows + 1) // 2
    return visited / (tokens * (tokens + 1) / 2)
