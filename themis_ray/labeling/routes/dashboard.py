"""The pages of experimenters: their studies, how each is doing, its queries, and what can be done about it.

Forms are sent to these routes and do what the JSON API does with the same calls of the store. Everything works without
scripts; with them the numbers of a study are fetched anew every few seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from themis_ray.errors import ConfigError, lookup
from themis_ray.labeling.callers import (
    Caller,
    ServiceOf,
    UnauthorizedError,
    current_member,
    current_session,
    require_csrf,
)
from themis_ray.labeling.charts import study_charts
from themis_ray.labeling.notify import webhook_key
from themis_ray.labeling.report_parts import AnnotatorReport, StudyReport
from themis_ray.labeling.routes.experimenter import (
    AdminInvitationRequest,
    InvitationRequest,
    invite,
    invite_member,
    query_view,
)
from themis_ray.labeling.routes.pages import PageRoute, SentForm
from themis_ray.labeling.security import SESSION_COOKIE
from themis_ray.labeling.service import Service
from themis_ray.labeling.store import ForbiddenError, Member, NotFoundError, StudyRow, TokenRow, WrongError
from themis_ray.labeling.store.browse import SHOWN, Browse
from themis_ray.labeling.study import load_study
from themis_ray.labeling.web import page_renderer
from themis_ray.wire import StoredAnswer

__all__ = ["router"]

router = APIRouter(route_class=PageRoute, include_in_schema=False, default_response_class=HTMLResponse)

ACTIVE = timedelta(minutes=5)
MAX_PEOPLE = 200
QUERIES_PER_PAGE = 50
MAX_ANSWERS_SHOWN = 1000
MAX_TOKEN_NAME = 64
MAX_ACTS = 50
DAY_S = 86_400
EXAMPLE_SETTINGS = """\
id: my-study
title: How should the cheetah run?
question: Which cheetah runs better?
instructions: Choose the clip in which it moves forward better.
consent:
  version: "1"
  text: We store your choices under a random number. You may stop at any time.
queries_per_annotator: 20
overlap: 3
"""
NOT_STORED = {"Cache-Control": "no-store"}


@dataclass(frozen=True)
class Column:
    """A column of the table of people, by which it can be sorted.

    Attributes:
        key: In addresses.
        title: Of the column.
        direction: How it is sorted: what one looks for comes first.
        value: What is sorted by; None comes last.
        is_text: Whether it is written from the left.
    """

    key: str
    title: str
    direction: str
    value: Callable[[AnnotatorReport], Any]
    is_text: bool = False


COLUMNS = {
    column.key: column
    for column in (
        Column("person", "Person", "ascending", lambda row: row.annotator_id, is_text=True),
        Column("arm", "Arm", "ascending", lambda row: row.arm, is_text=True),
        Column("answers", "Answers", "descending", lambda row: row.num_answers),
        Column("reliability", "Reliability", "ascending", lambda row: row.reliability),
        Column("weight", "Weight", "ascending", lambda row: row.weight),
        Column("gold", "Gold", "ascending", lambda row: row.gold.share),
        Column("consistency", "Consistent", "ascending", lambda row: row.consistency.share),
        Column("position", "Shown left chosen", "ascending", lambda row: row.position_bias.p_value),
        Column("skips", "Can't tell", "descending", lambda row: row.skip_share),
        Column("time", "Median time", "ascending", lambda row: row.median_s),
        Column("last", "Last answer (UTC)", "descending", lambda row: row.last_answered_at),
    )
}


@dataclass(frozen=True)
class Secret:
    """Something that is shown once."""

    title: str
    about: str
    text: str


class Visit:
    """A member who looks at a page."""

    def __init__(self, request: Request, service: Service, member: Member) -> None:
        self.service, self.member = service, member
        session = current_session(request)
        assert session is not None
        self.csrf_token = service.signer.csrf_token(session)

    def page(self, template: str, **context: object) -> Response:
        """Returns a page for this member."""
        renderer = page_renderer(self.service.settings.root)
        text = renderer.render(template, member_name=self.member.name, csrf_token=self.csrf_token, **context)
        return HTMLResponse(text, headers=NOT_STORED)

    def study(self, study_id: str) -> StudyRow:
        """Returns a study that the member may see.

        Raises:
            NotFoundError: There is none, or it is not the member's business, which is not told apart.
        """
        if not self.member.may_see(study_id):
            raise NotFoundError(f"there is no study {study_id!r}.")
        return self.service.store.studies.get(study_id)

    def go(self, path: str) -> Response:
        """Sends the browser on after a form."""
        return RedirectResponse(self.service.settings.root + path, 303, headers=NOT_STORED)


def _visit(request: Request, service: ServiceOf) -> Visit:
    member = current_member(request)
    if member is None:
        raise UnauthorizedError("nobody is signed in. Open your invitation, or ask for one.")
    return Visit(request, service, member)


VisitOf = Annotated[Visit, Depends(_visit)]


def _sent_visit(request: Request, visit: VisitOf, form: SentForm) -> Visit:
    session = current_session(request)
    assert session is not None
    require_csrf(request, session, form["csrf_token"])
    return visit


SentVisit = Annotated[Visit, Depends(_sent_visit)]

# ---------------------------------------------------------------- studies


@router.get("/studies")
def list_studies(visit: VisitOf) -> Response:
    """The studies that the member may see, the newest first."""
    return _studies_page(visit)


@router.get("/studies/{study}")
def show_study(visit: VisitOf, study: str, sort: str = "answers") -> Response:
    """How a study is doing, and what can be done about it."""
    return _study_page(visit, study, sort)


@router.get("/studies/{study}/live")
def show_live(visit: VisitOf, study: str, sort: str = "answers") -> Response:
    """The part of a study's page that changes."""
    row = visit.study(study)
    return visit.page("dashboard_live.html", study=row.config, **_live(visit.service, row, sort))


@router.get("/studies/{study}/queries")
def list_queries(visit: VisitOf, study: str, show: str = "all", page: int = 1) -> Response:
    """A page of the study's queries, with their answers counted."""
    row = visit.study(study)
    shown = _known("kind of queries", show, {name: name for name in SHOWN})
    first = max(1, min(page, 10**9))
    found, total = Browse(visit.service.store.database).queries(
        study, shown, offset=(first - 1) * QUERIES_PER_PAGE, limit=QUERIES_PER_PAGE
    )
    return visit.page(
        "dashboard_queries.html",
        study=row.config,
        queries=[{"row": tally, "source": _source(tally.about)} for tally in found],
        num_found=total,
        show=shown,
        page=first,
        num_pages=max(1, math.ceil(total / QUERIES_PER_PAGE)),
    )


@router.get("/studies/{study}/queries/{query_id}")
def show_query(visit: VisitOf, study: str, query_id: str) -> Response:
    """A query with its clips, its answers and where it comes from."""
    row = visit.study(study)
    store = visit.service.store
    query = query_view(visit.service, store.studies.query(study, query_id))
    answers = store.work.answers(study, query_id=query_id, limit=MAX_ANSWERS_SHOWN).answers
    weights = visit.service.weights(study)
    return visit.page(
        "dashboard_query.html",
        study=row.config,
        query=query,
        sides=_sides(query, answers),
        answers=[
            {"row": answer, "said": _said(answer), "weight": weights.get(answer.annotator_id, answer.weight)}
            for answer in answers
        ],
    )


# ---------------------------------------------------------------- what can be done


@router.post("/studies")
def create_study(visit: SentVisit, form: SentForm) -> Response:
    """Makes a study of the settings in the form."""
    try:
        config = load_study(form["settings"])
    except ConfigError as error:
        raise WrongError(str(error)) from error
    visit.service.store.studies.create(config, visit.member.id, visit.member)
    return visit.go(f"/studies/{quote(config.id)}")


@router.post("/members/invitations")
def make_member_invitation(visit: SentVisit, form: SentForm) -> Response:
    """Makes a link for another admin or an experimenter, and shows it."""
    role = _known("role", form["role"], {"experimenter": "experimenter", "admin": "admin"})
    days = _number(form["days"], "days", 1, 365)
    if visit.member.role != "admin":
        raise ForbiddenError("only an admin may do this.")
    request = AdminInvitationRequest.model_validate({"role": role, "valid_s": days * DAY_S})
    url = invite_member(visit.service, Caller(visit.member.id, visit.member, None), request).url
    about = f"It works once; valid for {days} {'day' if days == 1 else 'days'}."
    return _studies_page(visit, Secret(f"A link for one {role}.", about, url))


@router.post("/studies/{study}/status")
def set_status(visit: SentVisit, form: SentForm, study: str) -> Response:
    """Pauses or stops a study, or lets it go on."""
    visit.study(study)
    status = _known("status", form["status"], {"running": "running", "paused": "paused", "stopped": "stopped"})
    visit.service.store.studies.set_status(study, status, visit.member.id)
    return visit.go(f"/studies/{quote(study)}")


@router.post("/studies/{study}/extend")
def extend(visit: SentVisit, form: SentForm, study: str) -> Response:
    """Asks for more answers per query, more queries per annotator, or more answers in all where those are limited."""
    config = visit.study(study).config
    numbers = {
        name: _number(form[name], title, getattr(config, name), highest)
        for name, title, highest in (
            ("overlap", "answers per query", 1000),
            ("queries_per_annotator", "queries per person", 100_000),
            ("max_answers", "answers in all", 2**62),
        )
        if getattr(config, name) is not None
    }
    changes = {name: value for name, value in numbers.items() if value != getattr(config, name)}
    if changes:
        visit.service.store.studies.extend(study, visit.member.id, **changes)
    return visit.go(f"/studies/{quote(study)}")


@router.post("/studies/{study}/invitations")
def make_invitation(visit: SentVisit, form: SentForm, study: str) -> Response:
    """Makes a link for annotators or for another experimenter, and shows it."""
    visit.study(study)
    role = _known("role", form["role"] or "annotator", {"annotator": "annotator", "experimenter": "experimenter"})
    days = _number(form["days"], "days", 1, 365)
    caller = Caller(visit.member.id, visit.member, None)
    request = InvitationRequest.model_validate({"role": role, "valid_s": days * DAY_S})
    until = f"valid for {days} {'day' if days == 1 else 'days'}"
    about = f"Many may use it; {until}." if role == "annotator" else f"It works once; {until}."
    title = "A link for annotators." if role == "annotator" else "A link for one experimenter."
    secret = Secret(title, about, invite(visit.service, caller, study, request).url)
    return _study_page(visit, study, secret=secret)


@router.post("/studies/{study}/tokens")
def make_token(visit: SentVisit, form: SentForm, study: str) -> Response:
    """Makes an API token and shows it, once."""
    visit.study(study)
    name = form["name"].strip()
    if not 0 < len(name) <= MAX_TOKEN_NAME:
        raise WrongError(f"a token needs a name of 1 to {MAX_TOKEN_NAME} characters, to know it by.")
    text, _ = visit.service.store.access.make_token(study, name, visit.member.id)
    secret = Secret(f"The token {name!r}.", "It is shown now and never again; keep it like a password.", text)
    return _study_page(visit, study, secret=secret)


@router.post("/studies/{study}/tokens/{token_id}/revoke")
def revoke_token(visit: SentVisit, study: str, token_id: str) -> Response:
    """Makes a token worthless."""
    visit.study(study)
    visit.service.store.access.revoke_token(study, token_id, visit.member.id)
    return visit.go(f"/studies/{quote(study)}")


@router.post("/sign-out")
def sign_out(visit: SentVisit) -> Response:
    """Ends the session of this browser."""
    response = visit.go("/")
    response.delete_cookie(SESSION_COOKIE, path=visit.service.settings.root or "/")
    return response


# ---------------------------------------------------------------- what is shown


def _studies_page(visit: Visit, secret: Secret | None = None) -> Response:
    store, is_admin = visit.service.store, visit.member.role == "admin"
    rows = [row for row in store.studies.all() if visit.member.may_see(row.id)]
    return visit.page(
        "dashboard_studies.html",
        studies=[_summary(visit.service, row) for row in rows],
        secret=secret,
        example=EXAMPLE_SETTINGS,
        is_admin=is_admin,
        acts=[_act(row) for row in store.access.audit(limit=MAX_ACTS)] if is_admin else [],
    )


def _act(row: Any) -> dict[str, object]:
    happened_at = datetime.fromtimestamp(row.happened_at, UTC)
    return {"happened_at": happened_at, "actor": row.actor, "act": row.act, "study": row.study_id}


def _study_page(visit: Visit, study_id: str, sort: str = "answers", secret: Secret | None = None) -> Response:
    row = visit.study(study_id)
    service = visit.service
    return visit.page(
        "dashboard_study.html",
        study=row.config,
        status=row.status,
        secret=secret,
        entrance=service.settings.public_url + service.entrance(row),
        webhook_key=webhook_key(service.settings.secret, row.id) if row.config.webhook_url else "",
        tokens=[_token(token) for token in service.store.access.tokens(study_id)],
        **_live(service, row, sort),
    )


def _summary(service: Service, row: StudyRow) -> dict[str, object]:
    counts = service.store.studies.counts(row.id)
    return {
        "id": row.id,
        "title": row.config.title,
        "status": row.status,
        "percent": 100 * (counts.num_wanted - counts.num_waiting) // counts.num_wanted if counts.num_wanted else 0,
        "num_answers": counts.num_answers,
        "num_waiting": counts.num_waiting,
        "num_annotators": counts.num_annotators,
        "created_at": datetime.fromtimestamp(row.created_at, UTC),
    }


def _live(service: Service, row: StudyRow, sort: str) -> dict[str, object]:
    """Returns what the changing part of a study's page is made of."""
    report = service.report(row.id)
    counts = service.store.studies.counts(row.id)
    column = _known("column", sort, COLUMNS)
    people = sort_people(report.annotators, column)
    return {
        "report": report,
        "charts": study_charts(report),
        "num_wanted": counts.num_wanted,
        "num_done": counts.num_wanted - counts.num_waiting,
        "num_queries": counts.num_queries,
        "num_people": counts.num_annotators,
        "num_active": _num_active(report),
        "num_finished": counts.num_done,
        "num_withdrawn": counts.num_withdrawn,
        "annotators": people[:MAX_PEOPLE],
        "num_hidden": max(0, len(people) - MAX_PEOPLE),
        "columns": [known for known in COLUMNS.values() if report.arms or known.key != "arm"],
        "sort": column.key,
    }


def sort_people(people: Sequence[AnnotatorReport], column: Column) -> list[AnnotatorReport]:
    """Returns people by a column; those of whom it is not known come last."""
    known = [row for row in people if column.value(row) is not None]
    unknown = [row for row in people if column.value(row) is None]
    return sorted(known, key=column.value, reverse=column.direction == "descending") + unknown


def _num_active(report: StudyReport) -> int:
    since = datetime.now(UTC) - ACTIVE
    return sum(row.last_answered_at >= since for row in report.annotators)


def _token(row: TokenRow) -> dict[str, object]:
    return {"id": row.id, "name": row.name, "is_revoked": row.revoked_at is not None}


def _sides(query: Any, answers: Sequence[StoredAnswer]) -> list[dict[str, object]]:
    """Returns the clips of a query, with how often each was chosen."""
    counted = [row.choice for row in answers if not row.is_undone and not row.repeat and row.choice is not None]
    if query.right is None:
        return [{"side": query.left, "title": "The clip", "num_votes": None, "is_favoured": False}]
    votes = {name: sum(choice == name for choice in counted) for name in ("left", "right")}
    return [
        {
            "side": getattr(query, name),
            "title": f"{name.capitalize()} of the query",
            "num_votes": votes[name],
            "is_favoured": votes[name] > votes["right" if name == "left" else "left"],
        }
        for name in ("left", "right")
    ]


def _said(answer: StoredAnswer) -> str:
    if answer.choice is not None:
        return "can't tell" if answer.choice == "skip" else str(answer.choice)
    if answer.rating is not None:
        return f"{answer.rating:.2f}"
    if answer.steps is not None:
        good, bad = (sum(step == sign for step in answer.steps) for sign in (1, -1))
        return f"{good} good, {bad} bad frames"
    return f"{len(answer.actions or ())} actions"


def _source(about: dict[str, Any]) -> str:
    """Returns in a few words where a query comes from."""
    named = [(name, about.get(name)) for name in ("run", "checkpoint", "reward_version", "seed")]
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in named if value not in (None, ""))


def _known(kind: str, name: str, registry: dict[str, Any]) -> Any:
    if name not in registry:
        raise WrongError(f"there is no {kind} {name[:40]!r}. Known: {', '.join(registry)}.")
    return lookup(kind, name, registry)


def _number(text: str, title: str, lowest: int, highest: int) -> int:
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None
    if number is None or not lowest <= number <= highest:
        raise WrongError(f"{title} must be a whole number from {lowest} to {highest}, not {text[:20]!r}.")
    return number
