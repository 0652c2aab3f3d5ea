"""Every architecture that Ockham knows, as data."""

from __future__ import annotations

from ockham.model.program.decoders import DECODERS
from ockham.model.program.encoders import ENCODERS
from ockham.model.program.record import Architecture as Architecture
from ockham.model.program.record import Config as Config

ARCHITECTURES: dict[str, Architecture] = {**DECODERS, **ENCODERS}
"""By the name that config.json gives under `architectures`."""
