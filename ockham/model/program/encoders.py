"""Encoders, and models of embeddings and classifiers that are made of decoders, as data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ockham.model.program.decoders import DECODERS
from ockham.model.program.record import Architecture, PooledRecord, no_layer

_BUFFERS = ("embeddings.position_ids",)

_BERT = Architecture(
    "BertModel",
    prefixes=("", "bert."),
    table="embeddings.word_embeddings",
    layers="encoder.layer.",
    heads=(),
    keys={"rms_norm_eps": "layer_norm_eps"},
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    attention_output="attention.output.dense",
    gate_up=("intermediate.dense",),
    down="output.dense",
    gated=False,
    attention_norm=None,
    attention_stream_norm="attention.output.LayerNorm",
    mlp_norm=None,
    mlp_stream_norm="output.LayerNorm",
    final_norm=None,
    norm_kind="layer",
    norm_bias=True,
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
    positions="embeddings.position_embeddings",
    types="embeddings.token_type_embeddings",
    embedding_norm="embeddings.LayerNorm",
    rotates=no_layer,
    causal=False,
    pooling="mean",
    defaults={
        "vocab_size": 30522,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_act": "gelu",
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    },
    unused=(*_BUFFERS, "pooler.", "cls.", "lm_head."),
)
_BERT_HEAD = (
    PooledRecord("pooler.dense", own=True, activation="tanh"),
    PooledRecord("classifier", labelled=True),
)
_ROBERTA = replace(
    _BERT,
    name="RobertaModel",
    prefixes=("", "roberta."),
    positions_after="pad_token_id",
    defaults={**_BERT.defaults, "vocab_size": 50265, "pad_token_id": 1, "eos_token_id": 2},
)
_ROBERTA_HEAD = (
    PooledRecord("classifier.dense", activation="tanh"),
    PooledRecord("classifier.out_proj", labelled=True),
)
_DISTILBERT = replace(
    _BERT,
    name="DistilBertModel",
    prefixes=("", "distilbert."),
    layers="transformer.layer.",
    keys={
        "hidden_size": "dim",
        "intermediate_size": "hidden_dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
    },
    qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    attention_output="attention.out_lin",
    gate_up=("ffn.lin1",),
    down="ffn.lin2",
    attention_stream_norm="sa_layer_norm",
    mlp_stream_norm="output_layer_norm",
    types=None,
    activation="activation",
    defaults={
        "vocab_size": 30522,
        "dim": 768,
        "hidden_dim": 3072,
        "n_layers": 6,
        "n_heads": 12,
        "activation": "gelu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-12,
    },
    unused=(*_BUFFERS, "vocab_"),
)
_DISTILBERT_HEAD = (
    PooledRecord("pre_classifier", activation="relu"),
    PooledRecord("classifier", labelled=True),
)


def all_but_every_nth_layer_from_the_first(config: Any, layer: int) -> bool:
    """ModernBERT: the first of every `global_attn_every_n_layers` layers sees everything."""
    return layer % int(config["global_attn_every_n_layers"]) != 0


_MODERNBERT = Architecture(
    "ModernBertModel",
    prefixes=("", "model."),
    table="embeddings.tok_embeddings",
    heads=(),
    keys={
        "rms_norm_eps": "norm_eps",
        "sliding_window": "local_attention",
        "rope_theta": "global_rope_theta",
    },
    qkv=("attn.Wqkv",),
    attention_output="attn.Wo",
    gate_up=("mlp.Wi",),
    down="mlp.Wo",
    attention_norm="attn_norm",
    first_attention_norm=False,
    mlp_norm="mlp_norm",
    final_norm="final_norm",
    norm_kind="layer",
    norm_bias="norm_bias",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    mlp_bias="mlp_bias",
    activation="hidden_activation",
    embedding_norm="embeddings.norm",
    layer_types=True,
    slides=all_but_every_nth_layer_from_the_first,
    local_theta="local_rope_theta",
    causal=False,
    pooling="mean",
    defaults={
        "vocab_size": 50368,
        "hidden_size": 768,
        "intermediate_size": 1152,
        "num_hidden_layers": 22,
        "num_attention_heads": 12,
        "hidden_activation": "gelu",
        "max_position_embeddings": 8192,
        "norm_eps": 1e-5,
        "norm_bias": False,
        "local_attention": 128,
        "global_attn_every_n_layers": 3,
        "global_rope_theta": 160_000.0,
        "local_rope_theta": 10_000.0,
        "classifier_pooling": "cls",
        "classifier_bias": False,
        "classifier_activation": "gelu",
    },
    unused=("head.", "decoder."),
)
_MODERNBERT_HEAD = (
    PooledRecord(
        "head.dense",
        activation_key="classifier_activation",
        bias="classifier_bias",
        norm="head.norm",
    ),
    PooledRecord("classifier", labelled=True),
)
_SCORE = (PooledRecord("score", labelled=True, bias=False),)
"""What a decoder that classifies multiplies the last hidden state with."""


def _classifier(encoder: Architecture, name: str, head: tuple[PooledRecord, ...]) -> Architecture:
    """An encoder with a head that reads its first hidden state, unless a key says otherwise."""
    key = "classifier_pooling" if "classifier_pooling" in encoder.defaults else None
    return replace(encoder, name=name, pooled=head, pooling="cls", pooling_key=key, unused=_BUFFERS)


def _of_decoder(family: str) -> tuple[Architecture, ...]:
    """A decoder without a head over its vocabulary: alone, and with a classifier's."""
    decoder = replace(DECODERS[f"{family}ForCausalLM"], heads=(), unused=("lm_head.",))
    model = replace(decoder, name=f"{family}Model", prefixes=("", "model."))
    name = f"{family}ForSequenceClassification"
    return model, replace(decoder, name=name, pooling="last", pooled=_SCORE)


ENCODERS: dict[str, Architecture] = {
    record.name: record
    for record in (
        _BERT,
        replace(_BERT, name="BertForMaskedLM"),
        _classifier(_BERT, "BertForSequenceClassification", _BERT_HEAD),
        _ROBERTA,
        replace(_ROBERTA, name="RobertaForMaskedLM"),
        _classifier(_ROBERTA, "RobertaForSequenceClassification", _ROBERTA_HEAD),
        replace(_ROBERTA, name="XLMRobertaModel"),
        replace(_ROBERTA, name="XLMRobertaForMaskedLM"),
        _classifier(_ROBERTA, "XLMRobertaForSequenceClassification", _ROBERTA_HEAD),
        _DISTILBERT,
        _classifier(_DISTILBERT, "DistilBertForSequenceClassification", _DISTILBERT_HEAD),
        _MODERNBERT,
        replace(_MODERNBERT, name="ModernBertForMaskedLM"),
        _classifier(_MODERNBERT, "ModernBertForSequenceClassification", _MODERNBERT_HEAD),
        *_of_decoder("Llama"),
        *_of_decoder("Mistral"),
        *_of_decoder("Qwen2"),
        *_of_decoder("Qwen3"),
        replace(
            DECODERS["Gemma3ForCausalLM"],
            name="Gemma3TextModel",
            prefixes=("", "model."),
            heads=(),
            bidirectional_switch="use_bidirectional_attention",
            pooling="mean",
        ),
    )
}
"""By the name that config.json gives under `architectures`."""
