"""`ockham run`: answer one prompt, or complete it. Only the answer goes to stdout."""

from __future__ import annotations

import shlex
import sys
import time
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import click

from ockham.api.adapters import TECHNIQUE, LoRARequest
from ockham.cli.auto import auto_option, with_plan
from ockham.cli.command import command
from ockham.cli.default_model import for_chats
from ockham.cli.options import (
    engine_config,
    engine_options,
    option,
    sampling_options,
    sampling_params,
)
from ockham.cli.report import describe_ledger, describe_speed, summary
from ockham.cli.thoughts import Spoken, ThoughtWriter, template_variables, thinking_option
from ockham.cli.value_types import TokenIds
from ockham.core.errors import InvalidRequest
from ockham.core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ockham.api.llm import LLM
    from ockham.api.prompts import Prompt
    from ockham.core.config import EngineConfig
    from ockham.core.outputs import CompletionOutput, PositionLogprobs, RequestOutput
    from ockham.text.chat_renderer import ChatRenderer

DEFAULT_MAX_TOKENS = 256
ONE_ADAPTER = f"{TECHNIQUE}:max_loras=1,max_lora_rank=256"


EXAMPLES = """\b
Examples:
  ockham run smollm2 "What is the capital of France?"
  echo "The capital of France is" | ockham run path/to/model.gguf --raw
  ockham run qwen3:4b --system "You are terse." -p "Why is the sky blue?" -n 100
  ockham run owner/name:Q4_K_M -p - --temperature 0 --json < question.txt
"""


@command(own="Prompt and output", epilog=EXAMPLES)
@option("-p", "--prompt", help="Text to answer, the same as TEXT; '-' reads it from stdin.")
@option("--prompt-token-ids", type=TokenIds(), help="The prompt as token ids: '1,2,3'.")
@option(
    "--raw/--chat",
    default=None,
    help="Complete the plain text, or put it to the model by its chat template. By default a model "
    "with a template is talked to, and built-in ones complete.",
)
@option("--system", "system_prompt", help="System prompt, for models with a chat template.")
@option("--json", "as_json", is_flag=True, help="Write one JSON object instead of the text.")
@option(
    "--bill",
    is_flag=True,
    help="Write the itemised bill: what was computed, saved and wasted.",
)
@option("--stats", is_flag=True, help="Say what was loaded, and write the bill.")
@option("-q", "--quiet", is_flag=True, help="Write nothing but the answer, and what is wrong.")
@option(
    "--show-drafts",
    is_flag=True,
    help="Say at the end which tokens were drafted: underlined, or in ‹› where nothing can be.",
)
@thinking_option
@option(
    "--lora",
    metavar="DIRECTORY",
    help="Adapter to complete the prompt with: a directory of PEFT's, or one of the lab model's.",
)
@auto_option
@engine_options
@sampling_options
@click.argument("text", required=False)
def run(
    text: str | None,
    prompt: str | None,
    prompt_token_ids: list[int] | None,
    raw: bool | None,
    system_prompt: str | None,
    as_json: bool,
    bill: bool,
    stats: bool,
    quiet: bool,
    show_drafts: bool,
    lora: str | None,
    thinking: bool | None,
    auto: bool,
    **kwargs: Any,
) -> None:
    """Answer TEXT with MODEL: a directory, a GGUF file, a hub name, a short name such as smollm2 or
    qwen3:4b, or the built-in 'lab'.

    The answer is streamed to stdout, everything else goes to stderr, the thought before it too
    (--quiet leaves that out). Without TEXT the prompt is
    read from stdin, of which one newline at the end is no part of it; in a terminal, a chat begins.
    What no flag sets is taken from the model's generation_config.json.
    """
    if lora is not None and kwargs["adapter"] is None:
        kwargs["adapter"] = ONE_ADAPTER
    if quiet and (stats or bill):
        flag = "--stats" if stats else "--bill"
        raise click.UsageError(f"--quiet and {flag} contradict each other; give one of them.")
    if text is not None and prompt is not None:
        raise click.UsageError("the prompt is given twice, as TEXT and by --prompt; give one.")
    prompt = prompt if text is None else text
    nothing_given = prompt is None and prompt_token_ids is None
    may_chat = nothing_given and _in_terminal() and not (raw or as_json or lora)
    config = engine_config(**with_plan(for_chats(kwargs) if may_chat else kwargs, auto))
    check_model(config.model, nothing_given)
    raw = _completes(config, raw, prompt_token_ids, system_prompt)
    if may_chat and not raw:
        from ockham.cli.chat import converse

        converse(config, system_prompt, thinking, **kwargs)
        return
    check_sampling(config, **kwargs)
    for name in ("logprobs", "prompt_logprobs"):
        if kwargs[name] is not None and not as_json:
            flag = name.replace("_", "-")
            raise click.UsageError(f"--{flag} is shown only with --json; add it, or leave it out.")
    given = _prompt(prompt, prompt_token_ids)

    from ockham.api.llm import LLM

    started = time.perf_counter()
    renderer = None if raw or _is_packaged(config) else start_renderer()
    llm = LLM.from_config(config, progress=_tell if stats else tell_warnings)
    load_s = time.perf_counter() - started
    shown = None
    defaults = llm.get_default_sampling_params()
    if not raw and llm.get_tokenizer().has_chat_template:
        if renderer is not None:
            llm.get_tokenizer().take_renderer(renderer)
        system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
        asked = [*system, {"role": "user", "content": str(given)}]
        shown, given = _question(llm, asked, thinking)
        defaults = llm.get_default_chat_sampling_params()
    elif system_prompt is not None:
        raise InvalidRequest(
            f"{config.model} has no chat template, which a system prompt needs: write it into the "
            "text, or give a template with --chat-template."
        )
    params = sampling_params(with_max_tokens(defaults, llm, DEFAULT_MAX_TOKENS), **kwargs)
    wanted = None if lora is None else LoRARequest(lora, 1, lora)
    spoken = None if shown is None else Spoken(llm, params, shown)
    output = _complete(llm, given, params, as_json, load_s, wanted, shown, spoken, quiet)
    if as_json:
        return
    full = _end(output, llm, params)
    if full is not None:
        _tell(full)
    if not quiet:
        reasons = ", ".join(_reason(one.finish_reason, one.stop_reason) for one in output.outputs)
        _tell(f"\n[{summary(output.ledger, load_s)}; {reasons}]")
    if stats or bill:
        for line in (describe_speed(output.ledger), *describe_ledger(output.ledger)):
            _tell(line)
    if show_drafts:
        for choice in output.outputs:
            _tell(_with_drafts(llm, choice))


def _completes(
    config: EngineConfig, raw: bool | None, token_ids: list[int] | None, system_prompt: str | None
) -> bool:
    """Whether the prompt is plain text, or token ids, to be completed, as far as can be known
    before the model is loaded."""
    from ockham.model.hub import BUILT_IN

    if token_ids is not None or config.skip_tokenizer_init:
        if raw is False:
            raise click.UsageError("--chat is for text, and the prompt is token ids.")
        completes = True
    elif raw is None:
        completes = config.model in BUILT_IN and config.chat_template is None and not system_prompt
    else:
        completes = raw
    if completes and system_prompt is not None:
        raise click.UsageError("--system is for chats, and this prompt is completed as it is.")
    return completes


def _in_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _is_packaged(config: EngineConfig) -> bool:
    """Whether it is a model of a package with a template of its own: such a one only joins texts
    (`text.plain_templates`), and needs no process that renders it."""
    from ockham.model.hub import BUILT_IN
    from ockham.model.known_models import named_repository, packaged_file

    if config.chat_template is not None or config.revision is not None or config.model in BUILT_IN:
        return False
    return packaged_file(named_repository(config.model)) is not None


def start_renderer() -> ChatRenderer:
    """Begin the process that renders chats, which takes a tenth of a second, while the model is
    loaded."""
    from ockham.text.chat_renderer import ChatRenderer

    renderer = ChatRenderer({}, processes=1)
    renderer.start()
    return renderer


def chat_prompt(
    llm: LLM,
    messages: Sequence[dict[str, str]],
    add_generation_prompt: bool = True,
    thinking: bool | None = None,
) -> tuple[str, list[int]]:
    """What the model's chat template makes of messages, and its token ids."""
    tokenizer = llm.get_tokenizer()
    text = tokenizer.apply_chat_template(
        messages,
        add_generation_prompt=add_generation_prompt,
        **template_variables(thinking),
    )
    return text, tokenizer.encode(text, add_special_tokens=False)


def _question(
    llm: LLM, messages: Sequence[dict[str, str]], thinking: bool | None
) -> tuple[str, list[int]]:
    try:
        return chat_prompt(llm, messages, thinking=thinking)
    except InvalidRequest as error:
        raise InvalidRequest(f"{error} --raw completes the text without it.") from error


def check_model(model: str, without_prompt: bool) -> None:
    """Refuse at once a text that can be no model: it was meant as the prompt, most likely."""
    from ockham.model.hub import could_be_a_model

    if not could_be_a_model(model):
        meant = f" To complete it: ockham run -p {shlex.quote(model)}." if without_prompt else ""
        raise click.UsageError(
            f"the first word is the model, and {model!r} is none: a directory, a .gguf file, a "
            f"hub name such as owner/name, a short name such as smollm2, or a built-in one.{meant}"
        )


def check_sampling(config: EngineConfig, **kwargs: Any) -> None:
    """Refuse, before anything is loaded, sampling flags that no model could make right."""
    params = sampling_params(SamplingParams(), **kwargs)
    if params.n > config.max_num_seqs:
        raise InvalidRequest(
            f"n is {params.n}, but at most {config.max_num_seqs} sequences run at once; lower n or "
            "raise max_num_seqs.",
            "n",
        )


def with_max_tokens(defaults: SamplingParams, llm: LLM, max_tokens: int) -> SamplingParams:
    """The model's sampling defaults, with `max_tokens` unless the model sets its own."""
    import msgspec

    if "max_tokens" in llm.engine.model.sampling_defaults:
        return defaults
    return msgspec.structs.replace(defaults, max_tokens=max_tokens)


def _tell(line: str) -> None:
    click.echo(line, err=True)


def tell_warnings(line: str) -> None:
    """Of what is said of a load, pass on what may be wrong with the model."""
    if line.startswith("warning"):
        _tell(line)


def _prompt(text: str | None, token_ids: list[int] | None) -> Prompt:
    """The prompt from the flags or from stdin."""
    if token_ids is not None:
        if text is not None:
            raise click.UsageError("give either --prompt or --prompt-token-ids.")
        if any(not 0 <= token < 2**31 for token in token_ids):
            raise click.UsageError("--prompt-token-ids holds a number that is no token id.")
        return token_ids
    if text == "-" or (text is None and not sys.stdin.isatty()):
        read = _read_stdin()
        if not read:
            raise click.UsageError("stdin is empty; give a prompt with --prompt, or through stdin.")
        return read
    if text is None:
        raise click.UsageError("there is no prompt; give one with --prompt, or through stdin.")
    if not text:
        raise click.UsageError("the prompt is empty; give at least one character.")
    return text


def _read_stdin() -> str:
    """What stdin holds. The newline that `echo` and editors put at the end is no part of it."""
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"stdin is not UTF-8 text ({error}).") from error


def _complete(
    llm: LLM,
    prompt: Prompt,
    params: SamplingParams,
    as_json: bool,
    load_s: float,
    adapter: LoRARequest | None,
    shown: str | None,
    spoken: Spoken | None,
    quiet: bool,
) -> RequestOutput:
    """Stream the completion to stdout, or write it as JSON; `shown` is the text of a prompt that
    the chat template made, and `spoken` the answer to it, whose thought goes to stderr."""
    stdout = sys.stdout.buffer
    has_text = llm.engine.tokenizer is not None
    first_token_s: float | None = None
    started = time.perf_counter()
    thought = ThoughtWriter()
    asked = params if spoken is None else spoken.params
    with llm.stream(prompt, asked, lora_request=adapter) as stream:
        for delta in stream:
            if first_token_s is None and delta.token_ids:
                first_token_s = time.perf_counter() - started
            if delta.index == 0 and not as_json:
                text = delta.text if has_text else "".join(f"{t} " for t in delta.token_ids)
                if spoken is not None:
                    new = spoken.add(text, delta.finish_reason)
                    text = new.content
                    if not quiet:
                        thought.add(new.thought)
                    if text or delta.finish_reason is not None:
                        thought.end()
                stdout.write(text.encode())
                stdout.flush()
    output = stream.output
    if spoken is not None:
        for choice in output.outputs:
            choice.reply = spoken.reply(choice.text, choice.finish_reason)
    if as_json:
        import msgspec

        record = msgspec.to_builtins(output, str_keys=True)
        record["prompt"] = record["prompt"] if shown is None else shown
        record["prompt_logprobs"] = _labelled(output.prompt_logprobs)
        for choice, made in zip(record["outputs"], output.outputs, strict=True):
            choice["logprobs"] = _labelled(made.logprobs)
        record["eos_token_ids"] = llm.engine.eos_token_ids
        record["load_s"] = load_s
        record["time_to_first_token_s"] = first_token_s
        stdout.write(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
        stdout.flush()
        return output

    for choice in output.outputs[1:]:
        _tell(f"\n[choice {choice.index}]")
        text = choice.text if has_text else " ".join(map(str, choice.token_ids))
        if choice.reply is not None:
            text = choice.reply.content or ""
        stdout.write(b"\n" + text.encode())
        stdout.flush()
    if sys.stdout.isatty():
        click.echo()
    return output


def _end(output: RequestOutput, llm: LLM, params: SamplingParams) -> str | None:
    """Why the completion ended where that is worth a line: the context is full."""
    longest = max(len(choice.token_ids) for choice in output.outputs)
    full = len(output.prompt_token_ids) + longest >= llm.engine.max_model_len
    if params.max_tokens and longest < params.max_tokens and full:
        return (
            f"the context of {llm.engine.max_model_len} tokens is full: {longest} of at most "
            f"{params.max_tokens} tokens were generated"
        )
    return None


def _with_drafts(llm: LLM, choice: CompletionOutput) -> str:
    """The tokens of a choice, those that had been drafted underlined, or in ‹›."""
    tokenizer = llm.engine.tokenizer
    underlines = sys.stderr.isatty()
    shown = ""
    for drafted, run_of in groupby(
        zip(choice.drafted, choice.token_ids, strict=True), itemgetter(0)
    ):
        tokens = [token for _, token in run_of]
        text = "".join(tokenizer.token_text(t) if tokenizer else f"{t} " for t in tokens)
        shown += click.style(text, underline=drafted) if underlines or not drafted else f"‹{text}›"
    return f"{sum(choice.drafted)} of {len(choice.token_ids)} tokens were drafted:\n{shown}"


def _labelled(positions: Sequence[PositionLogprobs | None] | None) -> list[Any] | None:
    """Log probabilities as objects with named fields; between processes they are bare arrays."""
    if positions is None:
        return None
    import msgspec

    return [
        None
        if position is None
        else {str(token): msgspec.structs.asdict(entry) for token, entry in position.items()}
        for position in positions
    ]


def _reason(finish: str | None, stop: int | str | None) -> str:
    if stop is not None:
        return f"ended at {stop!r}"
    words = {"length": "cut at the limit of tokens (-n)", "stop": "ended by the model"}
    return words.get(finish or "", f"ended: {finish}")
