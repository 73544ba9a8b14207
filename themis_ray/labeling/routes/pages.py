"""The pages of people who take part: how they come in, agree, are asked, work, and leave.

Forms are sent to these routes and do what the JSON API does with the same calls of the store. Every page but the work
itself does without scripts.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Coroutine, Mapping
from typing import Annotated, Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute

from themis_ray.labeling.callers import ServiceOf, annotator_session, current_member, require_csrf
from themis_ray.labeling.cookies import annotator_cookie, open_study, sign_in_annotator, sign_in_member
from themis_ray.labeling.routes.annotator import join_study, session_view
from themis_ray.labeling.security import Invitation, SessionCookie
from themis_ray.labeling.service import Service
from themis_ray.labeling.store import (
    Annotator,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    StoreError,
    WrongError,
    panel_key,
)
from themis_ray.labeling.study import Question, ScaleQuestion, StudyConfig
from themis_ray.labeling.web import page_renderer

__all__ = ["error_page", "router"]

MAX_FORM_BYTES = 500_000
MAX_FORM_FIELDS = 500
MAX_NAME = 100
NOT_STORED = {"Cache-Control": "no-store"}
ENDED = ("done", "withdrawn", "screened_out")
TITLES = {
    401: "Please come in by your link",
    403: "This is not open to you",
    404: "There is nothing here",
    409: "That is not what comes next",
    413: "That was too much",
    422: "Something is missing",
    429: "One moment, please",
    503: "The service is busy",
}


class Form:
    """A form that was sent, read before a route runs in its thread."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        self.fields = fields

    def __getitem__(self, name: str) -> str:
        return self.fields.get(name, "")


async def read_form(request: Request) -> Form:
    """Reads the fields of a form, which are text.

    Raises:
        WrongError: It is longer than any form of these pages.
    """
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_FORM_BYTES:
            raise WrongError(f"this form is longer than {MAX_FORM_BYTES} bytes. Shorten what you wrote.")
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FORM_FIELDS)
    except ValueError as error:
        raise WrongError("this is no form of these pages. Go back and send it again.") from error
    return Form(dict(pairs))


def error_page(root: str, status: int, text: str) -> HTMLResponse:
    """Returns a page that says what went wrong and leads on."""
    is_in_study = status in (409, 422, 429, 503)
    context = {
        "status": f"Status {status}",
        "title": TITLES.get(status, "Something went wrong"),
        "text": text[:1].upper() + text[1:],
        "back": "/work" if is_in_study else "/",
        "back_label": "Back to the study" if is_in_study else "To the start",
    }
    return HTMLResponse(page_renderer(root).render("error.html", **context), status, headers=NOT_STORED)


class PageRoute(APIRoute):
    """A route whose refusals are pages."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Returns the route's handler, with refusals as pages."""
        handle = super().get_route_handler()

        async def handle_refusals(request: Request) -> Response:
            try:
                return await handle(request)
            except StoreError as error:
                service: Service = request.app.state.service
                return error_page(service.settings.root, error.status, str(error))

        return handle_refusals


router = APIRouter(route_class=PageRoute, include_in_schema=False, default_response_class=HTMLResponse)

SentForm = Annotated[Form, Depends(read_form)]


class Person:
    """Somebody who takes part, and the request that they make."""

    def __init__(self, service: Service, cookie: SessionCookie, annotator: Annotator) -> None:
        self.service, self.cookie, self.annotator = service, cookie, annotator
        self.config = annotator.study.config

    def page(self, template: str, status: int = 200, **context: object) -> Response:
        """Returns a page for this person."""
        session = session_view(self.service, self.cookie, self.annotator)
        overlay = self.annotator.overlay
        return _page(self.service, template, status, session=session, study=self.config, overlay=overlay, **context)

    def go_on(self) -> Response:
        """Sends this person to the page of whatever stage they are in."""
        return _go_to_work(self.service, self.annotator)

    def is_named(self, panel: Mapping[str, str]) -> bool:
        """Whether a link with these parameters is this person's own, or names nobody."""
        return panel_key(self.annotator.study, panel) in (None, self.annotator.panel_key)

    def questions(self, which: str, values: Mapping[str, str], problems: Mapping[str, str]) -> Response:
        """Returns the questions before or after the work, with what was answered and what is wrong with it."""
        return self.page(
            "questions.html",
            422 if problems else 200,
            which=which,
            questions=self.config.before if which == "before" else self.config.after,
            values=values,
            problems=problems,
            error="Something is missing below." if problems else "",
        )


def _to_person(service: Service, session: SessionCookie | None) -> Person | None:
    try:
        return None if session is None else Person(service, session, service.store.people.get(session.id))
    except NotFoundError:
        return None


def _find_person(request: Request, service: ServiceOf) -> Person | None:
    return _to_person(service, annotator_session(request))


def _find_person_in(request: Request, service: Service, study_id: str) -> Person | None:
    cookie = request.cookies.get(annotator_cookie(study_id), "")
    person = _to_person(service, service.signer.read_session(cookie))
    return person if person is not None and person.annotator.study.id == study_id else None


PersonOrNobody = Annotated[Person | None, Depends(_find_person)]


def _sending_person(request: Request, service: ServiceOf, form: SentForm) -> Person:
    person = _to_person(service, annotator_session(request, form["csrf_token"]))
    if person is None:
        raise ForbiddenError("your session is over. Open the link of the study again.")
    require_csrf(request, person.cookie, form["csrf_token"])
    return person


SendingPerson = Annotated[Person, Depends(_sending_person)]

# ---------------------------------------------------------------- coming in


@router.get("/")
def start(request: Request, service: ServiceOf, person: PersonOrNobody) -> Response:
    """The sign-in page; whoever is in already goes on."""
    if current_member(request) is not None:
        return _go(service, "/studies")
    if person is not None:
        return person.go_on()
    return _page(service, "sign_in.html", error="")


@router.post("/")
def paste_link(service: ServiceOf, form: SentForm) -> Response:
    """Takes a link, or an invitation alone, that somebody pasted."""
    entrance = _find_entrance(service, form["invitation"].strip())
    if entrance is not None:
        return _go(service, entrance)
    error = "This is no link of a study. Paste the whole of it, as you were given it."
    return _page(service, "sign_in.html", 422, error=error)


def _find_entrance(service: Service, link: str) -> str | None:
    try:
        parts = urlsplit(link)
    except ValueError:
        return None
    path = parts.path.removeprefix(service.settings.root)
    if path.startswith(("/join/", "/s/")):
        return quote(path) + (f"?{parts.query}" if parts.query else "")
    return f"/join/{quote(path)}" if path and "/" not in path and not parts.scheme else None


@router.get("/join/{invitation}")
def show_invitation(request: Request, service: ServiceOf, invitation: str) -> Response:
    """What an invitation is for; nobody joins by looking at it, so that previews of links use none up."""
    invited = service.signer.read_invitation(invitation)
    action = f"{service.settings.root}/join/{quote(invitation)}"
    if invited.role != "annotator":
        return _page(
            service,
            "join.html",
            eyebrow="You are invited",
            title=f"Become {'an admin' if invited.role == 'admin' else 'an experimenter'}",
            lines=["This invitation works once, and keeps you signed in on this browser."],
            action=action,
            asks_name=True,
            button="Come in",
        )
    study = service.store.studies.get(invited.study or "")
    person = _find_person_in(request, service, study.id)
    if person is not None and person.is_named(request.query_params):
        return person.go_on()
    if study.status == "stopped" and panel_key(study, request.query_params) is None:  # else `join` knows who was in
        raise ForbiddenError("this study has ended. Thank you for coming.")
    wanted = study.config.panel.id_parameters
    panel = [(name, request.query_params[name]) for name in wanted if name in request.query_params]
    return _page(
        service,
        "join.html",
        eyebrow="You are invited to a study",
        title=study.config.title,
        lines=_promises(study.config),
        action=f"{action}?{urlencode(panel)}" if panel else action,
        asks_name=False,
        button="Start",
    )


@router.get("/s/{study}")
def enter(request: Request, service: ServiceOf, study: str) -> Response:
    """The entrance of a study, whose link carries the invitation as a parameter."""
    invitation = request.query_params.get("invitation", "")
    if invitation:
        kept = [(name, value) for name, value in request.query_params.multi_items() if name != "invitation"]
        path = f"/join/{quote(invitation)}"
        return _go(service, f"{path}?{urlencode(kept)}" if kept else path)
    person = _find_person_in(request, service, study)
    if person is not None:
        return person.go_on()
    raise ForbiddenError("a study is entered by the link that you were given. Open the whole of it again.")


@router.post("/join/{invitation}")
def join(request: Request, service: ServiceOf, form: SentForm, invitation: str) -> Response:
    """Makes an annotator, or finds the one that the panel's ids belong to; makes a member of who is to be one."""
    if request.headers.get("Sec-Fetch-Site") == "cross-site":
        raise ForbiddenError("another site sent you here. Open the link of the study itself.")
    invited = service.signer.read_invitation(invitation)
    if invited.role != "annotator":
        return _make_member(service, invited, form["name"].strip())
    assert invited.study is not None
    person = _find_person_in(request, service, invited.study)
    if person is not None and person.is_named(request.query_params):
        return person.go_on()
    annotator = join_study(service, invited.study, invitation, dict(request.query_params))
    response = _go_to_work(service, annotator)
    sign_in_annotator(response, service, annotator)
    return response


def _make_member(service: Service, invited: Invitation, name: str) -> Response:
    if not name or len(name) > MAX_NAME:
        raise WrongError(f"a name of 1 to {MAX_NAME} characters is needed. Go back and give one.")
    assert invited.role != "annotator"
    member = service.store.access.accept_invitation(invited.nonce, invited.role, name, invited.study)
    response = _go(service, "/studies")
    sign_in_member(response, service, member.id)
    return response


# ---------------------------------------------------------------- taking part


@router.get("/work")
def work(service: ServiceOf, person: PersonOrNobody) -> Response:
    """The page of whatever stage the person is in."""
    if person is None:
        return _go(service, "/")
    stage = person.annotator.stage
    if stage == "consent":
        return person.page("consent.html", consent=person.config.consent, error="")
    if stage in ("before", "after"):
        return person.questions(stage, {}, {})
    if stage in ENDED:
        completion = service.store.people.completion(person.annotator.id)
        return person.page("done.html", completion=completion)
    return person.page("work.html", last_answer=service.store.work.last_answer(person.annotator.id) or "")


@router.get("/help")
def show_help(request: Request, service: ServiceOf, latest: PersonOrNobody, study: str = "") -> Response:
    """Keys, what is good to know, and the way out of one study: that of the page it was asked from."""
    person = _find_person_in(request, service, study) if study else latest
    if person is None:
        return _page(service, "help.html", session=None, study=None, overlay="")
    return person.page("help.html")


@router.post("/consent")
def consent(service: ServiceOf, person: SendingPerson, form: SentForm) -> Response:
    """Agrees to the text that was shown, or does not take part."""
    if person.annotator.stage != "consent":
        return person.go_on()
    if form["agrees"] not in ("yes", "no"):
        raise WrongError("agree, or do not take part: one of the two buttons.")
    text = person.config.consent
    assert text is not None
    if (form["version"], form["hash"]) != (text.version, text.hash):
        error = "The text has changed since you opened this page. Please read it again."
        return person.page("consent.html", 409, consent=text, error=error)
    is_willing = form["agrees"] == "yes"
    service.store.people.consent(person.annotator.id, form["version"], form["hash"], agrees=is_willing)
    return person.go_on()


@router.post("/questions/{which}")
def respond(service: ServiceOf, person: SendingPerson, form: SentForm, which: str) -> Response:
    """Stores answers to the questions before or after the work."""
    if which not in ("before", "after"):
        raise NotFoundError(f"there are questions before and after the work, and none called {which!r}.")
    if person.annotator.stage != which:
        return person.go_on()
    given = {
        name.removeprefix("answer-"): text.strip().replace("\r\n", "\n")  # which is how forms send line breaks
        for name, text in form.fields.items()
        if name.startswith("answer-") and text.strip()
    }
    answers, problems = _read_answers(person.config.before if which == "before" else person.config.after, given)
    if problems:
        return person.questions(which, given, problems)
    service.store.people.respond(person.annotator.id, which, answers)
    return person.go_on()


@router.post("/withdraw")
def withdraw(service: ServiceOf, person: SendingPerson, form: SentForm) -> Response:
    """Deletes what the person has said, if they are sure."""
    if form["is_sure"] != "yes":
        raise WrongError("tick the box first: leaving deletes all your answers.")
    service.store.people.withdraw(person.annotator.id, by=person.annotator.id)
    return person.go_on()


@router.post("/finish")
def finish(service: ServiceOf, person: SendingPerson) -> Response:
    """Ends the work of somebody who has nothing to answer; the code is stored before anybody is sent anywhere."""
    with contextlib.suppress(ConflictError):  # the page shows what comes first
        service.finish(person.annotator.id)
    return person.go_on()


# ---------------------------------------------------------------- parts


def _page(service: Service, template: str, status: int = 200, **context: object) -> Response:
    page = page_renderer(service.settings.root).render(template, **context)
    return HTMLResponse(page, status, headers=NOT_STORED)


def _go(service: Service, path: str) -> RedirectResponse:
    return RedirectResponse(service.settings.root + path, 303, headers=NOT_STORED)


def _go_to_work(service: Service, annotator: Annotator) -> RedirectResponse:
    response = _go(service, "/work")
    open_study(response, service, annotator.study.id)
    return response


def _promises(config: StudyConfig) -> list[str]:
    """Returns what is said about a study at its door."""
    num = config.queries_per_annotator
    if config.feedback == "pairwise":
        what = f"You watch {num} pairs of short clips and say which one is better."
    elif config.feedback == "demonstration":
        what = f"You act {num} times in a small world, with the keyboard or by touch."
    else:
        what = f"You watch {num} short clips and judge them."
    return [what, "It works on a phone and on a computer. You can stop at any time."]


def _read_answers(
    questions: tuple[Question, ...], given: Mapping[str, str]
) -> tuple[dict[str, str | int], dict[str, str]]:
    """Returns answers as the store takes them, and what is wrong with the others, by question."""
    answers: dict[str, str | int] = {}
    problems: dict[str, str] = {}
    for question in questions:
        text = given.get(question.id)
        if text is None:
            if question.is_required:
                problems[question.id] = "Please answer this one."
        elif isinstance(question, ScaleQuestion):
            if re.fullmatch(r"-?[0-9]{1,9}", text):
                answers[question.id] = int(text)
            else:
                problems[question.id] = "Please choose a number."
        else:
            answers[question.id] = text
    return answers, problems
