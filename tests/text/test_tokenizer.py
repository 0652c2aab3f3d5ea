"""The tokenizer says what transformers says, and streams text without ever taking any back."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, decoders, normalizers
from transformers import AutoTokenizer

from ockham.core.config import EngineConfig
from ockham.core.errors import InvalidRequest, ModelError
from ockham.text.tokenizer import Tokenizer, load_tokenizer
from tests.helpers.tiny_tokenizers import KINDS, byte_level_bpe, save

LAB = Path(__file__).parents[2] / "ockham" / "model" / "lab"
TEXTS = [
    "",
    " ",
    "The quick brown fox",
    "  two leading spaces, and a trailing one ",
    "emoji 😀👩‍👩‍👧 and 漢字 and é and \u0301",
    "def f(x):\n\treturn x**2\n\n\n",
    "special </s> in text <s>",
]


@pytest.fixture(scope="module", params=[*KINDS, "lab"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "lab":
        return LAB
    return save(KINDS[request.param](), tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer(directory)


@pytest.fixture(scope="module")
def oracle(directory: Path) -> Any:
    return AutoTokenizer.from_pretrained(directory)


@pytest.fixture
def plain(tmp_path: Path) -> Tokenizer:
    """A tokenizer without a chat template."""
    return Tokenizer(save(byte_level_bpe(), tmp_path))


def random_ids(tokenizer: Tokenizer, seed: int) -> list[int]:
    """A few ids, with byte tokens more often than chance would have them."""
    numbers = random.Random(seed)
    byte_ids = [tokenizer.token_id(f"<0x{byte:02X}>") for byte in b"\xe2\x82\xac\xf0\x9fA\n"]
    known = [token_id for token_id in byte_ids if token_id is not None]
    return [
        numbers.choice(known)
        if known and numbers.random() < 0.4
        else numbers.randrange(tokenizer.vocab_size)
        for _ in range(numbers.randrange(1, 12))
    ]


def streamed(tokenizer: Tokenizer, ids: list[int], skip: bool = True) -> list[str]:
    stream = tokenizer.stream(skip)
    return [*(stream.push(token_id) for token_id in ids), stream.finish()]


@pytest.mark.parametrize("special", [True, False])
def test_encoding_is_that_of_transformers(tokenizer: Tokenizer, oracle: Any, special: bool) -> None:
    for text in TEXTS:
        assert tokenizer.encode(text, special) == oracle.encode(text, add_special_tokens=special)


@pytest.mark.parametrize("skip", [True, False])
def test_decoding_is_that_of_transformers(tokenizer: Tokenizer, oracle: Any, skip: bool) -> None:
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids, skip) == oracle.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("skip", [True, False])
def test_what_is_streamed_adds_up_to_the_decoded_text(tokenizer: Tokenizer, skip: bool) -> None:
    for seed in range(1000):
        ids = random_ids(tokenizer, seed)
        assert "".join(streamed(tokenizer, ids, skip)) == tokenizer.decode(ids, skip), (seed, ids)


def test_streaming_real_text_never_shows_half_a_character(tokenizer: Tokenizer) -> None:
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert not any("\ufffd" in piece for piece in streamed(tokenizer, ids)), text


def test_a_character_cut_off_at_the_end_comes_with_finish(tmp_path: Path) -> None:
    tokenizer = Tokenizer(save(byte_level_bpe(), tmp_path))
    ids = tokenizer.encode("ok 😀")[:-1]
    *pieces, rest = streamed(tokenizer, ids)
    assert "".join(pieces) == "ok "
    assert rest == tokenizer.decode(ids)[3:] == "\ufffd"


def test_a_newline_spelled_as_a_byte_is_streamed_at_once(tmp_path: Path) -> None:
    tokenizer = Tokenizer(save(KINDS["Metaspace BPE with byte fallback"](), tmp_path))
    newline = tokenizer.token_id("<0x0A>")
    assert newline is not None
    ids = [*tokenizer.encode("fox", False), newline]
    assert streamed(tokenizer, ids)[-2] == "\n"


def test_an_invalid_byte_takes_back_no_character_before_it(tmp_path: Path) -> None:
    tokenizer = Tokenizer(save(KINDS["Metaspace BPE with byte fallback"](), tmp_path))
    ids = [tokenizer.token_id(f"<0x{byte:02X}>") for byte in "é".encode() + b"\xf0\x9f"]
    assert tokenizer.decode([i for i in ids if i is not None]) == "é\ufffd\ufffd"


def test_ids_outside_the_vocabulary_have_no_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("fox jumps")
    assert tokenizer.decode([*ids, 10**6]) == tokenizer.decode(ids)
    assert "".join(streamed(tokenizer, [*ids, 10**6])) == tokenizer.decode(ids)


def test_the_text_of_a_token_keeps_its_leading_space(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("an of the", add_special_tokens=False)
    assert "".join(map(tokenizer.token_text, ids)).lstrip() == "an of the"


def test_the_text_of_a_token_never_raises(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_text(token_id) for token_id in (-1, 2**31, 10**12)] == ["", "", ""]
    assert all(isinstance(tokenizer.token_text(i), str) for i in range(tokenizer.vocab_size))


def test_the_vocabulary_ends_where_that_of_transformers_does(
    tokenizer: Tokenizer, oracle: Any
) -> None:
    assert tokenizer.vocab_size == len(oracle)


def test_the_end_of_sequence_token_is_found(tokenizer: Tokenizer, oracle: Any) -> None:
    assert tokenizer.eos_token_id == oracle.eos_token_id is not None


def test_a_banned_word_is_banned_after_a_space_too(plain: Tokenizer) -> None:
    texts = [plain.decode(ids) for ids in plain.word_ids("fox")]
    assert texts == ["fox", " fox"]


def test_truncation_in_the_file_cuts_no_prompt(tmp_path: Path) -> None:
    backend = byte_level_bpe()
    backend.enable_truncation(2)
    backend.enable_padding(length=8)
    assert len(Tokenizer(save(backend, tmp_path)).encode("The quick brown fox")) not in (2, 8)


def test_half_a_surrogate_pair_is_refused(plain: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="surrogate"):
        plain.encode("\ud83d")


def test_text_that_is_no_string_is_refused(plain: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="must be a string, got int"):
        plain.encode(7)  # type: ignore[arg-type]


def test_a_missing_tokenizer_is_reported_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="--tokenizer, or take --skip-tokenizer-init"):
        Tokenizer(tmp_path)


def test_a_tokenizer_in_the_old_format_is_reported_with_how_to_convert_it(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(ModelError, match="save_pretrained"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": 3}'])
def test_a_corrupt_tokenizer_is_reported_as_such(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match="cannot be read as a tokenizer"):
        Tokenizer(tmp_path)


def test_a_corrupt_tokenizer_config_is_reported_as_such(tmp_path: Path) -> None:
    save(byte_level_bpe(), tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer_config\.json cannot be read"):
        Tokenizer(tmp_path)


def test_the_tokenizer_of_another_directory_can_be_named(tmp_path: Path) -> None:
    other = save(byte_level_bpe(), tmp_path / "other")
    named = load_tokenizer(EngineConfig(tokenizer=str(other)), LAB)
    assert named is not None
    assert named.directory == other


def test_no_tokenizer_is_loaded_if_it_is_to_be_skipped(tmp_path: Path) -> None:
    assert load_tokenizer(EngineConfig(skip_tokenizer_init=True), tmp_path) is None


def test_a_tokenizer_that_cannot_be_had_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="neither a directory nor to be had from the hub"):
        load_tokenizer(EngineConfig(tokenizer="no-one/has-this"), LAB)


def test_special_tokens_named_in_the_config_are_skipped(tmp_path: Path) -> None:
    save(byte_level_bpe(), tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    content["added_tokens"] = []
    file.write_text(json.dumps(content))
    tokenizer = Tokenizer(tmp_path)
    end = tokenizer.eos_token_id
    assert end is not None
    assert tokenizer.decode([end]) == ""
    assert tokenizer.decode([end], skip_special_tokens=False) == "</s>"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["a é€🙂 b", "日本語", "plain words"])
def test_the_bytes_of_tokens_add_up_to_the_text(tmp_path, kind, text):
    save(KINDS[kind](), tmp_path)
    tokenizer = Tokenizer(tmp_path)
    tokens = tokenizer.encode(text, add_special_tokens=False)
    found = b"".join(map(tokenizer.token_bytes, tokens)).decode()
    assert found.strip() == tokenizer.decode(tokens, skip_special_tokens=False).strip()


BOMB = [normalizers.Replace("a", "a" * 100) for _ in range(6)]


@pytest.mark.parametrize(
    ("part", "steps"),
    [
        ("normalizer", normalizers.Sequence(BOMB)),
        ("normalizer", normalizers.Sequence([normalizers.Sequence(BOMB[:3]), *BOMB[:3]])),
        ("normalizer", normalizers.Sequence([normalizers.Prepend("▁" * 2000)])),
        ("normalizer", normalizers.Replace(Regex("a*"), "a" * 5000)),
        ("decoder", decoders.Sequence([decoders.Replace("a", "a" * 100) for _ in range(6)])),
    ],
)
def test_a_tokenizer_that_makes_texts_a_thousand_times_as_long_is_refused(
    tmp_path: Path, part: str, steps: Any
) -> None:
    backend = byte_level_bpe()
    backend.add_tokens([AddedToken("a", normalized=True)])
    save(backend, tmp_path)
    described = json.loads(backend.to_str())
    # The library would set it off as soon as it reads the file, to normalise the added token.
    described[part] = json.loads(steps.__getstate__())
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(ModelError, match=f"the {part} of .* times as long"):
        Tokenizer(tmp_path)


def test_what_real_tokenizers_do_to_texts_is_not_refused(tmp_path: Path) -> None:
    backend = byte_level_bpe()
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.Nmt(),
            normalizers.NFKC(),
            normalizers.Replace(Regex(" {2,}"), "▁"),
            normalizers.Replace("``", '"'),
            normalizers.Prepend("▁"),
            normalizers.Replace(" ", "▁"),
            normalizers.Lowercase(),
        ]
    )
    assert Tokenizer(save(backend, tmp_path)).encode("a  b")


def test_a_deeply_nested_tokenizer_is_refused(tmp_path: Path) -> None:
    save(byte_level_bpe(), tmp_path)
    deep = '{"type":"Sequence","normalizers":[' * 100_000 + "]}" * 100_000
    (tmp_path / "tokenizer.json").write_text(f'{{"normalizer": {deep}}}')
    with pytest.raises(ModelError, match="nested too deeply"):
        Tokenizer(tmp_path)
    save(byte_level_bpe(), tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"a":' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(ModelError, match="nested too deeply"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.jinja"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path, name: str) -> None:
    save(byte_level_bpe(), tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(ModelError, match="no regular file"):
        Tokenizer(tmp_path)


def test_a_template_that_is_no_text_or_huge_is_refused(tmp_path: Path) -> None:
    save(byte_level_bpe(), tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match="cannot be read"):
        Tokenizer(tmp_path)
    with (tmp_path / "chat_template.jinja").open("wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(ModelError, match="bytes; at most"):
        Tokenizer(tmp_path)
