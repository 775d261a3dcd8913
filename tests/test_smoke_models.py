"""The comparison of whole models: its bound holds, is not vacuous, and names what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

for package in ("torch", "transformers", "accelerate"):
    pytest.importorskip(package, reason=f"not installed: {package} (requirements-models.lock)")

import torch

from smoke_tests.models import compare, roundings, tiny
from smoke_tests.models.run import Product, Step, projections, run
from smoke_tests.reference import UNIT_ROUNDOFF

if TYPE_CHECKING:
    from smoke_tests.models.roundings import Reference

RANKS = 2
TYPES = [torch.float16, torch.bfloat16]
PROMPTS = torch.randint(0, tiny.VOCABULARY, (3, 4), generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=TYPES, ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model in a 2-byte type, the reference in float32, and the type."""
    folder, dtype, model = tmp_path_factory.mktemp("model"), request.param, tiny.llama(RANKS)
    tiny.save(model, dtype, folder)
    whole = tiny.load_whole(model, folder)
    small = type(whole).from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return small, roundings.reference(whole, PROMPTS, 1, RANKS), dtype


def steps_of(model: Any, reference: Reference) -> list[Step]:
    return run(model, PROMPTS, 1, [step.greedy for step in reference.steps])


def test_rounding_stays_within_the_bound_and_comes_near_it(pair: Any) -> None:
    small, reference, dtype = pair
    found = compare.with_reference("it", steps_of(small, reference), reference, dtype)
    assert not found.findings
    assert 0.05 < found.worst < 0.5, "MARGIN is 2, and real roundings are u / sqrt(3) at most"


def test_a_dropped_bias_is_far_outside_and_its_layer_is_first(pair: Any) -> None:
    small, reference, dtype = pair
    bias = small.model.layers[1].self_attn.o_proj.bias
    kept = bias.clone()
    try:
        bias.zero_()
        found = compare.with_reference("it", steps_of(small, reference), reference, dtype)
    finally:
        bias.copy_(kept)
    assert found.worst > 5
    assert found.findings[0].startswith("prefill, model.layers.1: it is "), found.findings
    assert not any("layers.0" in finding for finding in found.findings if "prefill" in finding)


def test_not_a_number_is_a_finding_and_names_its_prompt(pair: Any) -> None:
    small, reference, dtype = pair
    steps = steps_of(small, reference)
    hidden = {name: h.clone() for name, h in steps[1].hidden.items()}
    hidden["model.layers.0"][2, 0, 5] = torch.nan
    broken = [steps[0], replace(steps[1], hidden=hidden)]
    (finding,) = compare.with_reference("it", broken, reference, dtype).findings
    assert finding.startswith("decode 1, model.layers.0: it is nan times"), finding
    assert "(prompt 2 of 3)" in finding


def test_depth_and_type_decide_the_bound(pair: Any) -> None:
    _, reference, _ = pair
    for step, spread in zip(reference.steps, reference.spread, strict=True):
        sizes = [h.flatten(1).norm(dim=1) for h in step.hidden.values()]
        relative = [spread[name] / size for name, size in zip(step.hidden, sizes, strict=True)]
        assert bool((relative[1] > relative[0]).all()), "a second layer adds its roundings"
    assert UNIT_ROUNDOFF[torch.bfloat16] == 8 * UNIT_ROUNDOFF[torch.float16]


def test_the_spread_of_a_product_and_a_sum_is_the_one_by_hand() -> None:
    x = torch.tensor([[3.0, -2.0]], requires_grad=True)
    with torch.enable_grad(), roundings._Operations() as operations:
        product = x * 4.0  # 12, -8
        total = product + 1.0  # 13, -7
        turned = total.reshape(2, 1).T.contiguous()  # rounds nothing
        y = turned * 2.0  # 26, -14
    assert [r.tolist() for r in operations.results] == [[[12, -8]], [[13, -7]], [[26, -14]]]
    (square,) = roundings._squares(y, torch.ones(1, 2), operations.results, 1)
    assert float(square) == 2**2 * (12**2 + 8**2) + 2**2 * (13**2 + 7**2) + 26**2 + 14**2


def test_partial_products_of_ranks_are_operations_of_their_own() -> None:
    layer = torch.nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[100.0, 0.0, 0.0, -99.0]])

    class Model(torch.nn.Module):
        def named_modules(self, *_: Any, **__: Any) -> Any:
            yield "model.layers.0.mlp.down_proj", layer

    x = torch.ones(1, 4, requires_grad=True)
    squares = []
    for ranks in (1, 2):
        with torch.enable_grad(), roundings._in_parts(Model(), ranks):
            with roundings._Operations() as operations:
                y = layer(x)
            squares.append(float(roundings._squares(y, torch.ones(1, 1), operations.results, 1)))
    assert squares == [1.0, 100.0**2 + 99.0**2 + 1.0], "they are larger than their sum"
    assert "forward" not in vars(layer), "the layer is as it was"


def test_tokens_are_compared_where_rounding_decides_nothing(pair: Any) -> None:
    small, reference, dtype = pair
    steps = steps_of(small, reference)
    found, decided, count = compare.greedy_tokens("it", steps, reference, dtype)
    assert not found.findings
    assert count == 6
    assert decided > 3
    other = [replace(step, logits=-step.logits) for step in steps]
    found, _, _ = compare.greedy_tokens("it", other, reference, dtype)
    assert len(found.findings) == decided
    assert "prompt" in found.findings[0]
    open_ = replace(reference, gaps=[(gap * 0, s) for gap, s in reference.gaps])
    found, decided, _ = compare.greedy_tokens("it", other, open_, dtype)
    assert decided == 0
    assert found.findings == ("only 0 of 6 tokens are decided: this compares nothing",)


def products_of(dtype: torch.dtype) -> tuple[list[list[Product]], dict[str, compare.Weights]]:
    """Return two calls on two ranks, right to the last bit that a rounding leaves."""
    source, weights, ranks = torch.Generator().manual_seed(8), {}, [list[Product](), []]
    for name in ("model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"):
        x = torch.randn(2, 3, 16, generator=source).to(dtype)
        w = torch.randn(2, 8, 16, generator=source).to(dtype)
        bias = torch.randn(8, generator=source).to(dtype)
        weights[name] = compare.Weights(w.float(), bias.float())
        total = sum((a.double() @ b.double().T for a, b in zip(x, w, strict=True)), bias.double())
        for rank in range(2):
            ranks[rank].append(Product(name, x[rank], total.to(dtype)))
    return ranks, weights


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_product_is_judged_by_itself_and_its_layer_named(dtype: torch.dtype) -> None:
    ranks, weights = products_of(dtype)
    found = compare.products("prefill", ranks, weights)
    assert not found.findings
    assert 0 < found.worst < 1
    name = "model.layers.1.mlp.down_proj"
    bias = weights[name].bias
    assert bias is not None
    for rank in ranks:
        rank[1] = replace(rank[1], y=(rank[1].y.double() - bias).to(dtype))
    found = compare.products("prefill", ranks, weights)
    assert len(found.findings) == 2
    assert all(f"prefill, {name}, rank {r}: error is" in found.findings[r] for r in (0, 1))
    ranks, weights = products_of(dtype)
    ranks[1][0].y[0, 0] = torch.nextafter(ranks[1][0].y[0, 0], torch.tensor(9.0, dtype=dtype))
    (finding,) = compare.products("decode 1", ranks, weights).findings
    assert finding == "decode 1, model.layers.0.mlp.down_proj: ranks differ in bits"


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_sizes_are_those_that_split_badly(ranks: int) -> None:
    for model in (tiny.qwen2(ranks), tiny.llama(ranks)):
        depth, rest = divmod(model.intermediate, ranks)
        assert rest == 0
        assert depth % 8 == 0
        assert depth % 16, "no multiple of any tile's depth"
        assert (model.heads, model.heads // model.key_heads) == (64, 8), "as Qwen2.5-72B"
        assert 3.5 < model.intermediate / model.hidden < 3.8


def test_a_checkpoint_is_the_same_each_time_and_has_the_biases(tmp_path: Path) -> None:
    for number in (1, 2):
        tiny.save(tiny.llama(RANKS), torch.float16, tmp_path / str(number))
    first, second = (tmp_path / str(n) / "model.safetensors" for n in (1, 2))
    assert first.read_bytes() == second.read_bytes()
    whole = tiny.load_whole(tiny.llama(RANKS), tmp_path / "1")
    biases = {name: m.bias is not None for name, m in projections(whole).items()}
    assert biases == {
        f"model.layers.{i}.{name}": name == "self_attn.o_proj"
        for i in range(2)
        for name in ("self_attn.o_proj", "mlp.down_proj")
    }
