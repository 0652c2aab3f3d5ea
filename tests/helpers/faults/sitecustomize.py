"""Faults on demand in a live server: Python imports this by itself when it stands on the path.

Each function of `OCKHAM_FAULTS` ("module:Class.name" or "module:name", apart by commas) raises once
when there is a file of its name in `OCKHAM_FAULT_DIR`, and removes the file.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import inspect
import os
import sys
from types import ModuleType
from typing import Any

WANTED: dict[str, list[str]] = {}
for each in filter(None, os.environ.get("OCKHAM_FAULTS", "").split(",")):
    WANTED.setdefault(each.split(":")[0], []).append(each)


def strike(name: str) -> None:
    path = os.path.join(os.environ["OCKHAM_FAULT_DIR"], name)
    try:
        os.remove(path)
    except FileNotFoundError:
        return
    raise RuntimeError(f"a fault was asked for in {name}")


def wrap(module: ModuleType, name: str) -> None:
    *owners, last = name.split(":")[1].split(".")
    owner: Any = functools.reduce(getattr, owners, module)
    work = inspect.getattr_static(owner, last)
    if inspect.isasyncgenfunction(work) or inspect.isgeneratorfunction(work):
        raise TypeError(f"{name} is a generator: a fault would come before it has begun")

    @functools.wraps(work)
    def faulty(*args: Any, **kwargs: Any) -> Any:
        strike(name)
        return work(*args, **kwargs)

    setattr(owner, last, faulty)


class Finder(importlib.abc.MetaPathFinder):
    """Wraps the functions of a module when it is imported."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname not in WANTED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            for name in WANTED[fullname]:
                wrap(module, name)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if WANTED:
    sys.meta_path.insert(0, Finder())
