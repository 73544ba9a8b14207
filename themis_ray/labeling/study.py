"""The one YAML of a study."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from themis_ray.errors import ConfigError
from themis_ray.wire import FeedbackKind, Slug

__all__ = [
    "Arm",
    "ChoiceQuestion",
    "Consent",
    "Panel",
    "Question",
    "ScaleQuestion",
    "StudyConfig",
    "TextQuestion",
    "load_study",
]


class Part(BaseModel):
    """What every part of a study has in common: no unknown settings, no changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Consent(Part):
    """What people agree to before they answer."""

    version: str = Field(min_length=1, max_length=64, description="Changes whenever the text does.")
    text: str = Field(min_length=1, description="Markdown.")

    @property
    def hash(self) -> str:
        """SHA-256 of version and text, hexadecimal: what a person's consent is stored with."""
        return hashlib.sha256(f"{self.version}\n{self.text}".encode()).hexdigest()


class ChoiceQuestion(Part):
    """One of several answers."""

    kind: Literal["choice"] = Field(description="What makes it this kind of question.")
    id: Slug = Field(description="Of the answer in exports; lower-case letters, digits and dashes.")
    text: str = Field(min_length=1, description="The question.")
    options: tuple[str, ...] = Field(min_length=2, description="What can be chosen.")
    is_required: bool = Field(default=True, description="Whether it has to be answered.")
    screens_out: tuple[str, ...] = Field(default=(), description="Answers that end the study for this person.")

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        unknown = set(self.screens_out) - set(self.options)
        if unknown:
            raise ValueError(f"screens_out {sorted(unknown)} is none of the options {list(self.options)}")
        return self


class ScaleQuestion(Part):
    """A number on a scale, such as 1 to 7."""

    kind: Literal["scale"] = Field(description="What makes it this kind of question.")
    id: Slug = Field(description="Of the answer in exports; lower-case letters, digits and dashes.")
    text: str = Field(min_length=1, description="The question.")
    low: int = Field(default=1, description="The smallest value.")
    high: int = Field(default=7, description="The largest.")
    low_label: str = Field(default="", description="What the smallest means.")
    high_label: str = Field(default="", description="What the largest means.")
    is_required: bool = Field(default=True, description="Whether it has to be answered.")

    @model_validator(mode="after")
    def _check_ends(self) -> Self:
        if not 1 <= self.high - self.low <= 20:
            raise ValueError(f"a scale from {self.low} to {self.high} has no 2 to 21 values")
        return self


class TextQuestion(Part):
    """A few words of one's own."""

    kind: Literal["text"] = Field(description="What makes it this kind of question.")
    id: Slug = Field(description="Of the answer in exports; lower-case letters, digits and dashes.")
    text: str = Field(min_length=1, description="The question.")
    max_length: int = Field(default=2000, ge=1, le=20_000, description="Characters.")
    is_required: bool = Field(default=False, description="Whether it has to be answered.")


Question = Annotated[ChoiceQuestion | ScaleQuestion | TextQuestion, Field(discriminator="kind")]


class Arm(Part):
    """A group of annotators that sees the same."""

    name: Slug = Field(description="Stored with every answer.")
    overlay: str = Field(
        default="",
        max_length=64,
        description="Explanation shown on the clips: OF or OF-METHOD, such as reward-kernel_shap; empty for none.",
    )


class Panel(Part):
    """Where annotators come from, and where they go when they are done."""

    kind: Literal["none", "generic", "prolific"] = Field(
        default="none", description="Prolific: its parameters and its completion page are filled in."
    )
    id_parameters: tuple[str, ...] = Field(
        default=(), description="Parameters of the link that are kept; of Prolific PROLIFIC_PID, STUDY_ID, SESSION_ID."
    )
    redirect_url: str = Field(
        default="", description="Where people go; {code} is replaced. Of Prolific its completion page."
    )
    code_complete: str = Field(default="", max_length=64, description="Code of people who are through.")
    code_screened_out: str = Field(default="", max_length=64, description="Code of people whom a question screens out.")
    code_no_consent: str = Field(default="", max_length=64, description="Code of people who do not agree or withdraw.")

    @model_validator(mode="before")
    @classmethod
    def _fill_in_prolific(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("kind") == "prolific":
            values = {
                "id_parameters": ("PROLIFIC_PID", "STUDY_ID", "SESSION_ID"),
                "redirect_url": "https://app.prolific.com/submissions/complete?cc={code}",
                **values,
            }
        return values

    @model_validator(mode="after")
    def _check_codes(self) -> Self:
        if self.kind != "none" and not self.code_complete:
            raise ValueError(f"a {self.kind} panel needs code_complete")
        if self.redirect_url and not self.redirect_url.startswith(("https://", "http://")):
            raise ValueError(f"redirect_url {self.redirect_url!r} is no https:// address")
        return self


class StudyConfig(Part):
    """What a study asks, of whom, how often, and when it ends."""

    id: Slug = Field(description="In addresses and commands: lower-case letters, digits and dashes.")
    title: str = Field(min_length=1, max_length=200, description="On every page.")
    question: str = Field(
        default="Which clip is better?", min_length=1, max_length=300, description="Above the clips, all the time."
    )
    instructions: str = Field(default="", description="Markdown; before practice and in the help sheet.")
    consent: Consent | None = Field(default=None, description="None: the study asks for none.")
    feedback: FeedbackKind = Field(default="pairwise", description="What people give.")
    env_id: str = Field(default="", description="Of demonstration: the environment with discrete actions.")
    env_kwargs: dict[str, Any] = Field(default={}, description="Keyword arguments of that environment.")
    before: tuple[Question, ...] = Field(
        default=(), description="Questions before the work; `themis study export --responses` gives the answers."
    )
    after: tuple[Question, ...] = Field(
        default=(), description="Questions after the work; their answers come with those before."
    )
    arms: tuple[Arm, ...] = Field(default=(), description="Annotators are spread over them evenly, in random order.")
    num_practice: int = Field(default=0, ge=0, le=50, description="Practice pairs before the work.")
    queries_per_annotator: int = Field(
        default=20, ge=1, le=100_000, description="Answers asked of each person, practice left out."
    )
    overlap: int = Field(default=1, ge=1, le=1000, description="Answers per query.")
    gold_share: float = Field(default=0.0, ge=0, le=0.5, description="Share of the work whose answer is known.")
    repeat_share: float = Field(
        default=0.0, ge=0, le=0.5, description="Share of the work that the person has answered before, sides swapped."
    )
    min_watched_s: float = Field(default=0.0, ge=0, le=600, description="Clips move this long before answers count.")
    lease_s: float = Field(
        default=300.0,
        ge=5,
        le=86_400,
        description="How long a query is kept for a person; a demonstration from the last action on.",
    )
    break_every: int = Field(default=50, ge=0, description="Answers after which a break is proposed; 0: never.")
    max_answers: int | None = Field(
        default=None, ge=1, description="The study stops itself after so many answers; `POST .../extend` raises it."
    )
    min_gold_accuracy: float | None = Field(
        default=None, ge=0, le=1, description="Below it after 5 gold pairs, labels weigh nothing. Nobody is rejected."
    )
    max_annotators: int | None = Field(
        default=None,
        ge=1,
        description="Without those who left or were screened out. Whoever comes later is sent away with thanks.",
    )
    panel: Panel = Field(default=Panel(), description="Where people come from and what they get at the end.")
    retention_days: int | None = Field(default=None, ge=1, description="After the stop, ids of panels are deleted.")
    webhook_url: str = Field(default="", description="Told by POST when queries wait or the study stops.")
    notify_email: str = Field(default="", description="Told by e-mail, if the service has SMTP settings.")

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        for name in ("before", "after"):
            ids = [question.id for question in getattr(self, name)]
            if len(set(ids)) < len(ids):
                raise ValueError(f"two questions of {name} have the same id: {ids}")
        if len({arm.name for arm in self.arms}) < len(self.arms):
            raise ValueError("two arms have the same name")
        if self.gold_share + self.repeat_share > 0.8:
            raise ValueError(f"gold_share {self.gold_share} and repeat_share {self.repeat_share} leave too little work")
        if self.feedback == "demonstration" and not self.env_id:
            raise ValueError("a study of demonstrations needs env_id")
        if self.feedback != "pairwise" and self.repeat_share:
            raise ValueError("repeat_share swaps sides, which only pairwise has")
        return self


def load_study(source: Path | str) -> StudyConfig:
    """Reads a study from a file, or from the text of one.

    Raises:
        ConfigError: The file cannot be read, is no YAML, or a setting is wrong; all of them are named.
    """
    if isinstance(source, Path):
        try:
            text = source.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"study {source} cannot be read ({error}). Give the path of a YAML file.") from error
        name = str(source)
    else:
        text, name = source, "study"
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # a ValueError of what looks like a date and is none
        raise ConfigError(f"{name} is no YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{name} holds {type(values).__name__}. Give settings such as id, title and question.")
    try:
        return StudyConfig.model_validate(values)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(str(part) for part in row['loc']) or 'study'}: {row['msg']}" for row in error.errors()
        )
        raise ConfigError(f"{name}: {wrong}. See docs/labelling.md for all settings.") from error
