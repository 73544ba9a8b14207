"""What is known of a study is made seldom, and holds nobody up."""

import threading
import time
from types import SimpleNamespace

import pytest
from label_stores import run_threads

from themis_ray.labeling import service as service_module


class Reports:
    """Stands before `study_report`: every report takes `cost_s` of a clock of its own, and may be held up."""

    def __init__(self):
        self.now, self.cost_s, self.num_made = 0.0, 0.0, 0
        self.may_go_on, self.has_begun = threading.Event(), threading.Event()
        self.may_go_on.set()
        self._make = service_module.study_report

    def make(self, *args, **kwargs):
        self.has_begun.set()
        assert self.may_go_on.wait(20)
        self.now += self.cost_s
        self.num_made += 1
        return self._make(*args, **kwargs)


@pytest.fixture
def reports(monkeypatch):
    reports = Reports()
    monkeypatch.setattr(service_module, "study_report", reports.make)
    clock = SimpleNamespace(monotonic=lambda: reports.now, time=time.time)
    monkeypatch.setattr(service_module, "time", clock)
    return reports


@pytest.mark.parametrize(("cost_s", "fresh_s"), [(0.01, 5.0), (3.0, 30.0)])
def test_a_report_is_kept_for_as_long_as_it_is_dear(lab, reports, cost_s, fresh_s):
    lab.study()
    reports.cost_s = cost_s
    lab.service.report("cart")
    made_at = reports.now
    for passed_s, num_made in ((0.9 * fresh_s, 1), (1.1 * fresh_s, 2)):
        reports.now = made_at + passed_s
        lab.service.weights("cart")
        assert reports.num_made == num_made


def test_nobody_waits_for_a_report_but_for_the_first(lab, reports):
    lab.study()
    first = lab.service.report("cart")
    reports.now += 60
    reports.has_begun.clear()
    reports.may_go_on.clear()
    maker = threading.Thread(target=lab.service.report, args=("cart",))
    maker.start()
    assert reports.has_begun.wait(20)
    assert lab.service.report("cart") is first
    reports.may_go_on.set()
    maker.join(20)
    assert lab.service.report("cart") is not first


def test_a_study_does_not_wait_for_the_report_of_another(lab, reports):
    lab.study()
    lab.study("boat")
    with lab.service._locks.setdefault("cart", threading.Lock()):
        assert lab.service.report("boat").study == "boat"


def test_the_first_report_is_made_once(lab, reports):
    lab.study()
    found = []
    run_threads(4, lambda _: found.append(lab.service.report("cart")))
    assert reports.num_made == 1
    assert len({id(report) for report in found}) == 1
