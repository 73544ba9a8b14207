"""Who may come in and what is written down of it, whatever database the label store is kept in."""

import hashlib
import time
import uuid

import pytest
from label_stores import (
    each_store,
    join,
    make_study,
    rows_of,
    run_threads,
    used_clock,
)

from themis_ray.labeling import tables
from themis_ray.labeling.store import ForbiddenError, NotFoundError, TooManyError
from themis_ray.labeling.study import StudyConfig

store, clock = each_store, used_clock


def test_a_token_is_stored_hashed_and_worthless_once_revoked(store):
    study_id, other = make_study(store, 0), make_study(store, 0)
    secret, row = store.access.make_token(study_id, "training", "admin")
    assert store.access.make_token(study_id, "other", "admin")[0] != secret
    assert store.access.find_token(secret) == row
    assert store.access.find_token(secret + "x") is None
    assert len(secret) > 40
    (stored,) = rows_of(store, tables.token, id=row.id)
    assert secret not in str(stored)
    assert stored.hash == hashlib.sha256(secret.encode()).hexdigest()
    for study, token_id in ((other, row.id), (study_id, "t-0")):
        with pytest.raises(NotFoundError, match="has no token"):
            store.access.revoke_token(study, token_id, "admin")
    store.access.revoke_token(study_id, row.id, "admin")
    assert store.access.find_token(secret) is None
    assert [token.revoked_at is None for token in store.access.tokens(study_id)] == [True, False]
    with pytest.raises(NotFoundError, match="no study"):
        store.access.make_token("nothing", "training", "admin")


def test_an_invitation_works_once_even_if_used_by_many_at_once(store):
    study_id, nonce = make_study(store, 0), uuid.uuid4().hex
    members, refused = [], []

    def work(_):
        try:
            members.append(store.access.accept_invitation(nonce, "experimenter", "Ada", study_id))
        except ForbiddenError:
            refused.append(1)

    run_threads(6, work)
    assert (len(members), len(refused)) == (1, 5)
    assert members[0].may_see(study_id)
    assert not members[0].may_see("another")
    with pytest.raises(NotFoundError):
        store.access.accept_invitation(unused := uuid.uuid4().hex, "experimenter", "Ada", "nothing")
    assert store.access.accept_invitation(unused, "admin", "Ada", None).may_see("another")
    assert store.access.has_members()


def test_a_member_who_is_deactivated_is_not_known_any_more(store):
    study_id = make_study(store, 0)
    member = store.access.accept_invitation(uuid.uuid4().hex, "experimenter", "Ada", study_id)
    assert store.access.member(member.id).studies == {study_id}
    store.access.deactivate(member.id, "admin")
    for call in (store.access.member, lambda who: store.access.deactivate(who, "admin")):
        with pytest.raises(NotFoundError, match="no member"):
            call(member.id)


def test_every_administrative_act_is_in_the_record(store):
    last = max((row.number for row in store.access.audit(limit=1)), default=0)
    study_id = make_study(store, 2)
    person = join(store, study_id)
    member = store.access.accept_invitation(uuid.uuid4().hex, "experimenter", "Ada", study_id)
    another = store.access.accept_invitation(uuid.uuid4().hex, "admin", "Bo", None)
    store.studies.create(StudyConfig(id=f"{study_id}-2", title="Walkers"), another.id, another)
    for status in ("paused", "running", "stopped"):
        store.studies.set_status(study_id, status, member.id)
    store.studies.extend(study_id, member.id, overlap=2)
    _, token = store.access.make_token(study_id, "training", member.id)
    store.access.revoke_token(study_id, token.id, member.id)
    store.people.withdraw(person, member.id)
    store.access.deactivate(member.id, another.id)
    store.access.record(another.id, "export", study_id, {"format": "csv"})
    rows = [row for row in store.access.audit() if row.number > last]
    assert [(row.actor, row.act) for row in reversed(rows)] == [
        ("tests", "study.create"),
        ("tests", "queries.add"),
        (member.id, "member.join"),
        (another.id, "member.join"),
        (another.id, "study.create"),
        (another.id, "member.add"),
        (member.id, "study.paused"),
        (member.id, "study.running"),
        (member.id, "study.stopped"),
        (member.id, "study.extend"),
        (member.id, "token.make"),
        (member.id, "token.revoke"),
        (member.id, "annotator.withdraw"),
        (another.id, "member.deactivate"),
        (another.id, "export"),
    ]
    assert rows[0].about == {"format": "csv"}
    assert rows[0].happened_at == pytest.approx(time.time(), abs=60)
    assert {row.study_id for row in store.access.audit(study_id=study_id)} == {study_id}
    older = store.access.audit(before=rows[0].number, limit=2)
    assert [row.number for row in older] == [rows[1].number, rows[2].number]


def test_hits_are_counted_in_windows_shared_by_all(store, clock):
    key, refused = f"sign-in:{uuid.uuid4()}", []

    def work(_):
        try:
            store.access.count_hit(key, 5, 60.0)
        except TooManyError:
            refused.append(1)

    run_threads(9, work)
    assert len(refused) == 4
    with pytest.raises(TooManyError, match="more than 5 calls in 60 s"):
        store.access.count_hit(key, 5, 60.0)
    store.access.count_hit(f"{key}-other", 5, 60.0)
    clock.advance(30)
    store.access.clear_hits()
    with pytest.raises(TooManyError):
        store.access.count_hit(key, 5, 60.0)
    clock.advance(31)
    for _ in range(5):
        store.access.count_hit(key, 5, 60.0)
    with pytest.raises(TooManyError):
        store.access.count_hit(key, 5, 60.0)
    clock.advance(120)
    store.access.clear_hits()
    assert rows_of(store, tables.hit, key=key) == []
