"""The settings of all kinds of teachers, and the teacher they describe."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from themis_ray.data import PreferenceDataset
from themis_ray.envs import EnvConfig
from themis_ray.errors import ConfigError, lookup
from themis_ray.feedback.scripted import ScriptedTeacher
from themis_ray.feedback.teachers import TEACHERS, BPrefTeacher, SyntheticTeacher, Teacher, TeacherParameters

if TYPE_CHECKING:
    from themis_ray.feedback.human import HumanTeacher
    from themis_ray.feedback.study_client import StudyClient

__all__ = ["TeacherConfig", "check_teacher", "make_human_teacher", "make_teacher"]

TeacherKind = Literal["synthetic", "scripted", "judge", "human"]

# A learner that goes on meanwhile is not to be held up for long by a service that does not answer.
PATIENCE_S = 3.0
CALL_TIMEOUT_S = 10.0
MIN_ANSWERS_PER_FIT = 5
FITS_PER_BUDGET = 10
_NUMBERS = ("beta", "gamma", "eps_mistake", "eps_skip", "eps_equal")
_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "synthetic": ("name", *_NUMBERS, "bpref_compat"),
    "scripted": ("function",),
    "judge": (
        "url",
        "model",
        "prompt",
        "api_key_env",
        "num_frames",
        "timeout_s",
        "max_retries",
        "max_concurrency",
        "max_calls",
        "max_cost",
        "price_per_1k_input_tokens",
        "price_per_1k_output_tokens",
        "ask_both_orders",
    ),
    "human": (
        "study",
        "url",
        "token_env",
        "wait",
        "wait_timeout_s",
        "poll_s",
        "answers_per_fit",
        "fit_after_s",
        "codec",
        "clip_fps",
    ),
}
_REQUIRED: Mapping[str, Mapping[str, str]] = {
    "synthetic": {},
    "scripted": {"function": "teacher.function=package.module:function"},
    "judge": {
        "url": "teacher.url=http://localhost:8000/v1",
        "model": "teacher.model=NAME, as the endpoint calls it",
        "prompt": "teacher.prompt='The pendulum should stand upright and still.'",
    },
    "human": {"study": "teacher.study=my-study", "url": "teacher.url=http://localhost:8000"},
}
# Settings of a human teacher that HumanParameters holds.
_HUMAN_PARAMETERS = ("study", "wait", "wait_timeout_s", "poll_s", "fit_after_s", "codec", "clip_fps")
_ENVIRONMENT_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_STUDY_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
# Those of themis_ray.clips, which takes long to import.
_CODECS = ("vp9", "h264")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class TeacherConfig(BaseModel):
    """Who answers: one of the presets with some numbers replaced, a function, a vision model, or people."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: TeacherKind = Field(
        default="synthetic",
        description="synthetic: a preset that sees the true rewards; scripted: a Python function; judge: a vision "
        "model; human: people at a labelling service. A setting that the kind does not use is refused.",
    )
    name: str = Field(default="oracle", description="synthetic: preset, one of " + ", ".join(TEACHERS) + ".")
    beta: float | None = Field(
        default=None, description="synthetic: rationality, -1 perfect, > 0 Boltzmann; None: the preset's."
    )
    gamma: float | None = Field(
        default=None, description="synthetic: discount over the steps of a segment; None: the preset's."
    )
    eps_mistake: float | None = Field(
        default=None, description="synthetic: probability of mixing up sides; None: the preset's."
    )
    eps_skip: float | None = Field(default=None, description="synthetic: share of queries skipped; None: the preset's.")
    eps_equal: float | None = Field(
        default=None, description="synthetic: unnoticed relative difference; None: the preset's."
    )
    bpref_compat: bool = Field(
        default=False, description="synthetic: answer as the code published with B-Pref does, its faults included."
    )
    function: str | None = Field(
        default=None, description="scripted: package.module:function, which maps two segments to a choice."
    )
    url: str | None = Field(
        default=None,
        description="judge: base URL of an OpenAI-compatible endpoint, or its /chat/completions. human: address of the "
        "labelling service.",
    )
    model: str | None = Field(default=None, description="judge: name of the model at that endpoint.")
    prompt: str | None = Field(default=None, description="judge: what a good clip shows, in plain words.")
    api_key_env: str | None = Field(
        default="OPENAI_API_KEY",
        description="judge: environment variable that holds the API key. None: no key is sent.",
    )
    num_frames: int = Field(default=6, ge=1, description="judge: evenly spaced frames shown of each segment.")
    timeout_s: float = Field(
        default=60.0, gt=0, le=86_400, description="judge: seconds without a sign of the endpoint."
    )
    max_retries: int = Field(default=5, ge=0, description="judge: calls repeated for one question, at most.")
    max_concurrency: int = Field(default=4, ge=1, description="judge: calls under way at the same time, at most.")
    max_calls: int | None = Field(
        default=None, ge=0, description="judge: calls of the whole run, repeated ones too; then it skips."
    )
    max_cost: float | None = Field(
        default=None, ge=0, description="judge: cost of the whole run, in the currency of the prices; then it skips."
    )
    price_per_1k_input_tokens: float | None = Field(
        default=None, ge=0, description="judge: price of 1000 tokens sent; None counts as 0."
    )
    price_per_1k_output_tokens: float | None = Field(
        default=None, ge=0, description="judge: price of 1000 tokens received; None counts as 0."
    )
    ask_both_orders: bool = Field(
        default=False, description="judge: ask again with sides swapped; answers that disagree become equal."
    )

    study: str | None = Field(default=None, description="human: id of the study whose annotators are asked.")
    token_env: str = Field(
        default="THEMIS_STUDY_TOKEN", description="human: environment variable that holds an API token of the study."
    )
    wait: bool = Field(
        default=False,
        description="human: whether the learner stands still until all answers of a session are there; else it goes "
        "on and answers are learned from as they come.",
    )
    wait_timeout_s: float = Field(
        default=86_400.0, gt=0, description="human: seconds to wait without a new answer before the run ends."
    )
    poll_s: float = Field(
        default=2.0, gt=0, le=86_400, description="human: seconds between two questions to the service."
    )
    answers_per_fit: int | None = Field(
        default=None,
        ge=1,
        description="human: new answers that are fitted though others are awaited. None: a tenth of the budget, at "
        "least 5.",
    )
    fit_after_s: float = Field(
        default=60.0, ge=0, description="human: seconds after which fewer new answers are fitted too."
    )
    codec: str = Field(default="vp9", description="human: of the clips, vp9 (WebM) or h264 (MP4).")
    clip_fps: float = Field(default=15.0, ge=0.1, le=240, description="human: env steps shown per second.")

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        lookup("teacher", name, TEACHERS)
        return name

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        self._refuse_unused()
        for name, example in _REQUIRED[self.kind].items():
            if not getattr(self, name):
                raise ConfigError(f"teacher.kind={self.kind} needs teacher.{name}. Give it, for example {example}.")
        if self.kind == "synthetic":
            self.parameters()
        if self.kind == "judge":
            self._check_url("http://localhost:8000/v1", "teacher.api_key_env")
            self._check_judge()
        if self.kind == "human":
            self._check_url("http://localhost:8000", "teacher.token_env")
            self._check_human()
        return self

    def _refuse_unused(self) -> None:
        """Refuses what differs from its default though this kind does not use it."""
        for name, field in type(self).model_fields.items():
            if name == "kind" or name in _SETTINGS[self.kind] or getattr(self, name) == field.default:
                continue
            users = [kind for kind, names in _SETTINGS.items() if name in names]
            raise ConfigError(
                f"teacher.{name} was given, but teacher.kind is {self.kind}, which does not use it. Used by: "
                f"{', '.join(users)}. Leave it out or set teacher.kind={users[0]}."
            )

    def _check_url(self, example: str, key_setting: str) -> None:
        from themis_ray.feedback.addresses import is_address  # httpx is slow to import and needed here only.

        if not is_address(self.url or ""):
            raise ConfigError(
                f"teacher.url={self.url!r} is no address. Give http:// or https:// with a host, for example "
                f"teacher.url={example}."
            )
        parts = urlsplit(self.url or "")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ConfigError(
                "teacher.url holds a user name, a password or something after ? or #, and settings are stored with "
                f"every run. Put the key into an environment variable and name it with {key_setting}."
            )

    def _check_human(self) -> None:
        # The same as Slug of themis_ray.wire.
        if not _STUDY_ID.fullmatch(self.study or ""):
            raise ConfigError(
                f"teacher.study={self.study!r} is no id of a study. Give lower-case letters, digits and dashes, as in "
                "themis study list."
            )
        if not _ENVIRONMENT_VARIABLE.fullmatch(self.token_env):
            # The value is not shown: who mixes up name and token gave the token.
            raise ConfigError(
                "teacher.token_env is no name of an environment variable (letters, digits and _). Put the token into a "
                "variable such as THEMIS_STUDY_TOKEN and give that name."
            )
        lookup("codec", self.codec, dict.fromkeys(_CODECS))

    def _check_judge(self) -> None:
        if self.api_key_env is not None and not _ENVIRONMENT_VARIABLE.fullmatch(self.api_key_env):
            # The value is not shown: who mixes up name and key gave the key.
            raise ConfigError(
                "teacher.api_key_env is no name of an environment variable (letters, digits and _). Put the key into "
                "a variable such as OPENAI_API_KEY and give that name."
            )
        has_price = (self.price_per_1k_input_tokens or 0) + (self.price_per_1k_output_tokens or 0) > 0
        if self.max_cost is not None and not has_price:
            raise ConfigError(
                f"teacher.max_cost={self.max_cost:g} was given without prices, from which cost is computed. Give "
                "teacher.price_per_1k_input_tokens and teacher.price_per_1k_output_tokens, or use teacher.max_calls."
            )

    @property
    def teacher_name(self) -> str:
        """The name of the teacher: the preset, the function, judge and its model, or human and the study.

        It is stored with each preference but those of people, who have names of their own.
        """
        if self.kind == "scripted":
            return str(self.function)
        if self.kind == "human":
            return f"human:{self.study}"
        return f"judge:{self.model}" if self.kind == "judge" else self.name

    @property
    def api_key(self) -> str | None:
        """The key in the environment; None where there is none or none is wanted."""
        return os.environ.get(self.api_key_env) or None if self.api_key_env else None

    @property
    def token(self) -> str | None:
        """The token of the study in the environment; None where there is none."""
        return os.environ.get(self.token_env) or None

    def parameters(self) -> TeacherParameters:
        """Returns the preset's parameters with the given ones in place.

        Raises:
            ConfigError: A number is out of its range.
        """
        given = {name: value for name in _NUMBERS if (value := getattr(self, name)) is not None}
        return replace(lookup("teacher", self.name, TEACHERS), **given)


def check_teacher(config: TeacherConfig, env_config: EnvConfig) -> None:
    """Checks, before a run starts, what a teacher needs from outside its settings.

    Raises:
        ConfigError: The function of a scripted teacher cannot be imported or called with two segments, the environment
            draws no frames for a judge or for people, or the API key or token is not in the environment.
    """
    if config.kind == "scripted":
        ScriptedTeacher(str(config.function))
    elif config.kind in ("judge", "human"):
        # Imported late: what writes clips takes long to import.
        from themis_ray.clips import check_drawing

        check_drawing(env_config)
        is_here = urlsplit(str(config.url)).hostname in _LOOPBACK
        if config.kind == "human":
            if not config.token and not is_here:
                raise ConfigError(
                    f"the environment variable {config.token_env} is not set, so there is no token for {config.url}. "
                    "Make one on the study's page and set it, or name another variable with teacher.token_env."
                )
            return
        # A server on this machine seldom asks for a key; any other does, and would say so after the exploration only.
        if config.api_key_env and not config.api_key and not is_here:
            raise ConfigError(
                f"the environment variable {config.api_key_env} is not set, so there is no key for {config.url}. Set "
                "it, name another with teacher.api_key_env, or give teacher.api_key_env=null where no key is needed."
            )


def make_teacher(config: TeacherConfig, env_config: EnvConfig | None = None, cache_path: Path | None = None) -> Teacher:
    """Returns the teacher that a config describes.

    Args:
        config: Which one.
        env_config: The environment that segments come from; a judge needs it to draw frames.
        cache_path: JSONL file of a judge's paid answers; None keeps them in memory only.

    Raises:
        ConfigError: The function of a scripted teacher cannot be used, a judge is given no environment, or the teacher
            is human.
        DataError: The file of answers cannot be read.
    """
    if config.kind == "human":
        raise ConfigError("people answer when they come to it. Use make_human_teacher for teacher.kind=human.")
    if config.kind == "scripted":
        return ScriptedTeacher(str(config.function))
    if config.kind == "judge":
        # Imported late: its HTTP client takes long to import.
        from themis_ray.feedback.judge import JudgeParameters, JudgeTeacher

        if env_config is None:
            raise ConfigError("teacher.kind=judge draws frames. Pass the environment's config to make_teacher.")
        parameters = JudgeParameters(**config.model_dump(include=set(_SETTINGS["judge"]) - {"api_key_env"}))
        return JudgeTeacher(parameters, env_config, config.api_key, cache_path)
    make = BPrefTeacher if config.bpref_compat else SyntheticTeacher
    return make(config.name, config.parameters())


def make_human_teacher(
    config: TeacherConfig,
    env_config: EnvConfig,
    dataset: PreferenceDataset,
    about: Mapping[str, Any],
    budget: int,
    client: StudyClient | None = None,
) -> HumanTeacher:
    """Returns the people that a config describes, with the study checked.

    Args:
        config: Which study.
        env_config: The environment that segments come from.
        dataset: Where queries and answers are kept.
        about: Goes with every query.
        budget: Most queries of the run.
        client: Connected to the service; None connects.

    Raises:
        ConfigError: The study asks for something else than preferences.
        DataError: What the run has stored cannot be read.
        TeacherError: The service cannot be reached, refuses the token, or knows no such study.
    """
    # Imported late: HTTP client and what writes clips take long to import.
    from themis_ray.feedback.human import HumanParameters, HumanTeacher
    from themis_ray.feedback.study_client import StudyClient

    if client is None:
        client = StudyClient(str(config.url), config.token, patience_s=PATIENCE_S, timeout_s=CALL_TIMEOUT_S)
    teacher = HumanTeacher(
        HumanParameters(**config.model_dump(include=set(_HUMAN_PARAMETERS))),
        client,
        env_config,
        dataset,
        about,
        answers_per_fit=config.answers_per_fit or max(MIN_ANSWERS_PER_FIT, budget // FITS_PER_BUDGET),
    )
    teacher.check()
    return teacher
