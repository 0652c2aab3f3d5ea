"""The memory plan: what it counts, how it shares the pool out, and what it says when it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ockham.core.arrays import Floats
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, DoesNotFit
from ockham.core.seams import Role
from ockham.core.units import readable
from ockham.model.loading import load_model, plan_model
from ockham.model.machine_memory import available_bytes
from ockham.model.memory import MemoryPlan, plan_memory
from ockham.model.program.compile import compile_program
from ockham.model.program.description import ModelDescription, describe
from ockham.model.program.weights import (
    Part,
    UnloadedLinear,
    VectorPart,
    matrix_shape,
    vector_length,
)
from tests.helpers.tiny import tiny_llama

GIB = 1 << 30
TINYLLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}
GEMMA: dict[str, Any] = {
    **TINYLLAMA,
    "architectures": ["Gemma3ForCausalLM"],
    "num_hidden_layers": 24,
    "head_dim": 64,
    "max_position_embeddings": 32768,
    "sliding_window": 512,
}


class Anything:
    """A checkpoint that has every tensor, in the shape that is asked for, without values."""

    def has(self, name: str) -> bool:
        return True

    def linear(self, parts: Sequence[Part], role: Role) -> UnloadedLinear:
        rows, columns = matrix_shape(parts)
        return UnloadedLinear("bf16", rows, columns, 2 * rows * columns)

    def vector(self, parts: Sequence[VectorPart], offset: float = 0.0) -> Floats:
        return np.zeros(vector_length(parts), np.float32)


def plan(config: dict[str, Any], available: int = 8 * GIB, **settings: Any) -> MemoryPlan:
    description: ModelDescription = describe(config)
    program = compile_program(description, Anything(), description.max_position_embeddings)
    return plan_memory(
        EngineConfig(**settings), description, program, 2 * GIB, "bfloat16", available
    )


def test_the_pool_is_what_is_left_but_no_more_than_can_be_used() -> None:
    cell = 22 * 2 * 4 * 64 * 2
    most = plan(TINYLLAMA, 64 * GIB, max_num_seqs=10)
    assert most.max_model_len == 2048
    assert most.state_bytes == 10 * 2048 * cell
    tight = plan(TINYLLAMA, 3 * GIB, max_num_seqs=64)
    assert tight.total_bytes <= tight.allowed_bytes == int(0.9 * 3 * GIB)
    assert tight.allowed_bytes - tight.total_bytes < 16 * cell  # less than a page is left over
    assert tight.state_bytes == tight.pages[0] * 16 * cell


def test_the_pool_may_be_set() -> None:
    assert plan(TINYLLAMA, kv_cache_memory_bytes=100 << 20).state_bytes <= 100 << 20


def test_the_longest_text_is_the_checkpoints_or_what_the_pool_holds() -> None:
    cell = 22 * 2 * 4 * 64 * 2
    assert plan(TINYLLAMA).max_model_len == 2048
    short = plan(TINYLLAMA, kv_cache_memory_bytes=1000 * cell)
    assert 1000 - 16 < short.max_model_len <= 1000
    assert plan(TINYLLAMA, max_model_len=300).max_model_len == 300


def test_no_group_of_layers_runs_out_before_the_other() -> None:
    """If S sequences fill the full layers' pages, the sliding layers can hold their windows."""
    for available in (4, 6, 12, 40):
        found = plan(GEMMA, available * GIB, max_num_seqs=32, max_num_batched_tokens=256)
        sliding, full = found.pages
        window_pages = (512 + 256 + 2 * 16) // 16
        assert sliding == min(full, 32 * window_pages)
        assert full * 16 >= found.max_model_len
        assert found.total_bytes <= found.allowed_bytes


LFM2: dict[str, Any] = {
    "architectures": ["Lfm2ForCausalLM"],
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "full_attn_idxs": [2, 5, 8, 10, 12, 14],
    "vocab_size": 65536,
}


def test_layers_that_do_not_attend_take_no_more_than_those_that_do() -> None:
    """Beside what running sequences hold: of LFM2-1.2B four pages each."""
    found = plan(LFM2, 8 * GIB, max_num_seqs=4)
    rows, attending = found.layouts(describe(LFM2))
    assert rows.spec.planes[0].nbytes == 4 * 2048
    assert rows.page_bytes * (rows.pages - 4 * 4) <= attending.page_bytes * attending.pages
    assert rows.pages > 4 * 4


def test_layouts_are_what_the_plan_counts() -> None:
    found = plan(GEMMA, 6 * GIB)
    layouts = found.layouts(describe(GEMMA))
    assert sum(layout.pages * layout.page_bytes for layout in layouts) == found.state_bytes


def test_a_length_beyond_the_checkpoints_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"max_model_len is 4096, .* at most 2048 tokens"):
        plan(TINYLLAMA, max_model_len=4096)


def test_a_length_that_does_not_fit_is_refused_with_one_that_would() -> None:
    gemma = {**GEMMA, "max_position_embeddings": 1 << 20}
    with pytest.raises(DoesNotFit, match=r"max_model_len=\d+ would fit") as error:
        plan(gemma, 6 * GIB, max_model_len=1 << 20)
    fits = int(str(error.value).split("max_model_len=")[1].split()[0])
    assert plan(gemma, 6 * GIB, max_model_len=fits).max_model_len == fits
    with pytest.raises(DoesNotFit):
        plan(gemma, 6 * GIB, max_model_len=fits + 64)


def test_a_model_that_does_not_fit_is_refused_with_the_size_that_is_missing() -> None:
    with pytest.raises(DoesNotFit, match=r"weights 2.00 GiB, .* are missing.* smaller dtype"):
        plan(TINYLLAMA, 2 * GIB)


def test_fewer_sequences_are_proposed_where_they_would_fit() -> None:
    vast = {"max_num_seqs": 4096, "max_num_batched_tokens": 8192}
    with pytest.raises(DoesNotFit, match="max_num_seqs=1 with max_num_batched_tokens=64 would fit"):
        plan(TINYLLAMA, int(2.6 * GIB), **vast)


def test_a_share_that_allows_too_little_is_refused_with_one_that_would_do() -> None:
    with pytest.raises(DoesNotFit, match=r"gpu_memory_utilization=0\.1 allows") as error:
        plan(TINYLLAMA, gpu_memory_utilization=0.1)
    share = float(str(error.value).split("too little; ")[1].split()[0])
    assert plan(TINYLLAMA, gpu_memory_utilization=share).max_model_len >= 16
    with pytest.raises(DoesNotFit):
        plan(TINYLLAMA, gpu_memory_utilization=share - 0.002)


def test_a_pool_that_holds_no_page_is_refused() -> None:
    with pytest.raises(DoesNotFit, match=r"grants the state 10 bytes\. Raise .* takes 352\.0 KiB"):
        plan(TINYLLAMA, kv_cache_memory_bytes=10)
    with pytest.raises(DoesNotFit, match=r"are missing\. Lower kv_cache_memory_bytes"):
        plan(TINYLLAMA, kv_cache_memory_bytes=40 * GIB)


def test_the_weights_are_counted_exactly_before_they_are_read(tmp_path: Path) -> None:
    tiny_llama(tmp_path)
    for dtype in ("float32", "bfloat16"):
        config = EngineConfig(model=str(tmp_path), dtype=dtype)
        planned, loaded = plan_model(config), load_model(config)
        arrays: dict[int, int] = {}
        for op in loaded.program.ops:
            for name in type(op).__dataclass_fields__:
                value = getattr(op, name)
                for array in value.arrays.values() if hasattr(value, "arrays") else ():
                    arrays[id(array)] = array.nbytes
                if hasattr(value, "eps"):
                    arrays[id(value)] = value.weight.nbytes
        assert planned.plan.weights_bytes == sum(arrays.values())


def test_the_plan_says_itself_in_words_and_in_numbers() -> None:
    found = plan(TINYLLAMA)
    described = found.describe()
    assert "weights 2.00 GiB, workspace" in described
    assert "as it fills, a KV cache of up to 2.75 GiB" in described
    assert f"at most {readable(found.total_bytes)} of the " in described
    assert found.numbers()["group_0_pages"] == found.pages[0]
    assert all(isinstance(value, int) for value in found.numbers().values())


def machine(root: Path, files: dict[str, str]) -> int:
    """What is available on a machine with these files, and 100 pages of memory."""
    for name, text in {
        "proc/meminfo": "MemTotal: 9999 kB\nMemAvailable: 400 kB\n",
        **files,
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return available_bytes(root)


def test_without_groups_the_machine_decides(tmp_path: Path) -> None:
    assert machine(tmp_path, {}) == 400 * 1024


def test_the_tightest_group_of_version_2_decides(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/outer/inner/"
    outer = "sys/fs/cgroup/outer/"
    found = machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/outer/inner\n",
            group + "memory.max": "max\n",
            group + "memory.current": "5000\n",
            outer + "memory.max": "100000\n",
            outer + "memory.current": "60000\n",
            outer + "memory.stat": "anon 30000\ninactive_file 20000\nactive_file 5000\n",
        },
    )
    assert found == 100000 - (60000 - 25000)


def test_the_tightest_group_of_version_1_decides(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory/job/"
    found = machine(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/job\n1:cpu,cpuacct:/\n0::/\n",
            group + "memory.limit_in_bytes": "70000\n",
            group + "memory.usage_in_bytes": "50000\n",
            group + "memory.stat": "total_inactive_file 10000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "50000\n",
        },
    )
    assert found == 70000 - 40000


def test_a_container_that_sees_only_its_own_group_at_the_root(tmp_path: Path) -> None:
    found = machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/some/path/outside\n",
            "sys/fs/cgroup/memory.max": "80000\n",
            "sys/fs/cgroup/memory.current": "30000\n",
        },
    )
    assert found == 50000


def test_the_limits_of_the_process_count(tmp_path: Path) -> None:
    """`ulimit -v`: what is left is the limit less what is mapped already."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "status").write_text("Name:\tx\nVmSize:\t  1000 kB\n")
    try:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 40, hard))
        assert available_bytes(tmp_path) == (1 << 40) - 1000 * 1024
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
