"""The documentation says what the program does: links, examples, tables and generated pages."""

import ast
import importlib.util
import re
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from themis_ray.cli.train import train
from themis_ray.config import load_config, resolve
from themis_ray.data import Choice, Preference, PreferenceDataset, Query, Segment
from themis_ray.envs import FAMILIES
from themis_ray.feedback import SAMPLERS, SCHEDULES, TEACHERS

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def page_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(path: Path) -> str:
    """Returns a page without its code blocks."""
    return FENCE.sub("", path.read_text())


def anchors(path: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def examples() -> list[str]:
    """Returns every `themis train` command of the documentation, once."""
    commands = []
    for path in PAGES:
        for _, block in FENCE.findall(path.read_text()):
            lines = block.replace("\\\n", " ").splitlines()
            commands += [line.strip().removeprefix("$ ") for line in lines if "themis train" in line]
        commands += re.findall(r"`(themis train [^`]+)`", prose(path))
    return list(dict.fromkeys(commands))


def first_column(path: Path) -> set[str]:
    return set(re.findall(r"^\| `(\w+)` \|", path.read_text(), re.MULTILINE))


# ---------------------------------------------------------------- links


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.is_file() or (anchor and anchor not in anchors(file)):
            missing.append(target)
    assert not missing, f"{page_id(path)} links to {missing}"


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_every_named_file_and_test_exists(path: Path) -> None:
    text = prose(path)
    for name in re.findall(r"`((?:themis_ray|tests|tune_configs|docs|benchmarks)/[\w/.-]+)`", text):
        if not name.startswith("benchmarks/out"):
            assert (ROOT / name).exists(), f"{page_id(path)} names {name}"
    tests = "".join(file.read_text() for file in sorted((ROOT / "tests").rglob("test_*.py")))
    for name in re.findall(r"`(test_\w+)`", text):
        assert f"def {name}(" in tests, f"{page_id(path)} names {name}"


# ---------------------------------------------------------------- examples


def test_there_are_examples() -> None:
    assert len(examples()) >= 10
    assert any("--resume" in command for command in examples())


@pytest.mark.parametrize("command", examples())
def test_every_example_is_accepted(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    program, name, *arguments = shlex.split(command, comments=True)
    assert (program, name) == ("themis", "train")
    if arguments == ["--help"]:
        assert CliRunner().invoke(train, arguments).exit_code == 0
        return
    options = train.make_context("train", arguments).params
    settings = options["settings"]
    if options["resume"] is not None:
        assert not settings
        assert options["out"] is None
        assert not options["overwrite"]
        return
    files = [Path(setting) for setting in settings if "=" not in setting]
    assert len(files) <= 1
    overrides = [setting for setting in settings if "=" in setting]
    config, _ = resolve(load_config(files[0] if files else None, overrides))
    assert config.algorithm.name != "auto"


def test_the_python_of_the_readme_runs_on_a_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = [block for language, block in FENCE.findall((ROOT / "README.md").read_text()) if language == "python"]
    (folder,) = re.findall(r'run = "([^"]+)"', code)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    segments = [
        Segment.create("Pendulum-v1", "e", 4 * i, rng.normal(size=(4, 3)), rng.normal(size=(4, 1)), np.full(4, i))
        for i in range(2)
    ]
    query, now = Query(*segments), datetime.now(UTC)
    preference = Preference(query.id, query.left.id, query.right.id, Choice.RIGHT, "oracle", 0, 100, now, now)
    PreferenceDataset(tmp_path / folder).append([query], [preference])
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() == "right 0.0 4.0"


# ---------------------------------------------------------------- tables and generated pages


def test_the_page_of_settings_is_what_the_models_say() -> None:
    spec = importlib.util.spec_from_file_location("generate_configuration", ROOT / "docs" / "generate_configuration.py")
    assert spec is not None
    assert spec.loader is not None
    generator: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    stored = (ROOT / "docs" / "configuration.md").read_text()
    assert stored == generator.make_document(), "run: python docs/generate_configuration.py"
    stored = (ROOT / "docs" / "study-settings.md").read_text()
    assert stored == generator.make_study_document(), "run: python docs/generate_configuration.py"


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("teachers.md", set(TEACHERS)),
        ("samplers.md", {*SAMPLERS, *SCHEDULES}),
        ("environments.md", {*FAMILIES, "vector", "image", "grid", "mixed"}),
    ],
)
def test_tables_name_what_the_registries_hold(page: str, names: set[str]) -> None:
    assert first_column(ROOT / "docs" / page) == names


def test_the_table_of_presets_has_their_numbers() -> None:
    text = (ROOT / "docs" / "teachers.md").read_text()
    for name, parameters in TEACHERS.items():
        numbers = [parameters.beta, parameters.gamma, parameters.eps_mistake, parameters.eps_skip, parameters.eps_equal]
        (row,) = re.findall(rf"^\| `{name}` \|[^|]+\|(.+)\|$", text, re.MULTILINE)
        assert [float(cell) for cell in row.split("|")] == numbers


def test_every_key_of_the_summary_is_documented_and_nothing_else() -> None:
    tree = ast.parse((ROOT / "themis_ray" / "experiment.py").read_text())
    (function,) = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "_summary"]
    (result,) = [node.value for node in ast.walk(function) if isinstance(node, ast.Return)]
    assert isinstance(result, ast.Dict)
    keys = {key.value for key in result.keys if isinstance(key, ast.Constant)}
    _, title, section = (ROOT / "docs" / "metrics.md").read_text().partition("## summary.json")
    assert title
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == keys
