"""The tokenizer that a GGUF file carries, for the `tokenizers` library.

Three kinds: "gpt2", byte-level BPE with its merges and the name of the expression that splits
words; "llama", SentencePiece's BPE, whose merges follow from the pieces' scores; and "gemma4", the
same with its merges. Where llama.cpp and the checkpoint's own tokenizer.json differ, the latter is
followed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ockham.core.errors import ModelError
from ockham.core.numbers import shown
from ockham.kernels.native import core
from ockham.model.checkpoint.gguf.byte_pairs import BytePairTokenizer, letters_model, read_pairs
from ockham.model.checkpoint.gguf.parts import GgufParts
from ockham.model.checkpoint.gguf.splitting import SPLITTINGS
from ockham.model.checkpoint.gguf.strings import STRINGS, Strings

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import BPE

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of tokens in `tokenizer.ggml.token_type`."""

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"

MOST_CUTS = 500_000_000
"""The squares of the pieces' lengths together, which is what it takes to find the merges that make
them: some seconds. Those of 260,000 pieces are 20 million."""

_NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
"""Name in tokenizer_config.json -> key of the metadata."""
FILL_IN = {
    "prefix": ("fim_pre_token_id", "prefix_token_id"),
    "suffix": ("fim_suf_token_id", "suffix_token_id"),
    "middle": ("fim_mid_token_id", "middle_token_id"),
    "repo": ("fim_rep_token_id",),
    "file": ("fim_sep_token_id",),
    "pad": ("fim_pad_token_id",),
}
"""Role of a fill-in token -> the keys that may name it, the newer first."""


def read_tokenizer(
    path: Path, metadata: Mapping[str, Any] | None = None
) -> tuple[Backend | BytePairTokenizer, dict[str, Any], tuple[str, ...]]:
    """The tokenizer of a GGUF file, or any part of one, its tokenizer_config.json, and what a user
    should know of it. `metadata` are the file's, where they have been read.

    Raises ModelError if the file has none, or one of a kind that is not supported.
    """
    if metadata is None:
        parts = GgufParts(path)
        parts.close()
        metadata = parts.metadata
    kind, tokens = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.tokens")
    if kind not in _KINDS or not tokens:
        raise ModelError(
            f"the tokenizer of {path} is of the kind {shown(kind)}; supported are "
            f"{', '.join(_KINDS)}. Name another with --tokenizer, or take "
            "--skip-tokenizer-init and give token ids."
        )
    _check(path, metadata)
    try:
        config = _config(metadata, tokens)
        backend = (
            _byte_level(path, metadata, tokens, config)
            if kind == "gpt2"
            else _sentencepiece(path, metadata, list(tokens), config)
        )
    except ModelError:
        raise
    except Exception as error:  # the library raises plain Exception for every defect
        raise ModelError(
            f"the tokenizer of {path} does not hold together: {shown(str(error))}. Fetch the file "
            "again, or name another tokenizer with --tokenizer."
        ) from error
    notes: tuple[str, ...] = ()
    if kind == "gpt2" and metadata.get("tokenizer.ggml.pre") is None:
        notes = (
            f"warning: {path} does not say how its tokenizer splits words (tokenizer.ggml.pre); "
            "they are split as by GPT-2. A model that was trained on other tokens than these reads "
            "badly: convert it again with a newer llama.cpp, or name its tokenizer "
            "with --tokenizer.",
        )
    return backend, config, notes


_KINDS = ("gpt2", "llama", "gemma4")
_STRINGS = ("tokens", "merges")
_NUMBERS = ("scores", "token_type")


def _check(path: Path, metadata: Mapping[str, Any]) -> None:
    """Raise ModelError for lists that hold something else, or ids of no token."""
    for name in (*_STRINGS, *_NUMBERS):
        values = metadata.get(f"tokenizer.ggml.{name}")
        if values is None or isinstance(values, STRINGS if name in _STRINGS else list):
            continue
        kind = "texts" if name in _STRINGS else "numbers"
        raise ModelError(
            f"tokenizer.ggml.{name} of {path} must be a list of {kind}, not {shown(values)}."
        )
    count = len(metadata["tokenizer.ggml.tokens"])
    unknown = metadata.get("tokenizer.ggml.unknown_token_id")
    if unknown is not None and not (isinstance(unknown, int) and 0 <= unknown < count):
        raise ModelError(
            f"tokenizer.ggml.unknown_token_id of {path} is {shown(unknown)}, but there are {count} "
            "tokens."
        )


def _byte_level(
    path: Path, metadata: Mapping[str, Any], tokens: Strings, config: Mapping[str, Any]
) -> Backend | BytePairTokenizer:
    from tokenizers import Tokenizer, decoders, normalizers

    pre = metadata.get("tokenizer.ggml.pre", "default")
    if not isinstance(pre, str) or pre not in SPLITTINGS:
        raise ModelError(
            f"the tokenizer of {path} splits words as {shown(pre)}, which is not known; known are "
            f"{', '.join(SPLITTINGS)}. Name another tokenizer with --tokenizer."
        )
    splitting = SPLITTINGS[pre]
    merges = metadata.get("tokenizer.ggml.merges", STRINGS())
    control, users = _special(metadata, tokens)
    added = {*control, *users, *(config[name] for name in _NAMED if name in config)}
    pairs = read_pairs(tokens, merges, added, splitting.whole)
    if pairs is None:
        model = _whole_model(path, tokens, merges, splitting.whole)
    else:
        model = letters_model(pairs, added)
    backend = Tokenizer(model)
    backend.pre_tokenizer = splitting.pre_tokenizer()
    if splitting.composed:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    _add_special(backend, control, users)
    _add_ends(backend, metadata, config, splitting.begins, byte_level=True)
    return backend if pairs is None else BytePairTokenizer(backend, pairs, splitting.whole)


def _whole_model(path: Path, tokens: Strings, merges: Strings, whole: bool) -> BPE:
    """The library's model with the whole vocabulary and all merges."""
    from tokenizers.models import BPE

    vocab = {token: i for i, token in enumerate(tokens)}
    return BPE(vocab=vocab, merges=_pairs(path, merges), ignore_merges=whole)


def _pairs(path: Path, merges: Strings) -> list[tuple[str, str]]:
    pairs = []
    for merge in merges:
        left, space, right = merge.partition(" ")
        if not space:
            raise ModelError(
                f"tokenizer.ggml.merges of {path} holds {shown(merge)}, which is no pair of pieces."
            )
        pairs.append((left, right))
    return pairs


def _sentencepiece(
    path: Path, metadata: Mapping[str, Any], tokens: list[str], config: Mapping[str, Any]
) -> Backend:
    from tokenizers import Tokenizer, decoders, models, normalizers

    gemma = str(metadata.get("general.architecture")).startswith("gemma")
    if gemma:  # its runs of spaces are stored as such
        tokens = [_SPACE * len(t) if t and not t.strip(" ") else t for t in tokens]
    merges = metadata.get("tokenizer.ggml.merges")
    given = merges if merges and metadata["tokenizer.ggml.model"] == "gemma4" else None
    scores = metadata.get("tokenizer.ggml.scores")
    if gemma or not scores:  # Gemma's scores do not follow its merges; the order of its tokens does
        scores = [-float(i) for i in range(len(tokens))]
    kinds = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if len(scores) != len(tokens) or len(kinds) != len(tokens):
        raise ModelError(f"the tokenizer of {path} has not one score and one kind for each token.")
    if given is None and sum([len(token) ** 2 for token in tokens]) > MOST_CUTS:
        raise ModelError(
            f"the tokens of {path} are too long to find the merges that make them; the longest has "
            f"{max(map(len, tokens))} characters. Name another tokenizer with --tokenizer."
        )
    unknown = metadata.get("tokenizer.ggml.unknown_token_id")
    backend = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=_merges(tokens, scores, kinds) if given is None else _pairs(path, given),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=BYTE in kinds,
        )
    )
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", not gemma)
    steps: list[Any] = [normalizers.Prepend(_SPACE)] if prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    decoding: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*decoding, *([decoders.Strip(" ", 1, 0)] * bool(prefix))])
    _add_special(backend, *_special(metadata, tokens))
    _add_ends(backend, metadata, config, begins=True, byte_level=False)
    return backend


def _merges(
    tokens: list[str], scores: Sequence[float], kinds: Sequence[int]
) -> list[tuple[str, str]]:
    """All pairs of pieces that make up a piece, the best piece first, as SentencePiece merges."""
    mergeable = [kind not in (UNKNOWN, CONTROL, BYTE) for kind in kinds]
    found = None if core is None else core.scored_merges(tokens, scores, mergeable)
    return _plain_merges(tokens, scores, mergeable) if found is None else found


def _plain_merges(
    tokens: Sequence[str], scores: Sequence[float], mergeable: Sequence[bool]
) -> list[tuple[str, str]]:
    """The same without the native core, which takes a tenth of the time."""
    places = {token: i for i, token in enumerate(tokens) if mergeable[i]}
    found: list[tuple[float, int, int, str, str]] = []
    for token, index in places.items():
        for cut in range(1, len(token)):
            left, right = places.get(token[:cut]), places.get(token[cut:])
            if left is not None and right is not None:
                found.append((-scores[index], left, right, token[:cut], token[cut:]))
    return [(left, right) for *_, left, right in sorted(found)]


def _special(metadata: Mapping[str, Any], tokens: Strings) -> tuple[list[str], list[str]]:
    """Tokens that are found whole in a text: control tokens, which are special, and the user's."""
    kinds = (metadata.get("tokenizer.ggml.token_type") or [])[: len(tokens)]
    others = [(i, kind) for i, kind in enumerate(kinds) if kind != NORMAL]
    control = [tokens[i] for i, kind in others if kind in (UNKNOWN, CONTROL)]
    return control, [tokens[i] for i, kind in others if kind == USER_DEFINED]


def _add_special(backend: Backend, control: Sequence[str], users: Sequence[str]) -> None:
    from tokenizers import AddedToken

    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in control])
    backend.add_tokens([AddedToken(t, normalized=False, special=False) for t in users])


def _add_ends(
    backend: Backend,
    metadata: Mapping[str, Any],
    config: Mapping[str, Any],
    begins: bool,
    byte_level: bool,
) -> None:
    """What is put around every text: bos and eos, as the file says or as its kind does."""
    from tokenizers import processors

    bos, eos = config.get("bos_token"), config.get("eos_token")
    with_bos = metadata.get("tokenizer.ggml.add_bos_token", begins) and bos is not None
    with_eos = metadata.get("tokenizer.ggml.add_eos_token", False) and eos is not None
    ends = [token for token, wanted in ((bos, with_bos), (eos, with_eos)) if wanted]
    if ends:
        parts = [*([str(bos)] * bool(with_bos)), "$A", *([str(eos)] * bool(with_eos))]
        ids = [(str(token), backend.token_to_id(str(token))) for token in dict.fromkeys(ends)]
        template = processors.TemplateProcessing(single=parts, special_tokens=ids)
        first = [processors.ByteLevel(trim_offsets=False)] if byte_level else []
        backend.post_processor = processors.Sequence([*first, template])


def _config(metadata: Mapping[str, Any], tokens: Strings) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for name, key in _NAMED.items():
        token = metadata.get(f"tokenizer.ggml.{key}")
        if isinstance(token, int) and 0 <= token < len(tokens):
            config[name] = tokens[token]
    fill_in = {
        role: tokens[token]
        for role, keys in FILL_IN.items()
        for key in reversed(keys)  # the first has the last word
        if isinstance(token := metadata.get(f"tokenizer.ggml.{key}"), int)
        and 0 <= token < len(tokens)
    }
    if fill_in:
        config["fill_in_tokens"] = fill_in
    named = metadata.get("tokenizer.chat_templates") or []
    templates = [
        {"name": name, "template": metadata[f"tokenizer.chat_template.{name}"]}
        for name in named
        if f"tokenizer.chat_template.{name}" in metadata
    ]
    default = metadata.get("tokenizer.chat_template")
    if templates and default is not None:
        templates.append({"name": "default", "template": default})
    if templates or default is not None:
        config["chat_template"] = templates or default
    return config
