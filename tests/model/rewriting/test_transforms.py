"""`ockham convert --transform`: a model is rewritten, and what must not change does not."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ockham.cli.main import cli
from ockham.core.arrays import Floats
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, ModelError
from ockham.core.registry import make, techniques
from ockham.kernels.native import core
from ockham.lab.evidence.transforms import rewritten
from ockham.model.calibration import CalibrationText
from ockham.model.checkpoint.opening import open_model
from ockham.model.loading import LoadedModel, load_model
from ockham.model.rewriting.model import RewrittenModel
from ockham.model.rewriting.writing import write_checkpoint
from ockham.model.windows import layouts_for, window_step
from ockham.weights.transforms.loraprune import Factors, LoraPruneOptions
from ockham.weights.transforms.slicegpt import SliceGpt, SliceGptOptions
from tests.helpers.architectures import CASES
from tests.helpers.tiny import tiny_lfm2, tiny_llama, tiny_mixtral

SIZES = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "tokenizer": True}
TEXT = "\n".join(f"def f{i}(a, b):\n    return a + b * {i}\n" for i in range(40))
EVERY = ["smoothquant", "awq", "slicegpt:multiple=8", "heapr", "wanda_channels", "nest"]
EVERY += ["loraprune:steps=2", "mfac"]
UNCHANGING = ["rotate", "rotate:kind=random", "smoothquant:inner=true", "awq:group=32", "nest"]


READS_NOTHING = ("rotate", "width", "magnitude")


def convert(source: Path, out: Path, *flags: str, text: str = TEXT) -> Result:
    file = out.parent / "text.txt"
    file.write_text(text)
    args = ["convert", str(source), str(out), *flags]
    transforms = [value for flag, value in pairwise(flags) if flag == "--transform"]
    if all(each.startswith(READS_NOTHING) for each in transforms):
        return CliRunner().invoke(cli, args)
    return CliRunner().invoke(cli, [*args, "--calibration", str(file)])


def load(path: Path, quantization: str | None = None, backend: str = "reference") -> LoadedModel:
    return load_model(
        EngineConfig(
            model=str(path),
            quantization=quantization,
            kv_cache_memory_bytes=1 << 20,
            backend=backend,
            weight_cache="off",
        )
    )


def logits(model: LoadedModel, vocabulary: int = 4096) -> Floats:
    windows = np.random.default_rng(5).integers(2, vocabulary, (2, 24)).astype(np.int32)
    layouts = layouts_for(model.description, 2, 24, "float32")
    executor = model.backend.bind(model.program, model.backend.allocate(layouts))
    run = executor.begin(window_step(windows, len(layouts)))
    executor.run(run, 0, len(model.program.ops))
    return np.array(executor.finish(run).logits)


def planted(directory: Path, experts: int = 0, **config: object) -> Path:
    """A model whose norms have scales of their own, and a few channels with huge ones."""
    from safetensors.numpy import load_file, save_file

    tiny = tiny_mixtral if experts else tiny_llama
    values = {**SIZES, **({"experts": experts} if experts else {}), **config}
    tiny(directory, **values)  # type: ignore[arg-type]
    tensors = load_file(directory / "model.safetensors")
    rng = np.random.default_rng(9)
    for name, weights in tensors.items():
        if name.endswith("norm.weight"):
            weights[:] = rng.uniform(0.5, 2.0, weights.shape)
            weights[::17] *= 20
    if config.get("tie_word_embeddings"):
        del tensors["lm_head.weight"]
    save_file(tensors, directory / "model.safetensors")
    return directory


def close(one: Floats, other: Floats) -> bool:
    """Equal to 1e-4 of the range, which is what rounding in fp32 leaves."""
    return bool(np.abs(one - other).max() <= 1e-4 * (one.max() - one.min()))


@pytest.mark.parametrize("experts", [0, 4], ids=["dense", "experts"])
@pytest.mark.parametrize("transform", [*UNCHANGING, "slicegpt:share=0"])
def test_what_only_moves_changes_no_logit(tmp_path: Path, transform: str, experts: int) -> None:
    source = planted(tmp_path / "model", experts, tie_word_embeddings=not experts)
    result = convert(source, tmp_path / "out", "--transform", transform)
    assert result.exit_code == 0, result.output
    before = logits(load(source))
    assert close(before, logits(load(tmp_path / "out")))
    moved = load(tmp_path / "out").numerics_id
    assert moved != load(source).numerics_id  # it did something


def test_rotating_hides_outliers_from_int4(tmp_path: Path) -> None:
    source = planted(tmp_path / "model")
    assert convert(source, tmp_path / "out", "--transform", "rotate").exit_code == 0
    exact = logits(load(source))

    def error(path: Path) -> float:
        return float(np.square(logits(load(path, "int4:32")) - exact).mean())

    assert error(tmp_path / "out") < 0.8 * error(source)


def test_scales_of_awq_are_right_for_the_text(tmp_path: Path) -> None:
    """What the text's moments say of the error is what becomes less."""
    source = planted(tmp_path / "model")
    result = convert(source, tmp_path / "out", "--transform", "awq:group=32")
    assert result.exit_code == 0, result.output
    (card,) = json.loads((tmp_path / "out/config.json").read_text())["ockham_transforms"]
    assert card["error_left"] < 0.9
    assert card["calibration"]["windows"] > 0


@pytest.mark.parametrize(
    "transform", ["slicegpt:multiple=8", "heapr:multiple=16", "heapr:even=true"]
)
@pytest.mark.parametrize("experts", [0, 4], ids=["dense", "experts"])
def test_smaller_models_are_smaller_and_run_on_both_backends(
    tmp_path: Path, transform: str, experts: int
) -> None:
    source = planted(tmp_path / "model", experts)
    result = convert(source, tmp_path / "out", "--transform", transform)
    assert result.exit_code == 0, result.output
    whole, smaller = load(source), load(tmp_path / "out")
    assert smaller.weight_bytes < whole.weight_bytes
    if core is None:
        return
    one, other = logits(smaller), logits(load(tmp_path / "out", backend="cpu"))
    assert np.abs(one - other).max() <= 1e-3 * (one.max() - one.min())


def test_slicing_keeps_what_the_text_uses(tmp_path: Path) -> None:
    """A stream that lives in 32 of 64 channels loses nothing when the others go."""
    from safetensors.numpy import load_file, save_file

    source = planted(tmp_path / "model")
    tensors = load_file(source / "model.safetensors")
    basis, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((64, 64)))
    kept = (basis[:, :32] @ basis[:, :32].T).astype(np.float32)
    for name in tensors:
        if name.endswith("norm.weight"):
            tensors[name][:] = 1
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[name] = kept @ tensors[name]
        elif name.endswith("embed_tokens.weight"):
            tensors[name] = tensors[name] @ kept
    save_file(tensors, source / "model.safetensors")
    windows = np.random.default_rng(1).integers(0, 4096, (8, 64)).astype(np.int32)
    model = RewrittenModel(
        open_model(source), lambda line: None, lambda: CalibrationText(windows, "")
    )
    make("transform", "slicegpt:share=0.5").apply(model)
    (tmp_path / "out").mkdir()
    write_checkpoint(model, "float32", tmp_path / "out", lambda: None)
    sliced = load(tmp_path / "out")
    assert sliced.description.hidden_size == 32
    assert close(logits(load(source)), logits(sliced))


@pytest.mark.parametrize(
    "transform",
    ["heapr:multiple=8", "wanda_channels:multiple=8", "loraprune:multiple=8", "mfac:multiple=8"],
)
def test_channels_that_nothing_uses_go_first(tmp_path: Path, transform: str) -> None:
    from safetensors.numpy import load_file, save_file

    source = planted(tmp_path / "model")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][:, 10:74] = 0
    save_file(tensors, source / "model.safetensors")
    result = convert(source, tmp_path / "out", "--transform", f"{transform},share=0.25")
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["intermediate_size"] == [128, 64]
    assert close(logits(load(source)), logits(load(tmp_path / "out")))


def test_the_first_channels_of_a_nested_model_are_those_that_matter(tmp_path: Path) -> None:
    source = planted(tmp_path / "model")
    exact = logits(load(source))
    errors = []
    for number, chain in enumerate((["nest", "width:0.75"], ["width:0.75"])):
        flags = [flag for each in chain for flag in ("--transform", each)]
        out = tmp_path / f"out{number}"
        assert convert(source, out, *flags).exit_code == 0
        smaller = load(out)
        assert smaller.description.intermediate_size == 96
        errors.append(float(np.square(logits(smaller) - exact).mean()))
    assert errors[0] < 0.7 * errors[1]


def test_compensation_is_least_squares(tmp_path: Path) -> None:
    from ockham.weights.widths import compensated

    rng = np.random.default_rng(1)
    x = rng.standard_normal((200, 12)) @ rng.standard_normal((12, 12))
    down, kept = rng.standard_normal((5, 12)).astype(np.float32), np.arange(9)
    fitted = compensated(down, (x.T @ x).astype(np.float32), kept)
    wanted = x @ down.T
    best = np.linalg.lstsq(x[:, kept], wanted, rcond=None)[0].T

    def error(matrix: Floats) -> float:
        return float(np.square(x[:, kept] @ matrix.T - wanted).sum())

    assert error(best) <= error(fitted) < 1.05 * error(best) < error(down[:, kept])


def test_transforms_go_before_packing_and_one_after_the_other(tmp_path: Path) -> None:
    source = planted(tmp_path / "model")
    flags = ["--transform", "heapr", "--transform", "rotate", "--transform", "awq:group=32"]
    assert convert(source, tmp_path / "plain", *flags).exit_code == 0
    result = convert(source, tmp_path / "packed", *flags, "--quantization", "int8")
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "packed/config.json").read_text())
    assert [each["transform"] for each in config["ockham_transforms"]] == flags[1::2]
    packed = load(tmp_path / "packed", backend="auto")
    again = load(tmp_path / "plain", "int8", backend="auto")
    assert packed.numerics_id == again.numerics_id


def test_tokens_of_a_transformed_model_are_the_checkpoint_loaded_by_others(tmp_path: Path) -> None:
    """A rotated model is a Llama as any other."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    source = planted(tmp_path / "model", tie_word_embeddings=True)
    assert convert(source, tmp_path / "out", "--transform", "rotate").exit_code == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, attn_implementation="eager"
    )
    windows = np.random.default_rng(5).integers(2, 4096, (2, 24))
    with torch.no_grad():
        found = model(torch.from_numpy(windows)).logits.numpy().reshape(48, -1)
    assert close(logits(load(source)), found)


def test_every_transform_is_told_of() -> None:
    page = (Path(__file__).parents[3] / "docs/weights.md").read_text()
    for technique in techniques("transform"):
        assert f"`{technique.name}`" in page


@pytest.mark.parametrize("transform", EVERY)
def test_a_text_that_is_missing_or_too_short_is_said(tmp_path: Path, transform: str) -> None:
    source = planted(tmp_path / "model")
    result = convert(source, tmp_path / "out", "--transform", transform, text="a")
    assert "at least 2 are needed" in result.output
    args = ["convert", str(source), str(tmp_path / "out"), "--transform", transform]
    assert "add --calibration FILE" in CliRunner().invoke(cli, args).output


def test_a_converted_model_is_not_rewritten(tmp_path: Path) -> None:
    source = planted(tmp_path / "model")
    args = ["convert", str(source), str(tmp_path / "packed"), "--quantization", "int8"]
    assert CliRunner().invoke(cli, args).exit_code == 0
    result = convert(tmp_path / "packed", tmp_path / "out", "--transform", "rotate")
    assert "was converted already; convert the original instead" in result.output


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--transform", "rotat"], "there is no transform called 'rotat'"),
        (["--transform", "slicegpt:share=1"], "share must be at least 0 and below 1, got 1.0"),
        (["--transform", "slicegpt:share=0.01"], "cannot remove 1% of 64 channels in steps of 32"),
        (["--transform", "heapr:share=0.01,multiple=64"], "cannot be removed in steps of 64"),
        (["--transform", "awq:group=7"], "has no groups of 7"),
        (["--transform", "loraprune:rank=0"], "rank must be at least 1, got 0"),
        (["--transform", "loraprune:memory=1"], "memory must be at least 0 and below 1, got 1.0"),
        (["--transform", "mfac:damping=0"], "damping must be above 0 and finite, got 0.0"),
        *(
            (["--transform", f"{name}={value}"], f"and finite, got {value}")
            for name in ("mfac:damping", "loraprune:alpha", "loraprune:rate")
            for value in ("nan", "inf")
        ),
        (["--transform", "loraprune:seed=-1"], "seed must be at least 0, got -1"),
        (["--transform", "rotate:seed=-1"], "seed must be at least 0, got -1"),
        (["--transform", "width:0.9"], "removes no channel where 0.9 of them stay in steps of 32"),
        (["--transform", "smoothquant:strength=2"], "strength must be between 0 and 1, got 2.0"),
        (["--dtype", "float32"], "--dtype is for --transform NAME only"),
        (
            ["--transform", "rotate", "--dtype", "float32", "--quantization", "int8"],
            "--dtype is for models that are not quantised",
        ),
    ],
)
def test_what_cannot_be_is_said(tmp_path: Path, flags: list[str], said: str) -> None:
    source = planted(tmp_path / "model")
    result = convert(source, tmp_path / "out", *flags)
    assert result.exit_code != 0
    assert said in " ".join(result.output.split())
    assert not (tmp_path / "out/config.json").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--transform", "nosuch"], "there is no transform called 'nosuch'"),
        (["--quantization", "int9"], "there is no format called 'int9'"),
        (["--mix", "down=int9"], "there is no format called 'int9'"),
        (["--quantization", "iq1_m"], "packs no other weights"),
        (["--mix", "down=iq1_m"], "packs no other weights"),
        (["--quantization", "bf16", "--correction", "lorc"], "for weights that are rounded"),
    ],
)
def test_what_follows_is_checked_before_the_model_is_transformed(
    tmp_path: Path, flags: list[str], said: str
) -> None:
    result = convert(planted(tmp_path / "model"), tmp_path / "out", "--transform", "wanda", *flags)
    assert result.exit_code != 0
    assert said in result.output
    assert "transformed by" not in result.output


def test_a_place_that_cannot_be_made_is_refused_before_the_model_is_transformed(
    tmp_path: Path,
) -> None:
    source = planted(tmp_path / "model")
    (tmp_path / "file").touch()
    args = ["convert", str(source), str(tmp_path / "file" / "out"), "--transform", "rotate"]
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 2
    assert "file is no directory that can be written to" in result.output
    assert "transformed by" not in result.output


@pytest.mark.parametrize("beside", [[], ["--quantization", "int8"]])
def test_a_text_that_nothing_reads_is_refused(tmp_path: Path, beside: list[str]) -> None:
    source, file = planted(tmp_path / "model"), tmp_path / "text.txt"
    file.write_text(TEXT)
    args = ["convert", str(source), str(tmp_path / "out"), "--transform", "rotate", *beside]
    result = CliRunner().invoke(cli, [*args, "--calibration", str(file)])
    assert result.exit_code == 2
    assert "nothing is fitted to the text of --calibration" in result.output
    assert not (tmp_path / "out").exists()


def test_factors_have_no_rank_above_the_number_of_inputs() -> None:
    options = LoraPruneOptions(rank=10**20)
    drawn = Factors.drawn(np.ones((4, 6), np.float32), options, np.random.default_rng(0))
    assert (drawn.b.shape, drawn.a.shape) == ((4, 6), (6, 6))


@pytest.mark.parametrize(("dtype", "value"), [("float32", np.nan), ("bfloat16", 3.4e38)])
def test_values_that_are_not_finite_are_not_written(
    tmp_path: Path, dtype: str, value: float
) -> None:
    source, out = tiny_llama(tmp_path / "model", **SIZES), tmp_path / "out"
    out.mkdir()
    model = RewrittenModel(open_model(source), lambda line: None)
    learned = {name: values() for name, _, values in model.tensors()}
    learned["model.norm.weight"].flat[3] = value
    with pytest.raises(ModelError, match=r"'model\.norm\.weight' would hold NaN or infinity"):
        write_checkpoint(model, dtype, out, lambda: None, learned)
    assert not list(out.iterdir())


def test_a_gguf_file_is_widened_only_when_asked(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    from tests.helpers.gguf_files import write_gguf

    source = tiny_llama(tmp_path / "model", **SIZES)
    config = json.loads((source / "config.json").read_text())
    file, weights = tmp_path / "model.gguf", load_file(source / "model.safetensors")
    write_gguf(file, "llama", config, weights, lambda name: "Q8_0")
    run = [str(file), str(tmp_path / "out"), "--transform", "rotate"]
    result = CliRunner().invoke(cli, ["convert", *run])
    assert "is quantised already, and transforms begin with unquantised weights" in result.output


@pytest.mark.parametrize("case", ["qwen2", "qwen3", "phi3", "granite", "mixtral", "qwen2-moe"])
def test_every_architecture_is_rewritten_by_what_it_is_made_of(tmp_path: Path, case: str) -> None:
    source = made(case, tmp_path / "model")
    for transform in ("rotate", "slicegpt:share=0", "smoothquant:inner=true"):
        model = RewrittenModel(open_model(source), lambda line: None, some_text)
        make("transform", transform).apply(model)
        out = tmp_path / transform.partition(":")[0]
        out.mkdir()
        write_checkpoint(model, "float32", out, lambda: None)
        assert close(logits(load(source), 97), logits(load(out), 97)), transform


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("gemma2", "what its attention gives is normed before it is added"),
        ("olmo2", "no RMS norm stands before its attention"),
    ],
)
def test_norms_behind_branches_are_refused(tmp_path: Path, case: str, why: str) -> None:
    model = RewrittenModel(open_model(made(case, tmp_path / "model")), lambda line: None, some_text)
    for transform in ("rotate", "slicegpt"):
        with pytest.raises(ConfigError, match=why):
            make("transform", transform).apply(model)


def some_text() -> CalibrationText:
    windows = np.random.default_rng(1).integers(0, 97, (4, 30)).astype(np.int32)
    return CalibrationText(windows, "")


def made(case: str, directory: Path) -> Path:
    """A random checkpoint of an architecture."""
    pytest.importorskip("transformers")
    CASES[case].build(1).save_pretrained(directory)
    return directory


def test_slicing_twice_is_refused(tmp_path: Path) -> None:
    source = planted(tmp_path / "model")
    assert convert(source, tmp_path / "out", "--transform", "slicegpt:multiple=8").exit_code == 0
    result = convert(tmp_path / "out", tmp_path / "again", "--transform", "slicegpt")
    assert "its stream is sliced. Leave slicegpt out" in result.output


def test_a_model_is_rewritten_without_being_read(tmp_path: Path) -> None:
    """A transform that needs no text is given none."""
    source = planted(tmp_path / "model")
    model = RewrittenModel(open_model(source), lambda line: None)
    text = CalibrationText(np.ones((1, 8), np.int32), "")
    other = RewrittenModel(open_model(source), lambda line: None, lambda: text)
    SliceGpt(SliceGptOptions(share=0.5)).apply(other)
    assert other.hidden_size == 32
    assert model.hidden_size == 64


def test_evidence_measures_transforms_that_read_no_text(tmp_path: Path) -> None:
    config = EngineConfig(model=str(planted(tmp_path / "model")))
    with rewritten(config, "rotate") as out:
        assert (Path(out) / "config.json").exists()


def test_layers_of_other_kinds_are_not_rewritten(tmp_path: Path) -> None:
    source = tiny_lfm2(tmp_path / "model")
    result = convert(source, tmp_path / "out", "--transform", "rotate")
    assert result.exit_code == 1
    assert "ShortConvolution, which transforms do not rewrite" in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()
