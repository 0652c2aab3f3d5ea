"""`ockham compress`: a mix that reaches its goal, loads directly, and says what it is."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from ockham.cli.main import cli
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.core.rates import AttentionRate, ProductRate, Rates
from ockham.kernels.backends import find_backend
from ockham.kernels.corrected import CorrectedLinear
from ockham.lab.compress.card import Card
from ockham.lab.compress.scoring import Held, Model, Score, Scorer, losses, worth_keeping
from ockham.lab.compress.search import Goal, Search, _Compressing
from ockham.lab.compress.search import compress as run
from ockham.lab.compress.text import read_texts
from ockham.lab.compress.units import forms_for, units_of
from ockham.model.calibration import layer_ranges
from ockham.model.checkpoint.opening import open_model
from ockham.model.converting import convert, tensors_in, unquantised
from ockham.model.loading import choose_packer, load_model
from ockham.model.mixing import tensors_of
from ockham.model.packed.packing import plain_format
from ockham.weights.stacked import parts_of
from tests.helpers.tiny import tiny_llama, tiny_mixtral

SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "head_dim": 32,
    "tokenizer": True,
}
FAST = ("--calibration-tokens", "512", "--score-tokens", "128", "--formats", "int4,int8,q5_0")


def compress(source: Path, out: Path, *flags: str) -> Result:
    return CliRunner().invoke(cli, ["compress", str(source), str(out), *FAST, *flags])


def card_of(out: Path) -> Card:
    return msgspec.json.decode((out / "compression.json").read_bytes(), type=Card)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"), **SIZES)


@pytest.fixture(scope="module")
def scores(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The journal of a first run, which later ones go on from."""
    directory = tmp_path_factory.mktemp("first")
    result = compress(source, directory / "out", "--bits", "6")
    assert result.exit_code == 0, result.output
    return directory / "out.scores.jsonl"


def test_the_result_keeps_to_its_bits_and_loads_directly(source: Path, scores: Path) -> None:
    out = scores.parent / "out"
    model = load_model(EngineConfig(model=str(out), kv_cache_memory_bytes=1 << 20))
    assert 8 * model.weight_bytes / model.parameters <= 6.0
    card = card_of(out)
    assert card.nbytes == model.weight_bytes
    assert card.bits > 5.5  # what may be spent is spent
    page = (out / "README.md").read_text()
    facts = json.loads((out / "config.json").read_text())["quantization_config"]
    assert {each.tensor for each in card.chosen} == set(facts["mix"])
    assert len(card.chosen) == 2 * 7 + 2
    for each in card.chosen:
        assert f"| `{each.tensor}` | {each.quantization} |" in page
        assert facts["mix"][each.tensor] == each.quantization
    assert len({each.quantization for each in card.chosen}) > 1


def test_fewer_bits_are_never_better_and_a_mix_beats_one_format(
    source: Path, scores: Path, tmp_path: Path
) -> None:
    flags = ("--scores", str(scores))
    assert compress(source, tmp_path / "small", "--bits", "5", *flags).exit_code == 0
    assert compress(source, tmp_path / "large", "--bits", "7.5", *flags).exit_code == 0
    small, large = (card_of(tmp_path / name) for name in ("small", "large"))
    assert small.predicted_kl > card_of(scores.parent / "out").predicted_kl > large.predicted_kl
    assert small.kl > large.kl


def test_a_floor_is_kept_on_text_that_nothing_was_fitted_to(
    source: Path, scores: Path, tmp_path: Path
) -> None:
    middle = card_of(scores.parent / "out").kl
    for name, kl in (("loose", 4 * middle), ("tight", middle)):
        flags = ("--floor", f"kl={kl}", "--scores", str(scores))
        result = compress(source, tmp_path / name, *flags)
        assert result.exit_code == 0, result.output
        assert card_of(tmp_path / name).kl <= kl
    assert card_of(tmp_path / "loose").nbytes < card_of(tmp_path / "tight").nbytes


def test_a_run_that_was_stopped_goes_on(source: Path, scores: Path, tmp_path: Path) -> None:
    whole = scores.read_bytes().splitlines(keepends=True)
    half = tmp_path / "half.jsonl"
    half.write_bytes(b"".join(whole[:6]) + whole[6][:20])  # a line was cut short
    result = compress(source, tmp_path / "out", "--bits", "6", "--scores", str(half))
    assert result.exit_code == 0, result.output
    assert "5 of 16 tensors were scored before" in result.output
    assert sorted(half.read_bytes().splitlines(keepends=True)) == sorted(whole)
    assert card_of(tmp_path / "out").chosen == card_of(scores.parent / "out").chosen


def test_the_nearest_goal_that_can_be_reached_is_named(
    source: Path, scores: Path, tmp_path: Path
) -> None:
    flags = ("--scores", str(scores))
    result = compress(source, tmp_path / "out", "--bits", "2", *flags)
    assert result.exit_code == 2
    bits = result.output.rpartition("--bits ")[2].partition(" ")[0]
    result = compress(source, tmp_path / "out", "--bits", bits, *flags)
    assert result.exit_code == 0, result.output
    both = ("--bits", bits, "--floor", "kl=1e-7", *flags)
    result = compress(source, tmp_path / "other", *both)
    assert result.exit_code == 2
    assert "the nearest that can: --bits" in result.output
    assert "--floor kl=" in result.output
    assert not (tmp_path / "other").exists()


def test_a_speed_is_kept_to_and_a_slower_one_loses_less(
    source: Path, scores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    product = ProductRate((1, 4), (1e-12, 2e-12), stream=0.5, exposed=0.0, value_s=1e-12)
    rates = Rates(
        flops_per_s=1e11,
        read_bytes_per_s=1e8,  # so slow that bytes are what takes the time
        products=defaultdict(lambda: product),
        attention=AttentionRate(cell_s=1e-9, key_s=1e-9, stream=1.0),
        loop_s=1e-6,
        gate_value_s=1e-9,
        rotation_value_s=1e-9,
        logit_s=1e-9,
        step_s=1e-4,
        sequence_s=1e-5,
    )
    monkeypatch.setattr(_Compressing, "_rates", lambda *_: rates)
    flags = ("--scores", str(scores), "--tokens-per-second")
    result = compress(source, tmp_path / "out", *flags, "1e9")
    assert result.exit_code == 2
    most = float(result.output.rpartition("--tokens-per-second ")[2].strip().rstrip("."))
    cards = []
    for name, speed in (("fast", most * 0.95), ("slow", most / 3)):
        result = compress(source, tmp_path / name, *flags, str(speed))
        assert result.exit_code == 0, result.output
        cards.append(card_of(tmp_path / name))
        assert cards[-1].tokens_per_second is not None
        assert cards[-1].tokens_per_second >= speed
    fast, slow = cards
    assert fast.nbytes < slow.nbytes
    assert slow.kl < fast.kl


def test_a_place_that_is_not_there_is_refused_before_the_work(source: Path, tmp_path: Path) -> None:
    scores = ("--scores", str(tmp_path / "scores.jsonl"))
    result = compress(source, tmp_path / "none" / "out", "--bits", "5", *scores)
    assert result.exit_code == 2
    assert "there is no directory" in result.output
    assert not (tmp_path / "scores.jsonl").exists()


def refuse_to_score(*_: Any) -> None:
    raise AssertionError("something was scored")


@pytest.mark.parametrize("formats", ["int4,int8", "sparse8,sparse16", "int4,sparse16"])
def test_a_goal_below_the_smallest_formats_is_refused_before_anything_is_scored(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, formats: str
) -> None:
    monkeypatch.setattr(Scorer, "scores", refuse_to_score)
    result = compress(source, tmp_path / "out", "--bits", "1", "--formats", formats)
    assert result.exit_code == 2, result.output
    assert "no mix of" in result.output
    assert "the smallest of each tensor take more" in result.output
    nbytes = result.output.rpartition("--bytes ")[2].strip().rstrip(".")
    monkeypatch.undo()
    flags = ("--formats", formats, "--bytes", nbytes)
    assert compress(source, tmp_path / "out", *flags).exit_code == 0
    assert card_of(tmp_path / "out").nbytes <= int(nbytes)


def test_narrower_blocks_count_in_what_can_be_reached(source: Path, tmp_path: Path) -> None:
    flags = ("--formats", "int4", "--bits", "4")
    result = compress(source, tmp_path / "out", *flags)
    assert result.exit_code == 2
    assert "the smallest of each tensor take more" in result.output
    result = compress(source, tmp_path / "out", *flags, "--widths", "0.5")
    assert result.exit_code == 0, result.output


def test_a_speed_that_cannot_be_predicted_is_refused_before_anything_is_scored(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scorer, "scores", refuse_to_score)
    config = EngineConfig(model=str(source), backend="reference")
    search = Search(lambda path, text: [3] * 2000, scored_tokens=128)
    with pytest.raises(ConfigError, match="for the backend 'cpu' only"):
        run(config, tmp_path / "out", Goal(tokens_per_second=9.0), search, lambda line: None)


def test_scores_of_weights_that_were_replaced_are_not_taken(
    source: Path, scores: Path, tmp_path: Path
) -> None:
    model, own = tmp_path / "model", tmp_path / "scores.jsonl"
    shutil.copytree(source, model)
    flags = ("--bits", "6", "--scores", str(own))
    assert compress(model, tmp_path / "out", *flags).exit_code == 0
    tiny_llama(model, seed=1, **SIZES)
    result = compress(model, tmp_path / "again", *flags)
    assert result.exit_code == 2, result.output
    assert "was written with weights" in result.output


def test_a_link_to_an_empty_directory_is_written_through(
    source: Path, scores: Path, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "out").symlink_to("there")
    result = compress(source, tmp_path / "out", "--bits", "6", "--scores", str(scores))
    assert result.exit_code == 0, result.output
    assert card_of(tmp_path / "there").bits <= 6


@pytest.mark.parametrize("out", [".", "..", "/"])
def test_a_place_without_a_name_is_refused_in_a_sentence(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "file").touch()
    monkeypatch.chdir(tmp_path / "here")
    result = CliRunner().invoke(cli, ["compress", str(source), out, "--bits", "5"])
    assert result.exit_code == 2, result.exception
    assert "is not an empty directory" in result.output


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ((), "say how far to compress"),
        (("--bits", "-1"), "--bits must be above 0"),
        (("--floor", "0.05"), "--floor must be kl=NATS"),
        (("--floor", "perplexity=2"), "--floor must be kl=NATS"),
        (("--bits", "4", "--formats", "int9"), "'int9' is no format that weights can be packed in"),
        (("--bits", "4", "--correction", "svd"), "there is no correction called 'svd'"),
        (("--bits", "4", "--calibration", "{text}"), "tokens, and at least"),
        (("--bits", "5", "--scores", "{text}"), "is no file of scores"),
    ],
)
def test_wrong_flags_are_refused(
    source: Path, tmp_path: Path, flags: Sequence[str], sentence: str
) -> None:
    (tmp_path / "t.txt").write_text("too short")
    given = [each.format(text=tmp_path / "t.txt") for each in flags]
    result = compress(source, tmp_path / "out", *given)
    assert result.exit_code == 2, result.output
    assert sentence in result.output
    assert not (tmp_path / "out").exists()


def test_corrections_are_chosen_and_what_they_promise_is_measured(
    source: Path, tmp_path: Path
) -> None:
    cards, flags = [], ("--formats", "int4:128", "--bits", "5.5")
    for name, added in (("plain", ()), ("sums", ("--correction", "weighted:rank=16"))):
        result = compress(source, tmp_path / name, *flags, *added)
        assert result.exit_code == 0, result.output
        cards.append(card_of(tmp_path / name))
    plain, made = cards
    chosen = {
        each.tensor for each in made.chosen if each.quantization.endswith("+weighted:rank=16")
    }
    assert chosen
    assert made.kl < plain.kl
    assert made.kl == pytest.approx(made.predicted_kl, rel=0.25)
    loaded = load_model(EngineConfig(model=str(tmp_path / "sums"), kv_cache_memory_bytes=1 << 20))
    assert loaded.weight_bytes == made.nbytes
    sums = [
        part
        for op in loaded.program.ops
        for matrix in op.matrices().values()
        for part in parts_of(matrix)
        if isinstance(part, CorrectedLinear)
    ]
    assert len(sums) == len(chosen)


def test_what_is_compressed_is_not_compressed_again(scores: Path, tmp_path: Path) -> None:
    result = compress(scores.parent / "out", tmp_path / "again", "--bits", "5")
    assert result.exit_code == 2
    assert "converted already; compress the original" in result.output
    result = compress(scores.parent / "out", scores.parent, "--bits", "5")
    assert "is not an empty directory" in result.output


def test_experts_of_a_layer_get_one_format(tmp_path: Path) -> None:
    source = tiny_mixtral(tmp_path / "model", experts=4, **SIZES)
    result = compress(source, tmp_path / "out", "--bits", "6")
    assert result.exit_code == 0, result.output
    card = card_of(tmp_path / "out")
    experts = [each for each in card.chosen if ".experts.*." in each.tensor]
    assert len(experts) == 2 * 2  # gate and up are one matrix
    facts = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert len([key for key in facts["mix"] if ".experts." in key]) == 2 * 4 * 3


# -- scores ------------------------------------------------------------------------------------


def scorer_of(
    path: Path, measured: int, corrections: Sequence[str] = ()
) -> tuple[Model, Scorer, list[Any]]:
    opened, backend = open_model(path), find_backend("auto", 1)
    config = EngineConfig(model=str(path))
    stored = choose_packer(config, opened.config, opened.source, backend.layout)
    plain = replace(unquantised(opened.source, opened.description, stored), layout=backend.layout)
    texts = read_texts(None, lambda text: [3 + len(w) for w in text.split()], 128, 512, 512)
    model = Model(opened.description, Held(opened.source.load(plain)), backend, texts.scored)
    model.judge()
    tensors = tensors_in(opened.source)
    forms = forms_for(backend.layout, plain_format("float32"), ["int4", "int8"])
    windows = texts.fitted.windows
    scorer = Scorer(
        model, opened.source, tensors, stored, plain, windows, forms, measured, (), corrections
    )
    return model, scorer, units_of(tensors_of(opened.description, tensors))


def test_going_on_from_a_layer_is_the_whole_model(source: Path) -> None:
    """Hidden states before a layer are reused: the predictions behind it have the same bits."""
    model, _, _ = scorer_of(source, 1)
    at, before = model.advanced(0, 1, []), 1
    for _, start, _ in layer_ranges(model.program):
        at = model.advanced(before, start, at) if start > before else at
        before = start
        pairs = zip(
            model.logits(model.program), model.logits(model.program, start, at), strict=True
        )
        assert all((one == other).all() for one, other in pairs)
    assert model.divergence(model.program) < 1e-7


def test_a_score_is_what_replacing_the_tensor_alone_does(source: Path, tmp_path: Path) -> None:
    model, scorer, units = scorer_of(source, 9)
    (name,) = (unit.name for unit in units if unit.name.endswith("1.mlp.up_proj.weight"))
    (scored,) = (own for unit, own in scorer.scores(units, {}) if unit.name == name)
    assert all(each.loss is not None for each in scored)
    int8 = next(each for each in scored if each.form == "int8")
    flags = ("--mix", f"{name}=int8")
    made = CliRunner().invoke(cli, ["convert", str(source), str(tmp_path / "out"), *flags])
    assert made.exit_code == 0, made.output
    config = EngineConfig(model=str(tmp_path / "out"), kv_cache_memory_bytes=1 << 20)
    assert model.divergence(load_model(config).program) == pytest.approx(int8.loss, rel=1e-9)
    by_bytes = sorted(scored, key=lambda each: each.nbytes)
    assert [each.error for each in by_bytes] == sorted(
        (each.error for each in by_bytes), reverse=True
    )


def test_a_corrected_tensor_is_scored_as_it_is_written(source: Path, tmp_path: Path) -> None:
    correction = "weighted:rank=8"
    model, scorer, units = scorer_of(source, 9, [correction])
    (name,) = (unit.name for unit in units if unit.name.endswith("0.self_attn.q_proj.weight"))
    (scored,) = (own for unit, own in scorer.scores(units, {}) if unit.name == name)
    found = [each for each in scored if each.form.endswith(f"+{correction}")]
    forms = {each.form: each for each in scored}
    assert found
    for each in found:
        alone = forms.get(each.form.partition("+")[0])
        assert alone is None or (alone.error > each.error and alone.nbytes < each.nbytes)
    text = read_texts(None, lambda text: [3 + len(w) for w in text.split()], 128, 512, 512).fitted
    config = EngineConfig(model=str(source))
    quiet = lambda line: None  # noqa: E731
    convert(config, tmp_path / "out", quiet, text, mix={name: found[0].form})
    made = load_model(EngineConfig(model=str(tmp_path / "out"), kv_cache_memory_bytes=1 << 20))
    assert model.divergence(made.program) == pytest.approx(found[0].loss, rel=1e-6)
    mixed = made.program.ops[1].matrices()["qkv"]
    assert sum(each.nbytes for each in parts_of(mixed) if isinstance(each, CorrectedLinear)) == (
        found[0].nbytes
    )


def test_what_is_stored_stays_an_alternative_whatever_beats_it() -> None:
    """The bytes beside the tensors are those of the model less what is stored of them."""
    stored = Score("u", "stored", "k", 100, 1e-2)
    eight, four = Score("u", "a", "k", 90, 1e-3), Score("u", "b", "k", 50, 5e-2)
    worse, larger = Score("u", "c", "k", 60, 6e-2), Score("u", "d", "k", 120, 0.0)
    assert worth_keeping([stored, worse, eight, larger, four]) == [four, eight, stored]


def test_what_was_not_run_follows_its_error() -> None:
    def score(error: float, loss: float | None) -> Score:
        return Score("u", "f", "k", 1, error, loss)

    own = [score(4e-2, 8e-2), score(4e-3, None), score(4e-4, 8e-4), score(0.0, 0.0)]
    assert losses(own) == pytest.approx([8e-2, 8e-3, 8e-4, 0.0])
    assert losses([score(4e-2, 8e-2), score(1e-2, None)]) == pytest.approx([8e-2, 2e-2])
    steep = [score(1e-2, 1e-1), score(1e-3, None), score(1e-4, 1e-5), score(1e-5, None)]
    assert losses(steep) == pytest.approx([1e-1, 1e-3, 1e-5, 1e-6])


def test_a_text_that_is_too_short_says_how_long_it_must_be(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("word " * 1700)
    encode = lambda text: [5] * len(text.split())  # noqa: E731
    with pytest.raises(ConfigError, match=r"1700 tokens, and at least 2048 are needed: 1024 judge"):
        read_texts(tmp_path / "t.txt", encode, 512, 8192, 512)
    texts = read_texts(tmp_path / "t.txt", encode, 512, 100, 64)
    assert texts.judged.size == 1024
    assert texts.scored.shape == (8, 64)
    assert texts.fitted.windows.shape == (1, 64)
