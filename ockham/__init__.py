"""Ockham runs language models and never pays twice for the same computation.

What stands here is imported when it is first used, so that `import ockham` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ockham.core.version import __version__

if TYPE_CHECKING:
    from ockham.api.adapters import LoRARequest
    from ockham.api.async_llm import AsyncLLM
    from ockham.api.decisions import Choice, DecisionAnswer, DecisionOutput, Score, YesNo
    from ockham.api.llm import LLM
    from ockham.core.config import EngineConfig
    from ockham.core.errors import (
        ConfigError,
        DoesNotFit,
        EngineDead,
        InvalidRequest,
        ModelError,
        OckhamError,
        Overloaded,
        RequestTimeout,
    )
    from ockham.core.ledger import Ledger
    from ockham.core.outputs import (
        ClassificationOutput,
        CompletionOutput,
        EmbeddingOutput,
        EmbeddingRequestOutput,
        Logprob,
        PooledRequestOutput,
        PoolingOutput,
        RankedDocument,
        RequestOutput,
        ScoreOutput,
        ScoringOutput,
    )
    from ockham.core.pooling import PoolingParams
    from ockham.core.sampling_params import SamplingParams
    from ockham.core.structured_outputs import StructuredOutputsParams
    from ockham.text.marking import ReuseParams

__all__ = [
    "LLM",
    "AsyncLLM",
    "Choice",
    "ClassificationOutput",
    "CompletionOutput",
    "ConfigError",
    "DecisionAnswer",
    "DecisionOutput",
    "DoesNotFit",
    "EmbeddingOutput",
    "EmbeddingRequestOutput",
    "EngineConfig",
    "EngineDead",
    "InvalidRequest",
    "Ledger",
    "LoRARequest",
    "Logprob",
    "ModelError",
    "OckhamError",
    "Overloaded",
    "PooledRequestOutput",
    "PoolingOutput",
    "PoolingParams",
    "RankedDocument",
    "RequestOutput",
    "RequestTimeout",
    "ReuseParams",
    "SamplingParams",
    "Score",
    "ScoreOutput",
    "ScoringOutput",
    "StructuredOutputsParams",
    "YesNo",
    "__version__",
]

_MODULES = {
    "LLM": "ockham.api.llm",
    "AsyncLLM": "ockham.api.async_llm",
    **dict.fromkeys(
        ("Choice", "DecisionAnswer", "DecisionOutput", "Score", "YesNo"), "ockham.api.decisions"
    ),
    "LoRARequest": "ockham.api.adapters",
    "ReuseParams": "ockham.text.marking",
    "EngineConfig": "ockham.core.config",
    "Ledger": "ockham.core.ledger",
    "SamplingParams": "ockham.core.sampling_params",
    "StructuredOutputsParams": "ockham.core.structured_outputs",
    "PoolingParams": "ockham.core.pooling",
    **dict.fromkeys(
        (
            "ClassificationOutput",
            "CompletionOutput",
            "EmbeddingOutput",
            "EmbeddingRequestOutput",
            "Logprob",
            "PooledRequestOutput",
            "PoolingOutput",
            "RankedDocument",
            "RequestOutput",
            "ScoreOutput",
            "ScoringOutput",
        ),
        "ockham.core.outputs",
    ),
    **dict.fromkeys(
        (
            "ConfigError",
            "DoesNotFit",
            "EngineDead",
            "InvalidRequest",
            "ModelError",
            "OckhamError",
            "Overloaded",
            "RequestTimeout",
        ),
        "ockham.core.errors",
    ),
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'ockham' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
