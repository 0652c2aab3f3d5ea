"""Everything that a user can set about an engine, under vLLM's names where it has one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from ockham.core.errors import ConfigError
from ockham.core.floors import DEFAULT_FLOORS, parse_floors
from ockham.core.registry import split, techniques
from ockham.core.speculative import Setting, parse
from ockham.core.state_dtype import check_state_dtype

MODEL_TASKS = ("auto", "generate", "embed", "classify", "score")
DTYPES = ("auto", "bfloat16", "float32")
MOST_THREADS = 1024


class EngineConfig(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Settings of one engine.

    `dtype` and `kv_cache_dtype` of "auto" follow the checkpoint (float16 is widened to float32).
    `kv_cache_dtype` is also "int8" or "int4", or "k=int8,v=int4" for keys and values apart.
    `threads` are those of the kernels, all allowed cores by default; they change no bit.
    `max_model_len=None` takes the checkpoint's own limit, or what fits into the memory.
    `rope_scaling` scales the rotary embedding to longer texts than the checkpoint was made for: a
    mapping (or JSON) with the keys of config.json's own (`model.program.rope_scaling`).
    `gpu_memory_utilization` is the share of the memory allowed to this process that weights, state
    and workspace may take together (the name is vLLM's; on a CPU it means RAM);
    `memory_bytes` says the same in bytes, of what is free at most.
    `kv_cache_memory_bytes` sets the state's pool directly. `block_size` is the tokens of a page.
    `checkpoint_tokens` is how many tokens of a prompt come between places from which others may go
    on where layers keep no keys and values; None: so many that what such layers keep there takes no
    more than keys and values do.
    `reuse` names at most one exact reuse and any number of approximate ones, which requests may
    then ask for; options stand behind a name: "prefix,chunk:recompute_fraction=0.2,share=0.3".
    `search` is how completions are found, for requests that do not ask for another way.
    `checkers` are programs that score texts for searches: a mapping (or JSON) of names to command
    lines, or one as "NAME=PROGRAM". A program reads an object with `prompt` and `text` from
    standard input and prints a score from 0 to 1. `rewards` are sequence classifiers with one
    output that score texts for searches, named alike. `probes` are directories that `ockham train
    probe` wrote, named alike. `companions` are other models of the same vocabulary, smaller ones as
    a rule, which write for searches; they are named alike. `run_programs` lets searches run the
    programs that completions are, to compare what they do.
    `pins` is a file that keeps what was pinned, to compute it anew after a restart while there is
    nothing else to do (a server by itself, an `LLM` by `sleep`); None: a restart forgets pins.
    `guard` is the share of the requests with approximate techniques that is scored again by the
    exact model while there is nothing else to do (a server by itself, an `LLM` by `sleep`); 0: none
    is. A technique that is under `guard_floor` is left out of new requests, and tried again after
    `guard_rest_s` seconds.
    `adapter` names the technique by which requests may ask for adapters, with its options; None: no
    request may.
    `weight_cache` is the directory where packed weights are kept from one start to the next, "off"
    for none; None takes $OCKHAM_CACHE or the user's cache directory. `kv_store` is the directory
    where keys and values of prompts are kept across restarts, at most `kv_store_bytes` of them.
    `swap_space` is GiB of memory beside the pool, for state that it has no room for.
    `task` is what the model is for: "generate", "embed", "classify" or "score" (of pairs of texts);
    "auto" is what its checkpoint says.
    `attention_pattern` is which keys a query looks at, of requests that ask for no other pattern.
    `recall_every`: of requests with a pattern, every so many-th token is looked at for how much of
    its attention the pattern leaves out, which the ledger tells; 0: none is.
    `gate` is which parts of the model run, for requests that ask for no other gate.
    `verifier` is when drafted tokens are accepted, for requests that ask for no other way.
    `speculative_config` is a drafter's name, "auto" or "none", or a mapping (or JSON) with vLLM's
    keys (`core.speculative.SpeculativeConfig`). `chat_template` is a file with a Jinja template
    that is taken instead of the checkpoint's own. `generation_config` is "auto" for the sampling
    defaults of the checkpoint, "vllm" for neutral ones, or a directory whose generation_config.json
    is taken. `enable_in_reasoning`: structured outputs of chats hold for the thought as well, and
    do not begin at its end.
    """

    tries: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "kv_cache_dtype": ("int8", "k=int8,v=int4", "int4"),
        "max_num_batched_tokens": (64, 128, 256, 1024),
        "max_num_seqs": (4, 8, 16, 32),
    }
    """Values of settings that name no technique which a planner tries."""
    decide_bits: ClassVar[tuple[str, ...]] = (
        *("model", "dtype", "quantization", "kv_cache_dtype", "rope_scaling", "backend"),
    )
    """Settings that are part of the numerics id: another value is another model."""

    model: str = "lab"
    task: str = "auto"
    tokenizer: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    backend: str = "auto"
    threads: int | None = None
    max_model_len: int | None = None
    rope_scaling: str | dict[str, Any] | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    gpu_memory_utilization: float = 0.9
    memory_bytes: int | None = None
    kv_cache_memory_bytes: int | None = None
    block_size: int = 16
    checkpoint_tokens: int | None = None
    weight_cache: str | None = None
    weight_cache_bytes: int = 20 << 30
    kv_store: str | None = None
    kv_store_bytes: int = 10 << 30
    swap_space: float = 0.0
    scheduling_policy: str = "lpm"
    reuse: str = "prefix"
    enable_prefix_caching: bool = True
    keep: str = "all"
    attention_pattern: str = "full"
    recall_every: int = 0
    search: str = "choices"
    checkers: str | dict[str, str] | None = None
    rewards: str | dict[str, str] | None = None
    probes: str | dict[str, str] | None = None
    run_programs: bool = False
    companions: str | dict[str, str] | None = None
    pins: str | None = None
    gate: str = "whole"
    adapter: str | None = None
    speculative_config: Setting = "auto"
    verifier: str = "exact_match"
    guard: float = 0.0
    guard_floor: str = DEFAULT_FLOORS
    guard_rest_s: float = 3600.0
    seed: int = 0
    skip_tokenizer_init: bool = False
    trust_remote_code: bool = False
    chat_template: str | None = None
    generation_config: str = "auto"
    enable_in_reasoning: bool = False

    @property
    def reuse_techniques(self) -> list[str]:
        """The names of the reuses, with their options: `enable_prefix_caching=False` is vLLM's way
        to leave `prefix` out."""
        named = split(self.reuse)
        return [name for name in named if self.enable_prefix_caching or name != "prefix"]

    @property
    def swap_bytes(self) -> int:
        return int(self.swap_space * (1 << 30))

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise ConfigError("the name of the model is empty; name a model.")
        parse(self.speculative_config)
        if self.task not in MODEL_TASKS:
            raise ConfigError(f"task must be one of {', '.join(MODEL_TASKS)}, got {self.task!r}.")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}.")
        check_state_dtype(self.kv_cache_dtype)
        for name in (
            *("max_num_seqs", "max_num_batched_tokens", "block_size", "max_model_len"),
            "checkpoint_tokens",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}.")
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise ConfigError(f"threads must lie in [1, {MOST_THREADS}], got {self.threads}.")
        if self.recall_every < 0:
            raise ConfigError(f"recall_every must not be negative, got {self.recall_every}.")
        if not 0.0 < self.gpu_memory_utilization <= 1.0:
            raise ConfigError(
                f"gpu_memory_utilization must lie in (0, 1], got {self.gpu_memory_utilization}."
            )
        for name in ("memory_bytes", "kv_cache_memory_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be positive, got {value}.")
        if self.kv_store_bytes < 1:
            raise ConfigError(f"kv_store_bytes must be positive, got {self.kv_store_bytes}.")
        if not 0.0 <= self.guard <= 1.0:
            raise ConfigError(
                f"guard is a share of the requests, from 0 for none to 1, got {self.guard}."
            )
        parse_floors(self.guard_floor)
        if not 0.0 < self.guard_rest_s < math.inf:
            raise ConfigError(f"guard_rest_s must be positive, got {self.guard_rest_s}.")
        if not 0.0 <= self.swap_space < math.inf:
            raise ConfigError(f"swap_space is GiB and not negative, got {self.swap_space}.")
        if self.weight_cache_bytes < 0:
            raise ConfigError(
                f"weight_cache_bytes must not be negative, got {self.weight_cache_bytes}."
            )
        stated = None if self.dtype == "auto" else _stated_dtype(self.quantization)
        if stated is not None and self.dtype != stated:
            raise ConfigError(
                f"dtype {self.dtype!r} contradicts quantization {self.quantization!r}, which holds "
                f"weights in {stated}; leave one of them out."
            )
        if self.block_size & (self.block_size - 1):
            raise ConfigError(f"block_size must be a power of two, got {self.block_size}.")
        if self.trust_remote_code:
            raise ConfigError(
                "trust_remote_code is not supported: Ockham never runs code from a checkpoint. "
                "Leave it out; `ockham models` lists the architectures that are known."
            )


def _stated_dtype(quantization: str | None) -> str | None:
    """The dtype that a quantization of unquantised weights states by itself."""
    if quantization is None:
        return None
    stated: dict[str, str | None] = {t.name: t.cls.dtype for t in techniques("format")}  # type: ignore[attr-defined]
    return stated.get(quantization)
