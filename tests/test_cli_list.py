import pytest
from click.testing import CliRunner, Result

from themis_ray.cli import main
from themis_ray.cli.listing import LISTS
from themis_ray.config import PRESETS
from themis_ray.feedback import SAMPLERS, SCHEDULES, TEACHERS
from themis_ray.loop_settings import LEARNER_DEFAULTS
from themis_ray.reward import REWARD_MODELS, REWARD_OPTIONS


def themis_list(*arguments: str, color: bool = False) -> Result:
    return CliRunner().invoke(main, ["list", *arguments], color=color)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("teachers", {*TEACHERS, "synthetic", "scripted", "judge", "human"}),
        ("samplers", set(SAMPLERS)),
        ("algorithms", set(LEARNER_DEFAULTS)),
        ("reward-models", {*REWARD_MODELS, *(f"reward.{name}" for name in REWARD_OPTIONS)}),
        ("presets", set(PRESETS)),
        ("schedules", set(SCHEDULES)),
    ],
)
def test_every_name_of_a_registry_is_listed_with_one_line(kind: str, names: set[str]) -> None:
    result = themis_list(kind)
    assert result.exit_code == 0
    rows = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    assert {name for name, _ in rows} == names
    assert len(rows) == len(names)
    assert {name: text for name, text in rows} == dict(LISTS[kind])  # noqa: C416
    # All descriptions begin in one column.
    (column,) = {line.index(text) for line, (_, text) in zip(result.stdout.splitlines(), rows, strict=True)}
    assert column == max(map(len, names)) + 2


def test_it_is_plain_text_where_it_is_piped_and_bold_in_a_terminal() -> None:
    assert "\x1b" not in themis_list("samplers").stdout
    assert "\x1b[1mdisagreement\x1b[0m" in themis_list("samplers", color=True).stdout


@pytest.mark.parametrize("kind", ["teacher", "envs", ""])
def test_an_unknown_kind_ends_in_one_line(kind: str) -> None:
    result = themis_list(kind)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: no list of {kind!r}.")
    for known in LISTS:
        assert known in line
    assert not result.stdout
