"""The report of a study: what it counts, and that it is there whatever there is to report."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from themis_ray.data import Choice
from themis_ray.labeling.report import study_report
from themis_ray.labeling.report_parts import StudyReport
from themis_ray.labeling.study import Arm, StudyConfig
from themis_ray.wire import StoredAnswer

START = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)


def make_answer(number, query="q1", person="a1", choice="left", **changes):
    at = START + timedelta(seconds=30 * number)
    values = {
        "number": number,
        "answer_id": f"answer-{number}",
        "query_id": query,
        "kind": "ordinary",
        "feedback": "pairwise",
        "annotator_id": person,
        "arm": "",
        "choice": choice,
        "rating": None,
        "steps": None,
        "actions": None,
        "reset_seed": None,
        "is_flipped": False,
        "repeat": 0,
        "is_undone": False,
        "response_ms": 4000,
        "watched_ms": 3000,
        "num_replays": 0,
        "speed": 1.0,
        "overlay_ms": 0,
        "assigned_at": at - timedelta(seconds=5),
        "answered_at": at,
        **changes,
    }
    return StoredAnswer.model_validate(values)


def make_study(num_answers=600, num_people=12, seed=0, **changes):
    """A study of people of whom a00 knows everything and a01 says anything; returns answers, settings and gold."""
    rng = np.random.default_rng(seed)
    study = StudyConfig.model_validate(
        {
            "id": "walker",
            "title": "Which walks better?",
            "overlap": 3,
            "gold_share": 0.1,
            "arms": (Arm(name="plain"), Arm(name="heatmap", overlay="reward-saliency")),
            **changes,
        }
    )
    truths = {f"q{number:04d}": ("left", "right")[rng.integers(2)] for number in range(-(-num_answers // 3))}
    gold = {query: truth for query, truth in truths.items() if query.endswith("7")}
    answers = []
    for number in range(num_answers):
        query = f"q{number // 3:04d}"
        person = (number * 5 + number // num_people) % num_people
        accuracy = {0: 1.0, 1: 0.5}.get(person, 0.85)
        choice = truths[query] if rng.random() < accuracy else ("left", "right")[truths[query] == "left"]
        answers.append(
            make_answer(
                number + 1,
                query,
                f"a{person:02d}",
                "skip" if rng.random() < 0.03 else choice,
                kind="gold" if query in gold else "ordinary",
                arm=("plain", "heatmap")[person % 2],
                is_flipped=bool(rng.integers(2)),
                response_ms=int(1000 * rng.lognormal(1.5, 0.5)),
                overlay="reward-saliency" if person % 2 and number % 5 else "",
                overlay_ms=2000 * (person % 2) if number % 5 else 0,
            )
        )
    return answers, study, gold


def test_an_empty_study_has_a_report():
    report = study_report([], StudyConfig(id="s", title="S", arms=(Arm(name="one"), Arm(name="two"))))
    assert report.counts.num_answers == 0
    assert report.agreement.alpha is None
    assert report.rate == ()
    assert report.annotators == ()
    assert [arm.arm for arm in report.arms] == ["one", "two"]
    assert report.position_bias.share is None
    assert report.position_bias.p_value is None
    assert StudyReport.model_validate_json(report.model_dump_json()) == report


def test_one_answer_has_a_report():
    report = study_report([make_answer(1)], StudyConfig(id="s", title="S"), num_waiting=4)
    assert report.counts.num_answers == report.counts.num_annotators == 1
    assert report.counts.num_waiting == 4
    assert report.counts.choices == {"left": 1, "right": 0, "equal": 0, "skip": 0}
    (person,) = report.annotators
    assert (person.reliability, person.weight) == (None, 1.0)
    assert StudyReport.model_validate_json(report.model_dump_json()) == report


def test_practice_and_undone_answers_count_as_such_only():
    answers = [
        make_answer(1),
        make_answer(2, "q2", is_undone=True),
        make_answer(3, "q3", kind="practice"),
        make_answer(4, "q4", kind="gold"),
        make_answer(5, "q1", repeat=1, choice="right"),
        make_answer(6, "q5", choice="skip"),
    ]
    report = study_report(answers, StudyConfig(id="s", title="S"), gold={"q4": "left", "q3": "right"})
    counts = report.counts
    assert (counts.num_answers, counts.num_ordinary, counts.num_gold, counts.num_repeats) == (4, 2, 1, 1)
    assert (counts.num_practice, counts.num_undone, counts.num_skips, counts.num_queries) == (1, 1, 1, 3)
    assert (report.gold.num_hits, report.gold.num_trials) == (1, 1)
    assert (report.consistency.num_hits, report.consistency.num_trials) == (0, 1)


def test_labels_per_hour_are_of_stretches_without_gaps():
    answers = [make_answer(number) for number in (0, 1, 2, 3, 20)]
    report = study_report(answers, StudyConfig(id="s", title="S"), now=START + timedelta(hours=2))
    assert report.bucket_s == 60
    assert [bucket.num_answers for bucket in report.rate] == [2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert report.rate[0].starts_at == START
    assert report.rate[0].answers_per_hour == 120
    late = [*answers, make_answer(1, answered_at=START + timedelta(days=30))]
    report = study_report(late, StudyConfig(id="s", title="S"), now=START + timedelta(days=40))
    assert report.bucket_s == 24 * 3600
    assert sum(bucket.num_answers for bucket in report.rate) == 6


def test_the_stretch_that_is_not_over_is_measured_by_what_has_passed():
    answers = [make_answer(0), make_answer(1)]
    report = study_report(answers, StudyConfig(id="s", title="S"), now=START + timedelta(seconds=30))
    assert report.rate[0].answers_per_hour == 240


def test_measures_of_a_made_up_study():
    answers, study, gold = make_study()
    report = study_report(answers, study, gold=gold, num_waiting=7)
    by_person = {row.annotator_id: row for row in report.annotators}
    assert max(by_person.values(), key=lambda row: row.reliability).annotator_id == "a00"
    assert min(by_person.values(), key=lambda row: row.reliability).annotator_id == "a01"
    assert by_person["a00"].weight > 0.85
    assert by_person["a01"].weight < 0.35
    assert by_person["a00"].gold.num_hits == by_person["a00"].gold.num_trials > 0
    assert report.agreement.low < report.agreement.alpha < report.agreement.high
    assert 0.3 < report.agreement.alpha < 0.7
    assert report.agreement.num_queries == pytest.approx(200, abs=5)
    assert len(report.agreement_over_time) == 12
    assert sum(point.num_queries for point in report.agreement_over_time) >= 190
    assert report.position_bias.low < 0.5 < report.position_bias.high
    assert report.position_bias.p_value > 0.01
    assert [arm.arm for arm in report.arms] == ["plain", "heatmap"]
    assert sum(arm.num_answers for arm in report.arms) == report.counts.num_answers == 600
    assert [arm.median_overlay_s for arm in report.arms] == [None, 2.0]
    assert report.arms[0].num_explained == 0
    assert 0 < report.arms[1].num_explained < report.arms[1].num_answers
    assert sum(report.times.counts) == 600
    assert report.times.quantiles_s["50%"] == pytest.approx(np.exp(1.5), rel=0.1)
    assert report.rate[-1].starts_at + timedelta(seconds=report.bucket_s) > answers[-1].answered_at
    assert StudyReport.model_validate_json(report.model_dump_json()) == report


def annotator_weights(answers, study, gold=None):
    return {row.annotator_id: row.weight for row in study_report(answers, study, gold=gold).annotators}


def test_somebody_who_always_chooses_the_left_of_the_screen_is_seen():
    answers = [
        make_answer(number, f"q{number}", choice="right" if number % 2 else "left", is_flipped=bool(number % 2))
        for number in range(30)
    ]
    report = study_report(answers, StudyConfig(id="s", title="S"))
    assert report.position_bias.share == 1
    assert report.annotators[0].position_bias.p_value < 1e-6


def test_nobody_is_judged_by_answers_that_nobody_else_gave():
    answers = [make_answer(number, f"q{number}", f"a{number % 3}") for number in range(60)]
    study = StudyConfig(id="s", title="S")
    assert annotator_weights(answers, study) == {"a0": 1.0, "a1": 1.0, "a2": 1.0}
    assert {row.reliability for row in study_report(answers, study).annotators} == {None}


def test_below_the_accuracy_a_study_asks_for_labels_weigh_nothing():
    gold = {f"q{number}": "left" for number in range(5)}
    answers = [
        make_answer(
            10 * person + number, f"q{number}", f"a{person}", "left" if number < right else "right", kind="gold"
        )
        for person, right in enumerate((5, 2))
        for number in range(5)
    ]
    study = StudyConfig(id="s", title="S", min_gold_accuracy=0.6)
    weights = annotator_weights(answers, study, gold)
    assert weights["a1"] == 0
    assert weights["a0"] > 0.5
    # Four gold pairs are too few to say.
    assert annotator_weights([row for row in answers if row.query_id != "q4"], study, gold)["a1"] > 0


def test_ratings_agree_by_their_distance():
    rng = np.random.default_rng(0)
    truths = rng.random(40)
    answers = [
        make_answer(
            3 * number + person,
            f"q{number}",
            f"a{person}",
            None,
            feedback="rating",
            rating=float(np.clip(truths[number] + rng.normal(0, 0.05), 0, 1)),
        )
        for number in range(40)
        for person in range(3)
    ]
    report = study_report(answers, StudyConfig(id="s", title="S", feedback="rating"))
    assert report.agreement.alpha > 0.9
    assert report.agreement.num_queries == 40
    assert report.counts.num_skips == 0
    assert sum(report.counts.choices.values()) == 0
    assert {row.skip_share for row in report.annotators} == {0.0}


@pytest.mark.parametrize("feedback", ["steps", "demonstration"])
def test_other_feedback_is_counted_and_timed(feedback):
    answers = [make_answer(1, choice=None, feedback=feedback, steps=(1, 0)), make_answer(2, "q2", choice=None)]
    config = {"id": "s", "title": "S", "feedback": feedback, "env_id": "CartPole-v1"}
    report = study_report(answers, StudyConfig.model_validate(config))
    assert report.counts.num_answers == 2
    assert report.agreement.alpha is None
    assert report.times.quantiles_s["50%"] == 4
    assert report.counts.choices == dict.fromkeys(map(str, Choice), 0)
