"""Whether what training needs is installed."""

from __future__ import annotations

import importlib.util

from ockham.core.errors import ConfigError

_NEEDED = ("torch", "transformers", "safetensors")


def require_extra() -> None:
    """Raises ConfigError, saying what to install, if the extra `train` is missing."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"training needs {' and '.join(missing)}, which serving does not; install them with "
            "pip install 'ockham[train]'."
        )
