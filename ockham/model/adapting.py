"""What an adapter must know of the model that it is for."""

from __future__ import annotations

from ockham.core.registry import find, make
from ockham.core.seams import Adapter, AdapterDtype, Format
from ockham.kernels.ops import Program


def precision(program: Program) -> AdapterDtype:
    """As precise as the matrices of a program that adapters may add to: the dtype that holds their
    values, or "int8" where some of them are quantised."""
    roles = {part.role for part in program.parts.values()}
    dtypes = set()
    for role, matrix in program.matrices().items():
        if role in roles:
            for name in matrix.format.split("+"):
                weight_format: type[Format] = find("format", name).cls
                dtypes.add(weight_format.dtype)
    if dtypes <= {"float32"}:
        return "float32"
    return "int8" if None in dtypes else "bfloat16"


def adapters_bytes(setting: str | None, program: Program) -> int:
    """The most that the adapters take which an engine with this setting has in memory."""
    if setting is None:
        return 0
    technique: Adapter = make("adapter", setting)
    return technique.reserved_bytes(program.parts, precision(program))
