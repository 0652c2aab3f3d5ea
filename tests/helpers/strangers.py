"""A user's files, to be put beside whatever cleans up: every one must be there afterwards."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path


class Strangers:
    """Files outside, and what `beside` puts into a directory: among it links to those outside."""

    def __init__(self, outside: Path) -> None:
        self._roots: list[Path] = [outside]
        self.folder, self.file = outside / "folder", outside / "file"
        self.folder.mkdir(parents=True)
        for path in (self.file, self.folder / "index", self.folder / "model.safetensors"):
            path.write_bytes(b"theirs " * 1000)

    def beside(self, directory: Path, *names: str) -> None:
        """Put strangers' things into a directory, and a folder and a link under each of `names`."""
        os.makedirs(directory, exist_ok=True)
        for name in ("thesis", "with\nnewline", os.fsdecode(b"no\xff\xfetext"), "a" * 32, *names):
            folder = directory / name
            (folder / "deeper").mkdir(parents=True)
            (folder / "chapter").write_bytes(os.urandom(50_000))
            (folder / "deeper" / "pages").write_bytes(b"deep")
            os.symlink(self.folder, folder / "out")
            self._roots.append(folder)
        for name, target in (
            ("0" * 32, self.folder),  # a link of the form of an entry's name
            ("link", self.file),
            ("dangling", directory / "nowhere"),
        ):
            os.symlink(target, directory / name)
            self._roots.append(directory / name)
        for name, kind in (("fifo", stat.S_IFIFO), ("socket", stat.S_IFSOCK)):
            os.mknod(directory / name, kind | 0o600)
            self._roots.append(directory / name)
        for path in (directory / "empty", directory / ("f" * 32)):
            path.mkdir()
            self._roots.append(path)
        closed = directory / ("c" * 32)
        closed.mkdir(mode=0)
        self._roots.append(closed)
        os.link(self.file, directory / "hard")
        self._roots.append(directory / "hard")

    def watch(self, path: Path) -> Path:
        """One more thing that must stay as it is."""
        self._roots.append(path)
        return path

    def digest(self) -> str:
        """Changes with everything that can be seen of them."""
        whole = hashlib.sha256()
        for root in self._roots:
            paths = [root]
            if not root.is_symlink() and root.is_dir():
                for base, folders, files in os.walk(root):
                    paths += [Path(base) / name for name in (*folders, *files)]
            for path in sorted(paths):
                facts = path.lstat()
                whole.update(os.fsencode(path) + f" {facts.st_mode} {facts.st_nlink}".encode())
                if stat.S_ISREG(facts.st_mode):
                    whole.update(path.read_bytes() + str(facts.st_mtime_ns).encode())
                elif stat.S_ISLNK(facts.st_mode):
                    whole.update(os.fsencode(os.readlink(path)))
        return whole.hexdigest()
