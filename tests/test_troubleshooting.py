"""What users meet: every row is whole, and on a page whose links lead somewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tdstack.doctor.checks import SUBJECTS, every
from tdstack.pages import doctor, performance, troubleshooting
from tdstack.troubleshooting import row, sections
from tdstack.verify.symptoms import Symptom, load

ROOT = Path(__file__).resolve().parent.parent
ROWS = [row for section in sections() for row in section.rows]
MADE = (troubleshooting.PAGE, doctor.PAGE, performance.PAGE)


# --------------------------------------------------------------------------------------- the rows


@pytest.mark.parametrize("known", ROWS, ids=lambda known: str(known.id or known.symptom))
def test_a_row_is_whole(known: Symptom) -> None:
    assert known.symptom
    assert known.cause
    assert known.fix
    ids = {check.id for check in every()}
    assert set(known.checks) <= ids
    for text in (known.symptom, known.cause, known.fix):
        assert text.count("`") % 2 == 0
        assert "\n" not in text
    # A terminal shows them, too: backquotes can be taken away there, links cannot.
    if known.pattern or known.id:
        assert not re.search(r"\]\(", known.fix + known.cause)


def test_an_id_is_given_once() -> None:
    counted = Counter(known.id for known in ROWS if known.id)
    assert [name for name, times in counted.items() if times > 1] == []
    with pytest.raises(KeyError):
        row("no-such-row")


def test_every_check_is_on_its_page_and_leads_to_a_trouble() -> None:
    ids = [check.id for check in every()]
    assert len(set(ids)) == len(ids)
    page = (ROOT / doctor.PAGE).read_text(encoding="utf-8")
    for check in every():
        assert page.count(f'<a id="{check.id}"></a>') == 1
        assert any(check.id in known.checks for known in ROWS), check.id
    assert all(f"**{subject}**" in page for subject in SUBJECTS)


@pytest.mark.parametrize("page", MADE)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        path = ROOT / "docs" / name if name else ROOT / page
        assert path.is_file(), target
        if anchor:
            assert anchor in _anchors(path.read_text(encoding="utf-8")), target


def _anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    return slugs | set(re.findall(r'<a id="([^"]+)">', text))


def test_a_cell_cannot_break_its_table() -> None:
    for page in MADE:
        text = (ROOT / page).read_text(encoding="utf-8")
        columns = 0
        for line in text.splitlines():
            if not line.startswith("|"):
                columns = 0
                continue
            found = len(re.findall(r"(?<!\\)\|", line))
            columns = columns or found
            assert found == columns, line


# -------------------------------------------------------------------------------------- in images


def test_what_is_copied_into_images_explains_without_the_toolkit(tmp_path: Path) -> None:
    """The tree that the image gets, under its name there, by a Python without packages."""
    shutil.copytree(ROOT / "tdstack/verify", tmp_path / "tdstack_verify")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tdstack_verify.symptoms import explain, plain\n"
        "import tdstack_verify.main\n"
        "print(plain(explain('version `GLIBC_2.38\\' not found').fix))\n"
        "assert not [name for name in sys.modules if name.startswith('tdstack.')]\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "a base with glibc 2.38 or newer, or a wheel built for this one\n"


def test_judging_needs_nothing_but_the_standard_library() -> None:
    """A pod or a prolog has no more: a checkout, and a Python without packages."""
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1])\n"
        "from tdstack.doctor.checks import checks, lines\n"
        "from tdstack.doctor.load import load\n"
        "facts = load(json.load(open(sys.argv[1] + '/tests/data/hosts/laptop.json')))\n"
        "print(len(checks(facts, '12.4')) > 10, lines(facts)['12.4']['runs'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(ROOT)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True False\n"


def test_rows_with_a_typing_mistake_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.toml"
    path.write_text('title = "A"\nasked = "b"\n[[row]]\nsymptom = "s"\ncause = "c"\nfixx = "f"\n')
    with pytest.raises(TypeError, match="fixx"):
        load(path)
