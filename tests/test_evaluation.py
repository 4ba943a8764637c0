"""The evaluation on squares that a hand-made model finds by their grey value, and on what is missing."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from elvis import results
from elvis.data.datasets.phantom_ct import phantom_ct
from elvis.data.frames import VolumePreprocess
from elvis.data.images import BadImage, Look, Preprocess
from elvis.data.masks import decode_volume, encode_volume
from elvis.data.structures import Structures
from elvis.evaluation import evaluate, examples, preservation, score, sentences, structure_shares, truths
from elvis.ops import cosine
from elvis.pretrained import Pretrained
from elvis.types import Grounding, ImageFeatures, Mask, Regions, Result, Sentence, Study, TextFeatures, UnitFeatures

GREY = {"dot": 120, "square": 240}
SIZE = 48


@dataclass(frozen=True)
class Squares:
    """An image source: grey squares on black; without any it is unreadable."""

    id: str
    squares: tuple[tuple[str, int, int], ...]  # what, x, y; sides of 8 pixels
    shape: tuple[int, int] = (SIZE, SIZE)

    def read(self) -> np.ndarray:
        if not self.squares:
            raise BadImage("missing", self.id)
        image = np.zeros(self.shape, np.uint8)
        image[0, 0] = 1
        for what, x, y in self.squares:
            image[y : y + 8, x : x + 8] = GREY[what]
        return image


class Model(torch.nn.Module):
    learned_query = ""


class Finder:
    """A Pretrained with linear features: a token's three numbers are how much dot, square and background its cell holds.

    Before the projection a token had three more, random ones (the same in every image): relations are kept in part.
    """

    def __init__(self, *, size: int = SIZE, cells: int = 12, blind: bool = False) -> None:
        self.preprocess = Preprocess((size, size), "pad", (0.5,), (0.5,))
        self.model, self.cells, self.blind, self.structures = Model(), cells, blind, None

    maps = staticmethod(Pretrained.maps)

    def see(self, image, spacing=()) -> Look:
        return Look(image.read())

    def frame(self, pixels, spacing=()):
        return self.preprocess.frame(*pixels.shape)

    def images(self, images, spacing=()) -> tuple[ImageFeatures, ImageFeatures]:
        pixels = torch.from_numpy(np.stack([self.preprocess.resize(image) for image in images]))
        kinds = torch.stack([(pixels > 60) & (pixels < 180), pixels >= 180, pixels <= 60], 1).float()  # B 3 H W
        tokens = torch.nn.functional.adaptive_avg_pool2d(kinds, self.cells).flatten(2).transpose(1, 2)  # B N 3
        if self.blind:
            tokens = torch.ones_like(tokens)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
        after = ImageFeatures(pooled=tokens[..., :2].mean(1), tokens=tokens, mask=mask, grid=(self.cells, self.cells))
        more = 0.3 * torch.rand(tokens.shape[1:], generator=torch.Generator().manual_seed(0)).expand_as(tokens)
        return after, replace(after, tokens=torch.cat([tokens, more], -1))

    def reports(self, reports, regions=()) -> tuple[TextFeatures, TextFeatures]:
        vectors = torch.zeros(len(reports), max(len(r) for r in reports), 3)
        mask = torch.zeros(vectors.shape[:2], dtype=torch.bool)
        for i, report in enumerate(reports):
            for j, sentence in enumerate(report):
                mask[i, j] = True
                vectors[i, j] = torch.tensor([float("dot" in sentence), float("square" in sentence), 0.1 * len(sentence) / 40])
        unit = {"sentence": UnitFeatures(vectors, mask, mask.long())}
        text = TextFeatures(pooled=vectors[..., :2].sum(1), tokens=vectors, mask=mask, grid=(mask.shape[1],), units=unit)
        return text, text

    def phrases(self, phrases) -> tuple[TextFeatures, TextFeatures]:
        return self.reports([[phrase] for phrase in phrases])

    def similarity(self, images, phrases) -> list[torch.Tensor]:
        vectors = self.phrases(phrases)[0].units["sentence"].vectors[:, 0]
        maps = cosine(vectors, self.images(images)[0].tokens).unflatten(-1, (self.cells, self.cells))
        return [self.preprocess.frame(*p.shape).to_original(m) for p, m in zip(images, maps, strict=True)]


def make(split: str, number: int, squares: tuple[tuple[str, int, int], ...], patient: str = "", **more) -> Study:
    sentences = tuple(Sentence(f"A {what} on the {'left' if x >= SIZE // 2 else 'right'}.") for what, x, _ in squares)
    truth = tuple(
        Grounding(s.text, ((x, y, x + 8, y + 8),), what, i, tags=frozenset({"focal", "location_free"} if what == "dot" else {"focal"}))
        for i, (s, (what, x, y)) in enumerate(zip(sentences, squares, strict=True))
    )
    name = f"{split}-{number}"
    return Study(name, patient or name, split, (Squares(name, squares),), sentences=sentences, groundings=truth, **more)


def scatter(split: str, count: int, seed: int = 0) -> list[Study]:
    """A dot in one half, a square in the other, both on the grid of 4-pixel tokens."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(count):
        left = int(rng.integers(2))
        x, y = rng.integers(0, 4, 2) * 4, rng.integers(0, 10, 2) * 4
        out.append(
            make(split, i, (("dot", int(x[0]) + 24 * left, int(y[0])), ("square", int(x[1]) + 24 * (1 - left), int(y[1]))), f"p{i // 2}-{split}")
        )
    return out


def by(found: list[Result], row: str, split: str = "test") -> Result:
    return next(r for r in found if (r.row, r.split) == (row, split))


def test_a_model_that_sees_beats_the_priors_and_reaches_the_oracle() -> None:
    found = evaluate(Finder(), {"train": scatter("train", 40, 1), "test": scatter("test", 20)}, dataset="squares", batch_size=7, resamples=100)
    assert [r.row for r in found] == ["model", "mean_box", "text_prior", "oracle"]
    model, centre, text, oracle = ({n: m.value for n, m in r.metrics.items()} for r in found)
    assert model["pointing"] == model["lf_pointing"] == oracle["pointing"] == model["wid"] == 1
    assert model["miou"] > 0.5
    assert oracle["miou"] > 0.5
    assert centre["pointing"] < text["pointing"] + 0.2 < 0.6
    assert text["wid"] > 0.9  # the side is in the words: a prior discriminates without a look
    assert 0 <= centre["wid"] < 0.7
    metric = by(found, "text_prior").metrics["miou"]
    assert metric.low < metric.value < metric.high
    assert "cosine of projected tokens with the projected phrase, bilinear to original pixels" in by(found, "model").protocol
    assert by(found, "model").config["phrases"] == 40
    assert by(found, "model").config["patients"] == 10


def test_batch_size_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {"test": scatter("test", 9)}
    whole = evaluate(Finder(), splits, resamples=50)
    monkeypatch.setattr("elvis.evaluation.PIXELS", 1)
    parts = evaluate(Finder(), splits, resamples=50, batch_size=2)
    for a, b in zip(whole, parts, strict=True):
        assert {n: m.value for n, m in a.metrics.items()} == pytest.approx({n: m.value for n, m in b.metrics.items()}, abs=1e-5)
        assert [(c["study"], c["sentence"]) for c in a.per_case] == [(c["study"], c["sentence"]) for c in b.per_case]


def test_cases_can_be_paired_and_hold_no_text() -> None:
    found = evaluate(Finder(), {"test": scatter("test", 4)}, resamples=10)
    case = by(found, "model").per_case[0]
    assert {"study", "patient", "sentence", "phrase", "category", "tags", "cnr", "pointing", "miou", "wid"} <= set(case)
    assert isinstance(case["phrase"], int)
    assert "on the" not in json.dumps(results._plain(by(found, "model").per_case))
    key = lambda c: (c["study"], c["image"], c["phrase"])  # noqa: E731
    assert [key(c) for c in by(found, "oracle").per_case] == [key(c) for c in by(found, "model").per_case]


def test_equal_phrases_of_an_image_are_one_phrase_with_all_boxes() -> None:
    a = Grounding("A dot.", ((0, 0, 8, 8),), "dot", 0, tags=frozenset({"focal", "x"}))
    b = Grounding("a dot", ((20, 20, 28, 28),), "dot", 1, tags=frozenset({"focal"}))
    elsewhere, empty = replace(a, image=1), replace(a, phrase="No square.", boxes=())
    study = Study("s", "p", "test", (), groundings=(a, b, elsewhere, empty))
    assert truths(study) == [replace(a, boxes=a.boxes + b.boxes, tags=frozenset({"focal"})), elsewhere]


def test_without_boxes_in_training_the_centre_is_a_gaussian_and_the_text_prior_says_why_it_is_absent() -> None:
    found = evaluate(Finder(), {"test": scatter("test", 4)}, resamples=10)
    assert [r.row for r in found] == ["model", "centre_prior", "oracle"]
    assert "Gaussian" in by(found, "centre_prior").config["map"]
    assert "no text_prior: no training phrase has a box" in results.table(found)


def twins(count: int) -> list[Study]:
    """Twin a has a dot where twin b has a square."""
    out = []
    for i in range(count):
        for what, twin in (("dot", f"swap-{2 * i + 1}"), ("square", f"swap-{2 * i}")):
            out.append(make("swap", len(out), ((what, 8, 4 * i),), f"p{i}", extra={"twin": twin, "altered": 0}))
    return out


def test_swap_asks_each_image_for_its_own_sentence() -> None:
    studies = twins(4)
    found = by(evaluate(Finder(), {"swap": studies}, resamples=20), "model", "swap").metrics
    assert found["swap"].value == found["swap_global"].value == found["swap_image"].value == 1
    deceived = [replace(s, images=studies[i ^ 1].images) for i, s in enumerate(studies)]
    assert by(evaluate(Finder(), {"swap": deceived}, resamples=20), "model", "swap").metrics["swap"].value == 0


def test_a_blind_model_is_at_chance_on_swap() -> None:
    found = by(evaluate(Finder(blind=True), {"swap": twins(3)}, resamples=20), "model", "swap").metrics
    assert found["swap"].value == found["swap_image"].value == found["swap_image_global"].value == 0.5


def test_a_twin_without_its_twin_is_left_out() -> None:
    assert "swap" not in by(evaluate(Finder(), {"swap": twins(2)[:1]}, resamples=5), "model", "swap").metrics


def test_retrieval_counts_equal_reports_as_correct() -> None:
    dots, squares = ([make("test", 10 * k + i, ((what, 8, 4 * i),)) for i in range(3)] for k, what in enumerate(("dot", "square")))
    found = by(evaluate(Finder(), {"test": [*dots, *squares]}, resamples=20), "model").metrics
    assert found["r@1"].value == found["r@5"].value == 1
    assert found["r@1_text_to_image"].value == 1
    found = by(evaluate(Finder(blind=True), {"test": [*dots, *squares]}, resamples=20), "model").metrics
    assert found["r@1_image_to_text"].value < 1


def test_a_report_that_many_studies_share_may_be_asked_once() -> None:
    listed = [make("test", n, ((what, 8, 8 * (n % 5)),)) for n, what in enumerate(["dot"] * 6 + ["square"])]
    both = Squares("both", (("dot", 8, 8), ("square", 8, 32)))  # what the square's report asks for is shown better by another image
    listed[0], listed[6] = replace(listed[0], images=listed[6].images), replace(listed[6], images=(both,))
    found = by(evaluate(Finder(), {"test": listed}, resamples=20), "model").metrics
    assert found["r@1_text_to_image"].value == pytest.approx(6 / 7)
    assert found["r@1_text_to_image[distinct]"].value == pytest.approx(1 / 2)
    assert found["r@10_text_to_image[distinct]"].value == 1


def test_preservation_is_the_same_alone_and_inside_the_evaluation() -> None:
    studies = [replace(s, sentences=(*s.sentences, Sentence("No other abnormality at all is seen."))) for s in scatter("test", 6)]
    alone = preservation(Finder(), studies, batch_size=4, resamples=50)
    found = evaluate(Finder(), {"test": studies}, start=alone, resamples=50)
    assert [r.row for r in found][:2] == ["model, step 0", "model"]
    inside = by(found, "model").metrics
    assert {n: m.value for n, m in alone.items()} == pytest.approx({n: inside[n].value for n in alone}, abs=1e-9)
    assert 0 < alone["image_corr"].value < 1
    assert alone["report_corr"].value == pytest.approx(1)  # the hand-made text is not projected
    assert alone["image_rank_before"].value > alone["image_rank_after"].value
    assert {f"{side}_{n}" for side in ("image", "report") for n in ("corr", "spread_before", "spread_after", "rank_before", "rank_after")} <= set(
        alone
    )


def test_without_a_test_split_validation_is_what_is_held_out() -> None:
    found = evaluate(Finder(), {"val": scatter("val", 4), "comp": scatter("comp", 4)}, start={}, resamples=5)
    assert "r@1" in by(found, "model", "val").metrics
    assert "image_corr" in by(found, "model", "val").metrics
    assert "r@1" not in by(found, "model", "comp").metrics


def test_short_reports_have_a_pooled_correlation_only() -> None:
    found = preservation(Finder(), scatter("test", 6), resamples=10)  # two sentences each
    assert "report_corr_study" not in found
    assert "report_spread_before" in found


def test_what_is_missing_leaves_metrics_out_and_crashes_nothing() -> None:
    plain = replace(scatter("test", 1)[0], groundings=(), sentences=())
    broken = make("test", 7, ())
    found = evaluate(Finder(), {"train": [plain], "val": [], "test": [plain], "comp": [broken]}, resamples=5)
    assert [(r.split, r.row) for r in found] == [("test", "model"), ("comp", "model")]
    assert set(by(found, "model").metrics) == {n for n in by(found, "model").metrics if n.startswith("image_")} != set()
    assert by(found, "model", "comp").config["unreadable"] == 1
    assert not by(found, "model", "comp").metrics
    assert results.table(found)
    assert preservation(Finder(), [broken]) == {}


def test_images_that_are_not_square_are_scored_in_their_own_pixels() -> None:
    wide = [replace(s, images=(replace(s.images[0], shape=(SIZE, 2 * SIZE)),)) for s in scatter("test", 3)]
    found = evaluate(Finder(size=2 * SIZE, cells=24), {"test": [*wide, *scatter("test", 9)[3:]]}, resamples=5)
    assert by(found, "model").metrics["pointing"].value == by(found, "oracle").metrics["pointing"].value == 1
    assert by(found, "oracle").metrics["miou"].value > 0.4


def test_score_is_pointing_with_boxes_and_recall_without() -> None:
    studies = scatter("val", 6)
    assert score(Finder(), studies) == 1
    assert score(Finder(blind=True), studies) < 0.1
    text_only = [replace(s, groundings=()) for s in studies]
    assert score(Finder(), text_only) == 1  # six candidates: the wrong one is at rank 6 at worst
    assert math.isnan(score(Finder(), []))


def test_examples_take_findings_in_turn_and_say_hit_or_miss() -> None:
    shown = examples(Finder(), scatter("test", 8), count=4)
    assert [title for title, *_ in shown] == ["dot, no place named: hit", "square: hit"] * 2
    _, image, map, boxes, phrase = shown[0]
    assert image.shape == map.shape == (SIZE, SIZE)
    assert len(boxes) == 1
    assert "dot" in phrase
    assert "miss" in examples(Finder(blind=True), scatter("test", 1))[0][0]


def test_every_sentence_of_a_report_has_its_map_and_the_boxes_of_its_finding() -> None:
    one = make("test", 9, (("dot", 0, 0),))  # one sentence: no report to look at
    broken = replace(scatter("test", 1, 3)[0], images=(Squares("gone", ()),))
    told = list(sentences(Finder(), [one, broken, *scatter("test", 4)], count=3))
    assert [(t.report, t.place, t.count, t.category) for t in told] == [(n, p, 2, c) for n in (2, 3) for p, c in ((1, "dot"), (2, "square"))]
    for sentence in told:
        assert sentence.image.shape == sentence.heat.shape == (SIZE, SIZE)
        ((x1, y1, x2, y2),) = sentence.boxes
        y, x = np.unravel_index(np.argmax(sentence.heat), sentence.heat.shape)
        assert x1 <= x < x2
        assert y1 <= y < y2
        assert sentence.category in sentence.text
    assert len(list(sentences(Finder(), scatter("test", 4), count=2, most=1))) == 2
    assert list(sentences(Finder(), scatter("test", 4), count=0)) == []


def test_a_sentence_of_a_scan_has_its_map_over_slices() -> None:
    (study,) = phantom_ct(size=[16, 32, 32], train=0, val=0, test=1).studies
    whole = Finder()
    whole.preprocess = VolumePreprocess((16, 32, 32), "pad", (0.5,), (0.25,))
    whole.see = lambda image, spacing=(): image.look()
    tokens = torch.rand(1, 2 * 4 * 4, 3, generator=torch.Generator().manual_seed(0))
    seen = ImageFeatures(pooled=tokens.mean(1), tokens=tokens, mask=torch.ones(1, 32, dtype=torch.bool), grid=(2, 4, 4))
    whole.images = lambda images, spacing=(): (seen, seen)
    told = next(sentences(whole, [study], count=1))
    assert told.image.shape == told.heat.shape == (3 * 32, 4 * 32)  # 12 slices, 4 across
    assert told.boxes == ()
    assert np.isfinite(told.heat).all()
    assert told.heat.max() > told.heat.min()


# ---------------------------------------------------------------------------------------------------------- structures

LEXICON = """
structures:
  dots: {regions: [dot]}
  squares: {regions: [square, upper square]}
keywords:
  dots: [dot]
  squares: [square]
"""


class Asked(Model):
    """Has a query for dots and one for squares: each looks at the cells that hold them, and sees in which half they lie."""

    learned_query = "structure"

    def look(self, label: str, image: ImageFeatures, units: UnitFeatures | None = None) -> Regions:
        assert label == "structure"
        cells = image.tokens[..., :2].transpose(1, 2)  # B 2 N
        attention = cells / cells.sum(-1, keepdim=True).clamp_min(1e-9)
        left = torch.arange(image.grid[1]).expand(image.grid).flatten() >= image.grid[1] / 2
        seen = torch.stack([attention[..., left].sum(-1), attention[..., ~left].sum(-1)], -1)
        return Regions(seen, torch.ones(seen.shape[:2], dtype=torch.bool), attention.unsqueeze(2), "learned")


class Looker(Finder):
    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.model, self.structures = Asked(), Structures(LEXICON)

    def reports(self, reports, regions=()) -> tuple[TextFeatures, TextFeatures]:
        text, _ = super().reports(reports)
        vectors, mask = torch.zeros(len(reports), 2, 2), torch.zeros(len(reports), 2, dtype=torch.bool)
        for i, (report, told) in enumerate(zip(reports, regions or [()] * len(reports), strict=True)):
            for sentence, about in zip(report, self.structures.assign(report, told), strict=True):
                for s in about:
                    mask[i, s] = True
                    vectors[i, s] = torch.tensor([float("left" in sentence), float("right" in sentence)])
        text = replace(text, units={**text.units, "structure": UnitFeatures(vectors, mask, mask.long())})
        return text, text


def outlined(studies: list[Study]) -> list[Study]:
    """With a mask of every dot and square; that of a square is told twice, as a whole and its upper half (a lung and its lobes)."""
    out = []
    for study in studies:
        masks = []
        for what, x, y in study.images[0].squares:
            masks.append(Mask(what, "boxes", ((x, y, x + 8, y + 8),)))
            masks += [Mask("upper square", "boxes", ((x, y, x + 8, y + 4),))] if what == "square" else []
        aside = [Mask("table", "boxes", ((0, 0, 9, 9),)), Mask("dot", "boxes", ((0, 0, 48, 48),), image=1)]  # neither is looked for
        out.append(replace(study, masks=(*masks, *aside)))
    return out


def test_queries_are_scored_by_what_lies_inside_their_structures_and_by_what_they_saw() -> None:
    studies = outlined(scatter("test", 12))
    found = by(evaluate(Looker(), {"test": studies}, resamples=20, batch_size=5), "model").metrics
    assert found["mass"].value == found["mass[dots]"].value == found["mass[squares]"].value == pytest.approx(1)
    assert found["mass_chance"].value == pytest.approx(64 / SIZE**2)
    assert found["structure_r@1"].value == found["structure_r@10_text_to_image"].value == 1
    assert {"r@1", "r@5", "r@10"} <= set(found)
    deceived = [replace(s, images=(replace(s.images[0], squares=tuple((w, (x + 24) % 48, y) for w, x, y in s.images[0].squares)),)) for s in studies]
    wrong = by(evaluate(Looker(), {"test": deceived}, resamples=20), "model").metrics
    assert wrong["mass"].value == 0
    assert wrong["structure_r@1"].value == wrong["structure_r@1_text_to_image[distinct]"].value == 0


def test_retrieval_by_what_nobody_trained_is_left_out() -> None:
    studies = outlined(scatter("test", 6))
    found = by(evaluate(Looker(), {"test": studies}, resamples=5, pooled=False), "model").metrics
    assert {n for n in found if "r@1" in n} >= {"structure_r@1"}
    assert not [n for n in found if n.startswith("r@")]
    plain = by(evaluate(Finder(), {"test": studies}, resamples=5), "model").metrics
    assert not [n for n in plain if n.startswith(("structure", "mass"))]


def test_a_checkpoint_is_chosen_by_structures_where_there_are_queries_for_them_and_no_boxes() -> None:
    studies = [replace(s, groundings=()) for s in scatter("val", 20)]
    assert score(Looker(), studies) == 1
    assert score(Finder(), studies) == 0  # pooled, every image holds as much dot and square as any other


def test_a_split_without_masks_has_no_mass() -> None:
    found = by(evaluate(Looker(), {"test": scatter("test", 4)}, resamples=5), "model").metrics
    assert not [n for n in found if n.startswith("mass")]
    assert "structure_r@1" in found


def test_the_share_of_each_cell_of_a_volume_is_the_mean_of_the_union_of_its_masks() -> None:
    (study,) = phantom_ct(size=[16, 32, 32], train=0, val=0, test=1, masks=True).studies
    structures = Structures.load("ct")
    whole = Finder()
    whole.structures, whole.preprocess = structures, VolumePreprocess((16, 32, 32), "pad", (0.5,), (0.25,))
    whole.frame = lambda pixels, spacing=(): whole.preprocess.frame(pixels.shape, spacing)
    seen = study.images[0].look()
    twice = replace(study, masks=(*study.masks, *study.masks[:3]))  # told again, it is still once there
    share = structure_shares(whole, twice, seen, (2, 4, 4))
    expected = np.zeros((10, 16, 32, 32), bool)
    for mask in study.masks:
        s = structures.of_region(mask.name)
        if s is not None:
            expected[s] |= decode_volume(mask)
    cells = expected.reshape(10, 2, 8, 4, 8, 4, 8).mean((2, 4, 6)).reshape(10, -1)
    np.testing.assert_allclose(share.numpy(), cells, atol=1e-6)
    assert (share.sum(1) > 0).sum() >= 8


def test_a_mask_of_another_shape_leaves_its_structure_out_and_is_counted() -> None:
    (study,) = phantom_ct(size=[16, 32, 32], train=0, val=0, test=1, masks=True).studies
    whole = Finder()
    whole.structures, whole.preprocess = Structures.load("ct"), VolumePreprocess((16, 32, 32), "pad", (0.5,), (0.25,))
    whole.frame = lambda pixels, spacing=(): whole.preprocess.frame(pixels.shape, spacing)
    seen = study.images[0].look()
    heart = next(m for m in study.masks if m.name == "heart")
    larger = Mask("heart", "rle_volume", encode_volume(np.ones((17, 32, 32), bool)))
    bad = Counter()
    share = structure_shares(whole, replace(study, masks=tuple(larger if m is heart else m for m in study.masks)), seen, (2, 4, 4), bad)
    right = structure_shares(whole, study, seen, (2, 4, 4))
    left_out = whole.structures.of_region("heart")
    assert bad == {"D041": 1}
    assert right[left_out].any()
    right[left_out] = 0
    assert torch.equal(share, right)


def test_a_bad_mask_does_not_end_the_evaluation() -> None:
    first, *others = outlined(scatter("test", 6))
    broken = replace(first, masks=(*first.masks, Mask(first.masks[0].name, "rle_coco", {"size": [9, 9], "counts": [81]})))
    model = by(evaluate(Looker(), {"test": [broken, *others]}, resamples=5), "model")
    assert model.metrics["mass"].value == pytest.approx(1)
    assert model.config["structures_with_bad_masks"] == {"D041": 1}
    assert "structures_with_bad_masks" not in by(evaluate(Looker(), {"test": others}, resamples=5), "model").config
