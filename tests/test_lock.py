"""versions.lock: its round trip, what it refuses, and how it is resolved."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdstack.errors import CheckFailed, ExitCode, IntegrityError, TdstackError, UsageError
from tdstack.lock.asked import ASKED_FILE, load_asked
from tdstack.lock.io import LOCK_FILE, dump_lock, load_lock, parse_lock, write_lock
from tdstack.lock.model import LayerName, Lock
from tdstack.lock.resolve import LAYERS, Resolution, layer_of, resolve
from tdstack.lock.update import check_lock
from tdstack.pipconf import PipConfig
from tdstack.stack import Request, make_stack

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / LOCK_FILE).read_text()
DATA: dict[str, Any] = json.loads(TEXT)
CUDA_CLOSURE = next(i for i, c in enumerate(DATA["closures"]) if c["torch"] == "cuda")
TORCH = next(
    ref for ref in DATA["closures"][CUDA_CLOSURE]["layers"]["torch"] if ref.startswith("torch==")
)
NO_INDEX = PipConfig(indexes=(), find_links=(), certificate=None, trusted_hosts=())
PROPERTY = settings(max_examples=150, deadline=None, derandomize=True, database=None)


def _changed(change: Callable[[dict[str, Any]], None]) -> str:
    data: dict[str, Any] = json.loads(TEXT)
    change(data)
    return json.dumps(data)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the two files that `check_lock` reads."""
    (tmp_path / ASKED_FILE).parent.mkdir()
    shutil.copy(ROOT / ASKED_FILE, tmp_path / ASKED_FILE)
    shutil.copy(ROOT / LOCK_FILE, tmp_path / LOCK_FILE)
    return tmp_path


# ------------------------------------------------------------------------------- reading


def test_loading_and_dumping_gives_the_same_bytes(lock: Lock) -> None:
    assert dump_lock(lock) == TEXT
    assert parse_lock(dump_lock(lock)) == lock


def test_writing_an_equal_lock_changes_nothing(tmp_path: Path, lock: Lock) -> None:
    assert write_lock(tmp_path, lock) is True
    before = (tmp_path / LOCK_FILE).stat()
    assert write_lock(tmp_path, lock) is False
    after = (tmp_path / LOCK_FILE).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert [path.name for path in tmp_path.iterdir()] == [str(LOCK_FILE)]


def test_the_order_of_keys_in_the_file_does_not_matter(lock: Lock) -> None:
    turned = json.dumps({key: DATA[key] for key in reversed(DATA)})
    assert parse_lock(turned) == lock


@pytest.mark.parametrize("lines", [1, 100, 1000])
def test_a_truncated_lock_is_an_integrity_error_that_names_the_line(lines: int) -> None:
    cut = "\n".join(TEXT.splitlines()[:lines]) + "\n"
    with pytest.raises(IntegrityError) as caught:
        parse_lock(cut)
    assert f"line {lines + 1}," in caught.value.where
    assert caught.value.remedy
    assert int(caught.value.code) == 4


def test_an_empty_lock_is_an_integrity_error() -> None:
    with pytest.raises(IntegrityError, match="not whole"):
        parse_lock("")


def test_a_lock_that_is_no_text_is_an_integrity_error_naming_the_byte(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_bytes(TEXT.encode()[:500] + b"\xff\xfe" + TEXT.encode()[500:])
    with pytest.raises(IntegrityError) as caught:
        load_lock(tmp_path)
    assert "byte 500" in caught.value.where


def test_a_missing_lock_is_a_usage_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_lock(tmp_path)
    assert "invoke lock" in caught.value.remedy


@pytest.mark.parametrize("schema", [0, 1, 3, "2", None, [2], {"version": 2}])
def test_an_unknown_schema_is_a_usage_error_that_says_which_is_known(schema: object) -> None:
    with pytest.raises(UsageError) as caught:
        parse_lock(_changed(lambda data: data.update(schema=schema)))
    assert repr(schema) in caught.value.what
    assert caught.value.expected == "2"


@pytest.mark.parametrize("text", ["[]", "1", '"lock"', "null"])
def test_json_that_is_no_lock_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="schema None"):
        parse_lock(text)


def test_a_bad_hash_of_a_wheel_is_named_by_its_path() -> None:
    with pytest.raises(IntegrityError) as caught:
        parse_lock(_changed(lambda data: data["packages"][TORCH][1].update(sha256="ABC")))
    assert f"packages.{TORCH}.1.sha256" in caught.value.where


def test_a_bad_hash_of_a_debian_package_is_named_by_its_path() -> None:
    def flip(data: dict[str, Any]) -> None:
        deb = data["rootfs"][0]["packages"][7]
        deb["sha256"] = deb["sha256"][:-1] + "g"

    with pytest.raises(IntegrityError) as caught:
        parse_lock(_changed(flip))
    assert "rootfs.0.packages.7.sha256" in caught.value.where


def test_an_unknown_field_is_named_by_its_path() -> None:
    with pytest.raises(IntegrityError) as caught:
        parse_lock(_changed(lambda data: data["lines"]["12.4"].update(colour="red")))
    assert "lines.12.4.colour" in caught.value.where


def test_a_closure_that_names_a_package_without_files_is_refused() -> None:
    with pytest.raises(IntegrityError) as caught:
        parse_lock(_changed(lambda data: data["packages"].pop(TORCH)))
    assert f"closures.{CUDA_CLOSURE}.layers.torch: {TORCH} has no files" in caught.value.where


def test_a_toolkit_without_files_is_refused() -> None:
    ref = DATA["lines"]["12.4"]["toolkit"]["linux/amd64"][0]
    with pytest.raises(IntegrityError) as caught:
        parse_lock(_changed(lambda data: data["packages"].pop(ref)))
    assert f"lines.12.4.toolkit.linux/amd64: {ref} has no files" in caught.value.where


def test_a_line_whose_set_has_no_closure_is_refused() -> None:
    with pytest.raises(IntegrityError) as caught:
        parse_lock(_changed(lambda data: data["lines"]["12.6"].update(set="cu99")))
    assert "lines.12.6.set: no closure for set cu99" in caught.value.where


Step = str | int
BAD_VALUES: list[Any] = [
    None, True, False, -1, 0, 1.5, 10**30, "", "x", "3", "..", "a==b", "\x00", "é", [], {},
    [None], {"x": None}, [[]], "linux/amd64", "cu12", float("inf"), float("nan"), "\ud800",
]  # fmt: skip


def _paths(value: Any, path: tuple[Step, ...] = ()) -> list[tuple[Step, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        inner = list(value.items())
    else:
        inner = list(enumerate(value)) if isinstance(value, list) else []
    for key, item in inner:
        found += _paths(item, (*path, key))
    return found


PATHS = _paths(DATA)


@PROPERTY
@given(
    path=st.sampled_from(PATHS),
    action=st.sampled_from(["replace", "remove", "double"]),
    value=st.sampled_from(BAD_VALUES),
)
def test_one_corrupt_entry_is_refused_with_our_error_or_is_a_valid_lock(
    path: tuple[Step, ...], action: str, value: Any
) -> None:
    data: dict[str, Any] = json.loads(TEXT)
    holder: Any = data
    for step in path[:-1]:
        holder = holder[step]
    if action == "replace":
        holder[path[-1]] = value
    elif action == "remove":
        del holder[path[-1]]
    elif isinstance(holder, list):
        holder.append(holder[int(path[-1])])
    else:
        holder[f"{path[-1]}x"] = holder[path[-1]]
    try:
        read = parse_lock(json.dumps(data))
    except TdstackError as error:
        assert error.code in (ExitCode.INTEGRITY, ExitCode.USAGE)
        assert error.where
        assert error.remedy
    else:
        assert parse_lock(dump_lock(read)) == read


@PROPERTY
@given(
    position=st.integers(0, len(TEXT) - 1), length=st.integers(0, 40), filler=st.text(max_size=5)
)
def test_corrupt_text_is_refused_with_our_error_or_is_a_valid_lock(
    position: int, length: int, filler: str
) -> None:
    text = TEXT[:position] + filler + TEXT[position + length :]
    try:
        read = parse_lock(text)
    except TdstackError as error:
        assert error.code in (ExitCode.INTEGRITY, ExitCode.USAGE)
        assert error.where
    else:
        assert parse_lock(dump_lock(read)) == read


@pytest.mark.parametrize(
    "text",
    [
        pytest.param('{"schema": 2, "asked": ' + "9" * 5000 + "}", id="a number of 5000 digits"),
        pytest.param("[" * 100_000, id="100000 open brackets"),
    ],
)
def test_json_that_python_cannot_hold_is_an_integrity_error(text: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        parse_lock(text)
    assert str(LOCK_FILE) in str(caught.value)
    assert caught.value.remedy


def test_a_package_with_an_empty_list_of_files_is_refused() -> None:
    with pytest.raises(IntegrityError):
        parse_lock(_changed(lambda data: data["packages"].update({TORCH: []})))


def _a_file_that_is_no_wheel(data: dict[str, Any]) -> None:
    data["packages"][TORCH][0]["name"] = "torch.tar.gz"


def _a_line_without_its_platform(data: dict[str, Any]) -> None:
    del data["lines"]["12.4"]["toolkit"]["linux/amd64"]


def _a_glibc_that_is_no_version(data: dict[str, Any]) -> None:
    data["rootfs"][0]["glibc"] = "new"


def _a_reference_with_two_versions(data: dict[str, Any]) -> None:
    data["packages"]["pip==1==2"] = data["packages"][data["closures"][0]["layers"]["base"][0]]
    for closure in data["closures"]:
        closure["layers"]["base"] = ["pip==1==2"]


@pytest.mark.parametrize(
    "corrupt",
    [
        _a_file_that_is_no_wheel,
        _a_line_without_its_platform,
        _a_glibc_that_is_no_version,
        _a_reference_with_two_versions,
    ],
)
def test_a_lock_that_no_stack_can_be_made_of_ends_in_our_error(
    corrupt: Callable[[dict[str, Any]], None],
) -> None:
    with pytest.raises(TdstackError):
        make_stack(parse_lock(_changed(corrupt)), Request(triton="stock"))


# ----------------------------------------------------------------- lock against versions.toml


def test_the_checked_in_lock_answers_the_checked_in_versions(checkout: Path) -> None:
    check_lock(checkout)
    assert load_asked(checkout)[1] == load_lock(checkout)[0].asked


def test_a_changed_wish_fails_the_check_and_names_the_remedy(checkout: Path) -> None:
    path = checkout / ASKED_FILE
    changed = path.read_text().replace('"numpy<2.4"', '"numpy<2.3"')
    assert changed != path.read_text()
    path.write_text(changed)
    with pytest.raises(CheckFailed) as caught:
        check_lock(checkout)
    assert int(caught.value.code) == 1
    assert "invoke lock" in caught.value.remedy
    assert caught.value.expected != caught.value.got


def test_comments_spaces_and_the_order_of_keys_leave_the_check_alone(checkout: Path) -> None:
    path = checkout / ASKED_FILE
    text = path.read_text()
    swapped = text.replace(
        '[sets.cu13.torch.cuda]\nlayers.torch = ["torch==2.11.0"]\n',
        '# a remark\n[sets.cu13.torch.cuda]\nlayers  =  { torch = [ "torch==2.11.0", ] }\n',
    )
    base = text[text.index("[[bases]]") : text.index("[triton_distributed]")]
    moved = base + "\n" + swapped.replace(base, "")
    # `schema` has to stay above the first table.
    path.write_text("schema = 2\n\n" + moved.replace("schema = 2\n", ""))
    assert swapped != text
    check_lock(checkout)
    assert load_asked(checkout)[1] == load_lock(checkout)[0].asked


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('[lines."12.4"]', '[lines."12.4"]\ncolour = "red"', "lines.12.4.colour"),
        ("[[bases]]", "[[bases]]\ncolour = 1", "bases.0.colour"),
        ("schema = 2", "schema = 2\ncolour = 1", "colour"),
        ("[sets.cu12.layers]", "[sets.cu12.layers]\nbsae = []", "sets.cu12.layers.bsae"),
        ('archs = ["sm_80"', 'archs = ["80"', "lines.12.4.archs.0"),
    ],
)
def test_an_unknown_key_or_value_in_the_wishes_is_named(
    checkout: Path, old: str, new: str, named: str
) -> None:
    path = checkout / ASKED_FILE
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UsageError) as caught:
        check_lock(checkout)
    assert named in caught.value.where.split(":")[0]
    assert caught.value.remedy


def test_broken_toml_is_a_usage_error_that_names_the_line(checkout: Path) -> None:
    (checkout / ASKED_FILE).write_text("schema = 2\n[targets\n")
    with pytest.raises(UsageError, match="line 2"):
        check_lock(checkout)


# ------------------------------------------------------------------------------- resolving


def _resolution(required_by: dict[str, set[str]]) -> Resolution:
    names = set(required_by) | {d for ds in required_by.values() for d in ds}
    return Resolution(
        versions=dict.fromkeys(names, "1"),
        wheels=dict.fromkeys(names, ()),
        required_by={name: frozenset(required_by.get(name, ())) for name in names},
    )


def test_a_dependency_goes_to_the_earliest_layer_that_needs_it() -> None:
    got = _resolution({"numpy": {"torch", "cuda-core"}, "cython": {"cuda-core"}})
    placed = layer_of(got, {"torch": "torch", "cuda-core": "nvshmem"})
    assert placed["numpy"] == "torch"
    assert placed["cython"] == "nvshmem"


def test_a_package_asked_for_in_a_later_layer_stays_there_though_torch_requires_it() -> None:
    got = _resolution({"triton": {"torch"}, "setuptools": {"triton"}})
    placed = layer_of(got, {"torch": "torch", "triton": "triton"})
    assert placed == {"torch": "torch", "triton": "triton", "setuptools": "triton"}


def test_a_dependency_of_a_dependency_follows_it_to_the_earlier_layer() -> None:
    got = _resolution({"c": {"b"}, "b": {"a", "late"}, "a": {"torch"}})
    placed = layer_of(got, {"late": "triton", "torch": "torch"})
    assert {placed[name] for name in "abc"} == {"torch"}


NODES = [f"p{number}" for number in range(8)]


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    edges=st.sets(st.tuples(st.sampled_from(NODES), st.sampled_from(NODES)), max_size=20),
    roots=st.dictionaries(st.sampled_from(NODES), st.sampled_from(LAYERS), min_size=1, max_size=4),
)
def test_every_package_lies_in_the_first_layer_of_the_roots_that_reach_it(
    edges: set[tuple[str, str]], roots: dict[str, LayerName]
) -> None:
    got = _resolution({name: {d for d, n in edges if n == name} for name in NODES})
    reached: dict[str, set[LayerName]] = {name: set() for name in NODES}
    for start, layer in roots.items():  # walk down from every root, not through other roots
        reached[start] = {layer}
        todo, seen = [start], {start}
        while todo:
            here = todo.pop()
            for _, below in filter(lambda edge: edge[0] == here, edges):
                if below not in roots and below not in seen:
                    seen.add(below)
                    todo.append(below)
                    reached[below].add(layer)
    expected = {name: min(of, key=LAYERS.index) for name, of in reached.items() if of}
    assert layer_of(got, roots) == expected


def _forbidden(*arguments: object, **options: object) -> NoReturn:
    raise AssertionError(f"a program was run: {arguments} {options}")


@pytest.mark.parametrize("name", ["triton-dist", "triton_dist", "Triton.Dist>=0", "TRITON-DIST[x]"])
def test_triton_dist_of_the_index_is_refused_by_name_before_uv_runs(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(subprocess, "Popen", _forbidden)
    with pytest.raises(UsageError) as caught:
        resolve(["torch==2.8.0", name], "3.11", "linux/amd64", [], NO_INDEX)
    assert caught.value.what == "triton-dist is refused"
    assert caught.value.where == name
    assert "overwrites Triton" in caught.value.got


def test_a_requirement_that_cannot_be_read_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subprocess, "Popen", _forbidden)
    with pytest.raises(UsageError):
        resolve(["torch=="], "3.11", "linux/amd64", [], NO_INDEX)
