"""The `themis` command.

A command's module is imported when the command is used: torch, Ray and RLlib take seconds, and what is asked of the
command is often only `--help`.
"""

from __future__ import annotations

import sys
import traceback
from importlib import import_module
from typing import Any, NamedTuple

import click

from themis_ray.errors import ThemisError

__all__ = ["main"]


class LazyCommand(NamedTuple):
    """A command that is imported when it is used."""

    module: str
    """In this package."""
    attribute: str
    summary: str
    """What `themis --help` says of it, in one line of a terminal."""


COMMANDS = {
    "annotate": LazyCommand("annotate", "annotate", "Compare clips of a run in the terminal."),
    "clip": LazyCommand("clips", "clip", "Write videos of the segments that a run asked about."),
    "data": LazyCommand("datasets", "data", "Bring preferences in and out."),
    "envs": LazyCommand("environments", "envs", "List the environments that are installed."),
    "explain": LazyCommand("explain", "explain", "Show what a run's policy and reward look at."),
    "list": LazyCommand("listing", "list_command", "Print what there is to choose from."),
    "pretrain": LazyCommand("train", "pretrain", "Explore once, for many runs to start from."),
    "publish": LazyCommand("publish", "publish", "Push runs and reports to a tracker."),
    "report": LazyCommand("report", "report", "Compare finished runs."),
    "serve": LazyCommand("serve", "serve", "Run the labelling service."),
    "simulate-annotators": LazyCommand("studies", "simulate_annotators", "Let programs answer a study over HTTP."),
    "study": LazyCommand("studies", "study", "Make, fill and read studies at a labelling service."),
    "sweep": LazyCommand("sweep", "sweep", "Run every experiment of a sweep."),
    "train": LazyCommand("train", "train", "Train an agent from preferences."),
}


class ThemisGroup(click.Group):
    """Imports a command when it is used, and prints user errors as one line with exit code 2.

    The traceback of an error is printed only with --debug.
    """

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the names of all commands."""
        del context
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Import and return a command, or None where there is none of this name."""
        del context
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"{__name__}.{COMMANDS[name].module}"), COMMANDS[name].attribute)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the summaries of all commands, none of which is imported for it."""
        del context
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.summary) for name, command in COMMANDS.items()])

    def invoke(self, context: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(context)
        except ThemisError as error:
            if "--debug" in sys.argv:
                traceback.print_exc()
            click.echo(f"error: {error}", err=True)
            context.exit(2)


@click.group(cls=ThemisGroup)
@click.version_option(package_name="themis-ray")
def main() -> None:
    """Train, sweep, label and explain: reinforcement learning from human feedback on Ray."""
