"""Which tokens stand for the structures of a volume: against plain loops over patches, and where their maps come to lie."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from downstream.reportgen import model, select
from downstream.reportgen.config import Decode
from downstream.reportgen.decoders.base import Draft, Said
from elvis.errors import ConfigError, DataError
from elvis.types import ImageFeatures, Regions
from tests.reportgen import tiny


def seen(studies: int = 2, queries: int = 3, heads: int = 2, cells: int = 7, width: int = 4, *, real: int | None = None, seed: int = 0) -> Any:
    """(Regions of cross blocks, ImageFeatures): random ones; `real`: how many patches the second study has."""
    draw = torch.Generator().manual_seed(seed)
    mask = torch.ones(studies, cells, dtype=torch.bool)
    if real is not None:
        mask[1, real:] = False
    there = mask.any(1, keepdim=True).expand(-1, queries)
    attention = torch.rand(studies, queries, heads, cells, generator=draw) * mask[:, None, None]
    attention = attention / attention.sum(-1, keepdim=True).clamp_min(1e-9)
    states, tokens = torch.randn(studies, queries, width, generator=draw), torch.randn(studies, cells, width, generator=draw)
    regions = Regions(torch.randn(studies, queries, 5, generator=draw), there, attention, "learned", states=states, tokens=tokens)
    return regions, ImageFeatures(torch.zeros(studies, 6), torch.randn(studies, cells, 6, generator=draw), mask, (cells,))


def looped(regions: Regions, image: ImageFeatures, per_structure: int, reduce: str) -> list[tuple[list[Tensor], list[bool], list[int]]]:
    """The same in plain Python, study by study: o_1, its patches from the most looked at on, o_2, ...; then all o again."""
    out = []
    for b in range(len(image.tokens)):
        tokens, real, place = [], [], []
        for s in range(regions.mask.shape[1]):
            weights = {}
            for n in range(image.tokens.shape[1]):
                heads = [float(regions.attention[b, s, h, n]) for h in range(regions.attention.shape[2])]
                weights[n] = max(heads) if reduce == "max" else sum(heads) / len(heads)
            best = sorted(weights, key=lambda n: (not bool(image.mask[b, n]), -weights[n]))[: per_structure - 1]
            tokens += [regions.states[b, s], *(regions.tokens[b, n] for n in best)]
            real += [bool(regions.mask[b, s]), *(bool(image.mask[b, n]) for n in best)]
            place += [-1, *best]
        tokens += list(regions.states[b])
        real += regions.mask[b].tolist()
        out.append((tokens, real, place + [-1] * regions.mask.shape[1]))
    return out


@pytest.mark.parametrize("reduce", select.REDUCTIONS)
@pytest.mark.parametrize("per_structure", [1, 2, 5, 8, 10])
@pytest.mark.parametrize("real", [None, 6, 2])
def test_the_patches_of_a_structure_are_those_it_looked_at_most(per_structure: int, reduce: str, real: int | None) -> None:
    regions, image = seen(real=real)
    tokens, mask, place = select.chosen(regions, image, per_structure, reduce)
    assert tokens.shape[1] == select.count_of(3, 7, per_structure) == 3 * min(per_structure, 8) + 3
    for b, (own, there, where) in enumerate(looped(regions, image, per_structure, reduce)):
        assert mask[b].tolist() == there
        chosen = mask[b] & (place[b] >= 0)
        assert torch.equal(place[b][mask[b]], torch.tensor(where)[mask[b]])
        assert torch.equal(tokens[b][mask[b]], torch.stack(own)[mask[b]])
        assert image.mask[b, place[b][chosen]].all()


def test_padding_is_chosen_only_where_the_real_patches_are_too_few_and_is_masked_then() -> None:
    regions, image = seen(real=4)
    _, mask, place = select.chosen(regions, image, 5, "max")
    assert mask.all()
    _, mask, place = select.chosen(regions, image, 6, "max")
    assert mask[0].all()
    assert (~mask[1]).sum() == 3  # one of each structure
    assert (place[1][~mask[1]] >= 4).all()
    regions, image = seen(real=0)
    _, mask, _ = select.chosen(regions, image, 3, "max")
    assert not mask[1].any()


def test_all_is_every_observation_then_every_patch() -> None:
    regions, image = seen(real=4)
    tokens, mask, place = select.chosen(regions, image, "all", "max")
    assert tokens.shape[1] == select.count_of(3, 7, "all") == 10
    assert torch.equal(tokens, torch.cat([regions.states, regions.tokens], 1))
    assert torch.equal(mask, torch.cat([regions.mask, image.mask], 1))
    assert place[1].tolist() == [-1, -1, -1, 0, 1, 2, 3, 4, 5, 6]


def test_without_cross_blocks_it_is_what_the_query_saw_and_the_projected_patches() -> None:
    regions, image = seen()
    plain = replace(regions, vectors=torch.randn(2, 3, 6), states=None, tokens=None)
    tokens, _, place = select.chosen(plain, image, 2, "mean")
    assert torch.equal(tokens[:, 0], plain.vectors[:, 0])
    assert torch.equal(tokens[:, -3:], plain.vectors)
    assert torch.equal(tokens[0, 1], image.tokens[0, place[0, 1]])


def test_ten_structures_and_ten_tokens_of_4096_patches_are_110() -> None:
    regions, image = seen(studies=1, queries=10, heads=12, cells=4096, width=8)
    tokens, mask, place = select.chosen(regions, image, 10, "max")
    assert (tokens.shape[1], int(mask.sum())) == (110, 110)
    assert int((place >= 0).sum()) == 90
    assert select.count_of(10, 4096, 10) == 110


def test_a_map_over_chosen_tokens_adds_up_over_the_patches_and_loses_what_rests_on_observations() -> None:
    place = torch.tensor([-1, 4, 2, -1, 2, 0, -1, -1])
    weights = torch.tensor([0.3, 0.1, 0.05, 0.2, 0.15, 0.1, 0.06, 0.04])
    expected = [0.0] * 6
    for n, cell in enumerate(place.tolist()):
        if cell >= 0:
            expected[cell] += float(weights[n]) / 0.4
    map = select.on_grid(weights, place, 6)
    assert map.tolist() == pytest.approx(expected)
    assert float(map.sum()) == pytest.approx(1.0)
    assert select.on_grid(torch.tensor([0.5, 0, 0, 0.5, 0, 0, 0, 0]), place, 6) is None


@pytest.mark.parametrize(("blocks", "width"), [(1, 24), (0, 16)])
@pytest.mark.parametrize("per_structure", [1, 3, "all"])
def test_a_generator_sees_what_it_says_it_does(blocks: int, width: int, per_structure: int | str) -> None:
    it = tiny.ct_generator(visual=tiny.pretrained_ct(blocks=blocks), per_structure=per_structure)
    shown = tiny.batch(it, tiny.scans(2))
    with torch.no_grad():
        memory, again = it.seen(shown), it.memory(it.pretrained.model(shown))
    assert memory.tokens.shape == (2, it.sizes["tokens"], it.sizes["tokens_width"])
    assert it.sizes["tokens_width"] == width
    assert it.sizes["tokens"] == {1: 20, 3: 40, "all": 74}[per_structure]
    assert torch.allclose(memory.tokens, again.tokens)
    assert memory.mask.all()
    assert bool((memory.place >= 0).any()) == (per_structure != 1)


def test_maps_of_reports_lie_on_the_grid_of_the_volume_and_have_no_box() -> None:
    it = tiny.ct_generator()
    place = torch.full((40,), -1).index_fill(0, torch.tensor([1]), 21)
    draft = it._on_grid(Draft((Said((5,), 0.5, map=torch.full((40,), 1 / 40)), Said((6,), 0.5))), place)
    spoken = it.report("a", draft, it.pretrained.preprocess.frame(tiny.CT_SIZE), Decode()).sentences
    assert spoken[0].map.shape == tiny.CT_GRID
    assert spoken[0].map[1, 1, 1] == 1.0 == spoken[0].map.sum()  # 21 = 16 + 4 + 1
    assert spoken[0].box is None
    assert spoken[1].map is None
    volume = tiny.scans(1, split="test")[0]
    said = it.write([volume.images[0]])[0].sentences
    assert all(s.map is None or (s.map.shape == tiny.CT_GRID and s.box is None) for s in said)
    assert math.isclose(sum(float(s.map.sum()) for s in said if s.map is not None), sum(s.map is not None for s in said), rel_tol=1e-5)
    assert any(s.map is not None for s in said)


def test_an_array_is_seen_as_its_source_is_and_its_spacing_counts() -> None:
    it = tiny.ct_generator()
    source = tiny.scans(1)[0].images[0]
    look = source.look()
    texts = [it.write([source])[0], it.write([look.pixels], spacing=[look.spacing])[0]]
    assert texts[0].text == texts[1].text
    cut = look.pixels[:, :20]
    with pytest.raises(DataError, match="1 spacings for 2 volumes"):
        it.write([cut, cut], spacing=[(1.0, 1.0, 1.0)])
    assert it.write([cut], spacing=[(4.0, 1.0, 1.0)])[0].sentences


def test_a_visual_side_without_structure_queries_is_refused() -> None:
    with pytest.raises(ConfigError, match="no learned region query"):
        select.label_of(tiny.pretrained().model)
    with pytest.raises(ConfigError, match="tokens=structures"):
        _ = model.Sight(tiny.pretrained(), "structures").shape
