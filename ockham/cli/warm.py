"""`ockham warm MODEL --from FILE`: preambles of agents, computed before they come."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ockham.cli.command import command
from ockham.cli.options import engine_config, engine_options, option
from ockham.cli.value_types import Text
from ockham.core.errors import ConfigError, OckhamError

if TYPE_CHECKING:
    from ockham.api.warming import Warmed


@command(own="Warming")
@engine_options
@option(
    "--from",
    "given",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="Request bodies of any of the server's protocols: a JSON object, a list of them, or one "
    "on each line.",
)
@option(
    "--api-key",
    type=Text(),
    multiple=True,
    help="Keys of the server, if it has several: each key's requests have state of their own. May "
    "be given more than once.",
)
def warm(*, given: Path, api_key: tuple[str, ...], **engine: Any) -> None:
    """Compute what requests begin with, and keep it in --kv-store for the next start.

    Of each request the system prompt, the tools and all messages but the last are computed and
    written to the store, where they stay until 'ockham warm' is run with another file. A server
    that is started with the same model, flags and --kv-store reads them instead of computing them.
    """
    from ockham.api.llm import LLM
    from ockham.api.server.caller import NOBODY, Caller, key_name
    from ockham.api.warming import read_file
    from ockham.api.warming import warm as compute

    config = engine_config(**engine)
    if config.kv_store is None:
        raise ConfigError(
            "warm needs --kv-store DIR: there it keeps what it computes, and the server is started "
            "with the same."
        )
    keys = tuple(dict.fromkeys(api_key))
    callers = [Caller(key_name(key)) for key in keys] if len(keys) > 1 else [NOBODY]

    def salts(cache_salt: str) -> Sequence[str]:
        return [caller.salt(cache_salt) for caller in callers]

    bodies = list(read_file(given))
    if not bodies:
        raise ConfigError(f"{given} holds no request; write one JSON object a line.")
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    logging.getLogger("ockham.engine").setLevel(logging.INFO)
    with LLM.from_config(config) as llm:
        teller = _Teller()
        found = compute(llm, bodies, salts, teller)
    left = sum(each.stored - each.pinned for each in found)
    if left:
        raise OckhamError(
            f"{left:,} tokens are on disk but do not stay: half of the store may be pinned. Raise "
            "--kv-store-bytes."
        )


class _Teller:
    """Says what became of each request."""

    def __init__(self) -> None:
        self._since_s = time.monotonic()

    def __call__(self, warmed: Warmed) -> None:
        now_s = time.monotonic()
        click.echo(
            f"{warmed.where}: {warmed.tokens:,} tokens, {warmed.computed:,} of them computed in "
            f"{now_s - self._since_s:.1f} s; {warmed.stored:,} stand on disk",
            err=True,
        )
        self._since_s = now_s
