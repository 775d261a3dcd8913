"""One rank of kernels that only sum, interpreted: python all_reduce_rank.py FOLDER RANK W.

Prints JSON.

Integers, so that sums are exact; and calls of the fused kernels between, as both share the epoch.
"""

from __future__ import annotations

import gc
import json
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
import torch.distributed as dist

from gemm_allreduce import Workspace, all_reduce, gemm_allreduce
from gemm_allreduce.dispatch import Choice, Shape, choose, sum_only
from gemm_allreduce.transports.shared import SharedMemoryTransport
from gemm_allreduce.variants import Tile, Variant

HALF = torch.float16
MOST, FEATURES = 160, 136  # neither is a multiple of a tile


def integers(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 5, shape, generator=generator).to(HALF)


def summed(workspace: Workspace, rank: int, w: int, rows: tuple[int, ...], out: bool) -> list[str]:
    """Call with some M; return what was wrong."""
    wrong = []
    for tokens in rows:
        parts = [integers(100 * tokens + r, tokens, FEATURES) for r in range(w)]
        want = torch.stack(parts).sum(0)
        place = torch.full_like(want, float("nan")) if out else None
        got = all_reduce(parts[rank], workspace, place)
        if place is not None and got is not place:
            wrong.append(f"M {tokens}: another tensor than out")
        if not torch.equal(got, want):
            wrong.append(f"M {tokens}: {int((got != want).sum())} elements")
        if tokens == 17:  # a product between two sums
            x, weight = integers(rank, 5, 16), integers(50 + rank, FEATURES, 16)
            y = gemm_allreduce(x, weight, workspace)
            both = [(integers(r, 5, 16), integers(50 + r, FEATURES, 16)) for r in range(w)]
            if not torch.equal(y, sum((a.float() @ b.float().T for a, b in both)).to(HALF)):  # type: ignore[union-attr]
                wrong.append("the product between")
    workspace.check()
    return wrong


def unfused(workspace: Workspace, rank: int, w: int) -> list[str]:
    """Call gemm_allreduce, whose dispatch chooses a sum alone; return what was wrong."""
    wrong = []
    depth = 16
    for tokens in (0, 17, MOST, MOST + 3):
        x = [integers(100 * tokens + r, tokens, depth) for r in range(w)]
        weight = [integers(200 + r, FEATURES, depth) for r in range(w)]
        bias, residual = integers(1, FEATURES), integers(2, tokens, FEATURES)
        product = sum((a.float() @ b.float().T for a, b in zip(x, weight, strict=True)))
        kept = [t.clone() for t in (x[rank], weight[rank], bias)]
        for name, more, want in (
            ("", {}, product),
            ("bias and residual", {"bias": bias, "residual": residual}, product + bias + residual),
            ("into the residual", {"residual": residual, "out": residual}, product + residual),
        ):
            y = gemm_allreduce(x[rank], weight[rank], workspace, **more)
            if not torch.equal(y, want.to(HALF)):  # type: ignore[union-attr]
                wrong.append(f"M {tokens} {name}: {int((y != want).sum())} elements")
        given = (x[rank], weight[rank], bias)
        if not all(torch.equal(a, b) for a, b in zip(given, kept, strict=True)):
            wrong.append(f"M {tokens}: an operand was overwritten")
    workspace.check()
    return wrong


def main() -> None:
    folder, rank, w = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_grad_enabled(False)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=w)
    print(json.dumps(found(rank, w)))
    gc.collect()
    dist.destroy_process_group()


def found(rank: int, w: int) -> dict[str, object]:
    """Return what was wrong, and the names of the kernels that served."""
    group = dist.group.WORLD
    assert group is not None
    answer: dict[str, object] = {}
    tile = Tile(64, 128, 32, 1, 4)
    unsplit = Choice(Variant("two_shot", "fp16", "fp16", w, tile), comm_ctas=1)
    split = Choice(Variant("two_shot", "fp16", "fp16", w, tile, w))
    of_table = partial(summed, rows=(0, 16, 17, 65, MOST + 3), out=True)
    of_two_shot = partial(summed, rows=(17, MOST), out=False)
    for name, dispatch, check in (
        ("table", choose, of_table),
        ("communication CTAs", lambda _: unsplit, of_two_shot),
        ("split", lambda _: split, of_two_shot),
        ("not fused", lambda _: sum_only(unsplit), unfused),
        ("not fused, split", lambda _: sum_only(split), unfused),
    ):
        names: set[str] = set()

        def chosen(shape: Shape, dispatch: object = dispatch, names: set[str] = names) -> Choice:
            choice: Choice = dispatch(shape)  # type: ignore[operator]
            names.add(sum_only(choice).variant.name)
            return choice

        workspace = Workspace(
            SharedMemoryTransport(group),
            max_tokens=MOST,
            max_features=FEATURES,
            dtype=HALF,
            dispatch=chosen,
        )
        answer[name] = check(workspace, rank, w)
        answer[f"kernels of {name}"] = sorted(names)
        answer[f"epochs of {name}"] = workspace.epochs()
        workspace.close()
    return answer


if __name__ == "__main__":
    main()
