"""Files that commands write: none of a user's is lost for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ockham.api.batch_file import BatchInput, BatchOutput
from ockham.cli.chat import _may_save
from ockham.cli.main import cli
from ockham.core.errors import ConfigError
from ockham.draft.structures.saved_trie import save_trie
from ockham.draft.trie import TrieDrafter, TrieOptions
from ockham.lab.evidence import recipes
from ockham.lab.evidence.page import check_page, write_page
from ockham.lab.evidence.row import Row
from ockham.lab.journal import Journal
from tests.helpers.live import ROOT
from tests.helpers.strangers import Strangers
from tests.helpers.tiny import tiny_llama

THESIS = b"the only copy of a thesis, without a line's end"


def call(*args: str) -> Result:
    return CliRunner().invoke(cli, list(args))


def test_a_kv_store_removes_no_folder_of_the_users(tmp_path: Path) -> None:
    """The first fault of this kind: `DIR/thesis` was taken for an old store."""
    strangers, directory = Strangers(tmp_path / "outside"), tmp_path / "dir"
    strangers.beside(directory)
    (directory / "thesis" / "figures").write_bytes(bytes(5_000_000))
    before = strangers.digest()
    model = tiny_llama(tmp_path / "model", tokenizer=True)
    request = {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/completions",
        "body": {"prompt": "Once upon a time. " * 10, "max_tokens": 4},
    }
    (tmp_path / "in.jsonl").write_text(json.dumps(request) + "\n")
    args = ["run-batch", str(model), "-i", "in.jsonl", "-o", "out.jsonl", "--kv-store", "dir"]
    more = ["--kv-store-bytes", "4000000", "--kv-cache-memory-bytes", "2M", "--max-num-seqs", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "ockham", *args, *more],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "not Ockham's" in done.stderr
    assert strangers.digest() == before
    (own,) = [path.parent for path in directory.glob("*/store.json")]
    assert (own / "pages").stat().st_size > 0


def test_a_workload_replaces_no_file_unasked(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    path.write_bytes(THESIS)
    args = ("bench", "workload", "agents", "--set", "sessions=1", "-o", str(path))
    done = call(*args)
    assert done.exit_code != 0
    assert path.read_bytes() == THESIS
    assert call(*args, "--overwrite").exit_code == 0
    assert json.loads(path.read_bytes().splitlines()[0])


def test_a_report_is_refused_before_the_work(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(THESIS)
    done = call("eval", "/no/such/model", "--json", str(path))
    assert done.exit_code != 0
    assert "Ockham replaces no file unasked" in " ".join(done.output.split())
    plot = tmp_path / "plot.svg"
    plot.write_bytes(THESIS)
    done = call("bench", "serve", "--base-url", "http://127.0.0.1:9", "--plot", str(plot))
    assert done.exit_code != 0
    assert "Ockham replaces no file unasked" in " ".join(done.output.split())
    assert path.read_bytes() == plot.read_bytes() == THESIS


@pytest.mark.parametrize("content", [THESIS, b"{", b"a\nb", b'{"kind":"other"'])
def test_a_journal_cuts_no_file_that_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(content)
    if content == b"{":  # what a kill leaves of the first line
        Journal(path, {}, Row).close()
        return
    with pytest.raises(ConfigError, match="no file of an evaluation"):
        Journal(path, {}, Row)
    assert path.read_bytes() == content


def test_a_journal_waits_for_no_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="no regular file"):
        Journal(tmp_path / "fifo", {}, Row)


@pytest.mark.parametrize("content", [THESIS, b'{"id":"mine", "chapter": 1}', b"[1]\n"])
def test_results_of_a_batch_cut_no_file_that_has_none(tmp_path: Path, content: bytes) -> None:
    given = tmp_path / "in.jsonl"
    given.write_text('{"custom_id":"a","method":"POST","url":"/v1/completions","body":{}}\n')
    output = tmp_path / "out.jsonl"
    output.write_bytes(content)
    with pytest.raises(ConfigError, match="is no result of a batch"):
        BatchOutput(output, BatchInput(given))
    assert output.read_bytes() == content
    output.write_bytes(b'{"id":"batch_req_12')  # what a kill left
    BatchOutput(output, BatchInput(given)).close()
    assert output.read_bytes() == b""
    output.unlink()
    os.mkfifo(output)
    with pytest.raises(ConfigError, match="is no regular file"):
        BatchOutput(output, BatchInput(given))


def test_a_conversation_replaces_only_a_conversation(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    assert _may_save(path)
    for content in (THESIS, b'{"messages": []}', b"[1]", b"[" * 100_000):
        path.write_bytes(content)
        assert not _may_save(path)
    for content in (b"", b'{"model": "lab", "messages": []}'):
        path.write_bytes(content)
        assert _may_save(path)


def test_a_page_replaces_no_other_and_removes_only_its_own_pictures(tmp_path: Path) -> None:
    page, strangers = tmp_path / "notes.md", Strangers(tmp_path / "outside")
    found = recipes()
    facts = {"machine": "m", "date": "today", "model": "lab", "rounds": 3}
    page.write_bytes(THESIS)
    with pytest.raises(ConfigError, match="is no page that"):
        write_page(page, [(recipe, None) for recipe in found], **facts)  # type: ignore[arg-type]
    assert page.read_bytes() == THESIS
    page.unlink()
    strangers.beside(tmp_path / "notes", "drawing.svg")
    mine = strangers.watch(tmp_path / "notes" / "my.svg")
    mine.write_text("<svg/>")
    taken = tmp_path / "notes" / f"{found[0].seam}-{found[0].name}.svg"
    taken.write_text("<svg/>")
    with pytest.raises(ConfigError, match="is no picture of"):
        check_page(page, found)
    assert taken.read_text() == "<svg/>"
    taken.unlink()
    before = strangers.digest()
    write_page(page, [(recipe, None) for recipe in found], **facts)  # type: ignore[arg-type]
    earlier = tmp_path / "notes" / "gone.svg"
    earlier.write_text("<svg/>")
    page.write_text(page.read_text() + "\n![gone](notes/gone.svg)\n![my](elsewhere/my.svg)\n")
    write_page(page, [(recipe, None) for recipe in found], **facts)  # type: ignore[arg-type]
    assert not earlier.exists()
    assert strangers.digest() == before


def test_what_was_learned_replaces_nothing_that_was_put_there_since(tmp_path: Path) -> None:
    file = tmp_path / "learned"
    drafter = TrieDrafter(TrieOptions(learned_file=str(file)))
    drafter.recall(lambda: "v")
    drafter.save()
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_bytes(THESIS)
    drafter.save()
    assert file.read_bytes() == THESIS
    with pytest.raises(OSError, match="no such file"):
        save_trie(str(file), "v", drafter._trie, drafter._tenants)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ConfigError, match="cannot be written"):
        TrieDrafter(TrieOptions(learned_file=str(file)))


def test_make_removes_no_environment_that_it_did_not_create(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    (tmp_path / "csrc").mkdir()
    own = tmp_path / ".venv"
    own.mkdir()
    (own / "mine").write_text("packages")

    def make(goal: str) -> subprocess.CompletedProcess[str]:
        args = ["make", goal, f"PYTHON={sys.executable}"]
        return subprocess.run(args, cwd=tmp_path, capture_output=True, text=True, check=False)

    done = make(".venv/.made")
    assert done.returncode != 0
    assert "make did not create it" in done.stderr
    assert "make did not create it" in make("clean").stderr
    assert (own / "mine").read_text() == "packages"
    (own / "mine").unlink()
    (own / ".ockham").touch()  # what a creation leaves that was killed
    assert make("clean").returncode == 0
    assert not own.exists()
