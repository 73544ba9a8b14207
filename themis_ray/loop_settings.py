"""The settings of the loop that RLlib runs: learner, exploration, resources, and how they compose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

from themis_ray.envs import EnvConfig
from themis_ray.errors import ConfigError
from themis_ray.feedback import FeedbackConfig, TeacherConfig
from themis_ray.reward import RewardConfig

T = TypeVar("T")

MAX_STEPS_BETWEEN_REPORTS = 1000
# The loss of sac holds values of whole returns, that of ppo advantages with a spread of 1.
DEFAULT_KL_COEFFICIENTS = {"ppo": 0.1, "sac": 1.0}

CustomResources = dict[str, float]
LearnerName = Literal["auto", "ppo", "sac", "dqn", "cpl"]


class AlgorithmSettings(BaseModel):
    """The learner. A setting left empty takes the chosen learner's default from `LEARNER_DEFAULTS`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: LearnerName = Field("auto", description="auto: sac for Box actions, ppo for Discrete and MultiDiscrete.")
    learning_rate: float | None = Field(None, gt=0, description="Adam's step size for every network.")
    anneal_learning_rate: bool | None = Field(
        None, description="Whether the step size falls linearly to 0 over the run, so that the last policy has settled."
    )
    hidden_sizes: tuple[PositiveInt, ...] | None = Field(None, description="Width of each hidden layer.")
    gamma: float | None = Field(None, ge=0, le=1, description="Discount factor.")
    batch_size: int | None = Field(
        None, ge=1, description="ppo: env steps per iteration. sac, dqn: rows per update. cpl: pairs per update."
    )
    num_envs: int | None = Field(None, ge=1, description="Environments stepped together in each env runner.")
    minibatch_size: int | None = Field(None, ge=1, description="ppo: rows per gradient step.")
    num_epochs: int | None = Field(None, ge=1, description="ppo: passes over each batch.")
    gae_lambda: float | None = Field(None, ge=0, le=1, description="ppo: lambda of generalized advantage estimation.")
    clip_range: float | None = Field(None, gt=0, description="ppo: clip range of the probability ratio.")
    entropy_coefficient: float | None = Field(None, ge=0, description="ppo: weight of the entropy bonus.")
    value_coefficient: float | None = Field(None, ge=0, description="ppo: weight of the value loss.")
    max_gradient_norm: float | None = Field(None, gt=0, description="ppo: gradients are clipped to this global norm.")
    updates_per_env_step: float | None = Field(None, gt=0, description="sac, dqn, cpl: gradient steps per env step.")
    replay_capacity: int | None = Field(None, ge=1, description="sac, dqn: transitions kept.")
    round_num_env_steps: int | None = Field(
        None, ge=1, description="sac, dqn, cpl: env steps between updates; the updates they owe run together."
    )
    tau: float | None = Field(None, gt=0, le=1, description="sac, dqn: share of the target network replaced a step.")
    n_step: int | None = Field(None, ge=1, description="dqn: rewards that a target adds up before it looks at values.")
    initial_alpha: float | None = Field(None, gt=0, description="sac: first entropy temperature, tuned from there.")
    final_epsilon: float | None = Field(None, ge=0, le=1, description="dqn: random actions after the annealing.")
    epsilon_share: float | None = Field(
        None, gt=0, le=1, description="dqn: share of all env steps over which random actions anneal."
    )
    reference: str | None = Field(
        None, description="ppo, sac: run folder or checkpoint whose policy the learner starts from and stays near."
    )
    kl_coefficient: float | None = Field(
        None,
        ge=0,
        description="ppo, sac: weight of the KL divergence from the reference in the policy's loss. None: "
        f"with a reference {DEFAULT_KL_COEFFICIENTS['ppo']} for ppo and {DEFAULT_KL_COEFFICIENTS['sac']} for sac.",
    )
    contrastive_alpha: float | None = Field(
        None, gt=0, description="cpl: scale of the summed log probabilities in the loss."
    )
    conservative_bias: float | None = Field(
        None,
        ge=0,
        le=1,
        description="cpl: weight of the segment that lost; below 1 the winner is to be likely, not only likelier.",
    )
    cloning_share: float | None = Field(
        None, ge=0, le=1, description="cpl: share of the run that first imitates all stored segments."
    )


ALGORITHM_DESCRIPTIONS: Mapping[str, str] = {
    "ppo": "proximal policy optimisation, on-policy; Box, Discrete and MultiDiscrete actions",
    "sac": "soft actor-critic, off-policy with relabelled replay; Box and Discrete actions",
    "dqn": "double deep Q-learning, off-policy with relabelled replay; Discrete actions",
    "cpl": "contrastive preference learning from stored preferences, no reward model; Box, Discrete and MultiDiscrete "
    "actions",
}

_OFF_POLICY: dict[str, Any] = {
    "learning_rate": 3e-4,
    "anneal_learning_rate": False,
    "hidden_sizes": (256, 256),
    "gamma": 0.99,
    "batch_size": 256,
    "num_envs": 1,
    "updates_per_env_step": 1.0,
    "replay_capacity": 1_000_000,
    "round_num_env_steps": 32,
    "tau": 0.005,
}
# Of learners whose policy is a distribution, from which a divergence can be taken.
_NEAR_REFERENCE: dict[str, Any] = {"reference": None, "kl_coefficient": None}
LEARNER_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "ppo": {
        "learning_rate": 1e-3,
        "anneal_learning_rate": False,
        "hidden_sizes": (64, 64),
        "gamma": 0.99,
        "batch_size": 2048,
        "num_envs": 8,
        "minibatch_size": 256,
        "num_epochs": 10,
        "gae_lambda": 0.95,
        "clip_range": 0.2,
        "entropy_coefficient": 0.01,
        "value_coefficient": 0.5,
        "max_gradient_norm": 0.5,
        **_NEAR_REFERENCE,
    },
    "sac": {**_OFF_POLICY, "initial_alpha": 0.1, **_NEAR_REFERENCE},
    "dqn": {
        **_OFF_POLICY,
        "updates_per_env_step": 0.5,
        "batch_size": 128,
        "n_step": 1,
        "final_epsilon": 0.05,
        "epsilon_share": 0.2,
    },
    "cpl": {
        "learning_rate": 3e-4,
        "anneal_learning_rate": False,
        "hidden_sizes": (256, 256),
        "gamma": 1.0,
        "batch_size": 64,
        "num_envs": 8,
        "updates_per_env_step": 0.25,
        "round_num_env_steps": 256,
        "contrastive_alpha": 0.1,
        "conservative_bias": 0.5,
        "cloning_share": 0.2,
    },
}


def resolve_algorithm(settings: AlgorithmSettings, name: str) -> AlgorithmSettings:
    """Return the settings with the learner `name` and its defaults filled in.

    Raises:
        ConfigError: A setting was given that this learner does not use, or a coefficient without a reference.
    """
    defaults = LEARNER_DEFAULTS[name]
    given = {key: value for key, value in settings.model_dump().items() if value is not None and key != "name"}
    for key in given:
        if key not in defaults:
            users = sorted(other for other, known in LEARNER_DEFAULTS.items() if key in known)
            reason = (
                "has no policy distribution to keep near a reference"
                if key in _NEAR_REFERENCE and name == "dqn"
                else "does not use it"
            )
            raise ConfigError(
                f"algorithm.{key} was given, but the learner is {name}, which {reason}. Used by: "
                f"{', '.join(users)}. Leave it out or set algorithm.name."
            )
    if "reference" in given:
        given.setdefault("kl_coefficient", DEFAULT_KL_COEFFICIENTS[name])
    elif "kl_coefficient" in given:
        raise ConfigError(
            f"algorithm.kl_coefficient={given['kl_coefficient']} was given without algorithm.reference, from which the "
            "divergence would be taken. Give a reference or leave it out."
        )
    return AlgorithmSettings(name=name, **{**defaults, **given})


class ExplorationSettings(BaseModel):
    """What happens before the first feedback session."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_seed_steps: int | None = Field(
        None,
        ge=0,
        description="sac, dqn: env steps with uniformly random actions. None: 5 % of all, at most 1000; none with "
        "algorithm.reference.",
    )
    num_env_steps: int | None = Field(
        None,
        ge=0,
        description="Env steps of unsupervised exploration by state entropy after that. None: sac and dqn 5 % of all, "
        "at most 9000; ppo none; none with algorithm.reference.",
    )
    num_neighbors: int = Field(
        5,
        ge=1,
        description="k of the state entropy (PEBBLE): the reward is the distance to the (k + 1)-th nearest in a "
        "sample of the states seen, as the nearest is taken to be the state itself.",
    )


class ResourceSettings(BaseModel):
    """Where things run. The defaults run everything but the reward actor in one process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_env_runners: int = Field(0, ge=0, description="Remote env-runner actors; 0 steps environments in the driver.")
    num_cpus_per_env_runner: float = Field(1, ge=0, description="CPUs reserved for each env runner.")
    num_learners: int = Field(0, ge=0, description="Remote learner actors; 0 learns in the driver.")
    num_gpus_per_learner: float = Field(0, ge=0, description="GPUs reserved for each learner.")
    reward_actor_num_cpus: float = Field(0.5, ge=0, description="CPUs reserved for the reward-model actor.")
    num_fit_threads: int = Field(2, ge=1, description="Threads that fit the ensemble while the learner waits.")
    reward_actor_num_gpus: float = Field(
        0, ge=0, description="GPUs reserved for the reward-model actor. 0: it computes on the CPU."
    )
    main_process_custom_resources: CustomResources = Field(
        {}, description="Resource of your own -> amount, reserved for the process that steers the run."
    )
    env_runner_custom_resources: CustomResources = Field({}, description="The same for each remote env runner.")
    learner_custom_resources: CustomResources = Field({}, description="The same for each remote learner.")
    reward_actor_custom_resources: CustomResources = Field({}, description="The same for the reward-model actor.")

    @field_validator(
        "main_process_custom_resources",
        "env_runner_custom_resources",
        "learner_custom_resources",
        "reward_actor_custom_resources",
    )
    @classmethod
    def _are_custom(cls, amounts: CustomResources) -> CustomResources:
        for name in ("CPU", "GPU", "memory"):
            if name in amounts:
                raise ValueError(f"{name} is not a resource of your own; give names that nodes were started with")
        return amounts

    @model_validator(mode="after")
    def _have_somebody_to_use_them(self) -> Self:
        for kind, number in (("env_runner", self.num_env_runners), ("learner", self.num_learners)):
            if getattr(self, f"{kind}_custom_resources") and not number:
                raise ValueError(
                    f"{kind}_custom_resources was given, but num_{kind}s=0 puts that work into the main process; set "
                    f"num_{kind}s, or main_process_custom_resources"
                )
        return self


class LoopSettings(BaseModel):
    """One experiment's loop: what is acted in, who learns, who is asked about what, and what is learned."""

    # Infinity is an argument of some environments; pydantic would write null.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    env: EnvConfig = Field(description="What is acted in.")
    algorithm: AlgorithmSettings = Field(AlgorithmSettings(), description="Who learns.")
    learn_reward: bool = Field(True, description="false: the learner is paid in the environment's own reward.")
    num_env_steps: int = Field(20_000, ge=1, description="Env steps of the whole run.")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Every random draw of the run is spawned from it.")
    teacher: TeacherConfig = Field(TeacherConfig(), description="Who answers.")
    feedback: FeedbackConfig = Field(FeedbackConfig(), description="What is asked, how much and when.")
    reward: RewardConfig = Field(RewardConfig(), description="What is learned from the answers.")
    exploration: ExplorationSettings = Field(ExplorationSettings(), description="Before the first session.")
    resources: ResourceSettings = Field(ResourceSettings(), description="Where things run.")

    @property
    def has_reward_model(self) -> bool:
        """Whether the run fits a reward model; cpl learns from preferences without one."""
        return self.learn_reward and self.algorithm.name != "cpl"


def required(value: T | None) -> T:
    """Return a setting that `themis_ray.config.resolve` has filled in.

    Raises:
        ConfigError: The settings were not resolved.
    """
    if value is None:
        raise ConfigError("a setting is empty. Pass settings through themis_ray.config.resolve first.")
    return value


def check_cpl(settings: LoopSettings, preset: str) -> None:
    """Refuse what contrastive preference learning cannot do.

    Args:
        settings: Of an experiment.
        preset: The one that has changed them.

    Raises:
        ConfigError: There is no dataset, or settings of asking, rewards or exploration were given.
    """
    feedback, exploration, label_margin = settings.feedback, settings.exploration, settings.reward.label_margin
    if feedback.dataset is None:
        raise ConfigError(
            "algorithm.name=cpl learns from stored preferences only and asks nobody. Give "
            "feedback.dataset=FOLDER of a run or of themis data import, or use another algorithm.name."
        )
    is_feedback_given = (
        feedback.model_copy(update={"dataset": None, "budget": FeedbackConfig().budget}) != FeedbackConfig()
    )
    is_reward_given = settings.reward != RewardConfig(label_margin=label_margin)
    given = {
        "learn_reward=false": not settings.learn_reward,
        f"feedback.budget={feedback.budget}": feedback.budget not in (0, FeedbackConfig().budget),
        f"preset={preset}": preset != "default" and (is_feedback_given or is_reward_given),
        "a setting of feedback beside dataset": is_feedback_given,
        "a setting of teacher": settings.teacher != TeacherConfig(),
        "a setting of reward beside label_margin": is_reward_given,
        "a setting of exploration": exploration.num_seed_steps
        or exploration.num_env_steps
        or exploration.model_copy(update=dict.fromkeys(("num_seed_steps", "num_env_steps"))) != ExplorationSettings(),
    }
    for setting, is_given in given.items():
        if is_given:
            raise ConfigError(
                f"{setting} was given, but cpl learns from the answers in feedback.dataset alone: it asks no teacher, "
                "learns no reward and does not explore. Leave it out."
            )
