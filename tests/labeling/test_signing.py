from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from themis_ray.labeling.signing import DAY_S, check_clip, clip_until, is_clip, sign_clip
from themis_ray.wire import ClipName, Slug

SECRET = b"s" * 32
NAME = "0123456789abcdef0123456789abcdef.webm"
UNTIL = 2_000_000_000


def parts(query: str) -> tuple[str, str]:
    until, signature = (part.split("=", 1)[1] for part in query.split("&"))
    return until, signature


def check(query: str, *, secret: bytes = SECRET, study: str = "pong", name: str = NAME, now: float = 0.0) -> bool:
    return check_clip(secret, study, name, *parts(query), now)


def test_what_was_signed_is_accepted_until_it_runs_out() -> None:
    query = sign_clip(SECRET, "pong", NAME, UNTIL)
    assert check(query)
    assert check(query, now=UNTIL - 0.001)
    assert not check(query, now=UNTIL)


def test_nothing_else_is_accepted() -> None:
    query = sign_clip(SECRET, "pong", NAME, UNTIL)
    assert not check(query, secret=b"another")
    assert not check(query, study="other")
    assert not check(query, name=NAME.replace("webm", "mp4"))
    assert not check(query.replace("until=2", "until=3"))
    assert not check(query.replace(f"until={UNTIL}", f"until=0{UNTIL}"))
    assert not check(query[:-1])
    assert not check(query + "=")
    assert not check(f"until={UNTIL}&signature=é")
    assert not check(f"until={UNTIL}&signature=")


@given(signature=st.text(max_size=60), until=st.text(max_size=14))
def test_a_guess_is_refused_and_never_an_error(signature: str, until: str) -> None:
    assert not check_clip(SECRET, "pong", NAME, until, signature, 0.0)


def test_the_parts_cannot_be_shifted_into_one_another() -> None:
    # "pong" + "1..." and "pong1" + "..." would be the same text without something in between.
    one, other = "1" + "0" * 31 + ".webm", "0" * 31 + "1.webm"
    assert sign_clip(SECRET, "pong", one, UNTIL) != sign_clip(SECRET, "pong1", other, UNTIL)


@pytest.mark.parametrize(
    ("study", "name"),
    [
        *product(("..", "a/b", "", "A", "-a", "a\n", "a" * 64, "a.b", "a%2e"), (NAME,)),
        *product(
            ("pong",),
            ("..", f"../{NAME}", f"{NAME}\n", NAME.upper(), NAME.replace("webm", "html"), "", NAME[1:], f"{NAME}/x"),
        ),
    ],
)
def test_names_that_are_no_clips(study: str, name: str) -> None:
    assert not is_clip(study, name)
    with pytest.raises(ValueError, match="are no clip's"):
        sign_clip(SECRET, study, name, UNTIL)
    assert not check_clip(SECRET, study, name, str(UNTIL), "x", 0.0)


@given(text=st.one_of(st.from_regex(r"[a-z0-9-]{0,65}\n?"), st.text(max_size=3)))
def test_studies_are_called_what_the_wire_allows(text: str) -> None:
    assert is_clip(text, NAME) == _is_valid(Slug, text)


@given(text=st.from_regex(r"[0-9a-fg]{31,33}\.(webm|mp4|avi)\n?"))
def test_clips_are_called_what_the_wire_allows(text: str) -> None:
    assert is_clip("pong", text) == _is_valid(ClipName, text)


def _is_valid(kind: object, text: str) -> bool:
    try:
        TypeAdapter(kind).validate_python(text)
    except ValidationError:
        return False
    return True


@given(now=st.floats(0, 1e11))
def test_an_address_lasts_at_least_a_day_and_is_the_same_all_day(now: float) -> None:
    until = clip_until(now)
    assert DAY_S < until - now <= 2 * DAY_S
    assert until == clip_until(now // DAY_S * DAY_S)
