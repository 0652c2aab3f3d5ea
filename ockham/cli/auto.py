"""`--auto`: the settings of the plan that was made for a model on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from ockham.cli.options import option
from ockham.core.logs import say

F = TypeVar("F", bound=Callable[..., Any])


def auto_option(function: F) -> F:
    """Adds `--auto`; `with_plan` takes its value in."""
    return option(
        "--auto",
        is_flag=True,
        default=False,
        section="Model",
        help="Take the settings of the plan that `ockham plan` made for this model on this "
        "machine, if there is one; flags that are given go before it. Without one, the exact "
        "defaults.",
    )(function)


def with_plan(settings: Mapping[str, Any], auto: bool) -> dict[str, Any]:
    """The engine's settings among a command's parameters, with those of the model's plan where the
    user gave none. What is taken, or why nothing is, is said in one line on stderr."""
    settings = dict(settings)
    if not auto:
        return settings
    from ockham.plan.keeping import kept_plan
    from ockham.plan.report import settings as plan_settings

    model = settings["model"]
    plan, why = kept_plan(model, settings.get("revision"))
    if plan is None:
        say(f"--auto: the exact defaults for {model}, as {why}. `ockham plan {model}` makes one.")
        return settings
    source = click.get_current_context().get_parameter_source
    taken = {
        name: value
        for name, value in plan_settings(plan).items()
        if source(name) is click.core.ParameterSource.DEFAULT
    }
    changes = plan.chosen.changes
    given = [name for name in changes if name not in taken]
    told = ", ".join(f"{name}={taken[name]}" for name in changes if name in taken)
    told = told or "nothing but defaults"
    floor = f"above the floor {plan.floors}" if plan.floors else "exact"
    kept = f"; given instead of the plan's: {', '.join(given)}" if given else ""
    say(f"--auto: the plan of {plan.made[:10]} for {plan.workload}, {floor}: {told}{kept}.")
    return {**settings, **taken}
