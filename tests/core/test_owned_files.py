"""What Ockham removes is Ockham's, whatever stands in its place or beside it."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ockham.core.errors import ConfigError
from ockham.core.owned_files import (
    NotOurs,
    Owned,
    check_output,
    hold,
    holds_nothing,
    make_own_directory,
    open_own,
    read_own,
    remove_files,
    replacing,
    write_output,
    write_own,
)
from tests.helpers.strangers import Strangers

KIND = Owned(
    "marker", frozenset({"data"}), lambda name, fd: read_own("marker", fd) == name.encode()
)


def made(path: Path) -> Path:
    """A directory of the kind."""
    make_own_directory(path)
    write_own(path / "marker", path.name.encode())
    write_own(path / "data", b"x" * 100)
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_a_directory_goes_whole_and_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    own = made(tmp_path / "own")
    assert KIND.owns(own)
    assert KIND.nbytes(own) == 103
    assert [mode(path) for path in (own, own / "marker", own / "data")] == [0o700, 0o600, 0o600]
    assert KIND.remove(own) == []
    assert not own.exists()


def test_strangers_in_a_directory_stay_with_it_and_are_not_counted(tmp_path: Path) -> None:
    strangers, own = Strangers(tmp_path / "outside"), made(tmp_path / "own")
    strangers.beside(own, "data.old", "marker2", ".ockham-1.partial")
    before = strangers.digest()
    assert KIND.nbytes(own) == 103
    assert "thesis" in KIND.remove(own)
    assert strangers.digest() == before
    assert not (own / "data").exists()
    assert not (own / "marker").exists()


@pytest.mark.parametrize("name", ["data", "marker"])
@pytest.mark.parametrize("what", ["link", "folder", "fifo", "socket"])
def test_a_strangers_thing_under_a_name_of_ours_stays(tmp_path: Path, name: str, what: str) -> None:
    strangers, own = Strangers(tmp_path / "outside"), made(tmp_path / "own")
    (own / name).unlink()
    if what == "link":
        (own / name).symlink_to(strangers.file)
    elif what == "folder":
        (own / name).mkdir()
    else:
        os.mknod(own / name, stat.S_IFIFO if what == "fifo" else stat.S_IFSOCK)
    strangers.watch(own / name)
    before = strangers.digest()
    with pytest.raises(NotOurs):
        write_own(own / name, b"over it")
    with pytest.raises(NotOurs):
        read_own(own / name)
    if name == "marker":
        with pytest.raises(NotOurs):
            KIND.remove(own)
    assert KIND.remove(own, known=True) == [name]
    assert strangers.digest() == before


def test_a_link_to_a_directory_of_ours_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    made(tmp_path / "outside" / "own")
    link = tmp_path / "own"
    link.symlink_to(tmp_path / "outside" / "own")
    assert not KIND.owns(link)
    assert KIND.nbytes(link) == 0
    with pytest.raises(OSError, match=r"Not a directory|symbolic"):
        KIND.remove(link, known=True)
    with pytest.raises(NotOurs, match="or a link"):
        make_own_directory(link)
    assert KIND.nbytes(tmp_path / "outside" / "own") == 103


def test_a_name_that_only_begins_as_ours_is_not_ours(tmp_path: Path) -> None:
    own = made(tmp_path / "own")
    copy = tmp_path / "own2"
    own.rename(copy)
    assert not KIND.owns(copy)
    with pytest.raises(NotOurs):
        KIND.remove(copy)
    assert KIND.nbytes(copy) == 103


def test_what_a_kill_left_of_a_write_is_ours(tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from ockham.core.owned_files import replacing\n"
        "with replacing(Path(sys.argv[1]) / 'data') as file:\n"
        "    file.write(b'half')\n"
        "    file.flush()\n"
        "    os._exit(9)\n"
    )
    own = made(tmp_path / "own")
    subprocess.run([sys.executable, "-c", script, str(own)], check=False)
    assert len(list(own.iterdir())) == 3
    assert (own / "data").read_bytes() == b"x" * 100
    assert not holds_nothing(own)
    assert KIND.nbytes(own) == 107
    assert KIND.remove(own) == []
    own.mkdir()
    subprocess.run([sys.executable, "-c", script, str(own)], check=False)
    assert holds_nothing(own)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    own = made(tmp_path / "own")
    with contextlib.suppress(ZeroDivisionError), replacing(own / "data") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert sorted(path.name for path in own.iterdir()) == ["data", "marker"]
    assert (own / "data").read_bytes() == b"x" * 100


def test_two_that_clean_at_once_do_not_hinder_each_other(tmp_path: Path) -> None:
    strangers = Strangers(tmp_path / "outside")
    strangers.beside(tmp_path / "store")
    before = strangers.digest()
    made_ = [made(tmp_path / "store" / f"own{i}") for i in range(40)]
    wrong: list[BaseException] = []

    def clean() -> None:
        for path in made_:
            try:
                KIND.remove(path)
            except (FileNotFoundError, NotOurs):
                pass  # the other was there before
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=clean) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert not any(path.exists() for path in made_)
    assert strangers.digest() == before


def test_files_are_removed_by_name_only_where_they_are_files(tmp_path: Path) -> None:
    strangers = Strangers(tmp_path / "outside")
    strangers.beside(tmp_path / "here")
    (tmp_path / "here" / "own.svg").write_text("<svg/>")
    before = strangers.digest()
    remove_files(tmp_path / "here", ["own.svg", "gone", "link", "fifo", "thesis"])
    assert not (tmp_path / "here" / "own.svg").exists()
    assert strangers.digest() == before
    (tmp_path / "there").symlink_to(strangers.folder)
    with pytest.raises(OSError):
        remove_files(tmp_path / "there", ["index"])
    assert strangers.digest() == before


def test_a_lock_is_held_once_and_never_by_way_of_a_link(tmp_path: Path) -> None:
    lock = hold(tmp_path / "lock")
    with pytest.raises(BlockingIOError):
        hold(tmp_path / "lock")
    os.close(lock)
    os.close(hold(tmp_path / "lock"))
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotOurs, match="symbolic link"):
        hold(tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(NotOurs, match="no regular file"):
        hold(tmp_path / "fifo")
    with pytest.raises(NotOurs, match="no regular file"):
        open_own(tmp_path, os.O_RDWR)


def test_an_output_replaces_a_file_only_if_that_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_output(path, b"one")
    with pytest.raises(ConfigError, match=r"replaces no file unasked.*--overwrite"):
        check_output(path)
    with pytest.raises(ConfigError, match="--overwrite"):
        write_output(path, b"two")
    assert path.read_bytes() == b"one"
    path.chmod(0o640)
    write_output(path, b"two", overwrite=True)
    assert (path.read_bytes(), mode(path)) == (b"two", 0o640)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(ConfigError, match="--overwrite"):
        write_output(tmp_path / "link", b"three")
    write_output(tmp_path / "link", b"three", overwrite=True)
    assert path.read_bytes() == b"three"
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "empty").write_bytes(b"")
    write_output(tmp_path / "empty", b"four")  # as of mktemp: nothing is lost
    assert (tmp_path / "empty").read_bytes() == b"four"


def test_a_directory_that_takes_no_file_is_found_out_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, how: False)
    with pytest.raises(ConfigError, match="no file may be made in"):
        check_output(tmp_path / "new")
    (tmp_path / "old").write_bytes(b"")
    check_output(tmp_path / "old")  # it is there to be written into


def test_an_output_may_be_no_file_and_waits_for_nobody(tmp_path: Path) -> None:
    write_output(Path(os.devnull), b"gone")
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_output(tmp_path / "fifo", b"nobody reads")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    write_output(tmp_path / "fifo", b"read")
    assert os.read(reader, 10) == b"read"
    os.close(reader)
    with pytest.raises(ConfigError, match="is a directory"):
        check_output(tmp_path)
    with pytest.raises(ConfigError, match="there is no directory"):
        check_output(tmp_path / "no" / "file")
