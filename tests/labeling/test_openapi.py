"""The service does what its OpenAPI document says, whatever is sent to it (schemathesis)."""

from pathlib import Path

import pytest
from conftest import SECRET, Lab
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.openapi import from_dict
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from themis_ray.labeling.app import create_app
from themis_ray.labeling.service import Service, ServiceSettings
from themis_ray.labeling.store import LabelStore

CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)
NUM_EXAMPLES = 5


def settings_in(folder):
    return ServiceSettings(
        secret=SECRET,
        clips_folder=folder / "clips",
        clips_url="http://127.0.0.1:9",
        public_url="http://testserver",
        joins_per_minute=10**6,
    )


@pytest.fixture(scope="module")
def used_lab(tmp_path_factory):
    """A service with a study; what the generated calls do to it, they do to it."""
    folder = tmp_path_factory.mktemp("service")
    store = LabelStore(f"sqlite:///{folder}/labels.db")
    service = Service(store, settings_in(folder))
    lab = Lab(service, create_app(service))
    lab.study()
    yield lab
    store.close()


@pytest.fixture(scope="module")
def callers(used_lab):
    return {
        "admin": used_lab.member(),
        "annotator": used_lab.annotator(),
        "program": used_lab.program(used_lab.service.store.access.make_token("cart", "fuzz", "test")[0]),
    }


# The document is needed before there is a store.
schema = from_dict(create_app(Service(None, settings_in(Path("unused")))).openapi())
few = settings(max_examples=NUM_EXAMPLES, suppress_health_check=list(HealthCheck), derandomize=True)


def check(case, client, lab):
    headers = {name: value for name, value in client.headers.items() if name in ("x-csrf-token", "authorization")}
    response = case.call(base_url="http://testserver", app=lab.app, headers=headers, cookies=dict(client.cookies))
    case.validate_response(response, checks=CHECKS)


@schema.parametrize()
@few
def test_an_admin_gets_what_the_document_says(case, callers, used_lab):
    check(case, callers["admin"], used_lab)


@schema.parametrize()
@few
def test_an_annotator_gets_what_the_document_says(case, callers, used_lab):
    check(case, callers["annotator"], used_lab)


@schema.parametrize()
@few
def test_a_program_gets_what_the_document_says(case, callers, used_lab):
    check(case, callers["program"], used_lab)
