"""A tiny configuration or several of every encoder and classifier, for transformers to make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from ockham.core.arrays import Floats
from ockham.model.loading import LoadedModel
from tests.helpers.oracle import VOCABULARY, load, randomise
from tests.helpers.steps import Part, Stepper

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "max_position_embeddings": 96,
    "pad_token_id": 1,
    "num_labels": 3,
}
DISTIL = {
    "vocab_size": VOCABULARY,
    "dim": 48,
    "hidden_dim": 40,
    "n_layers": 3,
    "n_heads": 3,
    "max_position_embeddings": 96,
    "num_labels": 3,
}
DECODER = {"num_key_value_heads": 1, "head_dim": 16}


@dataclass(frozen=True)
class Case:
    """`<family>Config(**common, **values)` and a class of models of it."""

    model: str
    family: str
    values: dict[str, Any] = field(default_factory=dict)
    common: dict[str, Any] = field(default_factory=lambda: COMMON)

    def save(self, directory: Path, seed: int = 0) -> Any:
        """The transformers model, in fp32, with random weights; also saved."""
        config = getattr(transformers, f"{self.family}Config")(**{**self.common, **self.values})
        torch.manual_seed(seed)
        model = getattr(transformers, self.model)._from_config(config, attn_implementation="eager")
        model = randomise(model.float().eval(), seed)
        model.save_pretrained(directory)
        return model


ENCODERS = {
    "bert": Case("BertModel", "Bert"),
    "bert-masked": Case("BertForMaskedLM", "Bert", {"hidden_act": "gelu_new"}),
    "roberta": Case("RobertaModel", "Roberta"),
    "xlm-roberta": Case("XLMRobertaModel", "XLMRoberta", {"type_vocab_size": 1}),
    "distilbert": Case("DistilBertModel", "DistilBert", common=DISTIL),
    "modernbert": Case(
        "ModernBertModel",
        "ModernBert",
        {"local_attention": 10, "num_hidden_layers": 4, "eos_token_id": 2, "bos_token_id": 3}
        | {"cls_token_id": 3, "sep_token_id": 2},
    ),
    "modernbert-biased": Case(
        "ModernBertModel",
        "ModernBert",
        {"local_attention": 7, "norm_bias": True, "attention_bias": True, "mlp_bias": True}
        | {"eos_token_id": 2, "bos_token_id": 3, "cls_token_id": 3, "sep_token_id": 2},
    ),
    "embedding-gemma": Case(
        "Gemma3TextModel",
        "Gemma3Text",
        {
            **DECODER,
            "use_bidirectional_attention": True,
            "sliding_window": 12,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "query_pre_attn_scalar": 20,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "llama": Case("LlamaModel", "Llama", DECODER),
    "qwen3": Case("Qwen3Model", "Qwen3", DECODER),
}
CLASSIFIERS = {
    "bert": Case("BertForSequenceClassification", "Bert"),
    "roberta": Case("RobertaForSequenceClassification", "Roberta"),
    "xlm-roberta": Case("XLMRobertaForSequenceClassification", "XLMRoberta", {"num_labels": 1}),
    "distilbert": Case("DistilBertForSequenceClassification", "DistilBert", common=DISTIL),
    **{
        f"modernbert-{pooling}": Case(
            "ModernBertForSequenceClassification",
            "ModernBert",
            {"classifier_pooling": pooling, "classifier_bias": pooling == "mean"}
            | {"eos_token_id": 2, "bos_token_id": 3, "cls_token_id": 3, "sep_token_id": 2},
        )
        for pooling in ("cls", "mean")
    },
    "llama": Case("LlamaForSequenceClassification", "Llama", DECODER),
    "qwen3": Case("Qwen3ForSequenceClassification", "Qwen3", {**DECODER, "num_labels": 1}),
}


def texts(longest: int = 61) -> list[list[int]]:
    """A ragged batch of token ids, none of them padding."""
    rng = np.random.default_rng(0)
    return [rng.integers(3, VOCABULARY, n).tolist() for n in (longest, 1, 17, 8, longest // 2)]


def load_encoder(directory: Path, **settings: Any) -> LoadedModel:
    """Load a checkpoint in fp32, with room for all of `texts()` in a step."""
    return load(directory, head=False, max_num_batched_tokens=256, **settings)


def hidden_states(
    model: LoadedModel, batch: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None = None
) -> list[Floats]:
    """The hidden states after the final norm of texts in one step: (T, hidden) each."""
    stepper = Stepper(model)
    parts = [Part(i, text) for i, text in enumerate(batch)]
    layers, rows = model.description.layers, sum(map(len, batch))
    wants = {layers: np.arange(rows, dtype=np.int32)}
    step = stepper.build(parts, wants_logits=[], wants_hidden=wants)
    if types is not None:
        flat = np.concatenate([np.asarray(each, np.int32) for each in types])
        step.positions += flat * np.int32(model.description.learned_positions)
    run = stepper.executor.begin(step)
    stepper.executor.run(run, 0, len(model.program.ops))
    every = stepper.executor.finish(run).hidden[layers]
    return np.split(every, np.cumsum([len(text) for text in batch])[:-1])


def pooled(model: LoadedModel, states: Floats) -> Floats:
    """What a caller is given of one text's hidden states (T, hidden): (outputs,)."""
    rule = model.description.pooling
    assert rule is not None
    vector = {"cls": states[0], "mean": states.mean(axis=0), "last": states[-1]}[rule.how]
    for dense in model.program.pooled:
        vector = dense(vector[None])[0]
    return vector / np.linalg.norm(vector) if rule.normalise else vector
