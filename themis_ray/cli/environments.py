"""`themis envs`: which environments there are, how each is set up, and whether everything works in it."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from themis_ray.census import (
    census_page,
    explain_setup,
    list_rows,
    open_results,
    run_checks,
    status_of,
    summarise,
    write_page,
)
from themis_ray.cli.paths import check_file
from themis_ray.cli.progress import late_progress, progress_bar
from themis_ray.config import load_config
from themis_ray.envs import FAMILIES, list_envs
from themis_ray.errors import ConfigError, UnknownNameError

__all__ = ["envs"]

ENVS_EXAMPLES = """
\b
Examples:
  themis envs --family minigrid
  themis envs --json > environments.json
  themis envs show ALE/Pong-v5
  themis envs check --family mujoco --jobs 2
  themis envs check --ids CartPole-v1,Pendulum-v1
"""
PACKAGES = ("gymnasium", "ale-py", "minigrid", "mujoco", "box2d")
EXTRA_PACKAGES = ("gymnasium-robotics", "dm-control", "shimmy", "metaworld", "highway-env")
DEFAULT_RESULTS = Path("runs/envs-check.jsonl")


@click.group(invoke_without_command=True, epilog=ENVS_EXAMPLES)
@click.option("--family", help=f"Only this family: {', '.join(FAMILIES)}.")
@click.option("--json", "is_json", is_flag=True, help="Print a JSON list.")
@click.option("--jobs", default=2, show_default=True, help="Processes.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def envs(context: click.Context, family: str | None, is_json: bool, jobs: int, debug: bool) -> None:
    """List the environments that the installed packages bring, with observation, actions and horizon."""
    del debug
    if context.invoked_subcommand is not None:
        _refuse_options_before(context, context.invoked_subcommand)
        return
    env_ids = list_envs(family)
    rows = []
    with late_progress(f"{len(env_ids)} environments") as report:
        for row in list_rows(env_ids, _checked_jobs(jobs)):
            rows.append(row)
            report(len(rows) / len(env_ids))
    if is_json:
        click.echo(json.dumps(rows, indent=1))
        return
    table = Table(title=f"{len(rows)} environments", title_justify="left")
    for name in ("id", "family", "observation", "actions", "horizon", "extra"):
        table.add_column(name, justify="right" if name == "horizon" else "left", overflow="fold")
    for row in rows:
        horizon = "" if row["horizon"] is None else f"{row['horizon']}{' fixed' if row['is_fixed_horizon'] else ''}"
        observation = escape(row["observation"] or row["error"])
        table.add_row(escape(row["id"]), row["family"], observation, row["action"], horizon, row["extra"])
    Console().print(table)
    missing = [row for row in FAMILIES.values() if row.extra and not any(row.matches(env_id) for env_id in env_ids)]
    if family is None and missing:
        names = ",".join(str(row.extra) for row in missing)
        click.echo(f"Not installed: {', '.join(row.name for row in missing)}. pip install 'themis-ray[{names}]'")


def _refuse_options_before(context: click.Context, command: str) -> None:
    for name, option in {"family": "--family", "is_json": "--json", "jobs": "--jobs"}.items():
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise ConfigError(
                f"{option} before {command} is of the list of environments. Leave it out, or write what themis envs "
                f"{command} takes behind {command}."
            )


@envs.command()
@click.argument("env_id", metavar="ID")
@click.argument("settings", nargs=-1, metavar="[key=value ...]")
@click.option("--json", "is_json", is_flag=True, help="Print a JSON list.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def show(env_id: str, settings: tuple[str, ...], is_json: bool, debug: bool) -> None:
    """Show what is chosen for an environment, why, and the setting that chooses otherwise."""
    del debug
    choices = explain_setup(load_config(None, [f"env.id={env_id}", *settings]))
    if is_json:
        click.echo(json.dumps([vars(choice) for choice in choices], indent=1))
        return
    table = Table(title=escape(env_id), title_justify="left")
    for name in ("what", "chosen", "why", "setting"):
        table.add_column(name, overflow="fold")
    for choice in choices:
        table.add_row(*map(escape, (choice.what, choice.chosen, choice.reason, choice.setting)))
    Console().print(table)


@envs.command()
@click.option("--family", help="Only this family.")
@click.option("--ids", help="Only these ids, with commas between them.")
@click.option("--jobs", default=1, show_default=True, help="Processes, each with a Ray cluster of its own.")
@click.option("--resume", is_flag=True, help="Go on after the results that --out holds.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=DEFAULT_RESULTS, show_default=True, help="Results, JSON lines."
)
@click.option("--page", type=click.Path(path_type=Path), help="Write all results as a page in Markdown too.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def check(
    context: click.Context,
    family: str | None,
    ids: str | None,
    jobs: int,
    resume: bool,
    out: Path,
    page: Path | None,
    debug: bool,
) -> None:
    """Prove of each environment that it is made, reproducible, trained in and shown.

    Ends with exit code 1 if one fails that is not known to.
    """
    del debug
    if ids is not None and family is not None:
        raise ConfigError(f"--ids {ids} and --family {family} both say what is checked. Give one of them.")
    env_ids = list_envs(family)
    if ids is not None:
        env_ids = ids.split(",")
        for env_id in env_ids:
            if not env_id:
                raise UnknownNameError(f"--ids {ids} holds an empty id. Write ids with commas between them.")
    check_file("--out", out)
    if page is not None:
        check_file("--page", page)
    if out.exists() and out.stat().st_size and not resume:
        raise ConfigError(f"{out} holds results. Go on with --resume, give another --out, or delete it.")
    results = open_results(out, is_resumed=resume)
    todo = [env_id for env_id in env_ids if env_id not in results]
    with progress_bar(Console(stderr=True)) as progress:
        task = progress.add_task("check", total=len(env_ids), completed=len(env_ids) - len(todo), status="starting Ray")
        for result in run_checks(todo, _checked_jobs(jobs), out):
            results[result["id"]] = result
            if status_of(result) == "failed":
                progress.console.print(_told(result), highlight=False, markup=False)
            progress.update(task, advance=1, status=escape(f"{result['id']}  {result['wall_s']:.0f} s"))
    chosen = [results[env_id] for env_id in env_ids]
    _print_summary(chosen)
    if page is not None:
        write_page(page, census_page(list(results.values()), package_versions()))
    if any(status_of(result) == "failed" for result in chosen):
        context.exit(1)


def _print_summary(results: list[dict[str, Any]]) -> None:
    table = Table(title="themis envs check", title_justify="left")
    table.add_column("family")
    for name in ("ids", "passed", "known failures", "failed", "s per id"):
        table.add_column(name, justify="right")
    for row in summarise(results):
        counts = [str(row[name]) for name in ("checked", "passed", "known", "failed")]
        table.add_row(row["family"], *counts, f"{row['wall_s'] / row['checked']:.1f}")
    Console().print(table)
    for result in results:
        if status_of(result) == "failed":
            click.echo(_told(result))


def _told(result: dict[str, Any]) -> str:
    return f"{result['id']}: {result['failed_check']}: {result['error']}"


def _checked_jobs(jobs: int) -> int:
    if jobs < 1:
        raise ConfigError(f"--jobs {jobs} does nothing. Give 1 or more.")
    return jobs


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that environments come from, of those that are installed."""
    found = {}
    for name in (*PACKAGES, *EXTRA_PACKAGES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
