"""How families of models write calls of tools and thoughts, as data.

A format is chosen by what the checkpoint's chat template contains (`format_of`, `thought_of`).
Nothing here reads an answer.
"""

from __future__ import annotations

import msgspec

from ockham.text.reply.values import FUNCTION_GEMMA, GEMMA, JSON, Notation


class JsonCall(msgspec.Struct, frozen=True, tag=True):
    """`{"name": "f", "arguments": {"a": 1}}`, or a list of these.

    Keys go by any of the names here; `{"function": {...}}` may hold the call.
    """

    names: tuple[str, ...] = ("name",)
    arguments: tuple[str, ...] = ("arguments", "parameters")


class HeadCall(msgspec.Struct, frozen=True, tag=True):
    """The name, then the arguments: `f[ARGS]{"a": 1}`, `call:f{a:1}`.

    `before` and `after` stand around the name. The arguments begin at the next `{`; `tail` is what
    stands behind them. Where there is a `tail`, another call may follow within the same marks.
    """

    before: str = ""
    after: tuple[str, ...] = ()
    notation: Notation = JSON
    tail: tuple[str, ...] = ()


class TagCall(msgspec.Struct, frozen=True, tag=True):
    """One tag for each argument: `<function=f><parameter=a>1</parameter></function>`.

    Each pair is what stands before and after. With `lines` a value stands on lines of its own.
    `gap` is written between tags; any white space is read there. With `rows` tags begin lines.
    Values are texts as they are, or JSON where the tool's schema asks for another type. With
    `other` the tag itself says that: it stands behind the key in the place of the second of `key`
    where the value is no text. `lead` is written before the tag of the name.
    """

    name: tuple[str, str]
    key: tuple[str, str]
    value: tuple[str, str]
    end: str
    lines: bool = False
    gap: str = ""
    rows: bool = False
    other: str = ""
    lead: str = ""


class PythonCall(msgspec.Struct, frozen=True, tag=True):
    """`[f(a=1, b="x"), g()]`, or with `rows` one call after another, without brackets. `fence` is
    what may stand before and after them within the marks."""

    rows: bool = False
    fence: tuple[str, str] | None = None


Call = JsonCall | HeadCall | TagCall | PythonCall


class Format(msgspec.Struct, frozen=True, kw_only=True):
    """How one family writes calls.

    `signs`: the format is that of a chat template which contains all texts of one of these.
    `open` and `close` stand around one call or several; what follows `open` is the first of `calls`
    that it can be. `bare`: a whole answer may be a call without `open`. `channels`: messages have
    headers, as in gpt-oss. `id_length` is that of the ids which the template accepts, where it
    accepts no other. `written` is what stands before, between and after the calls of one answer,
    each the first of `calls`; if they are `wrapped`, before and after each of them. `inner` are
    parts of calls that are special tokens of some models. `words` tell of tools where the chat
    template shows calls, but no tools: before all of them, of each (`{name}`, `{description}`,
    `{parameters}`), and behind.
    """

    name: str
    signs: tuple[tuple[str, ...], ...] = ()
    open: tuple[str, ...] = ()
    close: str = ""
    calls: tuple[Call, ...] = ()
    bare: bool = False
    channels: bool = False
    written: tuple[str, str, str] = ("", "", "")
    wrapped: bool = False
    id_length: int | None = None
    inner: tuple[str, ...] = ()
    words: tuple[str, str, str] | None = None

    @property
    def marks(self) -> tuple[str, ...]:
        """The texts that must be seen in an answer, also where they are special tokens."""
        if self.channels:
            return HEADERS
        return (*self.open, *([self.close] if self.close else []), *self.inner)


class Thought(msgspec.Struct, frozen=True):
    """What stands around a thought."""

    open: str
    close: str


class Frame(msgspec.Struct, frozen=True):
    """What stands around an answer, behind its thought."""

    open: str
    close: str


ESCAPES = '"\\bfnrt'
"""What may follow a backslash in JSON that a grammar leaves: no `u`, by which a key could be
written in another way and its schema be passed by."""
HEADERS = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|call|>", "<|return|>")
"""What the messages of gpt-oss are made of."""

THOUGHT_HEADER = "<|channel|>analysis<|message|>"
ANSWER_HEADER = "<|channel|>final<|message|>"
END, START = "<|end|>", "<|start|>assistant"
"""What they begin and end with where they think, and where they answer."""

HERMES = Format(
    name="hermes",
    signs=(("<tool_call>",),),
    open=("<tool_call>",),
    close="</tool_call>",
    calls=(JsonCall(),),
    written=("<tool_call>\n", "\n", "\n</tool_call>"),
    wrapped=True,
)
"""Hermes, Qwen 2.5 and 3, Granite 4, SmolLM 2 and 3, Falcon-H1, and what Ockham writes for a
template that shows no tools."""

_DEEPSEEK_OPEN, _DEEPSEEK_CLOSE = (
    f"<\uff5ctool\u2581calls\u2581{end}\uff5c>" for end in ("begin", "end")
)
_DEEPSEEK_CALL, _DEEPSEEK_CALLED = (
    f"<\uff5ctool\u2581call\u2581{end}\uff5c>" for end in ("begin", "end")
)
_DEEPSEEK_BETWEEN = "<\uff5ctool\u2581sep\uff5c>"
_DSML = "\uff5cDSML\uff5c"
"""What DeepSeek's marks are made of."""

_DEEPSEEK_WORDS = (
    "## Tools\nYou have access to the following tools:\n",
    "\n### {name}\nDescription: {description}\n\nParameters: {parameters}\n",
    f"\nIMPORTANT: ALWAYS adhere to this exact format for tool use:\n{_DEEPSEEK_OPEN}"
    f"{_DEEPSEEK_CALL}tool_call_name{_DEEPSEEK_BETWEEN}tool_call_arguments{_DEEPSEEK_CALLED}"
    f"{{additional_tool_calls}}{_DEEPSEEK_CLOSE}\n\nWhere:\n\n- `tool_call_name` must be an exact "
    "match to one of the available tools\n- `tool_call_arguments` must be valid JSON that strictly "
    "follows the tool's Parameters Schema\n- For multiple tool calls, chain them directly without "
    "separators or spaces\n",
)
"""Of DeepSeek V3.1, as its model card gives them."""

FORMATS = (
    Format(name="gpt-oss", signs=(("<|channel|>", "<|message|>"),), channels=True),
    Format(
        name="gemma",
        signs=(("<|tool_call>",),),
        open=("<|tool_call>",),
        close="<tool_call|>",
        calls=(HeadCall(before="call:", notation=GEMMA),),
        written=("<|tool_call>", "", "<tool_call|>"),
        wrapped=True,
    ),
    Format(
        name="functiongemma",
        signs=(("<start_function_call>",),),
        open=("<start_function_call>",),
        close="<end_function_call>",
        calls=(HeadCall(before="call:", notation=FUNCTION_GEMMA),),
        written=("<start_function_call>", "", "<end_function_call>"),
        wrapped=True,
    ),
    Format(
        name="minicpm4",
        signs=(("<|tool_call_start|>", "```python"),),
        open=("<|tool_call_start|>",),
        close="<|tool_call_end|>",
        calls=(PythonCall(rows=True, fence=("```python", "```")),),
        written=("<|tool_call_start|>\n```python\n", "\n", "\n```\n<|tool_call_end|>"),
    ),
    Format(
        name="lfm2",
        signs=(("<|tool_call_start|>",), ("<|tool_list_start|>",)),
        open=("<|tool_call_start|>",),
        close="<|tool_call_end|>",
        calls=(PythonCall(), JsonCall()),
        written=("<|tool_call_start|>[", ", ", "]<|tool_call_end|>"),
    ),
    Format(
        name="mistral-args",
        signs=(("[TOOL_CALLS]", "[ARGS]"),),
        open=("[TOOL_CALLS]",),
        calls=(HeadCall(after=("[ARGS]", "[CALL_ID]")), JsonCall()),
        written=("[TOOL_CALLS]", "", ""),
        wrapped=True,
        id_length=9,
    ),
    Format(
        name="mistral",
        signs=(("[TOOL_CALLS]",),),
        open=("[TOOL_CALLS]",),
        calls=(JsonCall(), HeadCall(after=("[ARGS]", "[CALL_ID]"))),
        written=("[TOOL_CALLS][", ", ", "]"),
        id_length=9,
    ),
    Format(
        name="granite3",
        signs=(("<|tool_call|>",),),
        open=("<|tool_call|>",),
        close="<|/tool_call|>",  # of Phi-4-mini; Granite writes none
        calls=(JsonCall(),),
        written=("<|tool_call|>[", ", ", "]"),
    ),
    Format(
        name="seed",
        signs=(("<seed:tool_call>",),),
        open=("<seed:tool_call>",),
        close="</seed:tool_call>",
        calls=(
            TagCall(
                name=("<function=", ">"),
                key=("<parameter=", ">"),
                value=("", "</parameter>"),
                end="</function>",
                rows=True,
            ),
        ),
        written=("<seed:tool_call>\n", "\n", "\n</seed:tool_call>"),
        wrapped=True,
    ),
    Format(
        name="olmo3",
        signs=(("<function_calls>",),),
        open=("<function_calls>",),
        close="</function_calls>",
        calls=(PythonCall(rows=True),),
        written=("<function_calls>", "\n", "</function_calls>"),
    ),
    Format(
        name="qwen3-coder",
        signs=(("<function=", "<parameter="),),
        open=("<tool_call>", "<function="),
        close="</tool_call>",
        calls=(
            TagCall(
                name=("<function=", ">"),
                key=("<parameter=", ">"),
                value=("", "</parameter>"),
                end="</function>",
                lines=True,
            ),
        ),
        written=("<tool_call>\n", "\n", "\n</tool_call>"),
        wrapped=True,
    ),
    Format(
        name="glm-4.7",
        signs=(("{function-name}<arg_key>",), ("- '<tool_call>' + tc.name -",)),
        open=("<tool_call>",),
        calls=(
            TagCall(
                name=("", ""),
                key=("<arg_key>", "</arg_key>"),
                value=("<arg_value>", "</arg_value>"),
                end="</tool_call>",
            ),
        ),
        written=("<tool_call>", "", ""),
        wrapped=True,
    ),
    Format(
        name="glm",
        signs=(("<arg_key>",),),
        open=("<tool_call>",),
        calls=(
            TagCall(
                name=("", "\n"),
                key=("<arg_key>", "</arg_key>"),
                value=("<arg_value>", "</arg_value>"),
                end="</tool_call>",
                gap="\n",
            ),
        ),
        written=("<tool_call>", "\n", ""),
        wrapped=True,
    ),
    Format(
        name="minicpm",
        signs=(("<function name=", "<param name="),),
        open=("<function name=",),
        calls=(
            TagCall(
                name=('<function name="', '">'),
                key=('<param name="', '">'),
                value=("", "</param>"),
                end="</function>",
            ),
        ),
    ),
    Format(
        name="deepseek-v3.2",
        signs=((_DSML, "function_calls", "invoke name="),),
        open=(f"<{_DSML}function_calls>",),
        close=f"</{_DSML}function_calls>",
        calls=(
            TagCall(
                name=(f'<{_DSML}invoke name="', '">'),
                key=(f'<{_DSML}parameter name="', '" string="true">'),
                other='" string="false">',
                value=("", f"</{_DSML}parameter>"),
                end=f"</{_DSML}invoke>",
                rows=True,
                lead="\n",
            ),
        ),
        written=(f"<{_DSML}function_calls>", "", f"\n</{_DSML}function_calls>"),
        inner=(_DSML,),
    ),
    Format(
        name="deepseek-v3",
        signs=((_DEEPSEEK_OPEN, "```json"),),
        open=(_DEEPSEEK_OPEN,),
        close=_DEEPSEEK_CLOSE,
        calls=(
            HeadCall(
                before=f"{_DEEPSEEK_CALL}function{_DEEPSEEK_BETWEEN}",
                after=("\n```json\n",),
                tail=("\n```", _DEEPSEEK_CALLED),
            ),
        ),
        written=(_DEEPSEEK_OPEN, "\n", _DEEPSEEK_CLOSE),
        inner=(_DEEPSEEK_CALL, _DEEPSEEK_BETWEEN, _DEEPSEEK_CALLED),
    ),
    Format(
        name="deepseek-v3.1",
        signs=((_DEEPSEEK_OPEN,),),
        open=(_DEEPSEEK_OPEN,),
        close=_DEEPSEEK_CLOSE,
        calls=(
            HeadCall(before=_DEEPSEEK_CALL, after=(_DEEPSEEK_BETWEEN,), tail=(_DEEPSEEK_CALLED,)),
        ),
        written=(_DEEPSEEK_OPEN, "", _DEEPSEEK_CLOSE),
        words=_DEEPSEEK_WORDS,
        inner=(_DEEPSEEK_CALL, _DEEPSEEK_BETWEEN, _DEEPSEEK_CALLED),
    ),
    HERMES,
    Format(
        name="llama-pythonic",
        signs=(("<|python_start|>",), ("[func_name1(",)),
        open=("<|python_start|>",),
        close="<|python_end|>",
        calls=(PythonCall(),),
        bare=True,
        written=("[", ", ", "]"),
    ),
    Format(
        name="llama-json",
        signs=(("<|python_tag|>",), ('"parameters": dictionary of argument name',)),
        open=("<|python_tag|>",),
        calls=(JsonCall(arguments=("parameters", "arguments")),),
        bare=True,
        written=("", "; ", ""),
    ),
)
"""The bundled formats. The first whose signs are in a template is its format."""

THOUGHTS = (
    Thought("<think>", "</think>"),
    Thought("<|channel>thought", "<channel|>"),
    Thought("[THINK]", "[/THINK]"),
    Thought("<seed:think>", "</seed:think>"),
    Thought("<thought>", "</thought>"),
    Thought("<|thought_start|>", "<|thought_end|>"),
    Thought("<|START_THINKING|>", "<|END_THINKING|>"),
    Thought("Here is my thought process:", "Here is my response:"),
)
"""Of Qwen, DeepSeek, GLM and many others; Gemma; Mistral; Seed; Exaone; MiniCPM 3 and 4;
Command; Granite 3."""


FRAMES = (Frame("<response>", "</response>"), Frame("<answer>", "</answer>"))
"""Of Ernie 4.5 and HunYuan."""


def frame_of(template: str) -> Frame | None:
    """What stands around the answers of a model with this chat template, if it is known."""
    for frame in FRAMES:
        if frame.open in template and frame.close in template and thought_of(template) is not None:
            return frame
    return None


def format_of(template: str) -> Format | None:
    """The format of a chat template, if it is a bundled one."""
    for format_ in FORMATS:
        if any(all(sign in template for sign in signs) for signs in format_.signs):
            return format_
    return None


def thought_of(template: str) -> Thought | None:
    """What stands around the thoughts of a model with this chat template, if it is known."""
    for thought in THOUGHTS:
        # Some templates open a thought in pieces, but all that know thoughts must take them out.
        if thought.close in template:
            return thought
    return None
