"""The API of experimenters: people with a session, and programs with a token of one study."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from themis_ray.files import write_whole
from themis_ray.labeling.callers import AdminCaller, AnyCaller, ServiceOf, StudyCaller
from themis_ray.labeling.clip_server import clip_path
from themis_ray.labeling.report_parts import StudyReport
from themis_ray.labeling.service import Service
from themis_ray.labeling.store import ConflictError, ForbiddenError, NotFoundError, StudyRow, WrongError
from themis_ray.labeling.study import StudyConfig
from themis_ray.wire import AnswerPage, ClipName, LongId, NewQuery, Slug, StoredAnswer, Wire

__all__ = ["TooLargeError", "router"]

router = APIRouter(tags=["experimenters"])

MAX_QUERIES = 500
WEBM_MAGIC, MP4_MAGIC = b"\x1a\x45\xdf\xa3", b"ftyp"


class TooLargeError(WrongError):
    """More bytes than are taken."""

    status = 413


class StudyView(Wire):
    """A study as it is now."""

    id: str
    title: str
    status: Literal["running", "paused", "stopped"]
    created_at: datetime
    num_queries: int
    num_answers: int
    num_wanted: int
    num_waiting: int
    num_annotators: int
    entrance: str = Field(description="Address of the study for annotators.")
    settings: StudyConfig


class StatusRequest(Wire):
    """What a study is to do."""

    status: Literal["running", "paused", "stopped"]


class ExtendRequest(Wire):
    """More of the same."""

    overlap: int | None = Field(default=None, ge=1, le=1000)
    queries_per_annotator: int | None = Field(default=None, ge=1, le=100_000)
    max_answers: int | None = Field(default=None, ge=1, le=2**62)


class QueriesRequest(Wire):
    """Queries to put to people."""

    queries: Annotated[tuple[NewQuery, ...], Field(min_length=1, max_length=MAX_QUERIES)]


class QueriesReceipt(Wire):
    """The queries are stored."""

    num_new: int
    num_known: int


class ClipReceipt(Wire):
    """The clip is stored."""

    name: str
    num_bytes: int


class SideView(Wire):
    """One side of a query, with the address of its clip."""

    segment_id: str
    clip: str
    url: str
    num_frames: int
    clip_fps: float
    overlays: dict[str, str] = Field(default={}, description="Addresses of the same clip explained, by explanation.")


class QueryView(Wire):
    """A query and what was said about it."""

    id: str
    feedback: str
    kind: str
    gold_choice: str | None
    left: SideView
    right: SideView | None
    overlap: int
    num_taken: int
    num_answers: int
    about: dict[str, Any]
    answers: tuple[StoredAnswer, ...] = ()


class QueryPage(Wire):
    """Queries in the order of their ids."""

    queries: tuple[QueryView, ...]
    after: str = Field(description="Send it as after= to get what follows; empty at the end.")


class ResponseView(Wire):
    """What somebody answered to the questions before or after the work."""

    annotator_id: str
    which: Literal["before", "after"]
    answers: dict[str, str | int] = Field(description="By the id of the question; those not answered are not in it.")
    answered_at: datetime


class InvitationRequest(Wire):
    """Somebody is to be let in."""

    role: Literal["annotator", "experimenter"] = "annotator"
    valid_s: float = Field(default=7 * 24 * 3600, ge=60, le=366 * 24 * 3600)


class AdminInvitationRequest(Wire):
    """A member without a study of their own is to be let in."""

    role: Literal["admin", "experimenter"] = "experimenter"
    valid_s: float = Field(default=7 * 24 * 3600, ge=60, le=366 * 24 * 3600)


class InvitationView(Wire):
    """A link that lets somebody in; whoever has it can use it."""

    url: str


class TokenRequest(Wire):
    """A program is to be let in."""

    name: str = Field(min_length=1, max_length=128)


class TokenView(Wire):
    """A token. `token` is told when it is made and never again."""

    id: str
    name: str
    created_at: datetime
    is_revoked: bool
    token: str = ""


class AuditRow(Wire):
    """Something that somebody did."""

    number: int
    happened_at: datetime
    actor: str
    act: str
    study: str | None
    about: dict[str, Any]


def study_view(service: Service, row: StudyRow) -> StudyView:
    """Returns a study as it is sent."""
    counts = service.store.studies.counts(row.id)
    return StudyView(
        id=row.id,
        title=row.config.title,
        status=row.status,
        created_at=datetime.fromtimestamp(row.created_at, UTC),
        num_queries=counts.num_queries,
        num_answers=counts.num_answers,
        num_wanted=counts.num_wanted,
        num_waiting=counts.num_waiting,
        num_annotators=counts.num_annotators,
        entrance=service.settings.public_url + service.entrance(row),
        settings=row.config,
    )


# ---------------------------------------------------------------- studies


@router.post("/studies", status_code=201)
def create_study(service: ServiceOf, caller: AnyCaller, config: StudyConfig) -> StudyView:
    """Makes a study, which the maker may see from then on. Their same study again changes nothing."""
    if caller.member is None:
        raise ForbiddenError("a token is of one study and makes no others. Sign in to make a study.")
    return study_view(service, service.store.studies.create(config, caller.id, caller.member))


@router.get("/studies")
def list_studies(service: ServiceOf, caller: AnyCaller) -> list[StudyView]:
    """Lists the studies that the caller may see, the newest first."""
    return [study_view(service, row) for row in service.store.studies.all() if caller.may_see(row.id)]


@router.get("/studies/{study}")
def get_study(service: ServiceOf, caller: StudyCaller, study: Annotated[Slug, Path()]) -> StudyView:
    """Tells how a study is doing."""
    del caller
    return study_view(service, service.store.studies.get(study))


@router.post("/studies/{study}/status")
def set_status(
    service: ServiceOf, caller: StudyCaller, study: Annotated[Slug, Path()], request: StatusRequest
) -> StudyView:
    """Pauses or stops a study, or lets it go on."""
    return study_view(service, service.store.studies.set_status(study, request.status, caller.id))


@router.post("/studies/{study}/extend")
def extend(
    service: ServiceOf, caller: StudyCaller, study: Annotated[Slug, Path()], request: ExtendRequest
) -> StudyView:
    """Asks for more answers per query, more queries per annotator, or more answers in all."""
    return study_view(service, service.store.studies.extend(study, caller.id, **request.model_dump()))


@router.get("/studies/{study}/report")
def report(service: ServiceOf, caller: StudyCaller, study: Annotated[Slug, Path()]) -> StudyReport:
    """Counts, agreement and reliability, a few seconds old; older in a study of very many answers."""
    del caller
    return service.report(study)


# ---------------------------------------------------------------- clips and queries


@router.put("/studies/{study}/clips/{name}")
async def add_clip(
    request: Request,
    service: ServiceOf,
    caller: StudyCaller,
    study: Annotated[Slug, Path()],
    name: Annotated[ClipName, Path()],
) -> ClipReceipt:
    """Stores a clip: the body is the file, the name what `write_clip` calls it. Once stored it does not change."""
    del caller
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > service.settings.max_clip_bytes:
            raise TooLargeError(f"the clip is larger than {service.settings.max_clip_bytes} bytes.")
    await run_in_threadpool(_store_clip, service, study, name, bytes(body))
    return ClipReceipt(name=name, num_bytes=len(body))


@router.get("/studies/{study}/clips/{name}", status_code=204)
def has_clip(
    service: ServiceOf, caller: StudyCaller, study: Annotated[Slug, Path()], name: Annotated[ClipName, Path()]
) -> Response:
    """Tells whether a study has a clip of this name."""
    del caller
    if not service.store.studies.has_clip(study, name):
        raise NotFoundError(f"study {study!r} has no clip {name}.")
    return Response(status_code=204)


def _store_clip(service: Service, study: str, name: str, body: bytes) -> None:
    is_video = body[:4] == WEBM_MAGIC if name.endswith(".webm") else body[4:8] == MP4_MAGIC
    if not is_video:
        raise WrongError(f"{name} is no such video. Send a file that themis_ray.clips.write_clip has written.")
    service.store.studies.get(study)
    path = clip_path(service.settings.clips_folder, study, name)
    if path.exists():
        if path.stat().st_size != len(body):
            raise ConflictError(f"there is another clip {name}. A clip's name is that of its content.")
    else:
        write_whole(path, body)
    service.store.studies.add_clip(study, name, len(body))


@router.post("/studies/{study}/queries")
def add_queries(
    service: ServiceOf, caller: StudyCaller, study: Annotated[Slug, Path()], request: QueriesRequest
) -> QueriesReceipt:
    """Adds queries whose clips are there; known ids change nothing."""
    num_new = service.store.studies.add_queries(study, request.queries, caller.id)
    return QueriesReceipt(num_new=num_new, num_known=len(request.queries) - num_new)


@router.get("/studies/{study}/queries")
def list_queries(
    service: ServiceOf,
    caller: StudyCaller,
    study: Annotated[Slug, Path()],
    after: Annotated[str, Query(max_length=128)] = "",
    limit: Annotated[int, Query(ge=1, le=MAX_QUERIES)] = 100,
) -> QueryPage:
    """Lists queries, without their answers."""
    del caller
    service.store.studies.get(study)
    rows = service.store.studies.queries(study, after=after, limit=limit)
    return QueryPage(
        queries=tuple(query_view(service, row) for row in rows), after=rows[-1].id if len(rows) == limit else ""
    )


@router.get("/studies/{study}/queries/{query_id}")
def get_query(
    service: ServiceOf, caller: StudyCaller, study: Annotated[Slug, Path()], query_id: Annotated[LongId, Path()]
) -> QueryView:
    """Shows a query with its answers."""
    del caller
    row = service.store.studies.query(study, query_id)
    answers = service.store.work.answers(study, query_id=query_id, limit=10_000).answers
    return query_view(service, row).model_copy(update={"answers": answers})


def query_view(service: Service, row: Any) -> QueryView:
    """Returns a query as it is sent, without its answers."""
    left = _side_view(service, row, "left")
    right = None if row.right_clip is None else _side_view(service, row, "right")
    return QueryView(
        left=left,
        right=right,
        **{
            name: getattr(row, name)
            for name in ("id", "feedback", "kind", "gold_choice", "overlap", "num_taken", "num_answers", "about")
        },
    )


def _side_view(service: Service, row: Any, name: str) -> SideView:
    segment, clip, num_frames, clip_fps, overlays = (
        getattr(row, f"{name}_{field}") for field in ("segment", "clip", "num_frames", "clip_fps", "overlays")
    )
    return SideView(
        segment_id=segment,
        clip=clip,
        url=service.clip_url(row.study_id, clip),
        num_frames=num_frames,
        clip_fps=clip_fps,
        overlays={overlay: service.clip_url(row.study_id, file) for overlay, file in (overlays or {}).items()},
    )


# ---------------------------------------------------------------- answers and people


@router.get("/studies/{study}/answers")
def answers(
    service: ServiceOf,
    caller: StudyCaller,
    study: Annotated[Slug, Path()],
    after: Annotated[int, Query(ge=0, le=2**62)] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> AnswerPage:
    """Returns answers that arrived after a cursor, with the reliability of who gave them."""
    del caller
    page = service.store.work.answers(study, after=after, limit=limit)
    weights = service.weights(study) if page.answers else {}
    return AnswerPage(
        answers=tuple(
            row.model_copy(update={"weight": weights[row.annotator_id]}) if row.annotator_id in weights else row
            for row in page.answers
        ),
        withdrawn=page.withdrawn,
        undone=page.undone,
        cursor=page.cursor,
        num_waiting=page.num_waiting,
        status=page.status,
    )


@router.get("/studies/{study}/responses")
def responses(service: ServiceOf, caller: StudyCaller, study: Annotated[Slug, Path()]) -> list[ResponseView]:
    """Returns what people answered to the questions before and after the work; nothing of those who withdrew."""
    service.store.studies.get(study)
    rows = service.store.people.responses(study)
    service.store.access.record(caller.id, "responses.export", study, {"num_rows": len(rows)})
    return [
        ResponseView(
            annotator_id=row.annotator_id,
            which=row.which,
            answers=row.answers,
            answered_at=datetime.fromtimestamp(row.answered_at, UTC),
        )
        for row in rows
    ]


@router.post("/studies/{study}/annotators/{annotator_id}/withdraw", status_code=204)
def withdraw_annotator(
    service: ServiceOf, caller: StudyCaller, study: Annotated[Slug, Path()], annotator_id: Annotated[LongId, Path()]
) -> Response:
    """Removes everything that an annotator has said."""
    if service.store.people.get(annotator_id).study.id != study:
        raise WrongError(f"study {study!r} has no annotator {annotator_id!r}.")
    service.store.people.withdraw(annotator_id, caller.id)
    return Response(status_code=204)


@router.post("/studies/{study}/invitations", status_code=201)
def invite(
    service: ServiceOf, caller: StudyCaller, study: Annotated[Slug, Path()], request: InvitationRequest
) -> InvitationView:
    """Makes a link for annotators, which many may use, or for one experimenter of this study."""
    service.store.studies.get(study)
    if request.role != "annotator" and caller.member is None:
        raise ForbiddenError("a token invites annotators only. Sign in to invite experimenters.")
    text = service.signer.make_invitation(request.role, study, request.valid_s)
    service.store.access.record(caller.id, f"invite.{request.role}", study, {"valid_s": request.valid_s})
    path = f"/s/{study}?invitation={text}" if request.role == "annotator" else f"/join/{text}"
    return InvitationView(url=service.settings.public_url + service.settings.root + path)


@router.get("/studies/{study}/tokens")
def list_tokens(service: ServiceOf, caller: StudyCaller, study: Annotated[Slug, Path()]) -> list[TokenView]:
    """Lists the tokens of a study, not what they are."""
    del caller
    return [_token_view(row) for row in service.store.access.tokens(study)]


@router.post("/studies/{study}/tokens", status_code=201)
def make_token(
    service: ServiceOf, caller: StudyCaller, study: Annotated[Slug, Path()], request: TokenRequest
) -> TokenView:
    """Makes a token of one study; it is told now and never again."""
    if caller.member is None:
        raise ForbiddenError("a token makes no tokens. Sign in to make one.")
    secret, row = service.store.access.make_token(study, request.name, caller.id)
    return _token_view(row).model_copy(update={"token": secret})


@router.delete("/studies/{study}/tokens/{token_id}", status_code=204)
def revoke_token(
    service: ServiceOf, caller: StudyCaller, study: Annotated[Slug, Path()], token_id: Annotated[LongId, Path()]
) -> Response:
    """Makes a token worthless."""
    if caller.member is None:
        raise ForbiddenError("a token revokes no tokens. Sign in to revoke one.")
    service.store.access.revoke_token(study, token_id, caller.id)
    return Response(status_code=204)


def _token_view(row: Any) -> TokenView:
    return TokenView(
        id=row.id,
        name=row.name,
        created_at=datetime.fromtimestamp(row.created_at, UTC),
        is_revoked=row.revoked_at is not None,
    )


# ---------------------------------------------------------------- admins


@router.post("/members/invitations", status_code=201)
def invite_member(service: ServiceOf, caller: AdminCaller, request: AdminInvitationRequest) -> InvitationView:
    """Makes a link by which one admin or experimenter comes in."""
    text = service.signer.make_invitation(request.role, None, request.valid_s)
    service.store.access.record(caller.id, f"invite.{request.role}", None, {"valid_s": request.valid_s})
    return InvitationView(url=f"{service.settings.public_url}{service.settings.root}/join/{text}")


@router.delete("/members/{member_id}", status_code=204)
def deactivate_member(service: ServiceOf, caller: AdminCaller, member_id: Annotated[LongId, Path()]) -> Response:
    """Ends a membership."""
    service.store.access.deactivate(member_id, caller.id)
    return Response(status_code=204)


@router.get("/audit")
def audit(
    service: ServiceOf,
    caller: AdminCaller,
    study: Annotated[Slug | None, Query()] = None,
    before: Annotated[int | None, Query(ge=1, le=2**62)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
) -> list[AuditRow]:
    """Lists what was done, the newest first."""
    del caller
    return [
        AuditRow(
            number=row.number,
            happened_at=datetime.fromtimestamp(row.happened_at, UTC),
            actor=row.actor,
            act=row.act,
            study=row.study_id,
            about=row.about,
        )
        for row in service.store.access.audit(study_id=study, before=before, limit=limit)
    ]
