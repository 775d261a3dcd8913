"""User data: what they refuse to say, and what cloud-init and a machine make of them."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from tdstack.cloud_init.command import main
from tdstack.cloud_init.render import MAX_BYTES, render
from tdstack.cloud_init.settings import Settings
from tdstack.cluster import write
from tdstack.errors import UsageError
from tests.cloud_machine import Machine, cloud_machine
from tests.shipped import ROOT
from tests.test_cluster import CLUSTER

HASH = "#sha256=" + "ab" * 32
CHECKOUT = f"https://files.example/tdstack.tar.gz{HASH}"
PULL = (
    "pull --cuda 12.4 --triton stock --torch cuda --platform linux/amd64 --python 3.11 "
    "--engine docker --registry registry.example:5000/team/tdstack "
    "--cluster /var/lib/tdstack/pulled.env --json"
)
DOCTOR = "doctor --cuda 12.4 --json"
SMOKE = f"smoke --image {CLUSTER.image} --engine docker --out /var/lib/tdstack/smoke-report --json"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with cloud_machine(tmp_path_factory.mktemp("cloud")) as machine:
        yield machine


@pytest.fixture
def machine(made: Machine) -> Machine:
    made.wipe()
    made.program("usr/local/bin/docker", "#!/bin/sh\nexit 0\n")
    return made


def user_data(machine: Machine, **options: object) -> str:
    settings = Settings(machine.checkout(), **options)  # type: ignore[arg-type]
    return render(ROOT, CLUSTER, settings)


def test_a_fresh_machine_comes_to_a_verdict_and_to_it_again_at_the_next_boot(
    machine: Machine,
) -> None:
    booted = machine.boot(user_data(machine))
    assert booted.code == 0, booted.said
    result = json.loads((machine.root / "run/cloud-init/result.json").read_text())
    assert result["v1"]["errors"] == []
    wants = machine.root / "etc/systemd/system/multi-user.target.wants"
    assert (wants / "tdstack-provision.service").is_symlink()
    assert machine.calls == []  # systemctl starts nothing here
    first = machine.provision()
    assert first.code == 0, first.said
    assert machine.calls == ["bootstrap", PULL, DOCTOR, SMOKE]
    verdict = machine.verdict
    assert (verdict["fit"], verdict["exit_code"], verdict["step"]) == (True, 0, "end")
    assert verdict["image"] == CLUSTER.image
    # The next boot: nothing is fetched, the smoke checks have passed with this image.
    assert machine.provision().code == 0
    assert machine.calls[4:] == ["bootstrap", PULL, DOCTOR]
    assert machine.verdict["fit"] is True


def test_cloud_init_and_systemd_find_no_fault(machine: Machine) -> None:
    data = user_data(machine, packages=("docker.io=20.10",), way="prefix")
    (machine.root / "srv/user-data").write_text(data)
    told = machine.run("cloud-init", "schema", "--config-file", "/srv/user-data")
    assert told.code == 0, told.said
    assert "Valid" in told.said
    bad = data.replace('permissions: "0755"', "permissions: 755")
    (machine.root / "srv/user-data").write_text(bad)
    told = machine.run("cloud-init", "schema", "--config-file", "/srv/user-data")
    assert "permissions: 755 is not of type 'string'" in told.said
    machine.boot(data)
    unit = "/etc/systemd/system/tdstack-provision.service"
    told = machine.run("systemd-analyze", "verify", unit)
    assert (told.code, "tdstack" in told.said) == (0, False), told.said


@pytest.mark.parametrize(("verb", "code"), [("pull", 5), ("doctor", 3), ("smoke", 1)])
def test_what_fails_is_named_and_ends_the_way(machine: Machine, verb: str, code: int) -> None:
    machine.seed(user_data(machine))
    findings = [
        {"check": "driver", "severity": "missing"},
        {"check": "clock", "severity": "ok"},
    ]
    machine.answer(verb, code, {"findings": findings} if verb == "doctor" else None)
    ran = machine.provision()
    assert ran.code == code
    verdict = machine.verdict
    step = "image" if verb == "pull" else verb
    assert (verdict["fit"], verdict["exit_code"], verdict["step"]) == (False, code, step)
    assert f"invoke {verb} ended with {code}" in verdict["message"]
    assert verdict["failed"] == (["driver"] if verb == "doctor" else [])
    assert machine.calls[-1].startswith(verb)
    machine.answer(verb, 0)
    assert machine.provision().code == 0  # mended: no user data need be rendered again
    assert machine.verdict["fit"] is True


def test_an_image_for_some_gpus_is_asked_for_as_such(machine: Machine) -> None:
    tag = "cu124-py311-stock-sm_80-sm_90-0123456789ab"
    settings = Settings(machine.checkout())
    machine.seed(render(ROOT, replace(CLUSTER, tag=tag), settings))
    assert machine.provision().code == 0
    assert "--engine docker --arch sm_80 --arch sm_90 --registry" in machine.calls[1]


def test_another_image_in_the_registry_is_not_taken(machine: Machine) -> None:
    machine.seed(user_data(machine))
    other = replace(CLUSTER, image=CLUSTER.image[:-4] + "0000")
    write(machine.root / "srv/other.env", other)
    ran = machine.provision(PULLED="/srv/other.env")
    assert ran.code == 4
    assert "another image for this lock" in machine.verdict["message"]
    assert "doctor" not in machine.calls


def test_a_checkout_with_other_bytes_is_not_run(machine: Machine) -> None:
    machine.seed(user_data(machine))
    with (machine.root / "srv/checkout.tar.gz").open("ab") as archive:
        archive.write(b"\0")
    ran = machine.provision()
    assert ran.code == 4
    assert "not the one that was named" in machine.verdict["message"]
    assert machine.calls == []
    assert list((machine.root / "opt/tdstack-checkout").glob("[!.]*")) == []
    (machine.root / "srv/checkout.tar.gz").unlink()
    assert machine.provision().code == 5


def test_an_archive_of_the_tree_itself_will_do(machine: Machine) -> None:
    settings = Settings(machine.checkout("flat.tar.gz", top=""))
    machine.seed(render(ROOT, CLUSTER, settings))
    assert machine.provision().code == 0


def test_a_machine_without_an_engine_is_told_which_option_has_one(machine: Machine) -> None:
    machine.seed(user_data(machine))
    (machine.root / "usr/local/bin/docker").unlink()
    assert machine.provision().code == 3
    assert "--package docker.io=VERSION" in machine.verdict["message"]


def test_packages_come_from_apt_in_the_version_that_was_named(machine: Machine) -> None:
    settings = Settings(machine.checkout(), packages=("hello=2.10-3",))  # bookworm's
    sources = b"Types: deb\nURIs: file:///srv/none\nSuites: ./\nEnabled: no\n"
    machine.seed(render(ROOT, CLUSTER, settings, apt_sources=sources))
    ran = machine.provision()
    assert ran.code == 0, ran.said
    assert machine.run("hello").code == 0
    assert (machine.root / "etc/apt/sources.list.d/tdstack.sources").read_bytes() == sources
    # It is there, so apt is not asked again: its only source is gone now.
    machine.seed(render(ROOT, CLUSTER, settings, apt_sources=sources.replace(b"no", b"yes")))
    assert machine.provision().code == 0
    machine.seed(user_data(machine, packages=("hello=0.1",)))
    (machine.root / "etc/apt/sources.list").write_text("deb file:///srv/none ./\n")
    assert machine.provision().code == 5
    assert "out of reach" in machine.verdict["message"]


def with_gpu(machine: Machine) -> None:
    """Give the machine a GPU on its PCI bus, and programs that say when they are called."""
    device = machine.root / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x030200\n")
    for name in ("modprobe", "systemctl", "nvidia-ctk"):
        text = f'#!/bin/sh\necho {name} "$@" >>/calls\n[ ! -e /answers/{name} ]\n'
        machine.program(f"usr/local/bin/{name}", text)


def test_a_driver_that_does_not_load_is_given_one_restart(machine: Machine) -> None:
    with_gpu(machine)
    machine.program("usr/local/bin/apt-get", "#!/bin/sh\necho apt-get >>/calls\n")
    (machine.root / "answers/modprobe").touch()
    machine.seed(user_data(machine, driver_packages=("nvidia-driver=535.1-1",)))
    assert machine.provision().code == 3
    assert machine.calls == ["apt-get", "apt-get", "modprobe nvidia", "systemctl reboot"]
    assert machine.verdict["message"] == "restarted once for the new driver"
    assert machine.provision().code == 3
    assert machine.calls.count("systemctl reboot") == 1
    assert "after a reboot too" in machine.verdict["message"]
    (machine.root / "answers/modprobe").unlink()
    assert machine.provision().code == 0
    assert not (machine.root / "var/lib/tdstack/rebooted").exists()


def test_docker_is_told_of_the_gpus_where_it_does_not_know(machine: Machine) -> None:
    with_gpu(machine)
    machine.seed(user_data(machine))
    told = ["nvidia-ctk runtime configure --runtime=docker", "systemctl restart docker"]
    assert machine.provision().code == 0
    assert machine.calls[:2] == told
    machine.program("usr/local/bin/docker", "#!/bin/sh\necho '{\"nvidia\":{}}'\n")
    assert machine.provision().code == 0
    assert machine.calls.count(told[0]) == 1


def test_a_prefix_needs_no_engine_and_is_checked_by_its_own_python(machine: Machine) -> None:
    machine.seed(user_data(machine, way="prefix", prefix="/opt/stack"))
    (machine.root / "usr/local/bin/docker").unlink()
    machine.program("opt/stack/current/bin/python", '#!/bin/sh\necho "python $PWD $@" >>/calls\n')
    ran = machine.provision()
    assert ran.code == 0, ran.said
    assert machine.calls == [
        "bootstrap",
        "install --cuda 12.4 --triton stock --torch cuda --prefix /opt/stack --json",
        DOCTOR,
        "verify --prefix /opt/stack --json",
        "python /var/lib/tdstack/checks -m smoke_tests.launch --nodes 1 "
        "--out /var/lib/tdstack/smoke-report",
    ]
    (machine.root / "opt/stack/current/bin/python").write_text("#!/bin/sh\nexit 6\n")
    assert machine.provision().code == 0  # it has passed
    (machine.root / "etc/tdstack/provision.env").write_text(
        Settings(machine.checkout(), "prefix", "/opt/stack", smoke="always").render()
    )
    assert machine.provision().code == 6
    assert "smoke checks ended with 6" in machine.verdict["message"]


def test_the_key_that_must_have_signed_goes_along(machine: Machine) -> None:
    key = b"-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----\n"
    machine.seed(render(ROOT, CLUSTER, Settings(machine.checkout()), key))
    assert machine.provision().code == 0
    assert "--key /etc/tdstack/key.pub" in machine.calls[1]
    assert (machine.root / "etc/tdstack/key.pub").read_bytes() == key


def test_without_its_settings_it_says_so(machine: Machine) -> None:
    machine.seed(user_data(machine))
    (machine.root / "etc/tdstack/cluster.env").unlink()
    assert machine.provision().code == 2
    assert "cluster.env" in machine.verdict["message"]


def test_user_data_are_small_readable_and_begin_as_they_must() -> None:
    text = render(ROOT, CLUSTER, Settings(CHECKOUT))
    assert text.startswith("#cloud-config\n")
    assert len(text.encode()) < MAX_BYTES // 2
    files = {file["path"]: file for file in yaml.safe_load(text)["write_files"]}
    assert files["/etc/tdstack/cluster.env"]["content"] == CLUSTER.render()
    assert CLUSTER.image in text
    assert text == render(ROOT, CLUSTER, Settings(CHECKOUT))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"checkout": f"https://me:secret@files.example/a{HASH}"}, "needs no secret"),
        ({"checkout": f"https://files.example/a?signature=secret{HASH}"}, "needs no secret"),
        ({"checkout": f"http://files.example/a{HASH}"}, "--checkout"),
        ({"checkout": "https://files.example/a"}, "64 hex digits"),
        ({"checkout": f"https://files.example/$(id){HASH}"}, "--checkout"),
        ({"packages": ("docker.io",)}, "a version is pinned"),
        ({"packages": ("docker.io=1 --force",)}, "--package"),
        ({"driver_packages": ("x=1;id",)}, "--driver-package"),
        ({"prefix": "opt"}, "--prefix"),
        ({"prefix": "/opt/a b"}, "--prefix"),
        ({"prefix": "/opt/../etc"}, "--prefix"),
        ({"way": "both"}, "--way"),
        ({"smoke": "never"}, "--smoke"),
    ],
)
def test_a_value_that_is_a_secret_or_none_of_its_kind_is_refused(
    options: dict[str, object], words: str
) -> None:
    with pytest.raises(UsageError) as refused:
        Settings(**({"checkout": CHECKOUT} | options))  # type: ignore[arg-type]
    assert words in str(refused.value)
    if "secret" in words:
        assert "me:secret" not in str(refused.value)


def test_secrets_in_files_are_refused() -> None:
    settings = Settings(CHECKOUT)
    for key in (b"-----BEGIN PRIVATE KEY-----", b"ssh-ed25519 AAAA"):
        with pytest.raises(UsageError, match="no public key"):
            render(ROOT, CLUSTER, settings, key)
    with pytest.raises(UsageError, match="a password"):
        render(ROOT, CLUSTER, settings, apt_sources=b"URIs: https://me:secret@apt.example/\n")
    with pytest.raises(UsageError, match="too large"):
        render(ROOT, CLUSTER, settings, apt_sources=random.Random(1).randbytes(20_000))


def test_the_script_works_with_python_alone(tmp_path: Path) -> None:
    file = tmp_path / "cluster.env"
    write(file, CLUSTER)
    script = str(ROOT / "scripts/cloud-init/render")
    command = ["python3", "-S", script, str(file), "--checkout", CHECKOUT]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("#cloud-config\n")
    assert main(ROOT, [str(file), "--checkout", "x"]) == 2
    assert main(ROOT, [str(file), "--checkout", CHECKOUT, "--key", str(tmp_path / "no")]) == 2
