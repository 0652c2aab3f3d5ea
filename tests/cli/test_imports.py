"""Start-up stays quick because heavy modules are imported only where they are used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ockham.cli.main import VERBS

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "triton", "scipy", "pandas", "IPython"}


def modules_after(code: str, *args: str) -> set[str]:
    """Top-level modules that are loaded once `code` has run in a fresh process."""
    code += "\nimport sys, json\nprint()\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_importing_ockham_takes_no_other_package() -> None:
    known = set(sys.stdlib_module_names) | {"ockham", "_distutils_hack", "google"}
    loaded = modules_after("import ockham")
    assert {name for name in loaded - known if not name.startswith("_")} == set()


def test_every_export_is_found() -> None:
    import ockham

    assert all(getattr(ockham, name) is not None for name in ockham.__all__)


def test_an_unknown_export_is_an_attribute_error() -> None:
    import ockham

    with pytest.raises(AttributeError, match="no attribute 'NoSuchName'"):
        ockham.NoSuchName  # noqa: B018


def test_running_a_model_imports_nothing_heavy() -> None:
    code = (
        "from ockham import LLM, SamplingParams\n"
        "LLM(kv_cache_memory_bytes=8 << 20).generate('x', SamplingParams(max_tokens=2))"
    )
    loaded = modules_after(code)
    assert not loaded & (HEAVY | {"jinja2", "prompt_toolkit", "huggingface_hub", "tqdm"})


def test_chatting_and_serving_import_no_pytorch_and_no_tracing() -> None:
    code = (
        "import ockham.cli.serve, ockham.api.async_llm, ockham.api.server.run\n"
        "from ockham import LLM, SamplingParams\n"
        "LLM(kv_cache_memory_bytes=8 << 20).chat("
        "[{'role': 'user', 'content': 'x'}], SamplingParams(max_tokens=2))"
    )
    assert not modules_after(code) & (HEAVY | {"opentelemetry"})


def test_the_help_of_the_program_imports_no_verb() -> None:
    code = "from ockham.cli.main import cli\ncli.main(['--help'], standalone_mode=False)"
    assert not modules_after(code) & {"numpy", "tokenizers", "prompt_toolkit", "uvicorn"}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_its_help(verb: str) -> None:
    from click.testing import CliRunner

    from ockham.cli.main import cli

    result = CliRunner().invoke(cli, [verb, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output
