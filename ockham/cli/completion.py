"""`ockham completion SHELL`: what a shell reads so that TAB completes ockham's words."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_OCKHAM_COMPLETE"
"""By it a shell asks the program what a word may go on with."""


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script with which SHELL completes commands, flags, values, models and files.

    \b
    Examples:
      ockham completion bash > ~/.local/share/bash-completion/completions/ockham
      ockham completion zsh > ~/.zfunc/_ockham       (with ~/.zfunc in fpath before compinit)
      ockham completion fish > ~/.config/fish/completions/ockham.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None, "click knows all of SHELLS"
    program = click.get_current_context().find_root().command
    script = kind(program, {}, "ockham", VARIABLE)
    # Not `source`, which starts a shell to see whether it is recent enough. In zsh, click looks at
    # what only the first call of a loaded function shows, so that the second TAB would be lost.
    text = script.source_template % script.source_vars()
    click.echo(text.replace("$zsh_eval_context[-1] == loadautofunc", "$funcstack[1] == _ockham"))
