"""How hidden states become one vector: the pooling rule of a model of embeddings, and the heads of
sequence classifiers.

A directory that sentence-transformers wrote says it in `modules.json` and what that names: the
transformer, a pooling, perhaps dense layers, perhaps a normalisation. Other checkpoints have their
architecture's rule. All of it is untrusted. Nothing here computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ockham.core.errors import ModelError
from ockham.core.numbers import shown
from ockham.model.files.untrusted import read_json, read_object

How = Literal["cls", "mean", "mean_sqrt_len", "weighted_mean", "max", "last"]
"""Of the n hidden states of a text: the first; the mean; the sum over sqrt(n); the mean with
weights 1 ... n; the largest of each element; the last."""

MODULES_FILE = "modules.json"
POOLING_FILES = (
    *(MODULES_FILE, "sentence_bert_config.json", "config_sentence_transformers.json"),
    *("[1-9]_*/config.json", "[1-9]_*/model.safetensors"),
)
"""What stands beside the weights in a directory of sentence-transformers, as patterns."""

MOST_SIZE = 1 << 20
MOST_MODULES = 16
MOST_PROMPTS = 1000
MOST_LABELS = 1 << 16

ACTIVATIONS = {
    "Identity": "identity",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "SiLU": "silu",
    "Sigmoid": "sigmoid",
}
"""PyTorch's name of an activation -> that of `kernels.ops.dense`."""

_MODES: dict[str, How] = {
    "cls_token": "cls",
    "max_tokens": "max",
    "mean_tokens": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean_tokens": "weighted_mean",
    "lasttoken": "last",
}
_NAMED_MODES: dict[str, How] = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len": "mean_sqrt_len",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """norm(act(weight x + bias)) of a pooled hidden state, by the names of its tensors.

    `name` is the tensors' without `.weight` and `.bias`; those of sentence-transformers' folders
    begin with the folder's name and a slash. `norm` names a LayerNorm; `own` says that the names
    stand behind the prefix of the model's own. With `rows` the weight is those rows of the model's
    head."""

    name: str
    inputs: int
    outputs: int
    bias: bool
    activation: str = "identity"
    norm: str | None = None
    own: bool = False
    rows: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PairFrame:
    """How a decoder that ranks is shown a pair: `before`, then `body` with `{instruction}`,
    `{query}` and `{document}`, then `behind`. `instruction` stands where a caller gives none."""

    before: str
    body: str
    behind: str
    instruction: str


@dataclass(frozen=True, slots=True)
class PoolingDescription:
    """From the hidden states of a text to what a caller is given: pooled, then multiplied with the
    dense layers in order, then divided by its length where `normalise`.

    `include_prompt` says whether the tokens of a prompt count where tokens are averaged. Of a
    classifier the result is logits, which `labels` name in order, and `score` is the activation
    that makes scores of them ("identity", "sigmoid"), None where the checkpoint does not say.
    The score is the probability of the label number `score_label`, where there is one.
    `pair_frame` is how a decoder is shown a pair of texts; None for the tokenizer's own way.
    `prompts` are texts that stand before an input, by the name of the task. `max_tokens` is how
    much of a text the model was made to see, None for its whole context; `lower_case` that texts
    are lower-cased first."""

    how: How
    normalise: bool = False
    dense: tuple[DenseLayer, ...] = ()
    include_prompt: bool = True
    classifies: bool = False
    labels: tuple[str, ...] = ()
    score: str | None = None
    score_label: int | None = None
    pair_frame: PairFrame | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    similarity: str | None = None
    max_tokens: int | None = None
    lower_case: bool = False

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders whose weights the dense layers have."""
        return tuple(
            layer.name.partition("/")[0] for layer in self.dense if layer.name.find("/") > 0
        )


def read_pooling(directory: Path, hidden_size: int) -> PoolingDescription | None:
    """What a directory of sentence-transformers says; None for one that has no `modules.json`.

    Raises ModelError for what is damaged, contradictory or not supported."""
    path = directory / MODULES_FILE
    if not path.exists():
        return None
    modules = read_json(path)
    if (
        not isinstance(modules, list)
        or len(modules) > MOST_MODULES
        or not all(isinstance(module, dict) for module in modules)
    ):
        raise ModelError(f"{path} is no list of at most {MOST_MODULES} modules.")
    how: How | None = None
    include_prompt, normalise, width = True, False, hidden_size
    dense: list[DenseLayer] = []
    for place, module in enumerate(modules):
        kind = str(module.get("type")).rpartition(".")[2]
        folder = module.get("path")
        if kind == "Transformer" and place == 0:
            if folder not in ("", None, "."):
                raise ModelError(
                    f"{path} has its transformer in the folder {shown(folder)}, which is not "
                    "supported; move its files beside modules.json."
                )
        elif kind == "Pooling" and how is None and place > 0:
            how, include_prompt = _pooling(_folder(path, folder), width)
        elif kind == "Dense" and how is not None and not normalise:
            dense.append(_dense(_folder(path, folder), width))
            width = dense[-1].outputs
        elif kind == "Normalize" and how is not None:
            normalise = True
        elif kind != "Dropout":  # which does nothing to a model in use
            raise ModelError(
                f"{path} has the module {shown(module.get('type'))} in place {place + 1}, which is "
                "not supported: a transformer, a pooling, dense layers and a normalisation are, in "
                "this order."
            )
    if how is None:
        raise ModelError(f"{path} names no pooling.")
    return PoolingDescription(
        how, normalise, tuple(dense), include_prompt, **_texts(directory), **_limits(directory)
    )


def _folder(modules: Path, folder: Any) -> Path:
    if not isinstance(folder, str) or Path(folder).name != folder or folder in ("", "..", "."):
        raise ModelError(f"{modules} names {shown(folder)}, which is no folder beside it.")
    return modules.parent / folder


def _object(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from None


def _pooling(folder: Path, width: int) -> tuple[How, bool]:
    """The rule of a Pooling module, and whether prompts count."""
    path = folder / "config.json"
    config = _object(path)
    named = config.get("pooling_mode")
    if isinstance(named, str) and named in _NAMED_MODES:
        chosen = [_NAMED_MODES[named]]
    else:
        chosen = [how for name, how in _MODES.items() if config.get(f"pooling_mode_{name}") is True]
    if len(chosen) != 1:
        raise ModelError(
            f"{path} chooses {len(chosen)} known ways to pool; exactly one of "
            f"{', '.join(f'pooling_mode_{name}' for name in _MODES)} is supported."
        )
    size = config.get("word_embedding_dimension", config.get("embedding_dimension", width))
    if size != width:
        raise ModelError(
            f"{path} pools hidden states of {shown(size)} elements, but the model's have {width}."
        )
    return chosen[0], config.get("include_prompt") is not False


def _dense(folder: Path, width: int) -> DenseLayer:
    path = folder / "config.json"
    config = _object(path)
    sizes = [config.get(key) for key in ("in_features", "out_features")]
    if not all(type(size) is int and 0 < size <= MOST_SIZE for size in sizes):
        raise ModelError(f"{path} has the sizes {shown(sizes)}; they must be positive integers.")
    inputs, outputs = (int(size) for size in sizes if size is not None)
    if inputs != width:
        raise ModelError(f"{path} reads {inputs} elements, but is given {width}.")
    stated = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    return DenseLayer(
        f"{folder.name}/linear",
        inputs,
        outputs,
        bias=config.get("bias", True) is not False,
        activation=_activation(stated, path),
    )


def _activation(stated: Any, path: Path) -> str:
    """Named by its class, in whatever module."""
    name = str(stated).rpartition(".")[2].partition("(")[0]
    if name not in ACTIVATIONS:
        raise ModelError(
            f"{path} has the activation {shown(stated)}; supported are {', '.join(ACTIVATIONS)}."
        )
    return ACTIVATIONS[name]


def _texts(directory: Path) -> dict[str, Any]:
    path = directory / "config_sentence_transformers.json"
    if not path.exists():
        return {}
    config = _object(path)
    prompts = config.get("prompts") or {}
    if (
        not isinstance(prompts, dict)
        or len(prompts) > MOST_PROMPTS
        or not all(isinstance(text, str) for text in prompts.values())
    ):
        raise ModelError(f"prompts of {path} must be at most {MOST_PROMPTS} texts by their names.")
    default = config.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise ModelError(f"{path} has no prompt {shown(default)}, which it names as the default.")
    similarity = config.get("similarity_fn_name")
    return {
        "prompts": dict(prompts),
        "default_prompt": default,
        "similarity": similarity if isinstance(similarity, str) else None,
    }


def _limits(directory: Path) -> dict[str, Any]:
    path = directory / "sentence_bert_config.json"
    if not path.exists():
        return {}
    config = _object(path)
    most = config.get("max_seq_length")
    if most is not None and (type(most) is not int or most < 1):
        raise ModelError(f"max_seq_length of {path} must be a positive integer, not {shown(most)}.")
    return {"max_tokens": most, "lower_case": config.get("do_lower_case") is True}


def classifier_labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a classifier's outputs, in order: `id2label` of config.json, or `num_labels`
    numbered ones, two where nothing is said, as transformers has it."""
    named = config.get("id2label")
    if named is None:
        count = config.get("num_labels", 2)
        if type(count) is not int or not 0 < count <= MOST_LABELS:
            raise ModelError(f"num_labels of config.json must be positive, not {shown(count)}.")
        return tuple(f"LABEL_{number}" for number in range(count))
    if not isinstance(named, dict) or not 0 < len(named) <= MOST_LABELS:
        raise ModelError("id2label of config.json must be an object that names every output.")
    labels = [named.get(str(number)) for number in range(len(named))]
    if not all(isinstance(label, str) for label in labels):
        raise ModelError(
            f"id2label of config.json must name the outputs 0 to {len(named) - 1}, each by a text."
        )
    return tuple(str(label) for label in labels)


def classifier_score(config: Mapping[str, Any]) -> str | None:
    """The activation that makes scores of a cross-encoder's logits, where config.json says it."""
    settings = config.get("sentence_transformers")
    stated = settings.get("activation_fn") if isinstance(settings, dict) else None
    stated = stated or config.get("sbert_ce_default_activation_function")
    return None if stated is None else _activation(stated, Path("config.json"))
