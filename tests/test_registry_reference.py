"""Names of repositories and images: what is one, what is none, and that no password comes back."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdstack.errors import UsageError
from tdstack.registry.reference import (
    MAX_NAME,
    Reference,
    Repository,
    parse_reference,
    parse_repository,
)

DIGEST = "sha256:" + "0123456789abcdef" * 4

_component = st.from_regex(r"[a-z0-9]{1,6}((\.|_|__|-{1,3})[a-z0-9]{1,6}){0,2}", fullmatch=True)
_hosts = st.one_of(
    st.from_regex(r"[a-z][a-z0-9]{0,8}(\.[a-z0-9]{1,8}){1,3}", fullmatch=True),
    st.builds(
        "{}:{}".format,
        st.from_regex(r"[a-z][a-z0-9-]{0,8}[a-z0-9]", fullmatch=True),
        st.integers(1, 65535),
    ),
    st.sampled_from(["127.0.0.1:5000", "[::1]:5000", "localhost:5000"]),
)
_paths = st.lists(_component, min_size=1, max_size=4).map("/".join)
_repositories = st.builds(Repository, _hosts, _paths)
_tags = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", fullmatch=True)
_digests = st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)
_references = st.one_of(
    st.builds(Reference, _repositories, tag=_tags),
    st.builds(Reference, _repositories, digest=_digests),
    st.builds(Reference, _repositories, tag=_tags, digest=_digests),
)


@given(_repositories)
def test_a_repository_is_what_its_text_says(repository: Repository) -> None:
    assert parse_repository(str(repository)) == repository
    assert repository.child("base") == parse_repository(f"{repository}/base")


@given(_references)
def test_a_reference_is_what_its_text_says(reference: Reference) -> None:
    assert parse_reference(str(reference)) == reference
    assert reference.identifier == (reference.digest or reference.tag)


@given(st.text(max_size=80))
def test_any_text_is_a_reference_that_prints_as_itself_or_a_usage_error(text: str) -> None:
    for parse in (parse_repository, parse_reference):
        try:
            assert str(parse(text)) == text
        except UsageError as error:
            assert error.where == "--registry"
            assert error.expected


@given(_references, st.integers(0, 200), st.characters(codec="utf-8"))
def test_one_foreign_character_never_leads_elsewhere(
    reference: Reference, at: int, character: str
) -> None:
    text = str(reference)
    changed = text[:at] + character + text[at + 1 :]
    with suppress(UsageError):
        assert str(parse_reference(changed)) == changed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "base",
        "base:tag",
        "library/base:tag",
        "localhost/tdstack/base:0123",  # an engine's own name
        "reg.example",
        "reg.example/",
        "reg.example/a",
        "reg.example/a:",
        "reg.example/a@",
        "reg.example/a@sha256:00",
        "reg.example/a@sha512:" + "0" * 128,
        "reg.example/a@" + DIGEST.upper(),
        "reg.example/A:tag",
        "reg.example//a:tag",
        "reg.example/a/../b:tag",
        "reg.example/a?x=1:tag",
        "reg.example/a%2e:tag",
        "reg.example/a:tag\n",
        "reg.example/a:" + "t" * 129,
        "reg.example/a:.tag",
        "reg.example:0/a:tag",
        "reg.example:65536/a:tag",
        "reg.example:/a:tag",
        "reg.example:٣/a:tag",
        "-reg.example/a:tag",
        "[::1/a:tag",
        "https://reg.example/a:tag",
        f"reg.example@{DIGEST}",
    ],
)
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(UsageError):
        parse_reference(text)


def test_a_name_has_a_largest_length() -> None:
    path = "a" * (MAX_NAME - len("reg.example/"))
    assert str(parse_repository(f"reg.example/{path}")) == f"reg.example/{path}"
    with pytest.raises(UsageError, match="too long"):
        parse_repository(f"reg.example/{path}a")


@pytest.mark.parametrize("text", ["me:Pa55@reg.example/a:tag", "me:Pa55@reg.example", "Pa55@r:1/a"])
def test_a_password_in_a_name_is_not_repeated(text: str) -> None:
    for parse in (parse_repository, parse_reference):
        with pytest.raises(UsageError) as caught:
            parse(text)
        assert "Pa55" not in str(caught.value)
        assert "login" in caught.value.remedy
