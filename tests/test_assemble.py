"""Assembly: wheels as pip would install them, tars and images that are the same every time."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import random
import stat
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdstack.assemble.entries import Content, Entry, arrange, from_bytes, from_file
from tdstack.assemble.image import Image, Step, write_archive, write_layout
from tdstack.assemble.layer import (
    Part,
    PartJob,
    WheelSource,
    recipe_entries,
    split,
    unpacked_size,
    venv_entries,
    write_part,
)
from tdstack.assemble.shebang import shebang
from tdstack.assemble.tar import Blob, write_tar
from tdstack.assemble.wheel import WheelEntries
from tdstack.errors import IntegrityError
from tdstack.lock.model import LockedFile
from tdstack.plan import PART_BYTES, PREFIX, Layer
from tdstack.recipe import Drop, Folder, Link, Recipe
from tdstack.rootfs import SOURCE_DATE_EPOCH
from tdstack.wheelhouse.store import Store, sha256_of

if TYPE_CHECKING:
    from tests.conftest import MakeWheel

SITE = f"{PREFIX}/lib/python3.11/site-packages"
RECIPE = Recipe(summary="a test", budget_mb=1)
ENTRY_POINTS = """[console_scripts]
demo-run = demo.cli:main
demo-nested = demo.cli:Tool.run

[demo.plugins]
one = demo.cli
"""
CLI = """
import sys
def main():
    print("ran", sys.argv[1:])
class Tool:
    @staticmethod
    def run():
        return 7
"""


def _nothing(path: str) -> bool:
    return False


def _entries(wheel: Path, drops: Callable[[str], bool] = _nothing) -> list[Entry]:
    return arrange(WheelEntries(wheel, wheel.name, PREFIX, SITE).entries(drops))


def _data(entry: Entry) -> bytes:
    content = entry.content
    if content.data is not None:
        return content.data
    if content.file is not None:
        return content.file.read_bytes()
    assert content.wheel is not None
    with zipfile.ZipFile(content.wheel) as archive:
        return archive.read(content.member)


def _files(entries: list[Entry]) -> dict[str, Entry]:
    return {entry.path: entry for entry in entries if entry.kind == "file"}


@pytest.fixture
def demo(tmp_path: Path, make_wheel: MakeWheel) -> Path:
    """A wheel with everything that a wheel may have."""
    return make_wheel(
        tmp_path / "wheels",
        "Demo.Pack",
        "1.2+local.3",
        {
            "demo/__init__.py": "version = 1\n",
            "demo/cli.py": CLI,
            "demo/data/table.bin": bytes(range(256)) * 40,
            "demo/data/empty": b"",
            "demo/bin/tool": b"#!/bin/sh\necho tool\n",
            "demo/_native.cpython-311-x86_64-linux-gnu.so": b"\x7fELF not really",
            "demo/name with spaces, and a comma.txt": "text",
            "demo/ünï.txt": "text",
            "demo.pth": "# a path file\n",
            "{data}/data/share/demo/note.txt": "shared\n",
            "{data}/data/etc/demo.conf": "[demo]\n",
            "{data}/purelib/demo_pure.py": "pure = True\n",
            "{data}/platlib/demo_plat.py": "plat = True\n",
        },
        entry_points=ENTRY_POINTS,
        scripts={
            "demo-python": "#!python\nprint('script')\n",
            "demo-shell": "#!/bin/sh\necho shell\n",
        },
        executable=["demo/bin/tool", "demo/_native.cpython-311-x86_64-linux-gnu.so"],
    )


# ------------------------------------------------------------------------- as pip installs


def _comparable(data: bytes) -> bytes:
    """Return a file without its shebang line and with one kind of quotes."""
    if data.startswith(b"#!"):
        data = data.partition(b"\n")[2]
    return data.replace(b"'", b'"')


def test_the_entries_of_a_wheel_are_what_pip_installs(tmp_path: Path, demo: Path) -> None:
    prefix = tmp_path / "prefix"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-compile"]
    command += ["--quiet", "--ignore-installed", "--prefix", str(prefix), str(demo)]
    subprocess.run(command, check=True, capture_output=True)
    (site,) = prefix.rglob("site-packages")

    def placed(path: Path) -> str:
        if path.is_relative_to(site):
            return f"{SITE}/{path.relative_to(site)}"
        return f"{PREFIX}/{path.relative_to(prefix)}"

    pip = {placed(path): path for path in prefix.rglob("*") if path.is_file()}
    ours = _files(_entries(demo))
    own = {"INSTALLER", "RECORD", "direct_url.json", "REQUESTED"}
    compared = {path for path in pip if PurePosixPath(path).name not in own}
    assert {path for path in ours if PurePosixPath(path).name not in own} == compared
    assert len(compared) == 20
    for path in sorted(compared):
        executable = bool(pip[path].stat().st_mode & 0o111)
        assert bool(ours[path].mode & 0o111) == executable, path
        assert _comparable(_data(ours[path])) == _comparable(pip[path].read_bytes()), path
    assert _data(ours[f"{SITE}/Demo_Pack-1.2+local.3.dist-info/INSTALLER"]) == b"tdstack\n"


def test_scripts_run_with_the_python_of_the_environment(demo: Path) -> None:
    files = _files(_entries(demo))
    for name in ("demo-run", "demo-nested", "demo-python"):
        entry = files[f"{PREFIX}/bin/{name}"]
        assert _data(entry).splitlines()[0] == b"#!/opt/tdstack/bin/python"
        assert entry.mode == 0o755
    assert _data(files[f"{PREFIX}/bin/demo-shell"]).startswith(b"#!/bin/sh\n")
    assert files[f"{PREFIX}/bin/demo-shell"].mode == 0o755


def test_a_script_packed_without_its_x_bit_gets_one(tmp_path: Path, demo: Path) -> None:
    # The format asks it of installers; pip alone would leave such a script unusable.
    plain = _rewritten(demo, tmp_path / "plain", lambda name: name)
    with zipfile.ZipFile(plain) as archive:
        assert not {(i.external_attr >> 16) & 0o111 for i in archive.infolist()} - {0}
    modes = {path: entry.mode for path, entry in _files(_entries(plain)).items()}
    assert {modes[f"{PREFIX}/bin/{n}"] for n in ("demo-shell", "demo-python")} == {0o755}
    assert modes[f"{SITE}/demo/bin/tool"] == 0o644


def test_a_console_script_calls_its_function(tmp_path: Path, demo: Path) -> None:
    for entry in _files(_entries(demo)).values():
        target = tmp_path / "tree" / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(_data(entry))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "tree" / SITE)}
    shown = {}
    for name in ("demo-run", "demo-nested"):
        script = tmp_path / "tree" / PREFIX / "bin" / name
        done = subprocess.run(
            [sys.executable, str(script), "a", "b"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        shown[name] = (done.returncode, done.stdout.strip())
    assert shown == {"demo-run": (0, "ran ['a', 'b']"), "demo-nested": (7, "")}


def test_modes_do_not_depend_on_the_umask_of_the_one_who_packed(tmp_path: Path, demo: Path) -> None:
    odd = tmp_path / demo.name
    with zipfile.ZipFile(demo) as source, zipfile.ZipFile(odd, "w") as target:
        for info in source.infolist():
            executable = (info.external_attr >> 16) & 0o111
            info.external_attr = (0o100700 if executable else 0o100600) << 16
            target.writestr(info, source.read(info))
    for path, entry in _files(_entries(odd)).items():
        assert entry.mode == _files(_entries(demo))[path].mode
        assert entry.mode in (0o644, 0o755)


def _record(entries: list[Entry]) -> dict[str, tuple[str, str]]:
    (text,) = [_data(e).decode() for e in entries if e.path.endswith(".dist-info/RECORD")]
    rows = list(csv.reader(io.StringIO(text)))
    found = {os.path.normpath(f"{SITE}/{path}"): (digest, size) for path, digest, size in rows}
    assert len(found) == len(rows)
    return found


def _hash(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


@pytest.mark.parametrize("pattern", ["", "demo/data/*"])
def test_record_lists_exactly_what_is_installed_with_the_right_hashes(
    demo: Path, pattern: str
) -> None:
    recipe = RECIPE.model_copy(update={"drop": (Drop(pattern=pattern, reason="a test"),)})
    entries = _entries(demo, recipe.drops)
    record = _record(entries)
    files = _files(entries)
    assert set(record) == set(files)
    for path, (digest, size) in record.items():
        if path.endswith(".dist-info/RECORD"):
            assert (digest, size) == ("", "")
        else:
            data = _data(files[path])
            assert (digest, size) == (_hash(data), str(len(data))), path


def test_dropped_files_vanish_from_the_layer_and_from_record(demo: Path) -> None:
    rule = Drop(pattern="demo/data/*", reason="a test", keep=("demo/data/empty",))
    recipe = RECIPE.model_copy(update={"drop": (rule, Drop(pattern="*.so", reason="a test"))})
    before, after = _entries(demo), _entries(demo, recipe.drops)
    gone = {
        f"{SITE}/demo/data/table.bin",
        f"{SITE}/demo/_native.cpython-311-x86_64-linux-gnu.so",
    }
    assert set(_files(before)) - set(_files(after)) == gone
    assert set(_record(before)) - set(_record(after)) == gone
    assert f"{SITE}/demo/data/empty" in _record(after)
    assert unpacked_size(demo, RECIPE) - unpacked_size(demo, recipe) == 256 * 40 + 15


def test_bytecode_in_a_wheel_is_left_out(tmp_path: Path, make_wheel: MakeWheel) -> None:
    files = {"demo/__init__.py": b"", "demo/__pycache__/__init__.cpython-311.pyc": b"old"}
    entries = _entries(make_wheel(tmp_path, "demo", "1", files))
    assert f"{SITE}/demo/__init__.py" in _record(entries)
    assert not [p for p in [*_files(entries), *_record(entries)] if "__pycache__" in p]


@pytest.mark.parametrize(
    "member",
    [
        "../../x",
        "demo/../../../x",
        "/etc/passwd",
        "{data}/scripts/../../../etc/passwd",
        "{data}/data/../../x",
        "{data}/data//etc/passwd",
        "{data}/purelib/../x.py",
    ],
)
def test_a_path_that_leaves_the_environment_is_refused(
    tmp_path: Path, make_wheel: MakeWheel, member: str
) -> None:
    wheel = make_wheel(tmp_path, "demo", "1", {"demo/__init__.py": b"", member: b"evil"})
    with pytest.raises(IntegrityError) as caught:
        _entries(wheel)
    assert wheel.name in caught.value.what


@pytest.mark.parametrize(
    "name",
    [
        "../../../etc/cron.d/evil",
        "/etc/profile.d/evil.sh",
        ".",
        "..",
    ],
)
def test_a_console_script_whose_name_leaves_the_environment_is_refused(
    tmp_path: Path, make_wheel: MakeWheel, name: str
) -> None:
    text = f"[console_scripts]\n{name} = demo:main\n"
    wheel = make_wheel(tmp_path, "demo", "1", {"demo.py": "def main(): pass\n"}, entry_points=text)
    with pytest.raises(IntegrityError):
        _entries(wheel)


@pytest.mark.parametrize(
    ("member", "content"),
    [
        pytest.param("{info}/entry_points.txt", b"[console_scripts]\nx = y\n", id="no function"),
        pytest.param("{info}/entry_points.txt", b"x = demo:main\n", id="no section"),
        pytest.param("{info}/entry_points.txt", b"\xff\xfe", id="no text"),
        pytest.param("{info}/RECORD", b"a,b,c,d\n", id="four columns"),
        pytest.param("{info}/RECORD", b"\xff\xfe", id="no text in RECORD"),
    ],
)
def test_metadata_that_cannot_be_read_is_an_integrity_error(
    tmp_path: Path, make_wheel: MakeWheel, member: str, content: bytes
) -> None:
    wheel = make_wheel(tmp_path, "demo", "1", {"demo/__init__.py": b"", member: content})
    with pytest.raises(IntegrityError):
        _entries(wheel)


def test_a_script_of_one_line_without_an_end_still_gets_its_interpreter(
    tmp_path: Path, make_wheel: MakeWheel
) -> None:
    files = {"demo/__init__.py": b"", "{data}/scripts/x": b"#!python"}
    found = _entries(make_wheel(tmp_path, "demo", "1", files))
    script = next(e for e in found if e.path.endswith("bin/x"))
    assert script.content.data == f"#!/{PREFIX}/bin/python".encode()


def _rewritten(wheel: Path, folder: Path, change: Callable[[str], str | None]) -> Path:
    """Copy a wheel, renaming its members; None leaves one out."""
    folder.mkdir()
    out = folder / wheel.name
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(out, "w") as target:
        for info in source.infolist():
            if name := change(info.filename):
                target.writestr(name, source.read(info))
    return out


def test_a_wheel_without_record_or_with_two_dist_infos_is_refused(
    tmp_path: Path, demo: Path
) -> None:
    bare = _rewritten(demo, tmp_path / "a", lambda n: None if n.endswith("/RECORD") else n)
    none = _rewritten(demo, tmp_path / "b", lambda n: n.replace(".dist-info", ".info"))
    two = _rewritten(demo, tmp_path / "c", lambda n: n.replace("demo/data/", "x.dist-info/"))
    for wheel, said in [(bare, "no RECORD"), (none, "0 dist-info"), (two, "2 dist-info")]:
        with pytest.raises(IntegrityError, match=said):
            _entries(wheel)


def test_a_file_that_is_no_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demo-1-py3-none-any.whl").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(IntegrityError, match="not a whole wheel"):
        _entries(tmp_path / "demo-1-py3-none-any.whl")


# ------------------------------------------------------------------------------- one owner


def _two(tmp_path: Path, make_wheel: MakeWheel, one: str, other: str) -> list[Entry]:
    found: list[Entry] = []
    for name, content in (("first", one), ("second", other)):
        files = {"nvidia/__init__.py": content, f"nvidia/{name}/__init__.py": ""}
        wheel = make_wheel(tmp_path, name, "1", files)
        found += WheelEntries(wheel, wheel.name, PREFIX, SITE).entries(_nothing)
    return found


def test_two_wheels_may_own_one_path_with_equal_content(
    tmp_path: Path, make_wheel: MakeWheel
) -> None:
    entries = arrange(_two(tmp_path, make_wheel, "# same\n", "# same\n"))
    assert [e.path for e in entries].count(f"{SITE}/nvidia/__init__.py") == 1
    assert {f"{SITE}/nvidia/{n}/__init__.py" for n in ("first", "second")} <= set(_files(entries))


@pytest.mark.parametrize("other", ["# diff\n", "# longer\n", ""])
def test_two_wheels_that_give_one_path_different_content_are_refused(
    tmp_path: Path, make_wheel: MakeWheel, other: str
) -> None:
    with pytest.raises(IntegrityError) as caught:
        arrange(_two(tmp_path, make_wheel, "# same\n", other))
    assert f"{SITE}/nvidia/__init__.py" in caught.value.what
    assert "first-1-py3-none-any.whl" in caught.value.where
    assert "second-1-py3-none-any.whl" in caught.value.where
    assert "drop" in caught.value.remedy


def test_given_bytes_and_a_file_on_disk_merge_by_content(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"same")
    same = [from_bytes("a", b"same"), from_file("a", tmp_path / "x", 0o644)]
    assert len(arrange(same)) == 1
    (tmp_path / "x").write_bytes(b"size")
    with pytest.raises(IntegrityError):
        arrange(same)


def test_a_link_and_a_file_never_share_a_path() -> None:
    with pytest.raises(IntegrityError):
        arrange([from_bytes("a", b""), Entry("a", "link", 0o777, target="b")])
    with pytest.raises(IntegrityError):
        arrange([Entry("a", "link", 0o777, target=t) for t in "bc"])
    assert len(arrange([Entry("a", "link", 0o777, target="b")] * 2)) == 1


def test_a_path_that_is_a_file_here_and_a_folder_there_is_refused() -> None:
    with pytest.raises(IntegrityError):
        arrange([from_bytes("site/demo", b"a module"), from_bytes("site/demo/x.py", b"")])


def test_a_path_that_is_a_link_here_and_a_folder_there_is_refused() -> None:
    # Whoever unpacks it would write through the link, wherever that leads.
    with pytest.raises(IntegrityError):
        arrange([Entry("a", "link", 0o777, target="/etc"), from_bytes("a/passwd", b"")])


def test_two_owners_that_disagree_about_the_executable_bit_are_refused() -> None:
    with pytest.raises(IntegrityError):
        arrange([from_bytes("bin/x", b"same", 0o644), from_bytes("bin/x", b"same", 0o755)])


# ------------------------------------------------------------------------------------ tars


def _sample(tmp_path: Path, demo: Path) -> list[Entry]:
    (tmp_path / "big").write_bytes(random.Random(1).randbytes((1 << 20) + 3))
    return [
        *WheelEntries(demo, demo.name, PREFIX, SITE).entries(_nothing),
        *venv_entries("3.11", "/usr/bin/python3.11", SITE),
        from_file("usr/share/big", tmp_path / "big", 0o644),
        from_bytes("deep/" * 30 + "a-name-longer-than-a-plain-header-" * 3, b"x"),
        from_bytes("usr/ünï", b"y"),
        Entry("var/cache/tdstack", "folder", 0o775),
    ]


def test_the_same_entries_give_the_same_tar_whenever_and_in_whichever_order(
    tmp_path: Path, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = _sample(tmp_path, demo)
    folders = [tmp_path / "one", tmp_path / "two"]
    blobs: list[Blob] = []
    for folder, order in zip(folders, (entries, entries[::-1]), strict=True):
        folder.mkdir()
        os.utime(tmp_path / "big", (len(folders), 1))
        before = os.umask(0o077 if blobs else 0o022)
        blobs.append(write_tar(arrange(order), folder))
        os.umask(before)
        monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert blobs[0] == blobs[1]
    for folder in folders:
        (path,) = folder.iterdir()
        assert path.name == blobs[0].sha256 == sha256_of(path)
        assert path.stat().st_size == blobs[0].size


def test_tarfile_reads_a_tar_back_as_it_was_meant(tmp_path: Path, demo: Path) -> None:
    entries = arrange(_sample(tmp_path, demo))
    blob = write_tar(entries, tmp_path)
    with tarfile.open(tmp_path / blob.sha256) as archive:
        members = archive.getmembers()
        read = {m.name: archive.extractfile(m) for m in members if m.isfile()}
        contents = {name: stream.read() for name, stream in read.items() if stream}
    assert [m.name for m in members] == [e.path for e in entries] == sorted(e.path for e in entries)
    seen: set[str] = set()
    for member, entry in zip(members, entries, strict=True):
        assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")
        assert member.mtime == SOURCE_DATE_EPOCH
        assert member.mode == entry.mode
        assert (member.isfile(), member.isdir(), member.issym()) == tuple(
            entry.kind == kind for kind in ("file", "folder", "link")
        )
        assert member.linkname == entry.target
        parent = str(PurePosixPath(member.name).parent)
        assert parent == "." or parent in seen, f"{member.name} comes before its folder"
        seen.add(member.name)
    assert contents == {path: _data(entry) for path, entry in _files(entries).items()}


def test_gnu_tar_agrees(tmp_path: Path, demo: Path) -> None:
    blob = write_tar(arrange(_sample(tmp_path, demo)), tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    command = ["tar", "-xf", str(tmp_path / blob.sha256), "-C", str(out), "--no-same-owner"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (out / PREFIX / "bin/python").is_symlink()
    assert stat.S_IMODE((out / "var/cache/tdstack").stat().st_mode) & 0o700 == 0o700
    assert (out / "usr/share/big").read_bytes() == (tmp_path / "big").read_bytes()


def _damaged(demo: Path, folder: Path, offset: int) -> Path:
    """Copy a wheel with one byte of table.bin's compressed data inverted."""
    with zipfile.ZipFile(demo) as archive:
        info = archive.getinfo("demo/data/table.bin")
    raw = bytearray(demo.read_bytes())
    # A local header is 30 bytes, the name, and an extra field that our writer leaves empty.
    place = info.header_offset + 30 + len(info.filename) + offset
    raw[place] ^= 0xFF
    out = folder / demo.name
    out.write_bytes(bytes(raw))
    return out


def test_a_member_whose_checksum_is_wrong_is_an_integrity_error(tmp_path: Path) -> None:
    wheel = tmp_path / "demo-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("demo/x", b"some content of the wheel")
    wheel.write_bytes(wheel.read_bytes().replace(b"some content", b"evil content"))
    entry = Entry("x", "file", 0o644, Content(wheel=wheel, member="demo/x", size=25))
    with pytest.raises(IntegrityError) as caught:
        write_tar([entry], tmp_path)
    assert caught.value.where == f"{wheel}: demo/x"
    assert [path.name for path in tmp_path.iterdir()] == [wheel.name], "nothing half-done stays"


def test_a_member_whose_compressed_data_is_damaged_is_an_integrity_error(
    tmp_path: Path, demo: Path
) -> None:
    wheel = _damaged(demo, tmp_path, 0)
    with pytest.raises(IntegrityError):
        write_tar(_entries(wheel), tmp_path)


def test_damage_anywhere_in_a_member_never_gives_a_tar(tmp_path: Path, demo: Path) -> None:
    with zipfile.ZipFile(demo) as archive:
        length = archive.getinfo("demo/data/table.bin").compress_size
    for offset in range(0, length, 7):
        wheel = _damaged(demo, tmp_path, offset)
        with pytest.raises((IntegrityError, zlib.error)):
            write_tar(_entries(wheel), tmp_path)
        assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [wheel.name]


def test_a_file_that_shrinks_while_it_is_read_is_an_integrity_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"0123456789")
    entry = from_file("x", tmp_path / "x", 0o644)
    (tmp_path / "x").write_bytes(b"01234")
    with pytest.raises(IntegrityError) as caught:
        write_tar([entry], tmp_path)
    assert (caught.value.expected, caught.value.got) == ("10 bytes", "5 bytes")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


# ---------------------------------------------------------------------------------- images


def _image(tmp_path: Path, **changes: str) -> tuple[Image, Path]:
    layout = tmp_path / "layout"
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    steps = tuple(
        Step(write_tar(arrange([from_bytes(f"etc/{n}", n.encode())]), blobs), f"tdstack {n}")
        for n in ("one", "two")
    )
    env = {"B": "2", "A": "1", **changes}
    return Image("linux/amd64", steps, env=env, labels={"z": "26", "a": "1"}), layout


def test_the_digest_of_an_image_is_stable(tmp_path: Path) -> None:
    image, _ = _image(tmp_path)
    turned = Image(image.platform, image.steps, {"A": "1", "B": "2"}, {"a": "1", "z": "26"})
    assert image.manifest() == turned.manifest()
    assert image.digest == f"sha256:{hashlib.sha256(image.manifest()).hexdigest()}"
    assert image.digest != _image(tmp_path, A="3")[0].digest
    # Written down on purpose: whoever changes it changes every image that was ever pushed.
    assert image.digest == (
        "sha256:477bf1cd58de62b317fa814e547aa7f551b3e3ff5d99483d9b8031aa93fdf243"
    )


def test_the_manifest_points_at_the_config_and_the_layers(tmp_path: Path) -> None:
    image, _ = _image(tmp_path)
    manifest, config = json.loads(image.manifest()), json.loads(image.config())
    assert manifest["config"]["digest"] == f"sha256:{hashlib.sha256(image.config()).hexdigest()}"
    assert manifest["config"]["size"] == len(image.config())
    blobs = [step.blob for step in image.steps]
    assert [x["digest"] for x in manifest["layers"]] == [b.digest for b in blobs]
    assert [x["size"] for x in manifest["layers"]] == [b.size for b in blobs]
    assert config["rootfs"]["diff_ids"] == [b.digest for b in blobs]
    assert len(config["history"]) == len(blobs)
    assert config["config"]["Env"] == ["A=1", "B=2"]
    assert config["config"]["User"] == "1000:0"
    assert image.id == manifest["config"]["digest"].removeprefix("sha256:")
    assert image.size == sum(blob.size for blob in blobs)


def test_an_archive_is_the_same_bytes_twice_and_holds_a_whole_layout(tmp_path: Path) -> None:
    image, layout = _image(tmp_path)
    write_layout(image, layout, "localhost/tdstack:cu124")
    outs = [tmp_path / "a.tar", tmp_path / "b.tar"]
    for out in outs:
        write_archive(image, layout, out)
        for path in layout.rglob("*"):
            os.utime(path, (1, 1))
            path.chmod(0o700)
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar", "b.tar", "layout"]
    with tarfile.open(outs[0]) as archive:
        held = {m.name: (archive.extractfile(m) or io.BytesIO()).read() for m in archive}
    assert json.loads(held["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    (described,) = json.loads(held["index.json"])["manifests"]
    assert described["digest"] == image.digest
    blobs = {name: data for name, data in held.items() if name.startswith("blobs/sha256/")}
    for name, data in blobs.items():
        assert name == f"blobs/sha256/{hashlib.sha256(data).hexdigest()}"
    manifest = json.loads(blobs[f"blobs/sha256/{image.digest.removeprefix('sha256:')}"])
    wanted = [manifest["config"], *manifest["layers"]]
    for descriptor in wanted:
        data = blobs[f"blobs/sha256/{descriptor['digest'].removeprefix('sha256:')}"]
        assert len(data) == descriptor["size"]
    assert len(blobs) == len(wanted) + 1


def test_an_archive_that_cannot_be_finished_leaves_nothing(tmp_path: Path) -> None:
    image, layout = _image(tmp_path)
    write_layout(image, layout, "x")
    (layout / "blobs" / "sha256" / image.steps[1].blob.sha256).unlink()
    with pytest.raises(OSError):
        write_archive(image, layout, tmp_path / "a.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["layout"]


# ----------------------------------------------------------------------------------- parts


LAYER = Layer("torch", "0" * 64, None, (), RECIPE, {}, {}, ())
EXTRA = (from_bytes("etc/x", b"x"),)


def _source(number: int, unpacked: int) -> WheelSource:
    name = f"w{number}-1-py3-none-any.whl"
    file = LockedFile(name=name, sha256=f"{number:064x}", size=1)
    return WheelSource(file, Path(name), unpacked)


SIZES = st.one_of(
    st.integers(0, 2 * PART_BYTES),
    st.sampled_from([0, 1, PART_BYTES // 2, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1]),
)


@settings(deadline=None, derandomize=True, database=None)
@given(sizes=st.lists(SIZES, max_size=30), shuffle=st.randoms(use_true_random=False))
def test_parts_keep_every_wheel_once_and_stay_within_bounds_unless_one_wheel_is_larger(
    sizes: list[int], shuffle: random.Random
) -> None:
    wheels = [_source(number, size) for number, size in enumerate(sizes)]
    parts = split(LAYER, wheels, EXTRA)
    held = [wheel.file.name for part in parts for wheel in part.wheels]
    assert sorted(held) == sorted(wheel.file.name for wheel in wheels)
    for part in parts:
        assert sum(w.unpacked for w in part.wheels) <= PART_BYTES or len(part.wheels) == 1
    assert [part.extra for part in parts] == [EXTRA, *[()] * (len(parts) - 1)]
    assert [p.title for p in parts] == [f"torch {n}/{len(parts)}" for n in range(1, len(parts) + 1)]
    weights = [sum(w.unpacked for w in part.wheels) for part in parts]
    assert weights == sorted(weights)
    shuffled = list(wheels)
    shuffle.shuffle(shuffled)
    assert split(LAYER, shuffled, EXTRA) == parts, "the order of the wheels decided"


def test_a_layer_without_wheels_is_one_part_with_its_extra_files() -> None:
    assert split(LAYER, [], EXTRA) == [Part("torch 1/1", (), EXTRA)]


def _stored(wheel: Path, store: Store) -> WheelSource:
    file = LockedFile(name=wheel.name, sha256=sha256_of(wheel), size=wheel.stat().st_size)
    path = store.admit(wheel, file, origin="a test", move=False)
    return WheelSource(file, path, unpacked_size(wheel, RECIPE))


def test_a_part_is_written_from_the_store(tmp_path: Path, store: Store, demo: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    part = Part("torch 1/1", (_stored(demo, store),), EXTRA)
    blob = write_part(PartJob(part, RECIPE, SITE, store.root, blobs))
    with tarfile.open(blobs / blob.sha256) as archive:
        names = archive.getnames()
    assert set(names) == {"etc", "etc/x", *(e.path for e in _entries(demo))}
    assert write_part(PartJob(part, RECIPE, SITE, store.root, blobs)) == blob


def test_a_part_is_not_written_from_a_store_that_rotted(
    tmp_path: Path, store: Store, demo: Path
) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    source = _stored(demo, store)
    data = bytearray(source.path.read_bytes())
    data[len(data) // 2] ^= 1
    source.path.unlink()
    source.path.write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match="not the file that the lock names"):
        write_part(PartJob(Part("x", (source,), ()), RECIPE, SITE, store.root, blobs))
    assert list(blobs.iterdir()) == []


def test_a_recipe_gives_its_folders_links_and_files(tmp_path: Path) -> None:
    tree = tmp_path / "images" / "torch" / "rootfs"
    (tree / "opt/bin").mkdir(parents=True)
    (tree / "opt/bin/run").write_text("#!/bin/sh\n")
    (tree / "opt/bin/run").chmod(0o700)
    (tree / "opt/note.txt").write_text("note")
    (tree / "opt/note.txt").chmod(0o600)
    (tree / "opt/__pycache__").mkdir()
    (tree / "opt/__pycache__/x.pyc").write_bytes(b"")
    recipe = RECIPE.model_copy(
        update={
            "folder": (Folder(path="var/cache", mode=0o775),),
            "link": (Link(path="usr/bin/x", target="../../opt/bin/run"),),
        }
    )
    layer = Layer("torch", "0" * 64, None, (), recipe, {}, {}, ())
    found = {(e.path, e.kind, e.mode, e.target) for e in recipe_entries(layer, tmp_path)}
    assert found == {
        ("var/cache", "folder", 0o775, ""),
        ("usr/bin/x", "link", 0o777, "../../opt/bin/run"),
        ("opt/bin/run", "file", 0o755, ""),
        ("opt/note.txt", "file", 0o644, ""),
    }


def test_the_environment_names_its_interpreter(tmp_path: Path) -> None:
    blob: Blob = write_tar(arrange(venv_entries("3.11", "/usr/bin/python3.11", SITE)), tmp_path)
    with tarfile.open(tmp_path / blob.sha256) as archive:
        config = archive.extractfile(f"{PREFIX}/pyvenv.cfg")
        links = {m.name: m.linkname for m in archive if m.issym()}
        assert config is not None
        assert b"home = /usr/bin\n" in config.read()
    assert links == {
        f"{PREFIX}/bin/{n}": "/usr/bin/python3.11" for n in ("python", "python3", "python3.11")
    }


@pytest.mark.parametrize("folder", ["plain", "with a space", "long" * 40])
def test_a_script_finds_its_python_at_any_path(tmp_path: Path, folder: str) -> None:
    python = tmp_path / folder / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    script = tmp_path / "script"
    code = b"'''doc'''\nimport sys; print(sys.executable, sys.flags.safe_path, *sys.argv[1:])\n"
    script.write_bytes(shebang(str(python), "-P") + code)
    script.chmod(0o755)
    done = subprocess.run([script, "a b", "c"], capture_output=True, text=True, check=True)
    assert done.stdout == f"{python} True a b c\n"
