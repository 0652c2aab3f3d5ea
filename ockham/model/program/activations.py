"""The names of activations in config.json."""

from __future__ import annotations

from ockham.core.errors import ModelError
from ockham.core.numbers import shown
from ockham.model.program.architectures import Architecture
from ockham.model.program.values import Values

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "relu": "relu",
    "relu2": "relu_squared",
}
"""config.json's name of an activation -> the operations' name."""


def read_activation(architecture: Architecture, values: Values) -> str:
    config = values.config
    for key, known in architecture.clamped_swiglu.items():
        if (value := values.number(key, known)) != known:
            raise ModelError(
                f"{values.spelling.of(key)} is {value:g}; only {known:g} is supported."
            )
    if architecture.clamped_swiglu:
        return "clamped_swiglu"
    # Early Gemma 2 configs say "hidden_act" only.
    name = config.get(architecture.activation) or config.get("hidden_act") or "silu"
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ModelError(
            f"the activation {shown(name)} is not supported; supported are "
            f"{', '.join(ACTIVATIONS)}."
        )
    return ACTIVATIONS[name]
