"""The references of benchmarks.objectives agree with each other and with ours in float64; its tables say what was measured."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import objectives as bench
from benchmarks import peers
from benchmarks.inputs import Ours, Size, draw
from elvis.kernels.word_region import word_region_similarity
from elvis.types import Batch, Pair

ROOT = Path(__file__).parents[1]
SIZE = Size(5, words=7, regions=9, width=6, sentences=4)


def drawn(size: Size = SIZE) -> tuple[Pair, Batch, dict[str, Tensor]]:
    return draw(size, torch.float64, torch.device("cpu"), 0)


def value(family: str, row: str, seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    """Loss and both gradients of a row of a table."""
    pair, batch, leaves = drawn()
    torch.manual_seed(seed)
    loss = bench.FAMILIES[family].rows[row](SIZE)
    if isinstance(loss, nn.Module):
        loss.double()
    result = loss(pair, batch)
    return result.detach(), list(torch.autograd.grad(result, [leaves[name] for name in bench.FAMILIES[family].leaves]))


def test_the_python_loop_the_einsum_over_all_pairs_its_parts_and_ours_are_one_formula() -> None:
    pair, _, _ = drawn()
    word = pair.text.units["word"]
    given = word.vectors, word.mask, pair.image.tokens
    expected = word_region_similarity(word.vectors, pair.image.tokens, word.mask, pair.image.mask)
    assert len(set(word.mask.sum(1).tolist())) > 1
    for got in (peers.gloria_loop(*given), peers.dense(*given), peers.by_parts(peers.dense, *given, size=2)):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", [name for name, family in bench.FAMILIES.items() if family.exact])
def test_rows_of_one_formula_have_one_loss_and_equal_gradients(family: str) -> None:
    rows = [row for row in bench.FAMILIES[family].rows if row != bench.TRITON]
    right = bench.truth(bench.Job(family, "", SIZE, torch.float64, seed=0))
    for loss, gradients in (value(family, row) for row in rows):
        assert loss.item() == pytest.approx(right["loss"].item(), rel=1e-7)  # open_clip's sigmoid: log_sigmoid as it is, scales start as fp32
        for got, expected in zip(gradients, [value for name, value in right.items() if name != "loss"], strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)


def test_the_logits_of_radzero_are_those_of_phrase_image() -> None:
    from elvis.objectives.phrase_image import phrase_image_logits

    pair, _, _ = drawn()
    sentence = pair.text.units["sentence"]
    expected = phrase_image_logits(
        F.normalize(sentence.vectors[sentence.mask], dim=-1), F.normalize(pair.image.tokens, dim=-1), pair.image.mask, pair.scale
    )
    torch.testing.assert_close(peers.radzero(sentence.vectors, sentence.mask, pair.image.tokens, pair.scale), expected, rtol=0, atol=1e-12)


def test_the_layout_of_lovt_with_our_norm_and_projections_is_sentence_region() -> None:
    pair, batch, _ = drawn()
    ours = Ours("sentence_region", SIZE.width, {}).double()
    published = bench.LoVT(SIZE).double()
    for name in ("key", "value", "output", "norm"):
        setattr(published, name, getattr(ours.objective, name))
    assert published(pair, batch).item() == pytest.approx(ours(pair, batch).item(), rel=1e-6)  # its targets are fp32


def test_multi_positive_nce_is_its_formula() -> None:
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    owner = [0, 0, 1, 2]
    e = logits.exp().tolist()
    by_sentence = sum(-math.log(e[i][n] / sum(row[n] for row in e)) for n, i in enumerate(owner)) / 4
    images = []
    for i in range(3):
        others = sum(e[i][n] for n in range(4) if owner[n] != i)
        own = [-math.log(e[i][n] / (e[i][n] + others)) for n in range(4) if owner[n] == i]
        images.append(sum(own) / len(own))
    mask = torch.tensor([[True, True], [True, False], [True, False]])
    assert peers.multi_positive(logits, mask).item() == pytest.approx((by_sentence + sum(images) / 3) / 2, abs=1e-12)


def test_tokens_inside_a_study_that_find_themselves_cost_less_than_those_that_do_not() -> None:
    words = torch.eye(6, dtype=torch.float64).expand(2, 6, 6)
    mask, even = torch.ones(2, 6, dtype=torch.bool), torch.full((2, 6), 1 / 6, dtype=torch.float64)
    same = peers.mgca_tokens(words, mask, words, even, even)
    blurred = peers.mgca_tokens(words, mask, torch.ones_like(words), even, even)
    nearest = 1 / (1 + 5 * math.exp(-10))  # softmax of the own score at temperature .1
    length = math.hypot(nearest, 5**0.5 * (1 - nearest) / 5)
    gap = (nearest - (1 - nearest) / 5) / length / 0.1
    assert same.item() == pytest.approx(math.log1p(5 * math.exp(-gap)), rel=1e-9)
    assert blurred.item() == pytest.approx(math.log(6), rel=1e-9)


def test_a_longer_pass_is_not_begun_and_what_has_no_memory_stops_growing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = bench.Bench("cpu", 1, 0, 0.0, tmp_path)
    sizes = tuple(Size(b) for b in (2, 4, 8))
    seen = {"open_clip ClipLoss": bench.Found(both=bench.LIMIT / 4.1), "ours": bench.Found(note="out of memory")}
    monkeypatch.setattr(bench.Bench, "__call__", lambda self, family, row, size, dtype: seen[row])
    table = run.sweep("global_contrastive", sizes, torch.float32)
    assert [(size.studies, table["open_clip ClipLoss", size].note, table["ours", size].note) for size in sizes] == [
        (2, "", "out of memory"),
        (4, "", "out of memory"),
        (8, "", "out of memory"),
    ]
    seen["open_clip ClipLoss"] = bench.Found(both=bench.LIMIT / 3.9)
    table = run.sweep("global_contrastive", sizes, torch.float32)
    assert [table["open_clip ClipLoss", size].note for size in sizes] == ["", "-", "-"]


def test_growth_is_the_exponent_of_time_and_a_goal_names_the_measured_ratio() -> None:
    table = {
        (row, Size(b)): bench.Found(forward=1e-3 * b, both=factor * b**2, peak=1e6 * b) for row, factor in (("a", 1.0), ("b", 0.25)) for b in (4, 8)
    }
    assert bench.growth(table) == "Time grows as: a B^2.00; b B^2.00."
    assert bench.goal(table, "b", "a", "3 times") == "- Goal: 3 times. Here B=8, R=196, b: 4.0 times as fast as a, 1.0 of its memory."
    assert bench.goal(table, "b", "c", "3 times") == "- Goal: 3 times. Not measured here."


def test_the_floor_is_that_of_the_reference_table() -> None:
    assert bench.floor(Size(256)) == pytest.approx(3.17e12, rel=2e-3)  # performance.md, section 3
    assert bench.floor(Size(1024)) == pytest.approx(5.07e13, rel=2e-3)


def test_errors_are_those_of_the_type(tmp_path: Path) -> None:
    for dtype, least, most in ((torch.float64, 0, 1e-12), (torch.float32, 1e-9, 1e-5), (torch.bfloat16, 1e-5, 1e-2)):
        job = bench.Job("word_region", bench.CHUNKED, SIZE, dtype, seed=0, threads=torch.get_num_threads(), seconds=0.0)
        torch.save(bench.truth(job), tmp_path / "right.pt")
        found = bench.measure(job, tmp_path / "right.pt")
        assert least <= max(found.errors["image"], found.errors["text"]) < most
        assert 0 < found.forward < math.inf


@pytest.mark.slow
def test_memory_counts_what_a_pass_holds(tmp_path: Path) -> None:
    size = Size(8, words=32, regions=196, width=128)  # the einsum keeps at least 4 tensors of 8 x 8 x 32 x 196 numbers
    run = bench.Bench("cpu", 1, 0, 0.0, tmp_path)
    found = run("word_region", "dense einsum", size, torch.float32)
    assert found.peak > 4 * 4 * 8 * 8 * 32 * 196
    assert run("word_region", "dense einsum", size, torch.float32) is found


@pytest.mark.slow
def test_the_quick_run_measures_every_family_and_writes_its_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.objectives", "--quick", "--out", str(page)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    for name in ("word_region, growing batch", "word_region, errors by type", "phrase_image", "sentence_region", "global_contrastive", "intra_modal"):
        assert f"## {name}" in text
    assert "Warning" not in done.stderr
