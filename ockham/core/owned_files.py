"""Ockham's files among a user's: made so that they are known again, and removed by this code alone.

A store, a cache or a training stands in a directory that the user names, and other files may stand
there too. So nothing is removed or replaced by its place or its name:

- An `Owned` says what a directory of one kind holds, and how its content proves that Ockham made
  it. Only the regular files that this kind writes are removed, and the directory only if nothing
  else is in it.
- No link is followed, and none is replaced. A directory is opened once, and all that is done to
  its entries is done by that descriptor: one that is exchanged for a link meanwhile leads nowhere.
- Nothing waits: a FIFO or a device in the place of a file is an error.
- A file is written beside its place, brought to the disk, and then renamed.

The directory that the user names may itself be a link: that is his choice.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ockham.core.errors import ConfigError

PRIVATE_FILE, PRIVATE_DIRECTORY = 0o600, 0o700
"""Modes of what stores and caches hold: it tells what users wrote, or which models they have."""

USUAL_FILE = 0o666
"""The mode of what a user asked to have written; his umask takes from it."""

_MARKER_BYTES = 1 << 20
"""A longer marker proves nothing."""

_MOST_NAMED = 3

_PARTIAL = re.compile(r"\.ockham-[0-9a-f]{16}\.partial")


class NotOurs(OSError):
    """Something stands in the way that Ockham did not make, or that is no regular file."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EEXIST, reason)


@dataclass(frozen=True, slots=True)
class Owned:
    """What a kind of directory holds that Ockham makes.

    `proves(name, descriptor)` says whether the content of an open directory of that name shows that
    Ockham made it; errors of the system and of reading JSON in it mean no. `marker` is the file
    that proves it: it is removed last, so that what a kill leaves is known too. `files` are the
    names of the others.
    """

    marker: str
    files: frozenset[str]
    proves: Callable[[str, int], bool]

    def owns(self, path: Path) -> bool:
        """Whether Ockham made this directory. A link to one is not owned."""
        try:
            with open_directory(path) as directory:
                return self._proven(path.name, directory)
        except OSError:
            return False

    def nbytes(self, path: Path) -> int:
        """Bytes of Ockham's files in a directory of this kind."""
        try:
            with open_directory(path) as directory:
                return sum(size for _, size in self._own(directory))
        except OSError:
            return 0

    def remove(self, path: Path, *, known: bool = False) -> list[str]:
        """Remove Ockham's files from a directory, and the directory if it is then empty.

        Gives the names of what stays because it is not Ockham's; none if the directory is gone.
        `known` says that the caller knows without a marker that it is Ockham's. Raises NotOurs if
        nothing proves that, and OSError.
        """
        with open_parent(path) as parent, open_directory(path.name, parent) as directory:
            if not known and not self._proven(path.name, directory):
                raise NotOurs("nothing in it proves that Ockham made it")
            own = [name for name, _ in self._own(directory)]
            for name in sorted(own, key=lambda name: name == self.marker):
                with contextlib.suppress(FileNotFoundError):  # another process cleans too
                    os.unlink(name, dir_fd=directory)
            left = sorted(os.listdir(directory))
            if not left and _is_same(path.name, parent, directory):
                os.rmdir(path.name, dir_fd=parent)
            return left

    def make_private(self, path: Path) -> None:
        """Let nobody but the owner read a directory of this kind: earlier versions did not."""
        with open_directory(path) as directory:
            os.fchmod(directory, PRIVATE_DIRECTORY)
            for name, _ in self._own(directory):
                with (
                    contextlib.suppress(FileNotFoundError),
                    open_file(name, os.O_RDONLY, dir_fd=directory) as file,
                ):
                    os.fchmod(file, PRIVATE_FILE)

    def _proven(self, name: str, directory: int) -> bool:
        try:
            return self.proves(name, directory)
        except (OSError, ValueError, RecursionError):
            return False

    def _own(self, directory: int) -> Iterator[tuple[str, int]]:
        """Name and bytes of each of Ockham's files."""
        for name in os.listdir(directory):
            if name == self.marker or name in self.files or _PARTIAL.fullmatch(name):
                with contextlib.suppress(FileNotFoundError):
                    facts = os.lstat(name, dir_fd=directory)
                    if stat.S_ISREG(facts.st_mode):
                        yield name, facts.st_size


def named(strangers: Sequence[str]) -> str:
    """The first of some names, as a message lists them: whatever bytes they have."""
    first = ", ".join(f"{name!a}" for name in sorted(strangers)[:_MOST_NAMED])
    more = len(strangers) - _MOST_NAMED
    return f"{first} and {more} more" if more > 0 else first


def remove_files(directory: Path, names: Iterable[str]) -> None:
    """Remove the regular files of these names, which the caller knows to be Ockham's, from a
    directory that is no link. Raises OSError."""
    with open_directory(directory) as descriptor:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISREG(os.lstat(name, dir_fd=descriptor).st_mode):
                    os.unlink(name, dir_fd=descriptor)


# -- opening -----------------------------------------------------------------------------------


@contextlib.contextmanager
def open_directory(path: Path | str, parent: int | None = None) -> Iterator[int]:
    """A descriptor of a directory that is no link."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def open_parent(path: Path) -> Iterator[int]:
    """A descriptor of the directory in which something stands; that may be a link."""
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_own(
    path: Path | str, flags: int, mode: int = PRIVATE_FILE, dir_fd: int | None = None
) -> int:
    """Open a regular file that is no link. Raises NotOurs if it is something else, without waiting
    for anybody to open the other end of a FIFO."""
    more = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags | more, mode, dir_fd=dir_fd)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotOurs(f"{os.path.basename(path)!a} is a symbolic link") from None
        if error.errno in (errno.ENXIO, errno.EISDIR):  # a socket, or a FIFO that nobody reads
            raise NotOurs(f"{os.path.basename(path)!a} is no regular file") from None
        raise
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise NotOurs(f"{os.path.basename(path)!a} is no regular file")


@contextlib.contextmanager
def open_file(path: Path | str, flags: int, dir_fd: int | None = None) -> Iterator[int]:
    """As `open_own`, closed at the end."""
    descriptor = open_own(path, flags, dir_fd=dir_fd)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_own(path: Path | str, dir_fd: int | None = None, most_bytes: int = _MARKER_BYTES) -> bytes:
    """The content of a regular file that is no link. Raises NotOurs for others and longer ones."""
    with open_file(path, os.O_RDONLY, dir_fd) as descriptor:
        if os.fstat(descriptor).st_size > most_bytes:
            raise NotOurs(f"{os.path.basename(path)!a} is longer than Ockham writes it")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(most_bytes)


def hold(path: Path) -> int:
    """A descriptor that locks a file until it is closed, or the process ends, however it does.

    Raises BlockingIOError if another holds it, and OSError.
    """
    while True:
        descriptor = open_own(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            named, locked = os.lstat(path), os.fstat(descriptor)
            if (named.st_dev, named.st_ino) == (locked.st_dev, locked.st_ino):
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # somebody removed it in between: lock the one that stands there


# -- making ------------------------------------------------------------------------------------


def make_directory(path: Path) -> None:
    """Make a directory that only its owner may read, unless it exists; it may be a link to one."""
    path.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)


def make_own_directory(path: Path) -> bool:
    """Make a directory that only its owner may read; whether it was not there.

    Raises NotOurs if something else stands there, a link to a directory included.
    """
    try:
        path.mkdir(mode=PRIVATE_DIRECTORY)
    except FileExistsError:
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise NotOurs(f"{path.name!a} is no directory, or a link") from None
        return False
    return True


def holds_nothing(path: Path) -> bool:
    """Whether a directory is empty, but for files that `replacing` had begun when it was killed."""
    return all(_PARTIAL.fullmatch(name) for name in os.listdir(path))


@contextlib.contextmanager
def replacing(path: Path, mode: int = PRIVATE_FILE) -> Iterator[BinaryIO]:
    """A new file that becomes `path` as a whole, or not at all.

    Raises NotOurs if no regular file stands there, and OSError. Callers know that a regular one is
    theirs to replace.
    """
    _check_regular(path)
    partial = path.with_name(f".ockham-{secrets.token_hex(8)}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _check_regular(path)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
        raise


def write_own(path: Path, data: bytes, mode: int = PRIVATE_FILE) -> None:
    """Write a file as `replacing` does."""
    with replacing(path, mode) as file:
        file.write(data)


# -- what a command was asked to write ---------------------------------------------------------


def check_output(path: Path, overwrite: bool = False) -> None:
    """Raise ConfigError if a file cannot be written there, or would replace another.

    An empty file may be replaced, and what is no file (a terminal, a pipe) is written to.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise ConfigError(f"{path} cannot be written: there is no directory {target.parent}.")
    try:
        facts = target.stat()
    except FileNotFoundError:
        if not os.access(target.parent, os.W_OK):
            raise ConfigError(
                f"{path} cannot be written: no file may be made in {target.parent}."
            ) from None
        return
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}).") from error
    if stat.S_ISDIR(facts.st_mode):
        raise ConfigError(f"{path} is a directory; name a file.")
    if stat.S_ISREG(facts.st_mode) and facts.st_size and not overwrite:
        raise ConfigError(
            f"{path} exists, and Ockham replaces no file unasked: name another, or give "
            "--overwrite."
        )


def write_output(path: Path, data: bytes, overwrite: bool = False) -> None:
    """Write a file that a user asked for; one that exists is replaced as a whole.

    Raises ConfigError as `check_output` does, and if writing fails.
    """
    check_output(path, overwrite)
    target = Path(os.path.realpath(path))
    try:
        facts = target.stat() if target.exists() else None
        if facts is not None and (not stat.S_ISREG(facts.st_mode) or not facts.st_size):
            _write_into(target, data)
        elif facts is not None:
            write_own(target, data, stat.S_IMODE(facts.st_mode))
        else:
            _write_new(target, data)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}).") from error


def _write_into(path: Path, data: bytes) -> None:
    """Write to what is open elsewhere already: a pipe, a terminal, or a file made beforehand."""
    descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    os.set_blocking(descriptor, True)
    with open(descriptor, "wb") as file:
        file.write(data)


def _write_new(path: Path, data: bytes) -> None:
    """Write a file that does not exist: one that appears meanwhile is not replaced."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, USUAL_FILE)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)  # half of it, of our own making
        raise


def _check_regular(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise NotOurs(f"{path.name!a} is a link, or no regular file")


def _is_same(name: str, parent: int, directory: int) -> bool:
    """Whether an open directory still has its name."""
    try:
        named, opened = os.lstat(name, dir_fd=parent), os.fstat(directory)
    except FileNotFoundError:
        return False
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)
