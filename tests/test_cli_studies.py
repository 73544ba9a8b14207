"""The commands about people: studies, simulated annotators, and answers in the terminal."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from live_service import live_service
from short_run import SHORT_RUN

from themis_ray.cli import main
from themis_ray.clips import read_clip
from themis_ray.config import load_config
from themis_ray.data import Choice, PreferenceDataset
from themis_ray.errors import ConfigError, ThemisError
from themis_ray.explaining import ExplainedRun
from themis_ray.feedback import SAMPLERS
from themis_ray.labeling.security import Signer
from themis_ray.rllib import draw_queries, open_finished_run

SETTINGS = [*SHORT_RUN, "num_env_steps=800", "feedback.budget=8"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, ray_cluster):
    """The folder of a run that is over."""
    folder = tmp_path_factory.mktemp("runs") / "over"
    result = CliRunner().invoke(main, ["train", *SETTINGS, "--out", str(folder)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with live_service(tmp_path_factory.mktemp("service")) as live:
        yield live


def themis(*arguments, text=None, code=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=text)
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result.output


# ---------------------------------------------------------------- queries of a run that is over


@pytest.mark.ray
def test_a_run_that_is_over_is_opened_without_ray(run):
    finished = open_finished_run(run, load_config(run / "config.yaml"))
    assert finished.reward_version == 2
    assert finished.pool.num_env_steps >= 800
    known = {row.query_id for row in finished.dataset.preferences}
    for name in SAMPLERS:
        queries, again = (draw_queries(finished, name, 6, np.random.default_rng(3)) for _ in range(2))
        assert [query.id for query in queries] == [query.id for query in again], name
        assert 1 <= len(queries) <= 6
        assert not known & {query.id for query in queries}
        assert all(query.left.origin is not None for query in queries), "it could not be shown"
    with pytest.raises(ThemisError, match="Did you mean 'disagreement'"):
        draw_queries(finished, "disagrement", 6, np.random.default_rng(3))
    feedback = finished.settings.feedback.model_copy(update={"segment_length": None, "dataset": "runs/other"})
    learned = replace(finished, settings=finished.settings.model_copy(update={"feedback": feedback}))
    with pytest.raises(ConfigError, match=r"asked nothing: it learned from the answers in runs/other\."):
        draw_queries(learned, "uniform", 6, np.random.default_rng(3))


@pytest.mark.ray
def test_the_ensemble_is_the_runs(run):
    """The sampler reads the same rewards that the learner was paid."""
    finished = open_finished_run(run, load_config(run / "config.yaml"))
    many = draw_queries(finished, "disagreement", 5, np.random.default_rng(0))
    any_ = draw_queries(finished, "uniform", 5, np.random.default_rng(0))

    def disagreement(queries):
        returns = [
            finished.ensemble.segment_returns(
                np.stack([getattr(query, side).observations for query in queries]),
                np.stack([getattr(query, side).actions for query in queries]),
            )
            for side in ("left", "right")
        ]
        return (1 / (1 + np.exp(returns[1] - returns[0]))).std(axis=0).mean()

    assert disagreement(many) > disagreement(any_)


# ---------------------------------------------------------------- studies


@pytest.mark.ray
def test_a_study_is_filled_from_a_run_answered_and_exported(run, service, tmp_path, monkeypatch):
    service.study(id="tea", num_practice=2, queries_per_annotator=10, gold_share=0.2)
    monkeypatch.setenv("THEMIS_STUDY_TOKEN", service.token())
    monkeypatch.setenv("THEMIS_STUDY_URL", service.url)
    add = ("study", "add-queries", "tea", "--run", run)
    assert "asks 12 ordinary queries" in themis(*add, "-n", 12)
    assert "12 ordinary" in themis(*add, "-n", 12)
    assert "practice queries" in themis(*add, "-n", 4, "--kind", "practice", "--sampler", "uniform", "--seed", 7)
    assert "gold queries" in themis(*add, "-n", 4, "--kind", "gold", "--sampler", "uniform", "--seed", 8)
    assert "12 queries" in themis("study", "status", "tea"), "the same queries again change nothing"
    assert "tea" in themis("study", "list")

    ledger = tmp_path / "ledger.jsonl"
    people = ("simulate-annotators", "--study", "tea", "--n", 3, "--think-s", 0.01, "--idle-s", 0.5)
    output = themis(*people, "--ledger", ledger)
    assert "POST answers" in output
    assert "GET clip" in output
    promised = [json.loads(line) for line in ledger.read_text().splitlines()]
    num_answers = sum(not line["is_practice"] for line in promised)
    assert num_answers >= 12
    assert f"Answers: {num_answers} of 12" in themis("study", "status", "tea")
    gold = [row for row in service.store.work.answers("tea").answers if row.kind == "gold"]
    assert gold

    assert "(paused)" in themis("study", "status", "tea", "paused")
    assert "no status 'halted'" in themis("study", "status", "tea", "halted", code=2)


@pytest.mark.ray
def test_arms_of_a_study_show_explanations_of_the_run(run, service, monkeypatch):
    arms = [{"name": "plain"}, {"name": "why", "overlay": "reward-saliency"}, {"name": "act", "overlay": "action"}]
    service.study(id="why", arms=arms, overlap=3, queries_per_annotator=4)
    monkeypatch.setenv("THEMIS_STUDY_TOKEN", service.token("why"))
    monkeypatch.setenv("THEMIS_STUDY_URL", service.url)
    add = ("study", "add-queries", "why", "--run", run, "-n", 4)
    assert "4 ordinary queries about" in (output := themis(*add))
    assert "explained by reward-saliency, action" in output
    explained = set()
    for row in service.store.studies.queries("why"):
        for clip, num_frames, overlays in (
            (row.left_clip, row.left_num_frames, row.left_overlays),
            (row.right_clip, row.right_num_frames, row.right_overlays),
        ):
            assert overlays.keys() == {"reward-saliency", "action"}
            frames = [read_clip(run / "clips" / name) for name in (clip, *overlays.values())]
            assert [len(one) for one in frames] == [num_frames] * 3
            assert frames[1].shape[2] > frames[0].shape[2], "bars stand beside the frame"
            explained |= set(overlays.values())
    scales = {path.name: path.read_text() for path in (run / "clips").glob("overlay-*.json")}
    assert len(scales) == 2, "one scale for all queries that are sent together"

    # The same command again draws nothing and explains nothing.
    with monkeypatch.context() as patch:
        patch.setattr(ExplainedRun, "explain", None)
        patch.setattr("themis_ray.explaining.overlays.Replayer", None)
        assert "explained by" in themis(*add)
    assert "4 queries" in themis("study", "status", "why")
    # Nor does what a killed command has drawn; the rest goes on the same scale, to the very same clip.
    index = run / "clips" / "overlay-action.jsonl"
    *others, last = index.read_text().splitlines(keepends=True)
    index.write_text("".join(others) + last[: len(last) // 2])
    calls = []
    explain = ExplainedRun.explain
    monkeypatch.setattr(
        ExplainedRun, "explain", lambda self, how, segments: calls.append(len(segments)) or explain(self, how, segments)
    )
    themis(*add)
    assert calls == [1]
    assert json.loads(last)["clip"] in explained
    assert json.loads(index.read_text().splitlines()[-1]) == json.loads(last)
    assert {path.name: path.read_text() for path in (run / "clips").glob("overlay-*.json")} == scales

    people = ("simulate-annotators", "--study", "why", "--n", 3, "--think-s", 0.01, "--idle-s", 0.5)
    themis(*people)
    shown = {row.arm: (row.overlay, row.overlay_ms > 0) for row in service.store.work.answers("why").answers}
    assert shown == {"plain": ("", False), "why": ("reward-saliency", True), "act": ("action", True)}


@pytest.mark.ray
def test_an_explanation_that_the_run_cannot_give_is_refused_before_anything_is_drawn(run, service, monkeypatch):
    service.study(id="conv", arms=[{"name": "a", "overlay": "reward-guided_grad_cam"}])
    monkeypatch.setenv("THEMIS_STUDY_TOKEN", service.token("conv"))
    output = themis("study", "add-queries", "conv", "--run", run, "-n", 2, "--url", service.url, code=2)
    assert "guided_grad_cam cannot explain" in output
    assert output.count("\n") == 1
    assert service.store.studies.queries("conv") == []


def test_answers_are_exported(service, tmp_path, monkeypatch):
    service.study(id="out")
    monkeypatch.setenv("THEMIS_STUDY_TOKEN", service.token("out"))
    monkeypatch.setenv("THEMIS_STUDY_URL", service.url)
    for name in ("answers.jsonl", "answers.csv", "answers.parquet"):
        themis("study", "export", "out", "--out", tmp_path / name)
        assert (tmp_path / name).exists()
    assert "is there already" in themis("study", "export", "out", "--out", tmp_path / "answers.csv", code=2)
    assert "no format" in themis("study", "export", "out", "--out", tmp_path / "answers.xls", code=2)


def test_answers_to_questions_are_exported(service, tmp_path, monkeypatch):
    service.study(id="asks", before=[{"kind": "text", "id": "words", "text": "Anything?"}])
    person = service.store.people.join("asks", {}).id
    service.store.people.respond(person, "before", {"words": "Tee für zwei\u2028"})
    monkeypatch.setenv("THEMIS_STUDY_TOKEN", service.token("asks"))
    monkeypatch.setenv("THEMIS_STUDY_URL", service.url)
    out = tmp_path / "responses.jsonl"
    themis("study", "export", "asks", "--responses", "--out", out)
    (line,) = out.read_text().rstrip("\n").split("\n")
    row = json.loads(line)
    assert (row["annotator_id"], row["which"], row["answers"]) == (person, "before", {"words": "Tee für zwei\u2028"})
    output = themis("study", "export", "asks", "--responses", "--out", tmp_path / "responses.csv", code=2)
    assert "written as jsonl" in output


def test_errors_are_one_line(service, tmp_path, monkeypatch):
    monkeypatch.setenv("THEMIS_STUDY_TOKEN", "wrong")
    output = themis("study", "status", "tea", "--url", service.url, code=2)
    assert output.count("\n") == 1
    assert "401" in output
    output = themis("simulate-annotators", "--study", "tea", "--teacher", "orakle", code=2)
    assert "Did you mean 'oracle'" in output
    output = themis("study", "create", tmp_path / "absent.yaml", "--data", tmp_path, code=2)
    assert "cannot be read" in output


def test_a_study_is_made_where_the_service_keeps_its_data(tmp_path):
    source = tmp_path / "study.yaml"
    source.write_text(yaml.safe_dump({"id": "cart", "title": "Carts", "overlap": 2}))
    data = tmp_path / "labelling"
    assert "no data folder" in themis("study", "create", source, "--data", data, code=2)
    data.mkdir()
    (data / "secret.key").write_bytes(b"0123456789" * 4)
    output = themis("study", "create", source, "--data", data, "--url", "http://host:8000/")
    assert "For annotators: http://host:8000/s/cart?invitation=" in output
    assert "export THEMIS_STUDY_TOKEN=" in output
    again = themis("study", "create", source, "--data", data)
    assert "Make another on the study's page" in again
    assert "THEMIS_STUDY_TOKEN=" not in again
    source.write_text(yaml.safe_dump({"id": "cart", "title": "Other"}))
    assert "other settings" in themis("study", "create", source, "--data", data, code=2)
    source.write_text(yaml.safe_dump({"id": "x", "title": "X", "arms": [{"name": "a", "overlay": "reward-shap"}]}))
    output = themis("study", "create", source, "--data", data, code=2)
    assert output.count("\n") == 1
    assert "overlay 'reward-shap', which is none" in output
    assert "kernel_shap" in output


def test_a_link_is_signed_with_the_secret_of_the_service(tmp_path, monkeypatch):
    monkeypatch.delenv("THEMIS_SECRET", raising=False)
    source, data = tmp_path / "study.yaml", tmp_path / "labelling"
    source.write_text(yaml.safe_dump({"id": "cart", "title": "Carts"}))
    address = f"sqlite:///{tmp_path}/labels.db"
    output = themis("study", "create", source, "--data", data, "--database-url", address, code=2)
    assert "Set THEMIS_SECRET" in output
    assert output.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]
    secret = "0123456789" * 4
    monkeypatch.setenv("THEMIS_SECRET", secret)
    output = themis("study", "create", source, "--data", data, "--database-url", address)
    invitation = output.split("invitation=")[1].split()[0]
    assert Signer(secret.encode()).read_invitation(invitation).study == "cart"


# ---------------------------------------------------------------- in the terminal


@pytest.mark.ray
def test_one_person_answers_in_the_terminal_stops_and_goes_on(run, tmp_path):
    out = tmp_path / "answers"
    command = ("annotate", run, "--out", out, "-n", 4, "--name", "tea")
    output = themis(*command, text="l\nwhat\nright\nu\ne\nq\n")
    assert "'what' is none of them" in output
    assert "2 answers, 2 left" in output
    dataset = PreferenceDataset(out)
    assert [row.choice for row in dataset.preferences] == [Choice.LEFT, Choice.EQUAL]
    assert {row.teacher for row in dataset.preferences} == {"tea"}
    assert [row.reason for row in dataset.withdrawals] == ["undone"]
    paths = [line.split()[-1] for line in output.splitlines() if line.strip().startswith(("left:", "right:"))]
    assert all((out / "clips").samefile(path.rpartition("/")[0]) for path in paths)

    assert "nothing to take back" in themis(*command, text="u\ns\nr\n")
    dataset = PreferenceDataset(out)
    assert len(dataset.asked) == dataset.num_questions == 4, "nothing is asked twice"
    assert [row.choice for row in dataset.preferences][2:] == [Choice.SKIP, Choice.RIGHT]
    assert "3 left" in themis(*command, text="l\nq\n"), "four new ones, once all are answered"
    assert len(PreferenceDataset(out).asked) == 8
    assert PreferenceDataset(run).asked == {}, "the run is left as it was"

    # What waits in a dataset is answered there.
    assert "0 left" in themis("annotate", out, text="l\nl\nl\n")
    assert "only runs have episodes" in themis("annotate", out, code=2)
    assert "no run and no dataset" in themis("annotate", tmp_path / "absent", code=2)
