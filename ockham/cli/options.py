"""Flags: how they are spelled, and where their values may come from.

Every flag `--some-name` also has the environment variable `OCKHAM_SOME_NAME` and the key
`some-name` in the file of `--config`. A flag goes before the environment, the environment before
the file, the file before the default. Flags of the engine and of sampling are generated from the
fields of `EngineConfig` and `SamplingParams`, so that a new field is a new flag.
"""

from __future__ import annotations

import functools
import json
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from ockham.api.aliases import own_names
from ockham.cli.adapter_options import SECTION, adapter_options, with_adapter_setting
from ockham.cli.command import OTHER, Option
from ockham.cli.config_file import read_config
from ockham.cli.default_model import NAMED, TOY
from ockham.cli.neutral import neutral_options
from ockham.cli.value_types import (
    Dtype,
    Integer,
    Json,
    LogitBias,
    ModelName,
    Quantization,
    StateDtype,
    Text,
    TextOrMapping,
    TokenIds,
    quantizations,
)
from ockham.core.config import DTYPES, EngineConfig
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.registry import asked_by
from ockham.core.sampling_params import SamplingParams

F = TypeVar("F", bound=Callable[..., Any])


def _quantization_help() -> str:
    return (
        f"Weight format: {', '.join(quantizations())}. With ':' and a number, so many "
        "inputs share a scale, and fewer matrices take more bits. By default, or as 'stored', "
        "what the checkpoint has."
    )


_ENGINE_HELP: dict[str, str | Callable[[], str]] = {
    "task": "What the model is for: generate, embed, classify or score (pairs of texts); 'auto' is "
    "what its checkpoint says.",
    "tokenizer": "Directory or hub name of the tokenizer; the model's own by default.",
    "revision": "Branch, tag or commit of a model on the hub.",
    "dtype": "Precision of the weights and activations; 'auto' follows the checkpoint.",
    "quantization": _quantization_help,
    "kv_cache_dtype": "Precision in which keys and values are kept: bfloat16, float32, int8 or "
    "int4, or keys and values apart, as in k=int8,v=int4; 'auto' follows dtype.",
    "backend": "Kernels to run on; 'auto' takes the fastest that was built.",
    "threads": "Threads that compute, by default one for each core. They change no output.",
    "max_model_len": "Longest prompt plus completion, in tokens; the model's own by default.",
    "rope_scaling": "Scale rotary positions to longer texts, as JSON with config.json's keys, such "
    'as {"rope_type": "yarn", "factor": 4}; the rope_type dual_chunk needs no training.',
    "max_num_seqs": "Most sequences that run at once.",
    "max_num_batched_tokens": "Most token rows in one step.",
    "gpu_memory_utilization": "Share of the allowed memory (on a CPU: of RAM) that may be taken.",
    "memory_bytes": "The same in bytes, of what is free at most.",
    "kv_cache_memory_bytes": "Bytes for keys and values, instead of a share of the memory.",
    "block_size": "Tokens of one page of state; a power of two.",
    "checkpoint_tokens": "Tokens of a prompt between places from which others may go on, for "
    "recurrent layers; by default so many that these take no more than keys and values.",
    "weight_cache": "Directory where packed weights are kept for the next start, or 'off'; by "
    "default 'packed' in $OCKHAM_CACHE, else in ~/.cache/ockham.",
    "weight_cache_bytes": "Bytes that it may take; what was used least recently is removed.",
    "kv_store": "Directory where the keys and values of prompts are kept across restarts.",
    "kv_store_bytes": "Bytes that it may take; what was used least recently is removed.",
    "swap_space": "GiB of memory for keys and values that the pool has no room for.",
    "scheduling_policy": "Order of the work, within each tenant's turn: lpm (those that share a "
    "prefix run together) or fcfs, which priority is another name for.",
    "reuse": "Which state is not computed again; 'prefix,chunk,edit' adds what is approximate, for "
    "requests that ask for it. Options stand behind a name: chunk:recompute_fraction=0.3.",
    "enable_prefix_caching": "Go on from prefixes that were computed before; off is --reuse none.",
    "keep": "Which state stays.",
    "attention_pattern": "Which keys a query looks at; full is all of them. Options stand behind a "
    "name, and a request may ask for another pattern.",
    "recall_every": "Of requests with a pattern, look at every so many-th token for how much of "
    "its attention the pattern leaves out, and tell it in the ledger; 0: at none.",
    "search": "How completions are found, for requests that do not ask for another way.",
    "checkers": "Programs that score texts for searches: NAME=PROGRAM, or a JSON object of them.",
    "rewards": "Sequence classifiers with one output that score texts for searches: NAME=MODEL, or "
    "a JSON object of them.",
    "probes": "Probes that score branches of searches: NAME=DIRECTORY, or a JSON object of them.",
    "run_programs": "Let searches run the Python programs that completions are, where they can do "
    "nothing but compute, to compare what they do.",
    "companions": "Other models of the same vocabulary that write for searches: NAME=MODEL, or a "
    "JSON object of them.",
    "pins": "A file where a server keeps what was pinned: after a restart it computes that anew "
    "while nobody asks for anything.",
    "gate": "Which parts of the model run; 'whole' is all of it.",
    "adapter": "The technique of adapters that requests may name, with its options.",
    "speculative_config": "What drafts tokens that are verified together: auto, none, a drafter's "
    'name, or JSON with vLLM\'s keys, {"method": "ngram", "num_speculative_tokens": 8}.',
    "verifier": "When a drafted token is accepted: exact_match, or lenient:threshold=0.05, which "
    "changes the text.",
    "guard": "Share of the requests with approximate techniques whose texts are scored again by "
    "the exact model in idle time; what is under its floor is left out of new requests.",
    "guard_floor": "The floor of the guard: agreement>=SHARE, kl<=NATS, or both.",
    "guard_rest_s": "Seconds until what the guard has switched off is tried again by some.",
    "seed": "Seed of requests that bring none of their own.",
    "skip_tokenizer_init": "Load no tokenizer: prompts are token ids, and so is the output.",
    "trust_remote_code": "Not supported; here so that it is refused with a reason.",
    "enable_in_reasoning": "Structured outputs of chats hold for the thought as well, and do not "
    "begin at its end.",
    "chat_template": "File with a Jinja template for chats, instead of the model's own.",
    "generation_config": "Where sampling defaults come from: 'auto' takes the model's own, and for "
    "chats without any temperature 0.8, top-k 40, top-p 0.95, min-p 0.05; 'vllm' samples from all "
    "tokens at temperature 1; a directory's generation_config.json.",
}
_SHORT = {
    "scheduling_policy": ("--policy",),
    "threads": ("-t",),
    "max_model_len": ("-c",),
    "max_tokens": ("-n",),
}
"""Other spellings of flags."""
_SECTIONS = {
    "Model": (
        *(
            "task",
            "tokenizer",
            "revision",
            "dtype",
            "quantization",
            "max_model_len",
            "rope_scaling",
            "backend",
            "threads",
        ),
        *("skip_tokenizer_init", "trust_remote_code", "chat_template", "generation_config"),
        "enable_in_reasoning",
        "gate",
    ),
    SECTION: ("adapter",),
    "Speculation": ("speculative_config", "verifier"),
    "Cache": (
        *("reuse", "enable_prefix_caching", "keep", "attention_pattern"),
        "recall_every",
        *("kv_store", "kv_store_bytes", "pins"),
    ),
    "Memory": (
        *("gpu_memory_utilization", "memory_bytes", "kv_cache_memory_bytes"),
        *("kv_cache_dtype", "block_size", "checkpoint_tokens"),
        *("swap_space", "weight_cache", "weight_cache_bytes"),
    ),
    "Scheduling": ("max_num_seqs", "max_num_batched_tokens", "scheduling_policy", "seed"),
    "Guard": ("guard", "guard_floor", "guard_rest_s"),
    "Search": ("search", "checkers", "rewards", "probes", "companions", "run_programs"),
}
"""Where the engine's flags stand in the help."""
_SECTION_OF = {field: section for section, fields in _SECTIONS.items() for field in fields}

_SAMPLING_HELP = {
    "n": "Completions of the prompt; it is computed once.",
    "temperature": "0 always takes the likeliest token; higher is more varied.",
    "top_k": "Choose among the k likeliest tokens; 0 for all.",
    "top_p": "Choose among the likeliest tokens that together have this probability.",
    "min_p": "Leave out tokens less likely than this share of the likeliest one.",
    "repetition_penalty": "Above 1: tokens that occurred become less likely.",
    "presence_penalty": "Taken from the logit of every token that was generated.",
    "frequency_penalty": "Taken from a token's logit for each time it was generated.",
    "logit_bias": "Added to logits: JSON such as '{\"42\": -100}'.",
    "allowed_token_ids": "Only these token ids may be generated: '1,2,3'.",
    "bad_words": "A word that must not be generated; may be given more than once.",
    "stop": "Text that ends the completion; may be given more than once.",
    "stop_token_ids": "Token ids that end the completion: '1,2,3'.",
    "min_tokens": "Do not end before so many tokens.",
    "max_tokens": "End after so many tokens.",
    "ignore_eos": "Go on after the end-of-sequence token.",
    "seed": "Seed of the sampling noise: the same seed gives the same tokens.",
    "logprobs": "Report log probabilities: of the chosen token and so many of the likeliest.",
    "logprob_token_ids": "Report log probabilities of these token ids as well: '1,2,3'.",
    "prompt_logprobs": "The same for each token of the prompt.",
    "skip_special_tokens": "Leave special tokens out of the text.",
    "spaces_between_special_tokens": "Only the default is supported.",
    "include_stop_str_in_output": "Keep the stop text at the end.",
    "structured_outputs": 'What the text must look like, as JSON: {"regex": "[0-9]+"}; or json, '
    "json_object, choice or grammar.",
    "thinking_token_budget": "End a thought of a chat after so many tokens.",
    "thinking_closing_text": "What is written in the model's place to end its thought.",
    "repetition_detection": 'End a text that repeats itself: {"max_pattern_size": 20, '
    '"min_count": 4}.',
}


_ENGINE_TYPES: dict[str, click.ParamType] = {  # type: ignore[type-arg]
    "dtype": Dtype(DTYPES),
    "kv_cache_dtype": StateDtype(),
    "tokenizer": ModelName(),
    "quantization": Quantization(),
}


_NAMED = {"thinking_token_budget": ("--thinking-budget", "thinking_token_budget")}
"""Fields whose flag has another name than they."""


_SAMPLING_TYPES: dict[str, click.ParamType] = {  # type: ignore[type-arg]
    "logit_bias": LogitBias(),
    "allowed_token_ids": TokenIds(),
    "logprob_token_ids": TokenIds(),
    "stop_token_ids": TokenIds(),
}


def option(*names: str, **settings: Any) -> Callable[[F], F]:
    """`click.option` with the environment variable that every flag has, and perhaps the `section`
    of the help that it stands in."""
    long_name = next(name for name in names if name.startswith("--")).partition("/")[0]
    variable = "OCKHAM_" + long_name.removeprefix("--").replace("-", "_").upper()
    settings.setdefault("envvar", variable)
    return click.option(*names, **{"cls": Option, **settings})


class Names(Option):
    """A flag that may be given more than once, or once with several words: `--name a b`, behind
    MODEL, as vLLM takes it. Before MODEL it takes one word, as the next could be the model."""

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        super().add_to_parser(parser, ctx)
        flag = parser._long_opt[self.opts[0]]
        take_one = flag.process

        def process(value: Any, state: Any) -> None:
            take_one(value, state)
            while state.largs and state.rargs and not state.rargs[0].startswith("-"):
                take_one(state.rargs.pop(0), state)

        flag.process = process


def overwrite_option(function: F) -> F:
    """Adds `--overwrite`; without it no command replaces a file that it was asked to write."""
    return option(
        "--overwrite", is_flag=True, help="Replace the file that is written, if it exists."
    )(function)


def config_file(function: F) -> F:
    """Adds `--config FILE.yaml`, whose keys are the command's own flags."""
    return option(
        "--config",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE.yaml",
        is_eager=True,
        expose_value=False,
        callback=read_config,
        section="Model",
        help="YAML file with the same names as the flags.",
    )(function)


def engine_options(function: F, several: Sequence[str] = (), several_models: bool = False) -> F:
    """Adds the model (as an argument or flag), all of `EngineConfig`'s settings and `--config`.

    The command receives `model` and every field by its name; `engine_config` takes them in. Fields
    among `several` may be given more than once, and come as a tuple. With `several_models` more
    models may be named behind the first, which the command receives as `more_models`.
    """

    @functools.wraps(function)
    def with_model(*, model_argument: Any, model: str | None, **kwargs: Any) -> Any:
        if several_models:
            kwargs["more_models"] = model_argument[1:]
            model_argument = model_argument[0] if model_argument else None
        source = click.get_current_context().get_parameter_source("model")
        named_twice = (
            source is click.core.ParameterSource.COMMANDLINE and model_argument is not None
        )
        if named_twice and model != model_argument:
            raise ConfigError(
                f"two models are named, {model_argument!r} and --model {model!r}; name one."
            )
        if model_argument is not None:
            model = model_argument
        elif model is None and os.environ.get("OCKHAM_MODEL") == "":
            model = ""
        if model is not None and not model.strip():
            raise ConfigError(
                "the name of the model is empty, as of a variable that is not set; name a model, "
                "or leave it out for the built-in one."
            )
        context = click.get_current_context()
        _warn_of_mistyped_variables(context)
        context.meta[NAMED] = model is not None
        return function(model=model or TOY, **with_adapter_setting(kwargs))

    hints = typing.get_type_hints(EngineConfig)
    wrapped = adapter_options(option)(config_file(neutral_options(with_model)))
    for field in reversed(msgspec.structs.fields(EngineConfig)):
        if field.name != "model":
            wrapped = _field_option(
                field.name,
                hints[field.name],
                field.default,
                _ENGINE_HELP.get(field.name),
                _ENGINE_TYPES.get(field.name),
                several=field.name in several,
                section=_SECTION_OF.get(field.name, OTHER),
            )(wrapped)
    wrapped = option(
        "-m",
        "--model",
        type=ModelName(),
        default=None,
        section="Model",
        help="Directory, GGUF file or hub name; the same as the argument. [default: lab; "
        "of chat and serve smollm2, where it is installed]",
    )(wrapped)
    settings: dict[str, Any] = {"metavar": "[MODEL]", "default": None}
    if several_models:
        settings = {"metavar": "[MODEL]...", "nargs": -1}
    argument = click.argument("model_argument", type=ModelName(), required=False, **settings)
    return typing.cast(F, argument(wrapped))


engine_options_of_several = functools.partial(engine_options, several_models=True)


WITHOUT_FLAG = frozenset({"OCKHAM_ISA", "OCKHAM_CACHE"})
"""Variables that mean something and stand for no flag."""


def _warn_of_mistyped_variables(ctx: click.Context) -> None:
    """Say so when an environment variable looks like one of the command's flags and is none.

    One that looks like none of them may be meant for another command, and is left alone.
    """
    known = _variables_of(ctx.command)
    meant = known | WITHOUT_FLAG
    unknown = [name for name in os.environ if name.startswith("OCKHAM_") and name not in meant]
    if not unknown:
        return
    import difflib

    for name in unknown:
        for close in difflib.get_close_matches(name, known, 1, cutoff=0.85):
            if not _is_of_another(ctx, name):
                click.echo(f"ockham: {name} is not a setting; do you mean {close}?", err=True)


def _variables_of(command: click.Command) -> set[str]:
    """The environment variables that stand for a command's flags."""
    return {
        variable
        for parameter in command.params
        for variable in (
            [parameter.envvar] if isinstance(parameter.envvar, str) else parameter.envvar or ()
        )
    }


def _is_of_another(ctx: click.Context, variable: str) -> bool:
    """Whether an environment variable stands for a flag of some other command."""
    root = ctx.find_root()
    if not isinstance(root.command, click.Group):
        return False
    names = root.command.list_commands(root)
    commands = [root.command.get_command(root, name) for name in names]
    return any(each is not None and variable in _variables_of(each) for each in commands)


def engine_config(**kwargs: Any) -> EngineConfig:
    """The engine's settings among a command's parameters. Raises ConfigError if they are wrong."""
    names = EngineConfig.__struct_fields__
    return EngineConfig(**own_names({name: kwargs[name] for name in names if name in kwargs}))


def unless_given(settings: Mapping[str, Any], **defaults: Any) -> dict[str, Any]:
    """A command's parameters with other defaults where the user left the choice to us."""
    source = click.get_current_context().get_parameter_source
    chosen = {
        name: value
        for name, value in defaults.items()
        if source(name) is click.core.ParameterSource.DEFAULT
    }
    return {**settings, **chosen}


def sampling_options(function: F) -> F:
    """Adds a flag for each field of `SamplingParams`. One that is not given is None (or an empty
    tuple), so that the model's own defaults can stand; see `sampling_params`.

    The seed of sampling is called `sampling_seed`: `seed` is the engine's.
    """
    function = option(
        "--ask",
        type=Text(),
        multiple=True,
        section="Sampling",
        help="A technique to ask for, by its name, or with settings: 'NAME={\"setting\": 5}'. "
        "`ockham techniques` lists them.",
    )(function)
    hints = typing.get_type_hints(SamplingParams)
    for field in reversed(msgspec.structs.fields(SamplingParams)):
        if field.name in ("asks", "thought"):
            continue  # these are made of `--ask`, and by the model's chat template
        hint = hints[field.name]
        help_text = _SAMPLING_HELP.get(field.name)
        if field.default not in (None, False) and field.name != "max_tokens":
            help_text = (
                f"{help_text} [default: the model's own, else {field.default}, in chats what "
                "--generation-config says]"
            )
        if field.name == "seed":
            decorate = option("--sampling-seed", type=Integer(), section="Sampling", help=help_text)
        elif field.name in ("stop", "bad_words"):
            decorate = option(
                _flag(field.name), type=Text(), multiple=True, section="Sampling", help=help_text
            )
        else:
            decorate = _field_option(
                field.name,
                hint,
                None,
                help_text,
                _SAMPLING_TYPES.get(field.name),
                section="Sampling",
            )
        function = decorate(function)
    return function


def sampling_params(defaults: SamplingParams, **kwargs: Any) -> SamplingParams:
    """`defaults` changed by the sampling flags that were given. Raises InvalidRequest."""
    given = {}
    for name in SamplingParams.__struct_fields__:
        value = kwargs.get("sampling_seed" if name == "seed" else name)
        if value is not None and value != ():
            given[name] = list(value) if isinstance(value, tuple) else value
    asked = _asks(kwargs.get("ask") or ())
    return msgspec.structs.replace(defaults, **given, asks={**(defaults.asks or {}), **asked})


def _asks(given: Sequence[str]) -> dict[str, Any]:
    """What `--ask` asks of techniques, by key. Raises InvalidRequest."""
    asked: dict[str, Any] = {}
    for each in given:
        name, equals, settings = (part.strip() for part in each.partition("="))
        found = asked_by(name)
        if found is None:
            raise InvalidRequest(
                f"there is no technique {name!r} that a request may ask for; `ockham techniques` "
                "lists them.",
                "ask",
            )
        try:
            asked[found[0]] = json.loads(settings) if equals else True
        except ValueError as error:
            raise InvalidRequest(f"the settings of {name} are no JSON ({error}).", "ask") from None
    return asked


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _field_option(
    name: str,
    hint: Any,
    default: Any,
    help_text: str | Callable[[], str] | None,
    as_type: click.ParamType | None = None,  # type: ignore[type-arg]  # generic only in stubs
    several: bool = False,
    section: str | None = None,
) -> Callable[[F], F]:
    """The flag of one field of a settings structure."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kind = next(kind for kind in kinds if kind is not type(None))
    settings: dict[str, Any] = {
        "default": default,
        "show_default": default is not None,
        "help": help_text,
        "section": section,
    }
    if several:
        settings |= {"default": [default], "multiple": True}
    if kind is bool:
        return option(f"{_flag(name)}/--no-{_flag(name)[2:]}", **settings)
    if as_type is not None:
        settings["type"] = as_type
    elif kind is int:
        settings["type"] = Integer()
    elif name == "chat_template":
        settings["type"] = click.Path(exists=True, dir_okay=False)
    elif name in (
        *("speculative_config", "rope_scaling"),
        *("checkers", "rewards", "probes", "companions"),
    ):
        settings["type"] = TextOrMapping()
    elif isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        settings["type"] = Json(kind)
    else:
        settings["type"] = kind
    return option(*_NAMED.get(name, (_flag(name),)), *_SHORT.get(name, ()), **settings)
