"""The results of a whole check as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from themis_ray.census.check import status_of
from themis_ray.census.known import known_cause
from themis_ray.envs import FAMILIES

__all__ = ["MARKER", "census_page", "summarise", "write_page"]

MARKER = "<!-- themis envs check writes what follows, from docs/environments.jsonl -->\n"
HEAD = """## What was checked

`themis envs check --page` wrote what follows. Of every id below it was proved that

* it is made, reset and stepped, with observations inside their space and nothing that is not a number;
* 200 steps with the same seed and the same actions are the same twice;
* PPO or SAC, whichever is chosen for it, collects experience, a synthetic teacher compares eight pairs of segments, the
  reward ensemble is fitted to them, and the learner learns from predicted reward for an iteration;
* a segment of that run is replayed, number for number, and its frames are a video that decodes.

"""


def summarise(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns one row per family, in the order of `FAMILIES`: family, checked, passed, known, failed, wall_s."""
    rows = []
    for name in FAMILIES:
        own = [result for result in results if (result["family"] or "other") == name]
        if not own:
            continue
        states = [status_of(dict(result)) for result in own]
        counts = {state: states.count(state) for state in ("passed", "known", "failed")}
        rows.append({"family": name, "checked": len(own), **counts, "wall_s": sum(result["wall_s"] for result in own)})
    return rows


def census_page(results: Sequence[Mapping[str, Any]], versions: Mapping[str, str]) -> str:
    """Returns the page in Markdown.

    Args:
        results: From `check_env`.
        versions: Of the packages that the environments come from, by name.
    """
    results = sorted(results, key=lambda result: (list(FAMILIES).index(result["family"] or "other"), result["id"]))
    rows = summarise(results)
    total = {key: sum(row[key] for row in rows) for key in ("checked", "passed", "known", "failed")}
    lines = [HEAD + ", ".join(f"{name} {number}" for name, number in versions.items()) + ".", ""]
    lines += ["| Family | Ids | Passed | Known failures | Failed |", "| --- | --- | --- | --- | --- |"]
    for row in [*rows, {"family": "**all**", **total}]:
        lines.append("| {family} | {checked} | {passed} | {known} | {failed} |".format(**row))
    broken = [result for result in results if status_of(dict(result)) != "passed"]
    if broken:
        lines += ["", "### Not passed", "", "| Id | Check | Cause |", "| --- | --- | --- |"]
        lines += [
            f"| `{result['id']}` | {result['failed_check']} | {known_cause(result['id']) or result['error']} |"
            for result in broken
        ]
    for row in rows:
        lines += ["", f"### `{row['family']}`", "", FAMILIES[row["family"]].description + ".", ""]
        lines += ["| Id | Observation | Actions | Horizon |", "| --- | --- | --- | --- |"]
        lines += [
            f"| `{result['id']}` | {result['observation']} | {result['action']} | {_horizon(result)} |"
            for result in results
            if (result["family"] or "other") == row["family"] and result["observation"]
        ]
    return "\n".join(lines) + "\n"


def write_page(path: Path, page: str) -> None:
    """Writes the page, below the line of a file that says so where there is one; folders above it are made."""
    before, marker, _ = path.read_text().partition(MARKER) if path.exists() else ("", "", "")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{before}{marker}\n{page}" if marker else page)


def _horizon(result: Mapping[str, Any]) -> str:
    if result["horizon"] is None:
        return "none"
    return f"{result['horizon']}{', fixed' if result['is_fixed_horizon'] else ''}"
