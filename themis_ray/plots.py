"""Pictures of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["plot_run"]

# Okabe and Ito's colours, told apart by colour-blind people too.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#999999"


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    points = [(row["num_env_steps"], row[name]) for row in rows if row.get(name) is not None]
    return [x for x, _ in points], [y for _, y in points]


def _plot(axes: Axes, rows: Sequence[Mapping[str, Any]], name: str, **look: Any) -> None:
    """Draw a series as a line, and one of a single point as that point."""
    x, y = _series(rows, name)
    axes.plot(x, y, marker="o" if len(x) == 1 else None, **look)


def _style(axes: Axes, title: str, ylabel: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("env steps")


def plot_run(rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], path: Path) -> None:
    """Draw true return, predicted return, labels and reward accuracy over env steps, and save it as PNG.

    Args:
        rows: Lines of metrics.jsonl.
        summary: The run's summary.
        path: Where the picture goes.
    """
    figure = Figure(figsize=(11, 7), layout="constrained", dpi=110)
    (top_left, top_right), (bottom_left, bottom_right) = figure.subplots(2, 2)
    learned, random = summary["true_return_mean"], summary["random_return_mean"]
    _plot(top_left, rows, "true_return_mean", color=BLUE, label="training episodes")
    top_left.axhline(learned, color=GREEN, linestyle="--", label=f"final policy, deterministic: {learned:.1f}")
    top_left.axhline(random, color=GREY, linestyle=":", label=f"random actions: {random:.1f}")
    _style(top_left, "True return", "return")
    top_left.legend(fontsize=8)

    _plot(top_right, rows, "predicted_return_mean", color=ORANGE)
    _style(top_right, "Predicted return", "return")

    stepped = {"drawstyle": "steps-post"}
    _plot(bottom_left, rows, "queries_asked", color=PURPLE, label="queries asked", **stepped)
    _plot(bottom_left, rows, "num_preferences", color=BLUE, linestyle="--", label="answered", **stepped)
    _style(bottom_left, "Labels", "queries")
    bottom_left.legend(fontsize=8, loc="lower right")

    _plot(bottom_right, rows, "heldout_accuracy", color=GREEN, label="accuracy on held-out pairs")
    _plot(bottom_right, rows, "fresh_accuracy", color=ORANGE, label="accuracy on the current policy")
    _plot(bottom_right, rows, "reward_correlation", color=BLUE, label="correlation with true reward")
    bottom_right.set_ylim(min(0.0, *(_series(rows, "reward_correlation")[1] or [0.0])) - 0.02, 1.03)
    _style(bottom_right, "Reward model", "")
    bottom_right.legend(fontsize=8, loc="lower right")

    for axes in (top_right, bottom_left, bottom_right):
        if not summary["learn_reward"]:
            axes.text(0.5, 0.5, "paid in true reward", transform=axes.transAxes, ha="center", color=GREY)
        elif summary.get("dataset") is not None and axes is not bottom_left:
            axes.text(0.5, 0.5, "no reward model", transform=axes.transAxes, ha="center", color=GREY)
    figure.suptitle(
        f"{summary['env_id']}, {summary['algorithm'].upper()}, "
        + (f"{summary['num_preferences']} preferences" if summary["learn_reward"] else "true reward")
        + f", seed {summary['seed']}",
        fontsize=13,
    )
    figure.savefig(path)
