"""The operations that a model is compiled to, one file each, with the contract that backends keep.

A program is a short list of operations, run in order over the activations of one step. The model
does no arithmetic of its own: what is not said here is not computed. `operation.py` says what an
operation is. The names below are those that the compiler uses; an operation that is not among them
is imported from its own file.
"""

from ockham.kernels.ops.attend import Attend
from ockham.kernels.ops.attention_input import AttentionInput
from ockham.kernels.ops.attention_output import AttentionOutput
from ockham.kernels.ops.dense import Dense
from ockham.kernels.ops.embed import Embed
from ockham.kernels.ops.experts import Experts
from ockham.kernels.ops.feed_forward import FeedForward
from ockham.kernels.ops.gated_delta import GatedDelta
from ockham.kernels.ops.head import Head
from ockham.kernels.ops.hidden_output import HiddenOutput
from ockham.kernels.ops.hold_stream import HoldStream
from ockham.kernels.ops.latent_input import LatentInput
from ockham.kernels.ops.layer_input_branch import LayerInputBranch
from ockham.kernels.ops.layer_inputs import LayerInputs
from ockham.kernels.ops.linear_attention import LinearAttention
from ockham.kernels.ops.linear_gru import LinearGru
from ockham.kernels.ops.operation import (
    DualChunk,
    Norm,
    Operation,
    Rope,
    StepSizes,
    kernel_of,
)
from ockham.kernels.ops.program import Program, role_of, workspace_bytes
from ockham.kernels.ops.recurse import Recurse
from ockham.kernels.ops.route import Route
from ockham.kernels.ops.scale_stream import ScaleStream
from ockham.kernels.ops.short_convolution import ShortConvolution
from ockham.kernels.ops.state_space import StateSpace

__all__ = [
    "Attend",
    "AttentionInput",
    "AttentionOutput",
    "Dense",
    "DualChunk",
    "Embed",
    "Experts",
    "FeedForward",
    "GatedDelta",
    "Head",
    "HiddenOutput",
    "HoldStream",
    "LatentInput",
    "LayerInputBranch",
    "LayerInputs",
    "LinearAttention",
    "LinearGru",
    "Norm",
    "Operation",
    "Program",
    "Recurse",
    "Rope",
    "Route",
    "ScaleStream",
    "ShortConvolution",
    "StateSpace",
    "StepSizes",
    "kernel_of",
    "role_of",
    "workspace_bytes",
]
