"""What a loaded model is for: to generate text, or to make vectors, classes or scores of texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, ModelError
from ockham.model.files.untrusted import read_object
from ockham.model.program.description import ModelDescription
from ockham.model.program.pooling import DenseLayer, PairFrame, PoolingDescription


@dataclass(frozen=True, slots=True)
class Judge:
    """How a model that generates ranks: by whether its next token is `yes` rather than `no`."""

    yes: str
    no: str
    frame: PairFrame


JUDGES: Mapping[str, Judge] = {
    "Qwen3ForCausalLM": Judge(
        "yes",
        "no",
        PairFrame(
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the "
            'Query and the Instruct provided. Note that the answer can only be "yes" or "no".'
            "<|im_end|>\n<|im_start|>user\n",
            "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}",
            "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
            "Given a web search query, retrieve relevant passages that answer the query",
        ),
    ),
}
"""By architecture: Qwen3-Reranker as its model card runs it."""

CLASSIFIERS: Mapping[str, PairFrame] = {
    "Qwen3ForSequenceClassification": JUDGES["Qwen3ForCausalLM"].frame,
}
"""How decoders with the head of a classifier are shown a pair: they are rerankers that were
converted."""

IN_PARTS = (
    *("keep", "attention_pattern", "gate", "search", "adapter", "kv_store", "reuse"),
    *("speculative_config", "guard"),
)
"""Settings that speak of prompts computed in parts, or of tokens to come."""

DECODER_POOLING = PoolingDescription("last", normalise=True)
"""Of a decoder that embeds and whose checkpoint says nothing of it."""


def settle(
    config: EngineConfig, description: ModelDescription, raw: Mapping[str, Any], path: Path
) -> ModelDescription:
    """The description of a model that is loaded for its task: with a pooling if it makes vectors,
    classes or scores, without one if it generates. Raises ConfigError for a task that the
    checkpoint cannot do."""
    task, pooling = config.task, description.pooling
    name = description.architecture.name
    if task == "auto":
        task = _stated(config, description, raw)
    if task == "generate":
        if not description.generates:
            raise ConfigError(
                f"{config.model!r} is a {name}, which has no head to generate text with; leave "
                "task out, or load another model."
            )
        return replace(description, pooling=None)
    if task == "embed":
        if pooling is not None and pooling.classifies:
            raise ConfigError(
                f"{config.model!r} is a {name}, which classifies; leave task out, or load a model "
                "of embeddings."
            )
        return replace(description, pooling=pooling or DECODER_POOLING)
    if pooling is not None and pooling.classifies:
        frame = CLASSIFIERS.get(name)
        return replace(description, pooling=replace(pooling, pair_frame=frame))
    if task == "score" and name in JUDGES:
        return replace(description, pooling=_judging(JUDGES[name], description, path))
    raise ConfigError(
        f"{config.model!r} is a {name} without the head of a classifier, and cannot {task}; leave "
        "task out, or load a model that is made for it."
    )


def _stated(config: EngineConfig, description: ModelDescription, raw: Mapping[str, Any]) -> str:
    """The task that the checkpoint says. Qwen3-Reranker says it by its name alone, and with vLLM's
    key where somebody has added that."""
    if description.pooling is not None:
        return "classify" if description.pooling.classifies else "embed"
    if not description.generates:
        return "embed"
    named = "rerank" in Path(config.model).name.lower()
    if description.architecture.name in JUDGES and (named or raw.get("classifier_from_token")):
        return "score"
    return "generate"


def _judging(judge: Judge, description: ModelDescription, path: Path) -> PoolingDescription:
    """The last token's logits of "no" and of "yes", of which the second's probability counts."""
    rows = _token(path, judge.no), _token(path, judge.yes)
    dense = DenseLayer("head", description.hidden_size, len(rows), bias=False, rows=rows)
    return PoolingDescription(
        "last",
        dense=(dense,),
        classifies=True,
        labels=(judge.no, judge.yes),
        score_label=1,
        pair_frame=judge.frame,
    )


def _token(path: Path, token: str) -> int:
    """The id of an entry of the vocabulary of tokenizer.json."""
    file = path / "tokenizer.json"
    try:
        vocabulary = (read_object(file).get("model") or {}).get("vocab")
    except OSError:
        vocabulary = None
    found = vocabulary.get(token) if isinstance(vocabulary, dict) else None
    if type(found) is not int or found < 0:
        raise ModelError(
            f"a model that ranks by its next token needs the token {token!r}, and {file} has none; "
            "give task='generate', or load another model."
        )
    return found


def check_whole(config: EngineConfig) -> None:
    """Raise ConfigError for a setting that means nothing to a model of which each text is computed
    whole, in one step."""
    plain = EngineConfig()
    for name in IN_PARTS:
        value = getattr(config, name)
        if value not in (getattr(plain, name), "none"):
            raise ConfigError(
                f"{name} is {value!r}, but {config.model!r} is an encoder, which computes each "
                f"text whole and keeps nothing of it; leave {name} out."
            )
