"""Writing a trained model as a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from recipes.lab.model import LabModel, Shape
from recipes.lab.tokenizer import END_OF_TEXT, IM_END, PAD, save_tokenizer, write_json


def config_fields(shape: Shape, tokenizer: Tokenizer) -> dict[str, object]:
    """config.json: all that transformers reads of a Llama, or of a Mixtral; or all that Ockham
    reads of a recursive model."""
    if shape.experts:
        own = {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "num_local_experts": shape.experts,
            "num_experts_per_tok": shape.experts_per_token,
            "sliding_window": None,
            "output_router_logits": False,
        }
    else:
        own = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "rope_scaling": None,
            "attention_bias": False,
            "mlp_bias": False,
            "pretraining_tp": 1,
        }
    if shape.passes > 1:
        own |= {
            "architectures": ["RecursiveLlamaForCausalLM"],
            "model_type": "recursive_llama",
            "num_recursions": shape.passes,
        }
    return {
        **own,
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.context_tokens,
        "rms_norm_eps": shape.norm_epsilon,
        "rope_theta": shape.rope_theta,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id(END_OF_TEXT),
        "pad_token_id": tokenizer.token_to_id(PAD),
    }


def generation_fields(tokenizer: Tokenizer) -> dict[str, object]:
    """generation_config.json: both ends, of a text and of a turn, and modest sampling."""
    return {
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.95,
        "eos_token_id": [tokenizer.token_to_id(token) for token in (END_OF_TEXT, IM_END)],
        "pad_token_id": tokenizer.token_to_id(PAD),
    }


def export(model: LabModel, tokenizer: Tokenizer, card: str, folder: Path) -> None:
    """Write weights (bfloat16), configuration, tokenizer and model card to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: parameter.detach().to(torch.bfloat16).contiguous()
        for name, parameter in model.named_parameters()
    }
    for name in [name for name in weights if ".routers." in name]:
        weights[name] = weights[name].flatten()  # one output
    path = folder / "model.safetensors"
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors lets only the owner read; a package is read by all
    write_json(folder / "config.json", config_fields(model.shape, tokenizer))
    write_json(folder / "generation_config.json", generation_fields(tokenizer))
    save_tokenizer(tokenizer, folder, model.shape.context_tokens)
    (folder / "README.md").write_text(card)
