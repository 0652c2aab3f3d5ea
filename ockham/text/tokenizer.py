"""Text to token ids and back, over the `tokenizers` library and a checkpoint's tokenizer.json.

Knows nothing of models. Padding and truncation that a tokenizer.json may ask for are turned off:
a step has no padding, and a prompt is never cut without being asked.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ockham.core.config import EngineConfig
from ockham.core.errors import InvalidRequest, ModelError
from ockham.model.hub import BUILT_IN
from ockham.text.plain_templates import render_plain
from ockham.text.text_stream import REPLACEMENT, TextStream
from ockham.text.token_bytes import speller
from ockham.text.tokenizer_files import (
    named_special_tokens,
    read_backend,
    read_json,
    read_template,
    read_templates,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

    from ockham.model.checkpoint.gguf.byte_pairs import BytePairTokenizer
    from ockham.text.chat_renderer import ChatRenderer, Template
    from ockham.text.fill_in import FillIn
    from ockham.text.reply.style import Style

_MOST_STYLES = 64
"""Chat templates of which it is remembered how they write answers."""
SHORT_TOKENS = 256
"""So few are decoded in less time than it takes to change threads."""


class Pair(NamedTuple):
    """Two texts in one prompt: `start` is the second one's first token, `told_from` the first whose
    type says that it belongs to the second; None where types say nothing."""

    token_ids: list[int]
    start: int
    told_from: int | None


class Tokenizer:
    """The tokenizer of a checkpoint's directory or GGUF file. Safe to share among threads."""

    def __init__(
        self,
        directory: Path,
        chat_template: Path | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Read `tokenizer.json` and the files beside it, or what a GGUF file carries in their
        place; raises ModelError if it cannot be. `chat_template` is a file with a template that is
        taken instead of the checkpoint's own, `metadata` are the GGUF file's, where they have been
        read."""
        self.directory = Path(directory)
        self.notes: tuple[str, ...] = ()
        """What a user should know of it, in sentences."""
        self._backend: Backend | BytePairTokenizer
        if self.directory.is_file():
            from ockham.model.checkpoint.gguf.tokenizer import read_tokenizer

            self._backend, config, self.notes = read_tokenizer(self.directory, metadata)
        else:
            self._backend = read_backend(self.directory)
            config = read_json(self.directory / "tokenizer_config.json")
        self._config = {**read_json(self.directory / "special_tokens_map.json"), **config}
        self._special_tokens = named_special_tokens(self._config)
        self._own_template = chat_template is None
        self._templates = (
            read_templates(self.directory, config)
            if chat_template is None
            else {"default": read_template(chat_template)}
        )
        self._mark_special()
        added = self._backend.get_added_tokens_decoder()
        self._special_ids = frozenset(i for i, token in added.items() if token.special)
        self.vocab_size = max([self._backend.get_vocab_size(), *(i + 1 for i in added)])
        self._byte_of = _fallback_bytes(self._backend)
        self._texts: dict[int, str] = {}
        self._renderer: ChatRenderer | None = None
        self._styles: dict[str, Style] = {}
        self._lock = threading.Lock()

    def _mark_special(self) -> None:
        """Tokens that the configuration names, such as the end of sequence, are special even where
        tokenizer.json holds them as ordinary entries, so that decoding can skip them."""
        known = {token.content for token in self._backend.get_added_tokens_decoder().values()}
        named = [
            token
            for token in dict.fromkeys(self._special_tokens.values())
            if token not in known and self._backend.token_to_id(token) is not None
        ]
        if named:
            self._backend.add_special_tokens(list(named))

    @property
    def digest(self) -> str:
        """Of what tokens mean: two tokenizers with the same one number every text alike."""
        return hashlib.sha256(self._backend.to_str().encode()).hexdigest()

    @property
    def info(self) -> dict[str, Any]:
        """tokenizer_config.json, or what a GGUF file says in its place: special tokens as they are
        spelled, and the chat template."""
        info = {"bos_token": None, "eos_token": None, "pad_token": None, **self._config}
        info |= self._special_tokens
        if "default" in self._templates:
            info["chat_template"] = self._templates["default"]
        return info

    @property
    def eos_token_id(self) -> int | None:
        """The end-of-sequence token of tokenizer_config.json, if it names one."""
        token = self._special_tokens.get("eos_token")
        return None if token is None else self.token_id(token)

    @property
    def bos_token_id(self) -> int | None:
        """The beginning-of-sequence token of tokenizer_config.json, if it names one."""
        token = self._special_tokens.get("bos_token")
        return None if token is None else self.token_id(token)

    def token_id(self, token: str) -> int | None:
        """The id of the entry that is spelled `token` in the vocabulary, or None."""
        found: int | None = self._backend.token_to_id(token)
        return found

    @property
    def described(self) -> str:
        """The tokenizer as JSON of the `tokenizers` library."""
        described: str = self._backend.to_str()
        return described

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The token ids of `text`. Special tokens that are spelled out in it are recognised.

        `add_special_tokens` adds those that tokenizer.json puts around every text, such as a
        beginning-of-sequence token. Raises InvalidRequest if `text` is not a valid string.
        """
        (ids,) = self.encode_all([text], add_special_tokens)
        return ids

    def encode_all(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """The same of several texts, on all cores. Raises InvalidRequest if one of them is not a
        valid string, and does not say which."""
        for text in texts:
            if not isinstance(text, str):
                raise InvalidRequest(f"text to encode must be a string, got {type(text).__name__}.")
        try:
            # `encode` keeps Python's lock for as long as it takes, and all threads waiting for it;
            # `encode_batch_fast` lets go of it, gives the same ids, and tracks no offsets.
            encodings = self._backend.encode_batch_fast(
                texts, add_special_tokens=add_special_tokens
            )
            ids: list[list[int]] = [encoding.ids for encoding in encodings]
        except (UnicodeEncodeError, TypeError) as error:
            raise InvalidRequest(
                "the text holds half of a surrogate pair, which is no character; send valid "
                "Unicode.",
                "prompt",
            ) from error
        except Exception as error:  # the library raises plain Exception for every defect
            raise InvalidRequest(
                f"the model's tokenizer cannot encode this text ({error}).", "prompt"
            ) from error
        return ids

    def encode_pair(self, first: str, second: str) -> Pair:
        """The token ids of two texts, with the special tokens that tokenizer.json puts around and
        between them. Raises InvalidRequest for a tokenizer that knows of no pairs."""
        backend: Any = self._backend
        if self.directory.is_file():
            raise InvalidRequest(
                "the tokenizer of a GGUF file knows of no pairs of texts; load the checkpoint that "
                "it was made from.",
                "prompt",
            )
        try:
            (encoding,) = backend.encode_batch_fast([(first, second)])
        except (UnicodeEncodeError, TypeError) as error:
            raise InvalidRequest(
                "a text of the pair holds half of a surrogate pair, which is no character; send "
                "valid Unicode.",
                "prompt",
            ) from error
        of = encoding.sequence_ids
        if 1 not in of:
            raise InvalidRequest("the second text of a pair has no tokens; give a text.", "prompt")
        start, told = of.index(1), encoding.type_ids
        return Pair(encoding.ids, start, told.index(1) if 1 in told else None)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`; ids outside the vocabulary have none. Incomplete UTF-8 becomes U+FFFD.

        Byte tokens (`<0xE2>`) in a row are one stretch of UTF-8 of which valid characters are kept,
        as in SentencePiece. (`tokenizers` alone replaces the whole stretch if any of it is invalid,
        so that a byte could take back a character that was already streamed.)
        """
        ids = list(ids)
        if self._byte_of and self._has_broken_bytes(ids):
            return self._decode_broken(ids, skip_special_tokens)
        if len(ids) > SHORT_TOKENS:
            # As with `encode`, only the form for batches lets go of Python's lock.
            return str(
                self._backend.decode_batch([ids], skip_special_tokens=skip_special_tokens)[0]
            )
        text: str = self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def token_text(self, token_id: int) -> str:
        """The text of one token as it reads inside a sentence, with its leading space.

        Never raises: an id outside the vocabulary has the text "".
        """
        text = self._texts.get(token_id)
        if text is None:
            text = self._texts[token_id] = self._token_text(token_id)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token adds to a text, also where they are only part of a character."""
        text = self.token_text(token_id)
        if REPLACEMENT not in text or self._spell is None:
            return text.encode()
        return self._spell(self._backend.id_to_token(token_id) or "")

    @cached_property
    def special_around(self) -> tuple[int, int]:
        """How many special tokens stand before a text and behind it."""
        bare = self.encode("a", add_special_tokens=False)
        whole = self.encode("a", add_special_tokens=True)
        for before in range(len(whole) - len(bare) + 1):
            if whole[before : before + len(bare)] == bare:
                return before, len(whole) - len(bare) - before
        return 0, 0

    @cached_property
    def fill_in(self) -> FillIn | None:
        """The tokens by which the model fills in text between two others; None if it has none."""
        from ockham.text.fill_in import find

        named = self._config.get("fill_in_tokens")
        return find(self.token_id, named if isinstance(named, dict) else {})

    @cached_property
    def _spell(self) -> Callable[[str], bytes] | None:
        """From a token as the vocabulary shows it to its bytes; None where tokens are no bytes."""
        decoder = self._backend.decoder
        try:
            return speller(None if decoder is None else json.loads(decoder.__getstate__()))
        except ModelError:
            return None

    def stream(self, skip_special_tokens: bool = True) -> TextStream:
        """A new incremental decoder."""
        return TextStream(self, skip_special_tokens)

    def is_silent(self, token_id: int, skip_special_tokens: bool) -> bool:
        """Whether decoding passes over this token: a skipped special token, or no token at all."""
        if token_id in self._special_ids:
            return skip_special_tokens
        return self._backend.id_to_token(token_id) is None

    def word_ids(self, word: str) -> list[list[int]]:
        """The token sequences that spell `word`, for `bad_words`: as it stands at the start of a
        text, and as it stands after a space where that is spelled otherwise."""
        bare = word.lstrip()
        found: list[list[int]] = []
        for spelling in (bare, " " + bare):
            ids = self.encode(spelling, add_special_tokens=False)
            if ids and ids not in found:
                found.append(ids)
        return found

    @property
    def has_chat_template(self) -> bool:
        return bool(self._templates)

    @cached_property
    def turns(self) -> tuple[str, str] | None:
        """What stands in a chat between an assistant's turn and the next one of the user, and
        between that and the next answer. None without a template, or where it is none of
        `plain_templates`."""
        if "default" not in self._templates:
            return None
        asked, answered = "\x01", "\x02"
        chat = [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": answered},
            {"role": "user", "content": asked},
        ]
        text = render_plain(self._templates["default"], chat, True)
        if text is None:
            return None
        user, _, assistant = text.rpartition(answered)[2].partition(asked)
        return user, assistant

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt that the chat template makes of `messages`; encode it without special tokens.

        `chat_template` is another template, or the name of one of several that the checkpoint has.
        `kwargs` are passed on to the template. The template is run in a worker process, which the
        first call starts, unless it is one of `plain_templates`. Raises InvalidRequest if there is
        no template, or if it is broken, refuses the messages, or exceeds a limit.
        """
        template = self.chat_template(chat_template, with_tools=bool(tools))
        if not tools and not kwargs:
            plain = render_plain(template.source, messages, add_generation_prompt)
            if plain is not None:
                return plain
        return self.renderer.render(
            template,
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            variables=kwargs,
        )

    def chat_template(self, chosen: str | None = None, *, with_tools: bool = False) -> Template:
        """The template of a chat: one that is given, or the name of one, or the checkpoint's own.
        Raises InvalidRequest if there is none."""
        from ockham.text.chat_renderer import CHECKPOINTS, GIVEN, Template

        if chosen is not None and chosen not in self._templates:
            return Template(chosen, GIVEN, strict=False)
        name = chosen or ("tool_use" if with_tools and "tool_use" in self._templates else "default")
        if name in self._templates:
            return Template(self._templates[name], CHECKPOINTS if self._own_template else GIVEN)
        if self._templates:
            raise InvalidRequest(
                "this model has several chat templates and none is the default; choose one with "
                f"chat_template: {', '.join(sorted(self._templates))}.",
                "chat_template",
            )
        raise InvalidRequest(
            "this model has no chat template, so it cannot chat; send a plain prompt, to be "
            "completed.",
            "messages",
        )

    def style(self, chosen: str | None = None, *, with_tools: bool = False) -> Style:
        """How answers are written by a model that a chat template was made for: see `reply.style`.
        With tools, a template of no known format is tried out in the worker process. Raises
        InvalidRequest if there is no such template."""
        from ockham.text.reply.style import style_of, with_calls

        source = self.chat_template(chosen, with_tools=with_tools)
        found = self._styles.get(source.source)
        if found is None:
            own = self._config.get("response_template") if self._own_template else None
            found = style_of(source.source, None if chosen is not None else own)
        if with_tools and not found.calls:
            found = with_calls(found, self.renderer.called(source))
        if len(self._styles) < _MOST_STYLES:
            self._styles[source.source] = found
        return found

    @cached_property
    def special_texts(self) -> Mapping[str, int]:
        """The special tokens as they are spelled, and their ids."""
        added = self._backend.get_added_tokens_decoder()
        return {token.content: i for i, token in added.items() if token.special}

    def check_chat_template(self) -> tuple[str | None, tuple[str, ...]]:
        """Why the chat template is of no use, if it is, and what is to be said of it otherwise.
        Starts the process that renders chats, and remembers a template that is of no use."""
        if "default" not in self._templates:
            return None, ()
        found = self.renderer.check(self.chat_template())
        notes = found.notes
        if "tool_use" in self._templates:
            other = self.renderer.check(self.chat_template("tool_use"))
            notes += () if other.fault is None else (f"With tools: {other.fault}",)
        return found.fault, notes

    @property
    def renderer(self) -> ChatRenderer:
        """What renders chats with this tokenizer's special tokens."""
        from ockham.text.chat_renderer import ChatRenderer

        with self._lock:
            if self._renderer is None:
                self._renderer = ChatRenderer(self._special_tokens)
            return self._renderer

    def take_renderer(self, renderer: ChatRenderer) -> None:
        """Render chats by processes that somebody has started: before the checkpoint was read, so
        that both are ready at the same time."""
        renderer.special_tokens = dict(self._special_tokens)
        with self._lock:
            self._renderer = renderer

    def close(self) -> None:
        """End the processes that render chats. The tokenizer may be used on."""
        if self._renderer is not None:
            self._renderer.close()

    def _token_text(self, token_id: int) -> str:
        try:
            if self._backend.id_to_token(token_id) is None:
                return ""
        except OverflowError:  # negative
            return ""
        anchor = self.encode("a", add_special_tokens=False)[-1:]
        return self.decode([*anchor, token_id], False).removeprefix(self.decode(anchor, False))

    def _has_broken_bytes(self, ids: list[int]) -> bool:
        stretch = bytearray()
        for token_id in [*ids, None]:
            byte = self._byte_of.get(token_id) if token_id is not None else None
            if byte is not None:
                stretch.append(byte)
            elif stretch:
                try:
                    stretch.decode()
                except UnicodeDecodeError:
                    return True
                stretch.clear()
        return False

    def _decode_broken(self, ids: list[int], skip_special_tokens: bool) -> str:
        """`decode` where a stretch of bytes is invalid: its characters become tokens of their own,
        spelled out, so that the decoder's other rules (prefix spaces) still apply."""
        tokens: list[str] = []
        stretch = bytearray()
        for token_id in ids:
            if self.is_silent(token_id, skip_special_tokens):
                continue
            byte = self._byte_of.get(token_id)
            if byte is not None:
                stretch.append(byte)
                continue
            tokens += _characters(stretch)
            stretch.clear()
            tokens.append(self._backend.id_to_token(token_id) or "")
        tokens += _characters(stretch)
        text: str = self._backend.decoder.decode(tokens)
        return text


def _characters(stretch: bytearray) -> list[str]:
    """The characters of UTF-8 bytes, with one U+FFFD for each byte that belongs to none."""
    characters: list[str] = []
    rest = bytes(stretch)
    while rest:
        try:
            characters += rest.decode()
            break
        except UnicodeDecodeError as error:
            characters += rest[: error.start].decode()
            characters += REPLACEMENT * (error.end - error.start)
            rest = rest[error.end :]
    return characters


def load_tokenizer(
    config: EngineConfig, directory: Path, metadata: Mapping[str, Any] | None = None
) -> Tokenizer | None:
    """The tokenizer that goes with the checkpoint in `directory`: the one that `config.tokenizer`
    names (a directory, a hub name, or "lab"), else the checkpoint's own; None if it is left out.
    `metadata` are those of the checkpoint's GGUF file, where they have been read.
    """
    if config.skip_tokenizer_init:
        return None
    template = None if config.chat_template is None else Path(config.chat_template)
    if config.tokenizer is None:
        return Tokenizer(directory, template, metadata)
    if config.tokenizer == "lab":
        return Tokenizer(BUILT_IN["lab"], template)
    if Path(config.tokenizer).exists():
        return Tokenizer(Path(config.tokenizer), template)
    return Tokenizer(_fetch(config.tokenizer), template)


def _fetch(name: str) -> Path:
    """The directory of a hub repository's tokenizer files, downloaded if they are not cached."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["tokenizer*.json", "special_tokens_map.json", "chat_template*", "*/*.jinja"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise ModelError(
            f"the tokenizer {name!r} is neither a directory nor to be had from the hub ({reason})."
        ) from error


def _fallback_bytes(backend: Backend | BytePairTokenizer) -> dict[int, int]:
    """Token id -> byte, for tokenizers that spell unknown characters as `<0xNN>`; empty if not."""
    decoder = backend.decoder
    if decoder is None or b'"ByteFallback"' not in decoder.__getstate__():
        return {}
    ids = {byte: backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256)}
    return {token_id: byte for byte, token_id in ids.items() if token_id is not None}
