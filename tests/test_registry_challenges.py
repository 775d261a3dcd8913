"""WWW-Authenticate and Retry-After headers, as servers write them."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdstack.registry.challenge import Basic, Bearer, parse_challenge
from tdstack.retry import asked_wait_s


@pytest.mark.parametrize(
    ("header", "challenge"),
    [
        ("", None),
        ("Negotiate", None),
        ('Basic realm="a, b"', Basic()),
        ("basic", Basic()),
        ('Bearer service="no realm"', None),
        (
            'Bearer realm="https://auth.example/t?a=1,2",service="reg",scope="repository:a:pull"',
            Bearer("https://auth.example/t?a=1,2", "reg", "repository:a:pull"),
        ),
        ('BEARER  Realm="r" , error="invalid_token"', Bearer("r")),
        ("Bearer realm=r", Bearer("r")),
        (r'Bearer realm="a\"b"', Bearer('a"b')),
        ('Basic realm="x", Bearer realm="r"', Bearer("r")),
        ('Negotiate, Bearer realm="r", Basic realm="x"', Bearer("r")),
    ],
)
def test_challenges(header: str, challenge: Basic | Bearer | None) -> None:
    assert parse_challenge(header) == challenge


@given(st.text(alphabet='Bearer Basic="\\,x', max_size=60) | st.text(max_size=40))
def test_any_header_is_a_challenge_or_none(header: str) -> None:
    assert isinstance(parse_challenge(header), Basic | Bearer | None)


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("", 0, 0),
        ("soon", 0, 0),
        ("-3", 0, 0),
        ("30", 30, 30),
    ],
)
def test_how_long_a_server_asks_to_wait(header: str, least: float, most: float) -> None:
    assert least <= asked_wait_s(header) <= most


def test_a_date_is_a_wait_until_then() -> None:
    now = time.time()
    assert 500 <= asked_wait_s(formatdate(now + 600, usegmt=True)) <= 600
    assert asked_wait_s(formatdate(now - 600, usegmt=True)) == 0


@given(st.text(max_size=20))
def test_any_header_is_a_wait(header: str) -> None:
    assert asked_wait_s(header) >= 0
