"""The command line: one file a group of commands, each loaded when it is called."""

from __future__ import annotations

import importlib
import io
import sys
from typing import Any

import click

from mpsim import __version__
from mpsim.errors import MpsimError, did_you_mean

_COMMANDS = {
    "scenario": ("scenario:scenario", "Simulate scenario files: fit, step time, timeline, bounds."),
    "schedule": ("schedule:schedule", "Draw, time, check and export a pipeline schedule."),
    "zoo": ("zoo:zoo", "List and show devices, links, clusters, models, profiles."),
    "schema": ("start:schema", "Print the JSON Schema of a scenario, for editors."),
    "init": ("start:init", "Write a commented starter scenario."),
    "validate": ("validate:validate", "Check predictions against measured training runs."),
    "verify": ("verify:verify", "Check the rules that every prediction must obey."),
    "calibrate": (
        "calibrate:calibrate",
        "Fit a profile to measurements, of this machine or given.",
    ),
    "demo": ("demo:demo", "Run small models on two real devices, beside their simulation."),
    "check": ("check:check", "Run a small scenario in torch and compare it with its simulation."),
    "budget": ("check:budget", "Say whether a measured step lies in the predicted interval."),
    "whatif": ("whatif:whatif", "Vary fields of a scenario over a grid; sensitivities."),
    "compare": ("whatif:compare", "Put two scenarios side by side, and what makes the difference."),
    "plan": ("plan:plan", "Search the best plan; capacity under a deadline and a budget."),
    "export": ("launch:export", "Write the flags or config of a launcher for a scenario."),
    "import": ("launch:import_", "Read a launcher's flags or config into a scenario."),
}
"""Name → place below this package, and the line shown by ``mpsim --help``."""


class _Commands(click.Group):
    """A group whose commands are imported when they are called, so that help is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, in the order of use."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name."""
        if cmd_name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(importlib.import_module(f"mpsim.cli.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, from the table above."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that was called, or a near miss."""
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"no command '{args[0]}'{did_you_mean(args[0], _COMMANDS)}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        """Run the command; an mpsim error becomes its text and its exit code."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a terminal without UTF-8 shows a mark
                stream.reconfigure(errors="replace")
        try:
            return super().invoke(ctx)
        except MpsimError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)
        except MemoryError:
            click.echo("error: too large for this machine's memory: fewer ops or samples", err=True)
            ctx.exit(2)
        except ArithmeticError as error:
            text = "a quantity is too large or too small to compute with"
            click.echo(f"error: {text} ({error})", err=True)
            ctx.exit(2)
        except BrokenPipeError:
            sys.stderr.close()
            ctx.exit(1)
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            click.echo(f"error: {place}{error.strerror or error}", err=True)
            ctx.exit(2)


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="mpsim")
def main() -> None:
    """What a split of a large model over devices will give, before the devices are bought.

    \b
    mpsim scenario gpt3_fp32.yaml      does it fit, how long is a step, what bounds it
    mpsim init > mine.yaml             a commented scenario to start from
    """
