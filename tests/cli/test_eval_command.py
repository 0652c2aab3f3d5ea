"""`ockham eval` scores, resumes, compares, and refuses in a sentence what it cannot do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ockham.cli.eval import changed
from ockham.cli.eval_tables import table
from ockham.cli.main import cli
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, OckhamError
from ockham.core.registry import option_names, settings_that_alter_state, techniques

LINES = [
    {"prompt": "import os", "level": "imports"},
    {"prompt": "def add(a, b):", "references": ["return a + b", "    return a"]},
    {"messages": [{"role": "user", "content": "hello"}], "answer": "hello"},
    {"text": "for index in range(10):\n    print(index)\n"},
]
SMALL = ("--kv-cache-memory-bytes", "16M", "--max-tokens", "6")


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return str(path)


def call(*args: str) -> Result:
    return CliRunner().invoke(cli, ["eval", "lab", *SMALL, *args])


def report(*args: str) -> Any:
    done = call(*args, "--json", "-")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_own_data_is_scored_by_references_and_by_perplexity(data: str) -> None:
    found = report("--data", data)
    whole = found["scores"][0]
    assert whole["source"] == "data"
    assert whole["items"] == 4
    assert whole["score"] in (0.0, 0.5, 1.0)
    assert whole["perplexity"] > 1
    assert whole["bits_per_byte"] > 0
    assert 0 < whole["generated_tokens"] <= 6
    assert {score["level"] for score in found["scores"][1:]} == {"all", "imports"}


def test_a_table_is_printed_and_a_report_written(data: str, tmp_path: Path) -> None:
    done = call("--data", data, "--json", str(tmp_path / "report.json"))
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("task")
    assert "95% intervals" in done.stdout
    assert json.loads((tmp_path / "report.json").read_text())["evaluated"] == 4


def test_a_killed_run_goes_on_and_ends_with_the_same_scores(data: str, tmp_path: Path) -> None:
    journal = tmp_path / "run.jsonl"
    whole = report("--data", data, "--resume", str(journal))
    lines = journal.read_text().splitlines(keepends=True)
    assert len(lines) == 5
    journal.write_text("".join(lines[:3]) + lines[3][:20])
    again = report("--data", data, "--resume", str(journal))
    assert (again["resumed"], again["evaluated"]) == (2, 2)
    assert again["scores"] == whole["scores"]
    refused = call("--data", data, "--resume", str(journal), "--quantization", "int8")
    assert refused.exit_code == 2
    assert "run with the same settings" in refused.output


def test_other_data_is_another_run(data: str, tmp_path: Path) -> None:
    journal = tmp_path / "run.jsonl"
    report("--data", data, "--resume", str(journal))
    Path(data).write_text(json.dumps(LINES[0]) + "\n")
    refused = call("--data", data, "--resume", str(journal))
    assert refused.exit_code == 2


def test_a_candidate_is_compared_with_the_models_own_precision(data: str, tmp_path: Path) -> None:
    journal = tmp_path / "compare.jsonl"
    args = ("--data", data, "--against", "quantization=int4:64", "--resume", str(journal))
    found = report(*args)
    (difference,) = found["differences"]
    assert difference["kl_mean"] > 0
    assert 0 < difference["agreement"] <= 1
    assert difference["completions"] == 3
    assert difference["perplexity_ratio"] > 0
    assert found["baseline"]["weights"] == "bf16"
    assert found["candidate"]["weights"].startswith("int4")
    assert found["candidate"]["numerics_id"] != found["baseline"]["numerics_id"]
    assert report(*args)["differences"] == found["differences"]
    told = call(*args)
    assert told.exit_code == 0
    assert "candidate  lab, int4" in told.stdout


def test_samples_have_a_pass_rate(data: str) -> None:
    (whole, *_) = report("--data", data, "--temperature", "0.8", "-n", "3")["scores"]
    assert whole["any_right"] >= whole["score"]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("-n", "2"), "greedy completions of one prompt are all the same"),
        (("--against", "int4"), "neither 'name=value,...' nor a file"),
        (("--against", "quant=int4"), "sets 'quant', which is no setting"),
        (("--against", "max_num_seqs=many"), "has a wrong value"),
        (("--against", "quantization=int8,modle=x"), "sets 'modle', which is no setting"),
        (("--against", "keep=snapkv:budget=64,blok=32"), "has no option 'blok'"),
        (("--against", "keep=snapkv:budget=64,block=none"), "'snapkv'"),
        (("--against", "attention_pattern=streming"), "no pattern called 'streming'"),
        (("--against", "quantization=int4", "--temperature", "1"), "compares greedy completions"),
        (("--against", "quantization=int3"), "int3"),
        (("--tasks", "recal"), "no task 'recal'"),
        (("--tasks", ","), "nothing to evaluate"),
        (("--skip-tokenizer-init",), "tasks need a tokenizer"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(
    data: str, args: tuple[str, ...], sentence: str
) -> None:
    given = () if "--tasks" in args else ("--data", data)
    done = call(*given, *args)
    assert done.exit_code != 0
    assert sentence in done.output
    assert "Traceback" not in done.output


def test_a_candidate_is_the_baseline_with_other_settings(tmp_path: Path) -> None:
    base = EngineConfig(model="lab", max_num_seqs=8)
    assert changed(base, "quantization=int4, kv-cache-dtype=float32") == EngineConfig(
        model="lab", max_num_seqs=8, quantization="int4", kv_cache_dtype="float32"
    )
    path = tmp_path / "candidate.yaml"
    path.write_text("quantization: int8\nmax-num-seqs: 4\n")
    assert changed(base, str(path)) == EngineConfig(
        model="lab", max_num_seqs=4, quantization="int8"
    )
    path.write_text("- int8\n")
    with pytest.raises(ConfigError, match="sets nothing"):
        changed(base, str(path))
    with pytest.raises(OckhamError, match="max_num_seqs must be at least 1"):
        changed(base, "max_num_seqs=0")


def test_empty_columns_are_left_out() -> None:
    rows = [("task", "right", "tokens"), ("recall", "", "10"), ("code", "", "8")]
    assert table(rows) == ["task    tokens", "recall  10", "code    8"]


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (("--data", "DATA"), "line 1: it has 'anwser'"),
        (("--tasks", "recal"), "there is no task 'recal'"),
        (("--tasks", "recall", "--level", "easy"), "has the level 'easy'"),
    ],
)
def test_what_is_wrong_with_the_items_is_told_before_a_model_is_loaded(
    tmp_path: Path, args: tuple[str, ...], complaint: str
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "anwser": "b"}\n')
    named = [str(data) if arg == "DATA" else arg for arg in args]
    result = CliRunner().invoke(cli, ["eval", "/no/such/model", *named])
    assert result.exit_code == 2
    assert complaint in result.output


def test_a_technique_takes_its_options_along_beside_against() -> None:
    config = changed(
        EngineConfig(),
        "keep=snapkv:budget=64,block=32,max-num-seqs=8,kv_cache_dtype=k=int8,v=int4,seed=3",
    )
    assert config.keep == "snapkv:budget=64,block=32"
    assert config.kv_cache_dtype == "k=int8,v=int4"
    assert (config.max_num_seqs, config.seed) == (8, 3)


def test_no_option_of_a_technique_is_called_like_a_setting() -> None:
    """A comma before a setting's name ends the options of the technique before it."""
    options = {
        name
        for seam in settings_that_alter_state().values()
        for technique in techniques(seam)
        for name in option_names(technique.options)
    }
    assert not options & set(EngineConfig.__struct_fields__)


def test_a_rule_that_acts_after_the_prompt_is_said_to_be_measured_while_decoding(
    data: str,
) -> None:
    told = call("--data", data, "--against", "keep=snapkv:budget=16,window=4")
    assert told.exit_code == 0
    assert "while decoding, beside snapkv" in told.stdout
    assert "while decoding" not in call("--data", data, "--against", "quantization=int8").stdout


def test_off_is_a_word_beside_against() -> None:
    assert changed(EngineConfig(), "speculative_config=off").speculative_config == "off"
