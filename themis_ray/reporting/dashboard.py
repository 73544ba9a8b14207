"""The dashboard of a W&B project, described in code: the same panels for every sweep, none of them clicked together."""

from __future__ import annotations

import os
from typing import Any

from themis_ray.errors import ConfigError
from themis_ray.tracking.wandb_logger import has_wandb_key

__all__ = ["NAME", "make_workspace", "save_workspace"]

NAME = "themis: preferences"
# Groups of a sweep that are drawn at a time.
MAX_LINES = 40
FINAL_RETURN = "final/true_return_mean"
X = "num_env_steps"


def make_workspace(entity: str, project: str) -> Any:
    """Return the workspace: training runs only, a line for the mean over the seeds of each group, newest runs first.

    Args:
        entity: Whose project it is.
        project: The project.

    Raises:
        ConfigError: The package that describes workspaces is not installed.
    """
    try:
        import wandb_workspaces.expr as expr
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError:
        raise ConfigError(
            "--dashboard needs wandb-workspaces, which is not installed. Run: pip install 'themis-ray[wandb-dashboard]'"
        ) from None

    def line(title: str, *names: str, y: str | None = None) -> Any:
        return wr.LinePlot(
            title=title,
            x=X,
            y=list(names),
            title_x="env steps",
            title_y=y,
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
            max_runs_to_show=MAX_LINES,
        )

    def bars(title: str, key: str) -> Any:
        return wr.BarPlot(
            title=title,
            metrics=[wr.SummaryMetric(FINAL_RETURN)],
            groupby=wr.Config(key),
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
        )

    sections = [
        ws.Section(
            name="True return",
            is_open=True,
            panels=[
                line("True return of training episodes", "true_return_mean"),
                bars("Final policy, by teacher", "method.teacher"),
                bars("Final policy, by sampler", "method.sampler"),
                bars("Final policy, by learner", "algorithm.name"),
            ],
        ),
        ws.Section(
            name="Reward model",
            is_open=True,
            panels=[
                line("Held-out accuracy", "heldout_accuracy", y="share of pairs"),
                line("Accuracy on the newest episodes", "fresh_accuracy", y="share of pairs"),
                line("Correlation of predicted with true reward", "reward_correlation"),
                line("Predicted return", "predicted_return_mean"),
                line("Growth of predicted over true return", "growth_ratio"),
            ],
        ),
        ws.Section(
            name="Labels",
            is_open=True,
            panels=[
                line("Queries asked", "queries_asked", y="queries"),
                wr.ScatterPlot(
                    title="Final return by number of labels",
                    x=wr.SummaryMetric("final/queries_asked"),
                    y=wr.SummaryMetric(FINAL_RETURN),
                ),
                wr.WeavePanelSummaryTable(table_name="tables/preferences"),
            ],
        ),
        ws.Section(
            name="What was learned",
            is_open=False,
            panels=[
                wr.MediaBrowser(title="Trained policies", media_keys=["clips/trained_policy"], num_columns=3),
                wr.MediaBrowser(title="Plots", media_keys=["plot"], num_columns=2),
            ],
        ),
        ws.Section(
            name="Learner and speed",
            is_open=False,
            panels=[
                line("Losses", "policy_loss", "critic_loss"),
                line("Entropy", "entropy", y="nats"),
                line("Speed", "env_steps_per_s", y="env steps per second"),
            ],
        ),
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis=X, max_runs=MAX_LINES),
        runset_settings=ws.RunsetSettings(
            filters=[expr.Metric("JobType") == "train"],
            groupby=[expr.Metric("Group")],
            pinned_columns=[f"summary:{FINAL_RETURN}", "summary:final/queries_asked", "summary:final/heldout_accuracy"],
        ),
    )


def save_workspace(project: str) -> str:
    """Save the workspace in W&B and return its address.

    Raises:
        ConfigError: W&B is offline, has no key, cannot be reached, or `make_workspace` cannot.
    """
    import wandb

    mode = os.environ.get("WANDB_MODE", "online")
    if mode != "online" or not has_wandb_key():
        reason = f"WANDB_MODE is {mode}" if mode != "online" else "there is no key"
        raise ConfigError(
            f"--dashboard saves a workspace at W&B, but {reason}. Run wandb login (or set WANDB_API_KEY) where there "
            "is a network, and try again."
        )
    workspace_of = os.environ.get("WANDB_ENTITY")
    try:
        workspace = make_workspace(workspace_of or str(wandb.Api().default_entity), project)
        workspace.save()
        return str(workspace.url)
    except ConfigError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"the dashboard of project {project} could not be saved ({type(error).__name__}: {reason}). Publish a run "
            "into the project first, and see that this machine reaches W&B."
        ) from error
