"""The one YAML of a study: what it says of mistakes, and that those shipped can be read."""

import hashlib
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from themis_ray.errors import ConfigError
from themis_ray.labeling.study import StudyConfig, load_study

ROOT = Path(__file__).parents[2]
BASE = {"id": "walkers", "title": "Which walks better?"}
CHOICE = {"kind": "choice", "id": "age", "text": "Of age?", "options": ["yes", "no"]}
FOLDERS = ("examples", "serve", "themis_ray/labeling")


def shipped() -> list[Path]:
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.yaml")]
    return [
        path for path in paths if isinstance(values := yaml.safe_load(path.read_text()), dict) and "title" in values
    ]


def test_studies_that_are_shipped_can_be_read():
    assert shipped()
    for path in shipped():
        study = load_study(path)
        assert StudyConfig.model_validate_json(study.model_dump_json()) == study


def test_a_study_is_read_from_a_file_or_a_text(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(BASE))
    assert load_study(path) == load_study(path.read_text()) == StudyConfig(**BASE)


def test_what_looks_like_a_date_and_is_none_is_told_in_one_line():
    with pytest.raises(ConfigError, match="study is no YAML: day is out of range"):
        load_study("id: s\ntitle: S\nconsent:\n  version: 2024-02-30\n  text: T")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "Walkers!"}, "id: String should match pattern"),
        ({"id": None}, "id: "),
        ({"title": ""}, "title: "),
        ({"titel": "Walkers"}, "titel: Extra inputs"),
        ({"overlap": 0}, "overlap: "),
        ({"overlap": "many"}, "overlap: "),
        ({"gold_share": 0.9}, "gold_share: "),
        ({"gold_share": 0.5, "repeat_share": 0.4}, "gold_share 0.5 and repeat_share 0.4 leave too little"),
        ({"feedback": "stars"}, "feedback: "),
        ({"feedback": "rating", "repeat_share": 0.1}, "repeat_share swaps sides"),
        ({"feedback": "demonstration"}, "needs env_id"),
        ({"lease_s": 1}, "lease_s: "),
        ({"consent": {"version": "1"}}, "consent.text: "),
        ({"before": [CHOICE, CHOICE]}, "before have the same id"),
        ({"after": [{"kind": "slider", "id": "a", "text": "?"}]}, "after.0: "),
        ({"before": [{**CHOICE, "options": ["yes"]}]}, "before.0.choice.options: "),
        ({"before": [{**CHOICE, "screens_out": ["perhaps"]}]}, "screens_out ['perhaps'] is none of the options"),
        ({"after": [{"kind": "scale", "id": "s", "text": "?", "low": 5, "high": 5}]}, "scale from 5 to 5"),
        ({"arms": [{"name": "a"}, {"name": "a"}]}, "two arms have the same name"),
        ({"panel": {"kind": "prolific"}}, "prolific panel needs code_complete"),
        ({"panel": {"kind": "generic", "code_complete": "C", "redirect_url": "javascript:x"}}, "redirect_url"),
        ({"panel": "prolific"}, "panel: "),
        ({"max_answers": 0, "num_practice": -1}, "num_practice: "),
    ],
)
def test_a_mistake_is_told_in_one_line_that_names_the_setting(changes, message):
    values = {name: value for name, value in {**BASE, **changes}.items() if value is not None}
    with pytest.raises(ConfigError) as caught:
        load_study(yaml.safe_dump(values))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: [", "is no YAML"),
        ("- id", "holds list"),
        ("", "holds NoneType"),
        ("just words", "holds str"),
        ("{}", "id: Field required; title: Field required"),
        ("title: a\n  id: b: c\n", "is no YAML"),
    ],
)
def test_what_is_no_study_is_told_in_one_line(text, message):
    with pytest.raises(ConfigError) as caught:
        load_study(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("nothing.yaml", "bytes.yaml", "."):
        with pytest.raises(ConfigError, match="cannot be read") as caught:
            load_study(tmp_path / name)
        assert str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_hash_of_a_consent_changes_with_its_text_and_its_version():
    hashes = {
        StudyConfig(**BASE, consent={"version": version, "text": text}).consent.hash
        for version in ("1", "2")
        for text in ("I agree.", "I agree!")
    }
    assert len(hashes) == 4
    assert hashlib.sha256(b"1\nI agree.").hexdigest() in hashes


def test_prolific_is_filled_in_and_can_be_said_otherwise():
    panel = StudyConfig(**BASE, panel={"kind": "prolific", "code_complete": "C"}).panel
    assert panel.id_parameters == ("PROLIFIC_PID", "STUDY_ID", "SESSION_ID")
    assert panel.redirect_url == "https://app.prolific.com/submissions/complete?cc={code}"
    other = StudyConfig(**BASE, panel={"kind": "prolific", "code_complete": "C", "id_parameters": ["PROLIFIC_PID"]})
    assert other.panel.id_parameters == ("PROLIFIC_PID",)


@given(
    overlap=st.integers(1, 1000),
    gold_share=st.floats(0, 0.4),
    repeat_share=st.floats(0, 0.4),
    title=st.text(min_size=1, max_size=50),
    max_answers=st.none() | st.integers(1, 10**6),
)
def test_a_study_that_was_stored_is_the_same_study(**values):
    study = StudyConfig(id="walkers", **values)
    assert StudyConfig.model_validate_json(study.model_dump_json()) == study
