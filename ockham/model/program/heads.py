"""What a model that does not generate makes of its rows, as config.json says it."""

from __future__ import annotations

from typing import Any

from ockham.core.errors import ModelError
from ockham.kernels.ops.dense import POOLED_ACTIVATIONS
from ockham.model.program.activations import ACTIVATIONS
from ockham.model.program.architectures import Architecture
from ockham.model.program.pooling import (
    DenseLayer,
    How,
    PoolingDescription,
    classifier_labels,
    classifier_score,
)
from ockham.model.program.values import Values


def read_pooling(
    architecture: Architecture, values: Values, hidden_size: int
) -> PoolingDescription | None:
    """The architecture's own rule, and the head of a classifier."""
    how = architecture.pooling
    if how is None:
        return None
    config = values.config
    if architecture.pooling_key is not None:
        how = _HOW.get(config[architecture.pooling_key])
    if how is None:
        raise ModelError(
            f"{values.spelling.of(str(architecture.pooling_key))} must be one of {', '.join(_HOW)}."
        )
    if not architecture.pooled:
        return PoolingDescription(how)
    labels = classifier_labels(config)
    layers = []
    for record in architecture.pooled:
        activation = record.activation
        if record.activation_key is not None:
            activation = ACTIVATIONS.get(str(config.get(record.activation_key)), "")
        if activation not in POOLED_ACTIVATIONS:
            raise ModelError(
                f"{values.spelling.of(str(record.activation_key))} is not supported; supported are "
                f"{', '.join(ACTIVATIONS)}."
            )
        outputs = len(labels) if record.labelled else hidden_size
        layers.append(
            DenseLayer(
                record.name,
                hidden_size,
                outputs,
                bias=values.flag(record.bias),
                activation=activation,
                norm=record.norm,
                own=record.own,
            )
        )
    score = classifier_score(config)
    return PoolingDescription(how, dense=tuple(layers), classifies=True, labels=labels, score=score)


_HOW: dict[Any, How] = {"cls": "cls", "mean": "mean"}
"""What `classifier_pooling` may be."""
