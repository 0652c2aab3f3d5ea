"""A training's folder among a user's files: it takes no other, and removes only its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ockham.core.errors import ConfigError
from ockham.training.settings import Settings
from ockham.training.workplace import Workplace
from tests.helpers.strangers import Strangers


def workplace(tmp_path: Path, said: list[str] | None = None, **changed: int) -> Workplace:
    (tmp_path / "target").mkdir(exist_ok=True)
    settings = Settings("target", tmp_path / "out", "medusa", heads=2, **changed)
    tell = (lambda line: None) if said is None else said.append
    return Workplace(settings, tmp_path / "target", tell)


def test_a_finished_training_leaves_strangers_files_where_they_are(tmp_path: Path) -> None:
    said: list[str] = []
    strangers = Strangers(tmp_path / "outside")
    place = workplace(tmp_path, said)
    with place.begin():
        strangers.beside(place.folder, "result")
        for name in ("outputs.npz", "checkpoint.pt", "checkpoint.partial"):
            (place.folder / name).write_bytes(b"ours")
        half = place.new_result()
        (half / "draft.json").write_text("{")
        strangers.beside(half)
        before = strangers.digest()
        result = place.new_result()
        (result / "draft.json").write_text("{}")
        place.finish(result)
    assert strangers.digest() == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["draft.json"]
    assert any("out.training stays" in line for line in said)
    for name in ("outputs.npz", "checkpoint.pt", "checkpoint.partial", "training.json"):
        assert not (place.folder / name).exists()
    assert not (half / "draft.json").exists()


def test_a_training_that_has_its_folder_alone_leaves_nothing(tmp_path: Path) -> None:
    place = workplace(tmp_path)
    with place.begin():
        (place.new_result() / "draft.json").write_text("half")
        place.finish(place.new_result())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "target"]


def test_a_place_that_is_spelt_as_a_parent_is_the_directory_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    settings = Settings("target", tmp_path / "none" / "..", "medusa", heads=2)
    with pytest.raises(ConfigError, match="exists; name a directory that does not"):
        Workplace(settings, tmp_path / "target")


@pytest.mark.parametrize("what", ["files", "damaged", "link", "fifo", "file"])
def test_a_folder_that_is_no_trainings_is_refused_and_kept(tmp_path: Path, what: str) -> None:
    strangers, folder = Strangers(tmp_path / "outside"), tmp_path / "out.training"
    if what == "files":
        strangers.beside(folder, "result")
        (folder / "training.json").write_text('{"mine": 1}')
    elif what == "damaged":
        folder.mkdir()
        (folder / "training.json").write_text("{")
    elif what == "link":
        folder.symlink_to(strangers.folder)
    elif what == "fifo":
        os.mkfifo(folder)
    else:
        folder.write_text("mine")
    before = strangers.watch(folder) and strangers.digest()
    with pytest.raises(ConfigError, match="holds something else: name another OUT"):
        workplace(tmp_path)
    assert strangers.digest() == before


def test_an_out_that_exists_is_refused_also_as_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="out exists"):
        workplace(tmp_path)


def test_one_process_at_a_time_trains(tmp_path: Path) -> None:
    one, other = workplace(tmp_path), workplace(tmp_path)
    with (
        one.begin(),
        pytest.raises(ConfigError, match="another process trains"),
        other.begin(),
    ):
        pass
    with other.begin():
        pass
