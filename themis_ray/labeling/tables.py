"""What a labelling service stores. Times are seconds since 1970 in UTC; choices are in the order of the query."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

__all__ = [
    "annotator",
    "answer",
    "assignment",
    "audit",
    "clip",
    "hit",
    "member",
    "membership",
    "metadata",
    "notice",
    "query",
    "response",
    "study",
    "token",
    "tombstone",
    "used_invitation",
]

ID = String(128)
IS_OPEN = text("num_taken < overlap")

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

study = Table(
    "study",
    metadata,
    Column("id", ID, primary_key=True),
    Column("settings", Text, nullable=False),  # StudyConfig as JSON
    Column("revision", Integer, nullable=False),  # grows with every change of the settings
    Column("status", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("stopped_at", Float),
)

clip = Table(
    "clip",
    metadata,
    Column("study_id", ID, primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("num_bytes", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    ForeignKeyConstraint(["study_id"], ["study.id"]),
)

query = Table(
    "query",
    metadata,
    Column("study_id", ID, primary_key=True),
    Column("id", ID, primary_key=True),
    Column("feedback", String(16), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("gold_choice", String(8)),
    Column("left_segment", ID, nullable=False),
    Column("left_clip", String(64), nullable=False),
    Column("left_num_frames", Integer, nullable=False),
    Column("left_clip_fps", Float, nullable=False),
    Column("left_overlays", JSON(none_as_null=True)),  # explained clips by explanation
    Column("right_segment", ID),
    Column("right_clip", String(64)),
    Column("right_num_frames", Integer),
    Column("right_clip_fps", Float),
    Column("right_overlays", JSON(none_as_null=True)),
    Column("overlap", Integer, nullable=False),
    Column("num_taken", Integer, nullable=False),  # answers that count, and leases that have not run out
    Column("num_answers", Integer, nullable=False),
    Column("place", Float, nullable=False),  # in [0, 1): order among those taken equally often
    Column("about", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    ForeignKeyConstraint(["study_id"], ["study.id"]),
    Index("ix_query_kind", "study_id", "kind", "place"),
    # Of those with a free place only, so that who waits in a large study that is answered looks through none.
    Index(
        "ix_query_open",
        *("study_id", "kind", "num_taken", "place"),
        sqlite_where=IS_OPEN,
        postgresql_where=IS_OPEN,
    ),
)

annotator = Table(
    "annotator",
    metadata,
    Column("id", ID, primary_key=True),
    Column("study_id", ID, nullable=False),
    Column("arm", ID, nullable=False),
    Column("stage", String(16), nullable=False),
    Column("num_answered", Integer, nullable=False),  # answers that count, practice left out
    Column("num_assigned", Integer, nullable=False),  # assignments ever made
    Column("consent_version", String(64)),
    Column("consent_hash", String(64)),
    Column("consent_at", Float),
    Column("panel", JSON, nullable=False),
    Column("panel_key", String(64)),  # hash of the panel's ids: who comes back is the same person
    Column("completion_code", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("seen_at", Float, nullable=False),
    ForeignKeyConstraint(["study_id"], ["study.id"]),
    UniqueConstraint("study_id", "panel_key"),
    Index("ix_annotator_arm", "study_id", "arm"),
)

assignment = Table(
    "assignment",
    metadata,
    Column("id", ID, primary_key=True),
    Column("study_id", ID, nullable=False),
    Column("query_id", ID, nullable=False),
    Column("annotator_id", ID, nullable=False),
    Column("repeat", Integer, nullable=False),
    Column("is_flipped", Boolean, nullable=False),
    Column("number", Integer, nullable=False),  # order on the annotator's desk
    Column("state", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("leased_until", Float, nullable=False),
    ForeignKeyConstraint(["study_id", "query_id"], ["query.study_id", "query.id"]),
    ForeignKeyConstraint(["annotator_id"], ["annotator.id"]),
    UniqueConstraint("annotator_id", "query_id", "repeat"),
    Index("ix_assignment_expiry", "study_id", "state", "leased_until"),
    Index("ix_assignment_desk", "annotator_id", "state", "number"),
    Index("ix_assignment_query", "study_id", "query_id"),
)

answer = Table(
    "answer",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", ID, nullable=False, unique=True),
    Column("assignment_id", ID, nullable=False),
    Column("study_id", ID, nullable=False),
    Column("query_id", ID, nullable=False),
    Column("annotator_id", ID, nullable=False),
    Column("choice", String(8)),
    Column("rating", Float),
    Column("steps", JSON(none_as_null=True)),
    Column("actions", JSON(none_as_null=True)),
    Column("reset_seed", BigInteger),
    Column("is_undone", Boolean, nullable=False),
    Column("response_ms", Integer, nullable=False),
    Column("watched_ms", Integer, nullable=False),
    Column("num_replays", Integer, nullable=False),
    Column("speed", Float, nullable=False),
    Column("overlay", String(64)),  # the explanation that was shown
    Column("overlay_ms", Integer, nullable=False),
    Column("answered_at", Float, nullable=False),
    ForeignKeyConstraint(["assignment_id"], ["assignment.id"]),
    Index("ix_answer_cursor", "study_id", "number"),
    Index("ix_answer_annotator", "annotator_id", "number"),
    Index("ix_answer_assignment", "assignment_id"),
    sqlite_autoincrement=True,  # a number is never used again, so a cursor stays right
)

response = Table(
    "response",
    metadata,
    Column("annotator_id", ID, primary_key=True),
    Column("which", String(8), primary_key=True),
    Column("answers", JSON, nullable=False),
    Column("answered_at", Float, nullable=False),
    ForeignKeyConstraint(["annotator_id"], ["annotator.id"]),
)

member = Table(
    "member",
    metadata,
    Column("id", ID, primary_key=True),
    Column("name", String(128), nullable=False),
    Column("role", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("is_active", Boolean, nullable=False),
)

membership = Table(
    "membership",
    metadata,
    Column("member_id", ID, primary_key=True),
    Column("study_id", ID, primary_key=True),
    ForeignKeyConstraint(["member_id"], ["member.id"]),
    ForeignKeyConstraint(["study_id"], ["study.id"]),
)

token = Table(
    "token",
    metadata,
    Column("id", ID, primary_key=True),
    Column("hash", String(64), nullable=False, unique=True),
    Column("study_id", ID, nullable=False),
    Column("name", String(128), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("revoked_at", Float),
    ForeignKeyConstraint(["study_id"], ["study.id"]),
)

used_invitation = Table(
    "used_invitation",
    metadata,
    Column("nonce", ID, primary_key=True),
    Column("used_at", Float, nullable=False),
)

tombstone = Table(
    "tombstone",
    metadata,
    Column("annotator_id", ID, primary_key=True),
    Column("study_id", ID, nullable=False, index=True),
    Column("withdrawn_at", Float, nullable=False),
    Column("withdrawn_by", ID, nullable=False),
    Column("num_answers", Integer, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("happened_at", Float, nullable=False),
    Column("actor", ID, nullable=False),
    Column("act", String(64), nullable=False),
    Column("study_id", ID, index=True),
    Column("about", JSON, nullable=False),
)

hit = Table(
    "hit",
    metadata,
    Column("key", String(256), primary_key=True),
    Column("expires_at", Float, nullable=False),
    Column("count", Integer, nullable=False),
)

notice = Table(
    "notice",
    metadata,
    Column("study_id", ID, primary_key=True),
    Column("event", String(64), primary_key=True),
    Column("sent_at", Float, nullable=False),
    ForeignKeyConstraint(["study_id"], ["study.id"]),
)
