"""Writes docs/configuration.md and docs/study-settings.md from the pydantic models: `python docs/generate_configuration.py`.

Defaults, ranges and meanings are read from the fields, so that a setting is written once. `tests/test_docs.py` fails
when the file is stale.
"""

import json
import re
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from themis_ray.config import (
    DEFAULT_SEGMENT_LENGTH,
    IMAGE_PPO_LEARNING_RATE,
    MAX_EXPLORATION_STEPS,
    MAX_SEED_STEPS,
    MIN_PPO_ITERATIONS,
    ExperimentConfig,
)
from themis_ray.labeling import study
from themis_ray.reward import DEFAULT_NUM_EPOCHS
from themis_ray.loop_settings import LEARNER_DEFAULTS

OUT = Path(__file__).with_name("configuration.md")
STUDY_OUT = Path(__file__).with_name("study-settings.md")
STUDY_PARTS = (study.Consent, study.ChoiceQuestion, study.ScaleQuestion, study.TextQuestion, study.Arm, study.Panel)

BOUNDS = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}", "min_length": "at least {} long"}
TYPES = {
    int: "whole number",
    float: "number",
    bool: "true or false",
    str: "text",
    dict: "mapping",
    tuple: "list",
}

INTRODUCTION = """\
# Configuration

<!-- Written by docs/generate_configuration.py from the models. Change the models, not this file. -->

A run is decided by one tree of settings. A YAML file gives some of them, `key=value` arguments with dotted keys go over
the file, and everything else keeps its default. Only `env.id` has none.

```
themis train tune_configs/pendulum.yaml feedback.budget=50 seed=3
themis train env.id=CartPole-v1 algorithm.hidden_sizes=[128,128] reward.learning_rate=1e-3
themis train env.id=Pendulum-v1 --dry-run
```

The text after `=` is read as YAML, with one difference: `1e-4` and `1e6` are numbers. The last of two equal keys
counts. An unknown key, a value of the wrong type or out of range, and settings that do not go together end the command
with one line and exit code 2. `--dry-run` prints the resolved configuration and starts nothing; the same text is
written to `config.yaml` in the run folder, and it can be given back as FILE.yaml.

In the tables `null` means that the setting is left open. What is chosen then is said under "Meaning" or in
[What is chosen from the environment](#what-is-chosen-from-the-environment).
"""


def section_models(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yields (dotted prefix, model) for a model and every model below it, in the order of the fields."""
    yield prefix, model
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from section_models(field.annotation, f"{prefix}{name}.")


def is_section(field: FieldInfo) -> bool:
    """Tells whether a field holds settings of its own."""
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def show(value: Any) -> str:
    """Returns a default as it is written in YAML."""
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, float) and 0 < value < 1e-3:
        return f"`{re.sub('e-0*', 'e-', f'{value:g}')}`"
    return f"`{json.dumps(value)}`"


def bounds(metadata: Iterable[Any]) -> list[str]:
    """Returns the ranges that a list of constraints allows, in words."""
    return [
        text.format(f"{bound:g}" if isinstance(bound := getattr(constraint, name), float) else bound)
        for constraint in metadata
        for name, text in BOUNDS.items()
        if getattr(constraint, name, None) is not None
    ]


def describe_type(annotation: Any) -> str:
    """Returns what may be given for a type, in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return " ".join([describe_type(arguments[0]), *bounds(arguments[1:])])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    if origin is typing.Literal:
        return "one of " + ", ".join(f"`{value}`" for value in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join("`null`" if part is types.NoneType else describe_type(part) for part in arguments)
    if origin is tuple:
        return f"list of {describe_type(arguments[0]).replace('number', 'numbers', 1)}"
    return TYPES[origin or annotation]


def allowed(field: FieldInfo) -> str:
    """Returns what may be given for a field: type and range."""
    kind = describe_type(field.annotation)
    limits = bounds(field.metadata)
    if not limits:
        return kind
    first, null, _ = kind.partition(" or `null`")
    separator = ", " if first.startswith("list") else " "
    return f"{first}{separator}{' and '.join(limits)}{',' * bool(null)}{null}"


def sentence(text: str) -> str:
    """Returns a description in YAML's words that begins with a capital or a name and ends with a full stop."""
    text = re.sub(r"\bNone\b", "null", text)
    first = text.split()[0].rstrip(",:")
    is_name = first in {*LEARNER_DEFAULTS, "auto", "false", "k"}
    text = text if is_name else text[0].upper() + text[1:]
    return text if text.endswith(".") else text + "."


def table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Returns a Markdown table."""
    headings = list(headings)
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def settings_table(prefix: str, model: type[BaseModel]) -> str:
    """Returns one row for each setting of a model; groups of settings have tables of their own."""
    rows = [
        [f"`{prefix}{name}`", show(field.default), allowed(field), sentence(field.description or "")]
        for name, field in model.model_fields.items()
        if not is_section(field)
    ]
    return table(("Setting", "Default", "Allowed", "Meaning"), rows)


def learner_table() -> str:
    """Returns the learners' defaults side by side."""
    names = dict.fromkeys(name for defaults in LEARNER_DEFAULTS.values() for name in defaults)
    rows = [
        [f"`algorithm.{name}`", *(show(d[name]) if name in d else "" for d in LEARNER_DEFAULTS.values())]
        for name in names
    ]
    return table(("Setting", *(f"`{name}`" for name in LEARNER_DEFAULTS)), rows)


def resolution() -> str:
    """Returns what `themis_ray.config.resolve` fills in, with its own numbers."""
    lengths = ", ".join(f"{length} for {kind}" for kind, length in DEFAULT_SEGMENT_LENGTH.items())
    epochs = ", ".join(f"{number} for {kind}" for kind, number in DEFAULT_NUM_EPOCHS.items())
    return f"""\
## What is chosen from the environment

`themis train` looks at the environment before it starts and fills in what was left open:

* `algorithm.name`: `sac` for Box actions, `ppo` for Discrete and MultiDiscrete. By name, `ppo` takes all three, `sac`
  Box and Discrete, `dqn` Discrete.
* the other `algorithm` settings: the learner's column in the table above. A setting that the learner does not use is
  refused.
* `feedback.segment_length`, by the [kind of observation](environments.md#observations):
  {lengths}; at most the horizon.
* `reward.num_epochs`, by that kind too: {epochs}.
* `exploration`: `sac` and `dqn` take 5 % of the run as seed steps, at most {MAX_SEED_STEPS}, and 5 % as unsupervised
  exploration, at most {MAX_EXPLORATION_STEPS}; `ppo` takes none of either and refuses seed steps.
* `checkpoint_interval`: a tenth of the run.
* `ppo` on a short run: `algorithm.batch_size` is at most the run's env steps over {MIN_PPO_ITERATIONS}. Where the
  horizon is fixed, `algorithm.num_envs` and `algorithm.batch_size` are lowered so that a batch holds whole episodes, if
  the horizon is short enough ([why](design/fixed-horizon.md)). With image or mixed observations
  `algorithm.learning_rate` is {show(IMAGE_PPO_LEARNING_RATE)}.
"""


def make_document() -> str:
    """Returns the text of docs/configuration.md."""
    parts = [INTRODUCTION]
    for prefix, model in section_models(ExperimentConfig):
        title = f"`{prefix.rstrip('.')}`" if prefix else "The run"
        purpose = sentence((model.__doc__ or "").strip().split("\n")[0])
        parts.append(f"## {title}\n\n{purpose}\n\n{settings_table(prefix, model)}")
        if prefix == "algorithm.":
            parts.append(f"Defaults by learner; an empty cell is a setting it does not use:\n\n{learner_table()}")
        if prefix == "teacher.":
            parts.append("The presets and their numbers are in [teachers.md](teachers.md).\n")
        if prefix == "feedback.":
            parts.append("Samplers and schedules are explained in [samplers.md](samplers.md).\n")
        if prefix == "reward.":
            parts.append("The options are explained in [reward-models.md](reward-models.md).\n")
        if prefix == "env.":
            parts.append("Families, observations and horizons are in [environments.md](environments.md).\n")
    parts.append(resolution())
    return "\n".join(parts)


STUDY_INTRODUCTION = """\
# The settings of a study

<!-- Written by docs/generate_configuration.py from the models. Change the models, not this file. -->

A study is one YAML file, which `themis study create FILE.yaml` sends to the service. [Labelling](labelling.md) says what
the parts are for and has a whole one.
"""


def study_table(model: type[BaseModel]) -> str:
    """Returns one row for each setting of a part of a study."""
    rows = [
        [f"`{name}`", show(field.default), allowed(field), sentence(field.description) if field.description else ""]
        for name, field in model.model_fields.items()
    ]
    return table(("Setting", "Default", "Allowed", "Meaning"), rows)


def make_study_document() -> str:
    """Returns the text of docs/study-settings.md."""
    parts = [STUDY_INTRODUCTION, study_table(study.StudyConfig)]
    for model in STUDY_PARTS:
        purpose = sentence((model.__doc__ or "").strip().split("\n")[0])
        parts.append(f"## {model.__name__}\n\n{purpose}\n\n{study_table(model)}")
    return "\n".join(parts)


if __name__ == "__main__":
    OUT.write_text(make_document())
    STUDY_OUT.write_text(make_study_document())
    print(f"Wrote {OUT.name} and {STUDY_OUT.name}")
