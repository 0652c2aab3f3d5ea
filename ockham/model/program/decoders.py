"""Every decoder that Ockham knows, as data: one record each, in the file of its family."""

from __future__ import annotations

from ockham.model.program.families import (
    based,
    deepseek,
    ernie,
    falcon,
    gemma,
    gpt_oss,
    granite,
    lfm2,
    linear,
    llama,
    olmo,
    qwen,
)
from ockham.model.program.record import Architecture

DECODERS: dict[str, Architecture] = {
    record.name: record
    for family in (
        llama,
        qwen,
        gemma,
        olmo,
        granite,
        falcon,
        ernie,
        gpt_oss,
        lfm2,
        deepseek,
        linear,
        based,
    )
    for record in family.RECORDS
}
"""By the name that config.json gives under `architectures`."""
