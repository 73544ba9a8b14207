"""A sweep through Ray Tune: each trial in a placement group with room for its actors, retried, and resumable."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
from ray import tune
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.tune.schedulers import AsyncHyperBandScheduler, PopulationBasedTraining, TrialScheduler

from themis_ray.config import flatten, load_config
from themis_ray.errors import CheckpointError, ConfigError, RunFolderError
from themis_ray.experiment import quieten
from themis_ray.sessions import ray_session
from themis_ray.sweeping.folder import Outcome, SweepFolder
from themis_ray.sweeping.optuna_search import OptunaSearcher, read_suggestions
from themis_ray.sweeping.pretraining import SharedExploration, fetch_snapshot, is_made, share_exploration, start_from
from themis_ray.sweeping.process import pretrain_trial, train_trial
from themis_ray.sweeping.settings import SchedulerSettings, SweepSettings
from themis_ray.sweeping.trials import Trial, examples, make_trial, name_of_env, name_point
from themis_ray.tracking import RunFolder

__all__ = ["Progress", "run_sweep"]

logger = logging.getLogger("themis_ray")

SHARE_OF_RUN = 10
# Only those between the first and the last rung of asha, or of a wide grid, need wait with a placement group of theirs.
MAX_PENDING_TRIALS = 16


@dataclass(frozen=True)
class Progress:
    """How far a sweep is.

    Args:
        name: The trial that something was heard of.
        what: What is done: exploring or training.
        share: Of all env steps, from 0 to 1.
        num_over: Trials that need no more.
        num_trials: Trials in all.
        num_running: Trials that run now.
        metric: Newest value of the metric of the named trial; NaN without one.
    """

    name: str
    what: str
    share: float
    num_over: int
    num_trials: int
    num_running: int
    metric: float = math.nan


@dataclass(eq=False)
class _Watch(tune.Callback):
    """Turns what Tune tells about trials into `Progress`, and marks those that a scheduler ended."""

    folder: SweepFolder
    what: str
    num_trials: int
    num_over: int
    metric: str
    scheduler: str
    report: Callable[[Progress], None]
    shares: dict[str, float] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)

    def on_trial_start(self, *, trial: Any, **_: Any) -> None:
        """Tell that a trial started."""
        self._tell(trial, is_running=True)

    def on_trial_result(self, *, trial: Any, result: Any, **_: Any) -> None:
        """Tell how far a trial is."""
        num_env_steps = trial.config["trial"]["num_env_steps"]
        self.shares[str(trial)] = min(1.0, result.get("num_env_steps", 0) / num_env_steps)
        self._tell(trial, is_running=True, value=float(result.get(self.metric, math.nan)))

    def on_trial_complete(self, *, trial: Any, **_: Any) -> None:
        """Tell that a trial is over; one without a summary was ended by the scheduler."""
        name = str(trial)
        with _or_warning(name):
            self.folder.refresh(name)
            if self.scheduler != "none" and not self.folder.is_over(name):
                self.folder.mark_stopped(name, self.scheduler)
        self._end(trial)

    def on_trial_error(self, *, trial: Any, **_: Any) -> None:
        """Tell that a trial failed for good; one whose process never ran has not written why itself."""
        with _or_warning(str(trial)):
            self.folder.refresh(str(trial))
        self.folder.note_error(str(trial), trial.get_error())
        self._end(trial)

    def _end(self, trial: Any) -> None:
        self.shares[str(trial)] = 1.0
        self.num_over += 1
        self._tell(trial, is_running=False)

    def _tell(self, trial: Any, is_running: bool, value: float = math.nan) -> None:
        name = str(trial)
        (self.running.add if is_running else self.running.discard)(name)
        over_before = self.num_over - sum(share == 1.0 for share in self.shares.values())
        share = min(1.0, (max(0, over_before) + sum(self.shares.values())) / max(1, self.num_trials))
        progress = Progress(name, self.what, share, self.num_over, self.num_trials, len(self.running), value)
        self.report(progress)

    def __getstate__(self) -> dict[str, Any]:
        """Leave everything out of Tune's own record of the sweep, which is never read."""
        return {}


@contextlib.contextmanager
def _or_warning(name: str) -> Iterator[None]:
    """Leave a trial for the next start of the sweep where the storage does not answer; the others go on."""
    try:
        yield
    except (RunFolderError, OSError) as error:
        logger.warning("What %s reached is not known here (%s). --resume looks again.", name, error)


def run_sweep(
    settings: SweepSettings,
    folder: SweepFolder,
    trials: Sequence[Trial],
    report: Callable[[Progress], None] = lambda _: None,
) -> list[Outcome]:
    """Run every trial that is not over yet, and return what all of them reached, in order.

    Args:
        settings: The sweep.
        folder: Where it is written; what is there already is gone on from.
        trials: From `expand`; with search=optuna from `examples`, or none.
        report: Told of progress.

    Raises:
        ConfigError: A trial asks for more than the machine has.
        RunFolderError: Another process runs this sweep.
        CheckpointError: A shared snapshot is damaged, or could not be made.
    """
    quieten()
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Optuna is asked for the next trial when there is room for it, by then knowing what the ones before reached.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = "1" if settings.search == "optuna" else str(MAX_PENDING_TRIALS)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with folder.held(), ray_session():
        _check_room(trials)
        folder.clear_tune()
        if settings.search == "optuna":
            names = _run_optuna(settings, folder, report)
        else:
            names = [trial.name for trial in trials]
            waiting = [trial for trial in trials if not folder.is_over(trial.name)]
            if settings.share_pretrain:
                waiting = _explore(settings, folder, trials, waiting, report)
            if waiting:
                watch = _watch(settings, folder, "training", len(trials), len(trials) - len(waiting), report)
                packed = [_pack(trial, settings, folder) for trial in waiting]
                space: dict[str, Any] = {"trial": tune.grid_search(packed)}
                if waiting[0].mutable:
                    space |= {key: tune.sample_from(_start_of(key)) for key in waiting[0].mutable}
                longest = max(trial.config.num_env_steps for trial in waiting)
                _fit(train_trial, space, settings, folder, watch, scheduler=_scheduler(settings, longest))
        folder.clear_tune()
    if folder.storage is not None and all(folder.is_over(name) for name in names):
        shutil.rmtree(folder.work_path, ignore_errors=True)
    return [folder.outcome(name) for name in names]


def _check_room(trials: Sequence[Trial]) -> None:
    """Refuse a trial that could never start, except where a cluster may still grow."""
    if os.environ.get("RAY_ADDRESS"):
        return
    room = ray.cluster_resources()
    for trial in trials:
        for kind, needed in trial.reserved.items():
            if needed > room.get(kind, 0.0):
                raise ConfigError(
                    f"trial {trial.name} reserves {needed:g} {kind}, but there is {room.get(kind, 0.0):g}. Lower the "
                    "settings of resources, or name a larger cluster in RAY_ADDRESS."
                )


def _explore(
    settings: SweepSettings,
    folder: SweepFolder,
    trials: Sequence[Trial],
    waiting: Sequence[Trial],
    report: Callable[[Progress], None],
) -> list[Trial]:
    """Make the snapshots that waiting trials share, and return these trials; none after an interruption.

    Which trials share one is decided over all of them, so that a resumed sweep finds the same snapshots.

    Raises:
        CheckpointError: A snapshot could not be made.
    """
    names = {trial.name for trial in waiting}
    shared = [one for one in share_exploration(trials, folder.snapshots_path) if names.intersection(one.names)]
    _fetch_snapshots(folder, shared)
    missing = [one.as_trial() for one in shared if not is_made(one)]
    if missing:
        plain = settings.model_copy(update={"scheduler": SchedulerSettings()})
        watch = _watch(plain, folder, "exploring", len(shared), len(shared) - len(missing), report)
        space = {"trial": tune.grid_search([_pack(trial, settings, folder) for trial in missing])}
        results = _fit(pretrain_trial, space, settings, folder, watch)
        folder.clear_tune()
        if results.errors:
            reason = str(results.errors[0]).strip().splitlines()[-1]
            raise CheckpointError(
                f"unsupervised exploration failed: {reason}. Go on with --resume {folder.path}, or start another sweep "
                "with share_pretrain=false, in which each trial explores."
            )
        _fetch_snapshots(folder, shared)
    if not all(is_made(one) for one in shared):
        return []
    by_name = {name: one for one in shared for name in one.names}
    return [start_from(trial, by_name[trial.name]) if trial.name in by_name else trial for trial in waiting]


def _fetch_snapshots(folder: SweepFolder, shared: Sequence[SharedExploration]) -> None:
    if folder.storage is not None:
        for one in shared:
            fetch_snapshot(one.path, folder.work_path, folder.storage)


def _watch(
    settings: SweepSettings,
    folder: SweepFolder,
    what: str,
    num_trials: int,
    num_over: int,
    report: Callable[[Progress], None],
) -> _Watch:
    return _Watch(folder, what, num_trials, num_over, settings.metric, settings.scheduler.kind, report)


def _pack(trial: Trial, settings: SweepSettings, folder: SweepFolder) -> dict[str, Any]:
    """Return what the trial's process is told, in plain values."""
    path = (folder.path / trial.name).resolve()
    config = trial.config
    start = dict(trial.mutable)
    if start:
        interval = _interval(settings.scheduler.interval_num_env_steps, config.num_env_steps)
        config = config.model_copy(update={"checkpoint_interval": interval})
        if (path / "config.yaml").is_file():
            # What pbt had made of it when the sweep was stopped.
            now = flatten(load_config(path / "config.yaml").model_dump(mode="json"))
            start = {key: now[key] for key in start}
    return {
        "name": trial.name,
        "root": str(folder.work_path),
        "storage": None if folder.storage is None else folder.storage.uri,
        "settings": config.model_dump(mode="json"),
        "num_env_steps": config.num_env_steps,
        "bundles": [dict(bundle) for bundle in trial.bundles],
        "metric": settings.metric,
        "mode": settings.mode,
        "stop": dict(settings.stop),
        "mutable": list(trial.mutable),
        "start": start,
    }


def _interval(given: int | None, num_env_steps: int) -> int:
    return given or max(1, num_env_steps // SHARE_OF_RUN)


class _Asha(AsyncHyperBandScheduler):
    """Leaves a trial alone that has taken all its env steps: what is left is its final evaluation."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return whether the trial goes on."""
        action: str = super().on_trial_result(tune_controller, trial, result)
        is_through = result.get("num_env_steps", 0) >= trial.config["trial"]["num_env_steps"]
        return TrialScheduler.CONTINUE if is_through else action


def _scheduler(settings: SweepSettings, num_env_steps: int) -> Any:
    scheduler = settings.scheduler
    if scheduler.kind == "asha":
        return _Asha(
            time_attr="num_env_steps",
            # No trial gets there, so that all end by themselves.
            max_t=2 * num_env_steps,
            grace_period=_interval(scheduler.grace_num_env_steps, num_env_steps),
            reduction_factor=scheduler.reduction_factor,
        )
    if scheduler.kind == "pbt":
        return PopulationBasedTraining(
            time_attr="num_env_steps",
            perturbation_interval=_interval(scheduler.interval_num_env_steps, num_env_steps),
            quantile_fraction=scheduler.quantile,
            resample_probability=scheduler.resample_probability,
            hyperparam_mutations={key: _mutation(choices) for key, choices in scheduler.mutations.items()},
            custom_explore_fn=partial(_clamp, scheduler.mutations),
            log_config=False,
        )
    return None


def _clamp(mutations: Mapping[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Return a changed configuration with every number inside its distribution: 1.2 times a number may lie outside."""
    clamped = dict(config)
    for key, choices in mutations.items():
        kind, values = next(iter(choices.items())) if isinstance(choices, Mapping) else ("choice", choices)
        if kind != "choice":
            low, high = values
            clamped[key] = min(max(clamped[key], low), high - 1 if kind == "randint" else high)
    return clamped


def _start_of(key: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda config: config["trial"]["start"][key]


def _mutation(choices: Any) -> Any:
    if isinstance(choices, list):
        return choices
    ((kind, values),) = choices.items()
    if kind == "choice":
        return values
    return {"uniform": tune.uniform, "loguniform": tune.loguniform, "randint": tune.randint}[kind](*values)


def _bundles(config: Mapping[str, Any]) -> PlacementGroupFactory:
    return PlacementGroupFactory([dict(bundle) for bundle in config["trial"]["bundles"]])


def _fit(
    function: Callable[[dict[str, Any]], None],
    space: dict[str, Any],
    settings: SweepSettings,
    folder: SweepFolder,
    watch: _Watch,
    scheduler: Any = None,
    search: Any = None,
    num_samples: int = 1,
) -> tune.ResultGrid:
    tuner = tune.Tuner(
        tune.with_resources(function, _bundles),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=None if search is not None else settings.metric,
            mode=None if search is not None else settings.mode,
            scheduler=scheduler,
            search_alg=search,
            num_samples=num_samples,
            max_concurrent_trials=settings.max_concurrent,
            reuse_actors=False,
            trial_name_creator=lambda trial: trial.config["trial"]["name"],
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=folder.tune_path,
            failure_config=tune.FailureConfig(max_failures=settings.max_failures),
            callbacks=[watch],
            verbose=0,
        ),
    )
    return tuner.fit()


def _run_optuna(settings: SweepSettings, folder: SweepFolder, report: Callable[[Progress], None]) -> list[str]:
    """Run trials that Optuna chooses, and return their names."""

    def score_of(name: str) -> float | None:
        if not folder.is_over(name):
            return None
        values = [row.get(settings.metric) for row in RunFolder(folder.path / name).read_metrics()]
        return next((float(value) for value in reversed(values) if value is not None), None)

    earlier = read_suggestions(folder.suggestions_path, score_of)
    names = [suggestion.name for suggestion in earlier]

    def make(name: str | None, values: Mapping[str, Any]) -> dict[str, Any]:
        trial = make_trial(settings, name or _free_name(settings, values, names), values, settings.seeds[0])
        _check_room([trial])
        if name is None:
            names.append(trial.name)
            folder.add_suggestion(trial.name, values)
        return {"trial": _pack(trial, settings, folder)}

    searcher = OptunaSearcher(
        settings.space, settings.num_samples, settings.search_seed, settings.metric, settings.mode, earlier, make
    )
    num_over = sum(suggestion.score is not None for suggestion in earlier)
    watch = _watch(settings, folder, "training", settings.num_samples, num_over, report)
    if num_over < settings.num_samples:
        scheduler = None
        if settings.scheduler.kind != "none":
            # The base alone need make no experiment: space may hold what it lacks.
            scheduler = _scheduler(settings, max(trial.config.num_env_steps for trial in examples(settings)))
            scheduler.set_search_properties(settings.metric, settings.mode)
        _fit(train_trial, {}, settings, folder, watch, scheduler, searcher, settings.num_samples - num_over)
    return names


def _free_name(settings: SweepSettings, values: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return the name of a suggestion, with a number where its digits say the same as those of another."""
    rounded = {key: float(f"{v:.3g}") if isinstance(v, float) else v for key, v in values.items()}
    head = "/".join([name_of_env(str(flatten(settings.base).get("env.id", "env"))), *name_point(rounded)])
    seed = settings.seeds[0]
    name, number = f"{head}/s{seed}", 2
    while name in names:
        name, number = f"{head}+{number}/s{seed}", number + 1
    return name
