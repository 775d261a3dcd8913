"""tdstack-verify through a link, as DIR/current of a prefix is one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tdstack.verify.main import Options, verify
from tests.triton_environments import Venv
from tests.triton_wheels import STOCK_FILES, TAG

if TYPE_CHECKING:
    from tests.conftest import MakeWheel


def test_a_linked_ptxas_is_no_damage_whatever_way_leads_to_it(
    tmp_path: Path, make_wheel: MakeWheel
) -> None:
    venv = Venv(tmp_path / "versions" / "one")
    ptxas = "nvidia/cuda_nvcc/bin/ptxas"
    toolkit = make_wheel(tmp_path, "nvidia_cuda_nvcc", "12.4.131", {ptxas: b"\x7fELF"})
    venv.install(make_wheel(tmp_path, "triton", "3.4.0", STOCK_FILES, tag=TAG), toolkit)
    link = venv.site / "triton/backends/nvidia/bin/ptxas"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(venv.site / ptxas)
    (current := tmp_path / "current").symlink_to("versions/one")
    for prefix in (venv.prefix, current, Path(f"{current}/")):
        report = verify(Options(prefix, quick=True))
        assert (report.verdict, report.code) == ("stock", 0), report.findings
        assert report.environment.prefix == venv.prefix

    # A link that leads nowhere known is damage still.
    (stray := tmp_path / "ptxas").write_bytes(b"\x7fELF")
    link.unlink()
    link.symlink_to(stray)
    assert verify(Options(current, quick=True)).verdict == "broken"
