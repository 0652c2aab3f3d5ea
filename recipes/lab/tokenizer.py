"""The tokenizer: byte-level BPE of exactly 4,096 entries, and its files in Hugging Face format.

Words are cut so that a prompt may end almost anywhere: newlines, indentation and single digits are
words of their own, punctuation is never joined to the name that follows it (``quicksort(`` leaves
the model where training had it), and only a single space is carried by the word after it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 4096
END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"

_FILL_IN_MIDDLE = ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
_CONTROL = [END_OF_TEXT, PAD, IM_START, IM_END, *_FILL_IN_MIDDLE]
# Tags that a parser of answers must see, so decoding keeps them even when it skips special tokens.
_TAGS = [
    f"<{slash}{tag}>" for tag in ("tool_call", "tool_response", "think") for slash in ("", "/")
]
_SPECIAL_COUNT = 32
SPECIAL_TOKENS = [
    *_CONTROL,
    *_TAGS,
    *(f"<|reserved_{i}|>" for i in range(_SPECIAL_COUNT - len(_CONTROL) - len(_TAGS))),
]

WORDS = (
    r"[\r\n]+"  # ends of lines, blank lines
    r"|[^\S\r\n]{2,}"  # indentation, alignment
    r"| ?[\p{L}\p{M}_]+"  # names
    r"|\p{N}"  # one digit
    r"| ?[^\s\p{L}\p{M}\p{N}_]+"  # punctuation
    r"|\s"
)

CHAT_TEMPLATE = """\
{%- macro text(content) %}
    {%- if content is string %}
        {{- content }}
    {%- else %}
        {%- for part in content or [] %}
            {{- part.text or '' }}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- text(messages[0].content) + '\\n\\n' }}
    {%- endif %}
    {{- '# Tools\\n\\nYou may call these functions:\\n\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' + (tool | tojson) }}
    {%- endfor %}
    {{- '\\n</tools>\\n\\nTo call one, answer with a JSON object in tags:\\n' }}
    {{- '<tool_call>\\n{"name": <name>, "arguments": <object>}\\n</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' + text(message.content) }}
        {%- for call in message.tool_calls or [] %}
            {%- set function = call.function or call %}
            {%- if message.content or not loop.first %}
                {{- '\\n' }}
            {%- endif %}
            {{- '<tool_call>\\n{"name": ' + (function.name | tojson) + ', "arguments": ' }}
            {%- if function.arguments is string %}
                {{- function.arguments }}
            {%- else %}
                {{- function.arguments | tojson }}
            {%- endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + text(message.content) + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- elif not (tools and loop.first and message.role == 'system') %}
        {{- '<|im_start|>' + message.role + '\\n' + text(message.content) + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """Learn the merges from ``texts``.

    Raises:
        ValueError: the texts are too few to fill the vocabulary.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=32,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(
            f"The texts give a vocabulary of {tokenizer.get_vocab_size()} entries, "
            f"not {vocab_size}: train on more text."
        )
    return _show_tags(tokenizer)


def _show_tags(tokenizer: Tokenizer) -> Tokenizer:
    """Mark the tags as added but not special: `tokenizers` can do that only in its JSON."""
    fields = json.loads(tokenizer.to_str())
    for token in fields["added_tokens"]:
        token["special"] = token["content"] not in _TAGS
    return Tokenizer.from_str(json.dumps(fields))


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context_tokens: int) -> None:
    """Write the tokenizer, its configuration and the chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    special = {"eos_token": END_OF_TEXT, "pad_token": PAD}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_tokens,
        **special,
    }
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", special)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of an exported folder."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def write_json(path: Path, fields: Mapping[str, object]) -> None:
    """Write readable JSON that ends in a newline."""
    path.write_text(json.dumps(fields, indent=2) + "\n")
