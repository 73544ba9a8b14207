"""`themis list`: what there is to choose from."""

from __future__ import annotations

from collections.abc import Mapping

import click

from themis_ray.config import PRESET_DESCRIPTIONS
from themis_ray.errors import lookup
from themis_ray.explain import METHODS
from themis_ray.explaining import INFLUENCE, INFLUENCE_SUMMARY
from themis_ray.feedback import SAMPLERS, SCHEDULE_DESCRIPTIONS, TEACHER_DESCRIPTIONS
from themis_ray.loop_settings import ALGORITHM_DESCRIPTIONS
from themis_ray.reward import REWARD_MODELS, REWARD_OPTIONS, RewardConfig

__all__ = ["LISTS", "list_command"]

# Names with one line each, from beside the registries.
LISTS: Mapping[str, Mapping[str, str]] = {
    "teachers": TEACHER_DESCRIPTIONS,
    "samplers": {name: spec.description for name, spec in SAMPLERS.items()},
    "algorithms": ALGORITHM_DESCRIPTIONS,
    "reward-models": REWARD_MODELS
    | {f"reward.{name}": f"option: {RewardConfig.model_fields[name].description}" for name in REWARD_OPTIONS},
    "explanations": {name: method.summary for name, method in METHODS.items()} | {INFLUENCE: INFLUENCE_SUMMARY},
    "presets": PRESET_DESCRIPTIONS,
    "schedules": SCHEDULE_DESCRIPTIONS,
}


@click.command("list")
@click.argument("kind", metavar=f"[{'|'.join(LISTS)}]")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def list_command(kind: str, debug: bool) -> None:
    """Print what there is to choose from, with one line each."""
    del debug
    descriptions = lookup("list of", kind, LISTS)
    width = max(map(len, descriptions))
    for name, description in descriptions.items():
        # click takes the bold type out where the output is no terminal.
        click.echo(f"{click.style(name, bold=True)}{' ' * (width - len(name))}  {description}")
