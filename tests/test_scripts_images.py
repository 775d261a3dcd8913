"""A cluster runs one image: no script names one, all read the cluster file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.shipped import ROOT

# The comparison of build times builds its own images, and is no part of a cluster.
OTHERS = {"naive.Dockerfile", "benchmark_build.py"}
DIGEST = re.compile(r"\b[0-9a-f]{64}\b|sha256:[0-9a-f]{8}")
# HOST/PATH:TAG with a host's dot or port, or a well-known registry's path without one.
NAMED = re.compile(
    r"\b(?:[a-z0-9-]+\.)+[a-z]{2,}(?::[0-9]+)?/[a-z0-9._/-]+:[A-Za-z0-9_][\w.-]*"
    r"|\b(?:docker\.io|ghcr\.io|quay\.io|nvcr\.io|registry\.k8s\.io|gcr\.io)/"
)
IMAGE_KEY = re.compile(r"""^\s*-?\s*["']?image["']?\s*[:=]\s*(?P<value>\S.*)$""", re.MULTILINE)


def problems(text: str) -> list[str]:
    """Return what in a script names an image or a digest."""
    found = [match[0] for pattern in (DIGEST, NAMED) for match in pattern.finditer(text)]
    for match in IMAGE_KEY.finditer(text):
        if not re.match(r"""["']?[$%{]|os\.environ""", match["value"]):
            found.append(match[0].strip())
    return found


def scripts() -> list[Path]:
    paths = (path for path in (ROOT / "scripts").rglob("*") if path.is_file())
    return sorted(p for p in paths if "__pycache__" not in p.parts and p.name not in OTHERS)


def test_no_script_names_an_image_or_a_digest() -> None:
    assert len(scripts()) >= 7
    named = {str(path.relative_to(ROOT)): problems(path.read_text()) for path in scripts()}
    assert {name: found for name, found in named.items() if found} == {}


@pytest.mark.parametrize(
    "text",
    [
        "image: ubuntu:24.04",
        "  - image: registry.example/team/tdstack",
        "docker run registry.example:5000/team/tdstack:cu124",
        "IMAGE=nvcr.io/nvidia/pytorch",
        f"sha256:{'ab' * 32}",
        "'image' = 'x'",
    ],
)
def test_an_image_by_name_is_found(text: str) -> None:
    assert problems(text)


@pytest.mark.parametrize(
    "text",
    ["image: ${IMAGE}", 'image: "{{ tdstack_image }}"', '--image "$TDSTACK_IMAGE"', "a image: b"],
)
def test_a_variable_is_no_name(text: str) -> None:
    assert problems(text) == []
