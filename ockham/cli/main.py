"""`ockham`: its verbs, each imported only when called, and how errors are shown."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
from typing import Any

import click

from ockham.cli.command import WIDEST_HELP, Group
from ockham.core import logs
from ockham.core.errors import ConfigError, InvalidRequest, OckhamError

VERBS = {
    "run": ("ockham.cli.run:run", "Answer one prompt; the text goes to stdout."),
    "chat": ("ockham.cli.chat:chat", "Talk with a model in the terminal."),
    "serve": ("ockham.cli.serve:serve", "Serve a model: a page, and several APIs over HTTP."),
    "run-batch": ("ockham.cli.run_batch:run_batch", "Answer a file of requests, offline."),
    "plan": ("ockham.cli.plan:plan", "Find the cheapest settings above a floor of quality."),
    "warm": ("ockham.cli.warm:warm", "Compute what requests begin with, for the next start."),
    "cache": ("ockham.cli.cache:cache", "Show what the prefix cache of a server holds."),
    "eval": ("ockham.cli.eval:evaluate", "Score a model, or compare two configurations of it."),
    "bench": ("ockham.cli.bench:bench", "Measure latency, throughput, or a running server."),
    "convert": ("ockham.cli.convert:convert", "Write a model as packed weights that load fast."),
    "compress": ("ockham.cli.compress:compress", "Find the best mix of formats, and write it."),
    "draft": ("ockham.cli.draft:draft", "Train what drafts for a model."),
    "train": ("ockham.cli.train:train", "Learn what a model's state may be spared."),
    "calibrate": ("ockham.cli.calibrate:calibrate", "Find settings for each head of a model."),
    "doctor": ("ockham.cli.doctor:doctor", "Show what this machine and this build can do."),
    "pull": ("ockham.cli.pull:pull", "Download a model, or what is newer of it."),
    "list": ("ockham.cli.list:list_kept", "List what models and caches take on this machine."),
    "rm": ("ockham.cli.rm:rm", "Remove models and caches from this machine."),
    "completion": ("ockham.cli.completion:completion", "Print what completes words in a shell."),
    "models": ("ockham.cli.models:models", "List models: built in, cached, supported."),
    "techniques": ("ockham.cli.techniques:techniques", "List the techniques there are."),
}
"""Verb -> where its command stands, and the line about it in the help."""

USAGE_EXIT_STATUS = 2
FAILURE_EXIT_STATUS = 1
INTERRUPTED_EXIT_STATUS = 130


class Failure(click.ClickException):
    """An error that is the user's to know: one sentence on stderr, and an exit status."""

    exit_code = FAILURE_EXIT_STATUS

    def __init__(self, error: OckhamError) -> None:
        super().__init__(str(error))

    def show(self, file: Any = None) -> None:
        if logs.structured():
            logging.getLogger("ockham").critical("%s", self.message)
        else:
            click.echo(f"ockham: {self.message}", file=file, err=file is None)


class WrongUse(Failure):
    """A failure that other flags or another prompt would avoid."""

    exit_code = USAGE_EXIT_STATUS


class Verbs(Group):
    """A group whose commands are imported when they are called: `ockham run` pays for no other."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, _, name = VERBS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(verb, summary) for verb, (_, summary) in VERBS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (InvalidRequest, ConfigError) as error:
            raise WrongUse(error) from error
        except OckhamError as error:
            raise Failure(error) from error
        except (MemoryError, OSError) as error:
            if isinstance(error, OSError) and error.errno != errno.ENOMEM:
                raise
            raise Failure(
                OckhamError(
                    f"there is not enough memory for this ({str(error) or 'none could be had'}); "
                    "lower --gpu-memory-utilization, --max-model-len or --max-num-seqs, or raise "
                    "the limit (ulimit -v, the container's)."
                )
            ) from error


def _print_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted:
        from ockham import __version__

        click.echo(f"ockham {__version__}")
        ctx.exit()


@click.group(
    cls=Verbs,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": WIDEST_HELP,
    },
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version.",
)
def cli() -> None:
    """Ockham runs language models and never pays twice for the same computation.

    Every flag can also be set as an environment variable (--max-model-len as OCKHAM_MAX_MODEL_LEN)
    or in the file of --config; a flag goes before the environment, the environment before the file.

    \b
    Examples:
      ockham run smollm2 "Why is the sky blue?"          ask a small model
      ockham chat MODEL.gguf                             talk with a model
      ockham serve MODEL --port 8000                     serve it to OpenAI's clients
      ockham COMMAND --help                              the flags of a command
    """


def main() -> None:
    """Entry point of the `ockham` program."""
    try:
        _check_streams()
        _check_words()
        cli.main(prog_name="ockham", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED_EXIT_STATUS)
    except BrokenPipeError:
        # The reader of stdout has gone, as in `ockham run | head`; it need not hear of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILURE_EXIT_STATUS)
    except OSError as error:  # a full disk behind stdout, say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"ockham: the operating system refused: {error}.", file=sys.stderr)
        sys.exit(FAILURE_EXIT_STATUS)


def _check_streams() -> None:
    """Refuse a closed stdout; take /dev/null for a closed stdin or stderr, so that no file that is
    opened later gets their numbers."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number, which is this one
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        raise WrongUse(OckhamError("stdout is closed; give it a file, a pipe or /dev/null."))


def _check_words() -> None:
    """Refuse arguments and variables that are not UTF-8, as a terminal with another encoding sends
    them: nothing that Ockham does with them could be right."""
    named = [(f"argument {i}", word) for i, word in enumerate(sys.argv[1:], 1)]
    named += [item for item in os.environ.items() if item[0].startswith("OCKHAM_")]
    for name, word in named:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise WrongUse(
                OckhamError(
                    f"{name} is not UTF-8 text: {os.fsencode(word)!r}. Set the terminal to UTF-8, "
                    "or give the text on stdin or in a file."
                )
            ) from None
