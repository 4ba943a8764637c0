"""The engines of the all-pairs similarity: against each other, against float64, and what they must never build. Values against a loop:
tests/objectives/test_word_region.py and test_phrase_image.py."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from elvis.errors import ConfigError
from elvis.kernels import word_region
from elvis.kernels.word_region import attended_cosine, choose_engine, tiles, word_region_similarity
from tests.kernel_worker import CASES, error, given, measured

WORKER = Path(__file__).with_name("kernel_worker.py")


@pytest.mark.slow
def test_triton_agrees_with_float64_and_gives_the_same_bits_each_time(tmp_path: Path) -> None:
    """Values and gradients, interpreted in a process of their own (all cases in one test: it would be started by each worker of pytest)."""
    if find_spec("triton") is None:
        pytest.skip("no triton here")
    out = tmp_path / "out.pt"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(WORKER), str(out)], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    found = torch.load(out, weights_only=True)
    assert found.keys() == CASES.keys()
    for name, one in found.items():
        dtype = CASES[name][5]
        assert (one["errors"] <= (1e-5 if dtype == torch.float32 else 1e-2)).all(), (name, one["errors"])
        assert one["same"].all(), name
        assert one["dtypes"] == ["torch.float32", str(dtype), str(dtype)], name


@pytest.mark.parametrize("engine", ["dense", "chunked"])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("width", [8, 64])
def test_torch_agrees_with_float64_by_autograd(engine: str, dtype: torch.dtype, limit: float, width: int) -> None:
    w, v, *masks = given(3, 4, 6, 20, width, dtype)
    got = list(measured(w, v, *masks, engine=engine))
    w, v = w.double().requires_grad_(), v.double().requires_grad_()
    exact = by_autograd(w, v, *masks)
    weight = torch.linspace(-1, 2, exact.numel(), dtype=torch.float64).view(exact.shape)
    (exact * weight).sum().backward()
    for a, b in zip(got, (exact.detach(), w.grad, v.grad), strict=True):
        assert error(a, b) <= limit


def by_autograd(w: torch.Tensor, v: torch.Tensor, word_mask: torch.Tensor, region_mask: torch.Tensor) -> torch.Tensor:
    """GLoRIA's formula with its contexts, everything at once."""
    s = torch.einsum("itd,brd->bitr", w, v)
    p = s.masked_fill(~word_mask[None, :, :, None], -torch.inf).softmax(2)
    a = (4 * p).masked_fill(~region_mask[:, None, None], -torch.inf).softmax(-1)
    context = torch.einsum("bitr,brd->bitd", a, v)
    length = context.square().sum(-1) * w.square().sum(-1).clamp_min(1e-30)
    cos = (context * w).sum(-1) / length.sqrt()
    return (5 * cos).masked_fill(~word_mask, -torch.inf).logsumexp(-1)


@pytest.mark.parametrize("size", [1, 30, 1000])
@pytest.mark.parametrize("width", [3, 16])
def test_the_size_of_tiles_changes_neither_values_nor_gradients(size: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    w, v, *masks = given(3, 4, 5, 7, width, torch.float64)
    whole = list(measured(w, v, *masks, engine="dense"))
    monkeypatch.setitem(word_region.TILE, "cpu", size)
    for engine in ("dense", "chunked"):
        for tiled, expected in zip(measured(w, v, *masks, engine=engine), whole, strict=True):
            torch.testing.assert_close(tiled, expected, rtol=0, atol=1e-12)


@settings(deadline=None)
@drawn(images=st.tuples(*[st.integers(1, 40)] * 2), texts=st.tuples(st.integers(0, 40), st.integers(1, 40)), size=st.integers(1, 5000))
def test_tiles_cover_every_pair_once_and_are_no_larger_than_asked(images: tuple[int, int], texts: tuple[int, int], size: int) -> None:
    seen = torch.zeros(images[0], texts[0], dtype=torch.int64)
    for rows, columns in tiles(images, texts, size):
        seen[rows, columns] += 1
        pairs = seen[rows, columns].numel()
        assert pairs == 1 or pairs * images[1] * texts[1] <= size
    assert (seen == 1).all()


class Largest(TorchDispatchMode):
    """The most elements of any tensor that was made while it is open."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.count = max(self.count, tensor.numel())
        return out


@pytest.mark.parametrize(("regions", "width"), [(16, 24), (24, 16)])
def test_no_tensor_is_larger_than_a_tile_and_what_it_is_made_from(regions: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images, texts, words = 10, 12, 6
    w, v, *masks = given(images, texts, words, regions, width, torch.float32)
    monkeypatch.setitem(word_region.TILE, "cpu", 4 * words * regions)
    with Largest() as largest:
        list(measured(w, v, *masks, engine="chunked"))
    tile = 4 * words * max(regions, width)
    assert largest.count == max(tile, v.numel(), w.numel(), images * regions**2 if regions < width else 0)
    assert largest.count < images * texts * words * regions / 2


def test_half_precision_is_compared_in_single_precision_on_a_cpu() -> None:
    w, v, *masks = given(3, 4, 6, 20, 16, torch.float16)
    for engine in ("dense", "chunked"):
        half, single = (measured(a, b, *masks, engine=engine) for a, b in ((w, v), (w.float(), v.float())))
        for a, b in zip(half, single, strict=True):
            torch.testing.assert_close(a, b.to(a.dtype), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [8, 64])
def test_a_gpu_is_given_products_of_one_dtype_and_half_precision_stays_half(dtype: torch.dtype, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, real = [], word_region.product

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        seen.append((a.dtype, b.dtype))
        return real(a, b)

    monkeypatch.setattr(word_region, "product", product)
    w, v, *masks = given(3, 4, 6, 20, width, dtype)
    w.requires_grad_(), v.requires_grad_()
    form = word_region.OverWords(1.0, 4.0, 5.0)
    z = word_region._AllPairs.apply(w, v, *masks, word_region.TorchTile(form), False, 1000)  # as on CUDA: a CPU casts up before
    z.sum().backward()
    assert {a == b for a, b in seen} == {True}
    assert {a for a, _ in seen} == {dtype, torch.bfloat16}
    exact = [x.double().detach().requires_grad_() for x in (w, v)]
    word_region_similarity(*exact, *masks, engine="dense").sum().backward()
    assert all(error(half.grad, full.grad) <= 1e-2 for half, full in zip((w, v), exact, strict=True))


def test_words_and_regions_may_differ_in_precision() -> None:
    w, v, *masks = given(2, 3, 5, 7, 16, torch.bfloat16)
    assert torch.equal(word_region_similarity(w.float(), v, *masks), word_region_similarity(w.float(), v.float(), *masks))


def test_autocast_around_it_changes_nothing() -> None:
    w, v, *masks = given(2, 3, 5, 7, 16, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = word_region_similarity(w, v, *masks)
    assert torch.equal(inside, word_region_similarity(w, v, *masks))


def test_a_backward_inside_autocast_is_exact_too() -> None:
    w, v, *masks = given(2, 3, 5, 7, 16, torch.float32)
    outside = list(measured(w, v, *masks, engine="chunked"))
    with torch.autocast("cpu", torch.bfloat16):
        inside = list(measured(w, v, *masks, engine="chunked"))
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_even_attention_to_centred_regions_stays_bounded(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of one word attends evenly, and the mean of centred regions is zero up to rounding: 0 / 0, which must not be a large number."""
    monkeypatch.setattr(word_region, "gram_pays", lambda *_: True)
    v = torch.randn(3, 40, 64)
    v, w, masks = (v - v.mean(1, keepdim=True)).to(dtype), torch.randn(5, 1, 64).to(dtype), (torch.ones(5, 1).bool(), torch.ones(3, 40).bool())
    w.requires_grad_(), v.requires_grad_()
    form = word_region.OverWords(1.0, 4.0, 5.0)
    z = word_region._AllPairs.apply(w, v, *masks, word_region.TorchTile(form), False, 1000)
    z.sum().backward()
    assert z.abs().max() <= 5.0 * 1.05
    assert max(w.grad.abs().max(), v.grad.abs().max()) < 1e4


def test_a_backward_can_be_run_twice() -> None:
    for engine in ("dense", "chunked"):
        w, v, *masks = given(2, 3, 5, 7, 16, torch.float64)
        w.requires_grad_()
        z = word_region_similarity(w, v, *masks, engine=engine)
        once, twice = (torch.autograd.grad(z.sum(), w, retain_graph=True)[0] for _ in range(2))
        assert torch.equal(once, twice)


def test_a_query_without_length_and_an_image_without_regions_have_similarity_and_gradients_of_zero() -> None:
    queries, regions = torch.randn(3, 4, dtype=torch.float64), torch.randn(2, 5, 4, dtype=torch.float64)
    queries[1] = 0
    queries.requires_grad_()
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1] = False
    cos = attended_cosine(queries, regions * mask[..., None], mask)
    assert (cos[:, 1] == 0).all()
    assert (cos[1] == 0).all()
    assert (cos[0, [0, 2]] != 0).all()
    cos[1].sum().backward()
    assert (queries.grad == 0).all()


@pytest.mark.parametrize(
    ("device", "dtype", "words", "elements", "engine"),
    [
        ("cuda", torch.bfloat16, 64, 2**30, "triton"),
        ("cuda", torch.float16, 256, 2**20, "triton"),
        ("cuda", torch.float32, 64, 2**30, "chunked"),
        ("cuda", torch.bfloat16, 257, 2**30, "chunked"),
        ("cuda", torch.float64, 64, 2**30, "chunked"),
        ("cuda", torch.bfloat16, 64, 2**17, "dense"),
        ("cpu", torch.float32, 64, 2**24, "dense"),
        ("cpu", torch.float32, 64, 2**24 + 1, "chunked"),
        ("mps", torch.float32, 64, 2**30, "chunked"),
    ],
)
def test_one_table_chooses_the_engine(device: str, dtype: torch.dtype, words: int, elements: int, engine: str) -> None:
    assert choose_engine(device, dtype, words=words, elements=elements) == engine


def test_the_gram_matrix_is_taken_where_it_costs_less() -> None:
    """FLOP of three products a word, and of the matrix and its gradient an image, in the two forms."""
    for regions, width, words in ((49, 512, 8192), (196, 512, 64), (196, 512, 8192), (1369, 512, 8192), (196, 128, 8192), (49, 512, 10)):
        by_gram, by_context = 3 * words * regions**2 + 2 * regions**2 * width, 3 * words * regions * width
        assert word_region.gram_pays(regions, width, words) == (by_gram < by_context)


def test_without_triton_a_gpu_takes_the_chunked_engine() -> None:
    assert choose_engine("cuda", torch.bfloat16, words=64, elements=2**30, triton=False) == "chunked"


def test_an_engine_that_cannot_take_the_problem_says_why() -> None:
    w, v, *masks = given(2, 3, 5, 7, 16, torch.float32)
    with pytest.raises(ConfigError, match=r"no engine 'flash'"):
        word_region_similarity(w, v, *masks, engine="flash")
    pytest.importorskip("triton")
    with pytest.raises(ConfigError, match=r"needs a GPU, the words are on cpu"):
        word_region_similarity(w, v, *masks, engine="triton")
    with pytest.raises(ConfigError, match=r"not 5 words a text in float64"):
        word_region_similarity(w.double(), v.double(), *masks, engine="triton")
    with pytest.raises(ConfigError, match=r"attention over regions alone"):
        attended_cosine(w[:, 0], v, masks[1], engine="triton")


@pytest.mark.slow
def test_importing_the_kernels_imports_no_triton() -> None:
    code = "import sys, torch; before = 'triton' in sys.modules; import elvis.kernels.word_region; print(before, 'triton' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert said[0] == said[1]


@pytest.mark.slow
def test_the_kernels_compile_for_gpus_that_are_not_here_and_spill_next_to_nothing() -> None:
    pytest.importorskip("triton")
    from benchmarks.kernels import rows

    for dtype, product in ((torch.bfloat16, "wgmma"), (torch.float32, "fma")):
        for name, _, _, registers, spilled, _, instruction in rows(196, 64, dtype, 90):
            assert int(registers) <= 255, name
            assert int(spilled) <= 64, name
            assert instruction == product, name
