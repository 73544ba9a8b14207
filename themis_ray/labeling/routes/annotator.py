"""The API of annotators: what the page that compares clips calls, and programs that do as it does."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Response
from pydantic import Field

from themis_ray.labeling.callers import AnnotatorCaller, ServiceOf, SessionOf
from themis_ray.labeling.cookies import sign_in_annotator
from themis_ray.labeling.routes.demonstrations import check_actions
from themis_ray.labeling.security import SessionCookie
from themis_ray.labeling.service import Service
from themis_ray.labeling.store import Annotator, ForbiddenError
from themis_ray.wire import AnswerReceipt, JoinRequest, LongId, NewAnswer, Progress, Session, Slug, Stage, Wire, Work

__all__ = ["join_study", "router", "session_view"]

router = APIRouter(tags=["annotators"])

Count = Annotated[int, Query(ge=0, le=10, description="How many assignments to hold.")]


class ConsentRequest(Wire):
    """Agreement to a text, or none."""

    version: str = Field(max_length=64)
    hash: str = Field(max_length=64)
    agrees: bool


class ResponsesRequest(Wire):
    """Answers to the questions before or after the work, by the id of the question."""

    answers: dict[str, Any] = Field(max_length=100)


class CompletionView(Wire):
    """What a person gets at the end."""

    stage: Stage
    code: str
    redirect_url: str


def session_view(service: Service, session: SessionCookie, annotator: Annotator) -> Session:
    """Returns who somebody is and what comes next, as it is sent."""
    return Session(
        annotator_id=annotator.id,
        study=annotator.study.id,
        stage=annotator.stage,
        arm=annotator.arm,
        csrf_token=service.signer.csrf_token(session),
        progress=Progress(num_answered=annotator.num_answered, num_total=annotator.study.config.queries_per_annotator),
    )


def join_study(service: Service, study_id: str, invitation: str, panel: dict[str, str]) -> Annotator:
    """Lets somebody into a study.

    Raises:
        ForbiddenError: The invitation is not one of this study's, or the study takes nobody.
        NotFoundError: There is no such study.
        TooManyError: Too many come at once.
    """
    invited = service.signer.read_invitation(invitation)
    if invited.role != "annotator" or invited.study != study_id:
        raise ForbiddenError("this invitation is for something else. Ask for one of this study.")
    service.store.access.count_hit(f"joins:{study_id}", service.settings.joins_per_minute, 60.0)
    return service.store.people.join(study_id, panel)


@router.post("/studies/{study}/join")
def join(service: ServiceOf, response: Response, study: Annotated[Slug, Path()], request: JoinRequest) -> Session:
    """Makes an annotator, who is signed in by the cookie of the answer."""
    annotator = join_study(service, study, request.invitation, dict(request.panel))
    session = sign_in_annotator(response, service, annotator)
    return session_view(service, session, annotator)


@router.get("/me")
def me(service: ServiceOf, annotator_id: AnnotatorCaller, cookie: SessionOf) -> Session:
    """Tells who is signed in."""
    return session_view(service, cookie, service.store.people.get(annotator_id))


@router.post("/consent")
def consent(service: ServiceOf, annotator_id: AnnotatorCaller, cookie: SessionOf, request: ConsentRequest) -> Session:
    """Stores agreement to the text that was shown; without it the person's part ends."""
    annotator = service.store.people.consent(annotator_id, request.version, request.hash, agrees=request.agrees)
    return session_view(service, cookie, annotator)


@router.post("/questions/{which}")
def respond(
    service: ServiceOf,
    annotator_id: AnnotatorCaller,
    cookie: SessionOf,
    which: Literal["before", "after"],
    request: ResponsesRequest,
) -> Session:
    """Stores what a person says about themselves or the study."""
    annotator = service.store.people.respond(annotator_id, which, request.answers)
    return session_view(service, cookie, annotator)


@router.get("/assignments")
def assignments(service: ServiceOf, annotator_id: AnnotatorCaller, count: Count = 3) -> Work:
    """Leases queries until the person holds `count`."""
    return service.work(service.store.work.desk(annotator_id, count))


@router.post("/answers")
def answer(service: ServiceOf, annotator_id: AnnotatorCaller, new: NewAnswer) -> AnswerReceipt:
    """Stores an answer and returns what comes next. What this returns is on the disk."""
    if new.actions is not None:
        check_actions(service, annotator_id, new.actions)
    receipt = service.store.work.answer(annotator_id, new)
    return AnswerReceipt(
        answer_id=new.answer_id,
        is_duplicate=receipt.is_duplicate,
        work=service.work(receipt.desk),
        feedback=receipt.feedback,
    )


@router.post("/answers/{answer_id}/undo")
def undo(
    service: ServiceOf, annotator_id: AnnotatorCaller, answer_id: Annotated[LongId, Path()], count: Count = 3
) -> Work:
    """Takes back the last answer, whose query comes first again."""
    return service.work(service.store.work.undo(annotator_id, answer_id, count))


@router.post("/withdraw")
def withdraw(service: ServiceOf, annotator_id: AnnotatorCaller) -> CompletionView:
    """Removes everything the person has said."""
    done = service.store.people.withdraw(annotator_id, annotator_id)
    return CompletionView(stage=done.stage, code=done.code, redirect_url=done.redirect_url)


@router.post("/finish")
def finish(service: ServiceOf, annotator_id: AnnotatorCaller) -> CompletionView:
    """Ends the work of somebody who has nothing to answer, or tells a person who is done where to go."""
    done = service.finish(annotator_id)
    return CompletionView(stage=done.stage, code=done.code, redirect_url=done.redirect_url)
