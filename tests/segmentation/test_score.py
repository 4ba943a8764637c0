"""What a head is worth: thresholds and judgement against a plain loop over pixels, and the rows that several runs make together."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from downstream.segmentation import compare, runs, score
from downstream.segmentation.cases import Case, MaskDataset, truth
from downstream.segmentation.config import Segmentation
from downstream.segmentation.model import Head
from elvis.data.images import ImageFile, Preprocess
from elvis.data.masks import encode_chexmask
from elvis.errors import DataError
from elvis.metrics import segmentation as metrics
from elvis.types import Mask, Study

SIZE = (12, 16)
SHAPES = [(12, 16), (17, 9), (10, 31), (12, 16), (24, 13)]


class Grey(nn.Module):
    """The probability of the first class is how bright a pixel of the input is, of the second how dark."""

    def __init__(self) -> None:
        super().__init__()
        self.anything = nn.Parameter(torch.zeros(1))
        self.classes, self.head_name = ("bright", "dark"), "grey"
        self.backbone = SimpleNamespace(spec=SimpleNamespace(in_channels=1))

    def forward(self, images: Tensor) -> Tensor:
        bright = images.clamp(0.001, 0.999).logit()
        return torch.cat([bright, -bright], 1)


@dataclass(frozen=True, eq=False)
class Shown:
    id: str
    pixels: np.ndarray

    def read(self) -> np.ndarray:
        return self.pixels


def head(thresholds: Sequence[float] = (0.5, 0.5), fit: str = "pad", size: tuple[int, int] = SIZE) -> Head:
    return Head(Grey(), Preprocess(size, fit, (0.0,), (1.0,)), tuple(thresholds))  # type: ignore[arg-type]


def case(id: str, image: np.ndarray, *there: np.ndarray, known: Sequence[bool] = (True, True), patient: str = "", split: str = "test") -> Case:
    regions = tuple((Mask("x", "rle_chexmask", encode_chexmask(mask)),) for mask in there)
    return Case(Study(id, patient or id, split, (Shown(id, image),)), 0, regions, tuple(known))


def some(seed: int = 0, shapes: Sequence[tuple[int, int]] = SHAPES) -> list[Case]:
    """Bright blobs on dark ground; a truth that is nearly them, an empty one now and then, and a class that is not known."""
    rng = np.random.default_rng(seed)
    made = []
    for n, shape in enumerate(shapes):
        image = rng.integers(0, 140, shape).astype(np.uint8)
        image[3:8, 2:7] += 110
        bright, dark = image >= 100, image < 60
        bright[5], dark[:, 3] = n % 2 == 0, False
        made.append(case(f"i{n}", image, bright & (n != 3), dark, known=(True, n != 1), patient=f"p{n // 2}"))
    return made


# ------------------------------------------------------------------------------------------ as plain loops would do it


def between(small: np.ndarray, y: float, x: float) -> float:
    """The value at a place in the input, bilinear between pixel centres."""
    h, w = small.shape
    y, x = y - 0.5, x - 0.5
    value = 0.0
    for i in (math.floor(y), math.floor(y) + 1):
        for j in (math.floor(x), math.floor(x) + 1):
            value += (1 - abs(y - i)) * (1 - abs(x - j)) * float(small[min(max(i, 0), h - 1), min(max(j, 0), w - 1)])
    return value


def probability(it: Head, image: np.ndarray, k: int) -> np.ndarray:
    """H W: of each pixel of the image, through the geometry written out. NaN where the input does not show it."""
    (h, w), (height, width) = it.preprocess.size, image.shape
    small = np.clip(it.preprocess.resize(image) / 255, 0.001, 0.999)
    small = small if k == 0 else 1 - small
    out = np.full(image.shape, np.nan)
    if it.preprocess.fit == "pad":
        ratio = min(h / height, w / width)
        inside = round(ratio * height), round(ratio * width)
        scale, start = (inside[0] / height, inside[1] / width), ((h - inside[0]) // 2, (w - inside[1]) // 2)
    else:
        ratio = max(h / height, w / width)
        scale, start = (ratio, ratio), ((h - ratio * height) / 2, (w - ratio * width) / 2)
    for i, j in np.ndindex(image.shape):
        y, x = scale[0] * (i + 0.5) + start[0], scale[1] * (j + 0.5) + start[1]
        if 0 <= y <= h and 0 <= x <= w:
            out[i, j] = between(small, y, x)
    return out


def counted(predicted: np.ndarray, there: np.ndarray) -> list[int]:
    tp = fp = fn = 0
    for p, t in zip(predicted.ravel().tolist(), there.ravel().tolist(), strict=True):
        tp, fp, fn = tp + (p and t), fp + (p and not t), fn + (t and not p)
    return [tp, fp, fn]


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_every_image_is_judged_in_its_own_pixels_as_a_loop_judges_it(fit: str) -> None:
    it, cases = head((0.402, 0.653), fit), some()
    found = score.judge(it, cases)
    assert [c.id for c in found.cases] == [c.id for c in cases]
    assert found.patients == ["p0", "p0", "p1", "p1", "p2"]
    np.testing.assert_array_equal(found.known, [c.known for c in cases])
    assert not found.bad
    for one, parts, distances in zip(cases, found.parts, found.hd95, strict=True):
        image = one.study.images[0].read()  # type: ignore[union-attr]
        for k, threshold in enumerate(it.thresholds):
            maps = probability(it, image, k)
            assert np.nanmin(abs(maps - threshold)) > 1e-6  # no pixel on the edge
            predicted, there = maps >= threshold, truth(one, image.shape)[k]
            assert parts[k].tolist() == counted(predicted, there)
            np.testing.assert_equal(distances[k], metrics.hausdorff95(predicted, there))


def test_a_prediction_is_what_is_judged() -> None:
    it, cases = head((0.4, 0.65)), some()
    found = score.judge(it, cases)
    images = [one.study.images[0].read() for one in cases]  # type: ignore[union-attr]
    for one, masks, parts, image in zip(cases, it.predict(images), found.parts, images, strict=True):
        for k, name in enumerate(it.classes):
            assert masks[name].shape == image.shape
            assert parts[k].tolist() == counted(masks[name], truth(one, image.shape)[k])


def test_what_a_crop_does_not_show_is_missed_where_it_is_true_and_never_predicted() -> None:
    image = np.full((12, 40), 250, np.uint8)
    image[0, 0] = 0
    there = np.ones((12, 40), bool)
    found = score.judge(head((0.5, 0.5), "crop"), [case("wide", image, there, ~there)])
    assert found.parts[0][0].tolist() == [12 * 16, 0, 12 * 24]  # 16 of 40 columns are shown
    assert found.parts[0][1].tolist() == [0, 0, 0]
    whole = score.judge(head((0.5, 0.5), "pad"), [case("wide", image, there, ~there)])
    assert whole.parts[0][0][0] > 12 * 39


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    it, cases, steps = head((0.4, 0.65)), some(), []
    whole = score.judge(it, cases, steps.append)
    assert steps == [5]
    monkeypatch.setattr(score, "BATCH", 2)
    parts = score.judge(it, cases, steps.append)
    assert steps == [5, 2, 2, 1]
    np.testing.assert_array_equal(whole.parts, parts.parts)
    assert [c.id for c in whole.cases] == [c.id for c in parts.cases]


def broken(id: str = "gone") -> Case:
    return Case(Study(id, id, "test", (ImageFile("/nowhere", "gone.png"),)), 0, ((), ()), (True, True))


def test_an_image_that_cannot_be_read_is_counted_by_its_reason_and_the_others_are_judged() -> None:
    cases = some()
    found = score.judge(head(), [cases[0], broken("a"), *cases[1:], broken("b")])
    assert [c.id for c in found.cases] == [c.id for c in cases]
    assert [id for id, _ in found.bad] == ["a", "b"]
    assert sum(score.counted(found).values()) == 2
    assert len(score.counted(found)) == 1
    np.testing.assert_array_equal(found.parts, score.judge(head(), cases).parts)
    assert score.judge(head(), [broken()]).cases == []


def test_a_broken_mask_ends_the_judgement_and_names_the_study() -> None:
    image = np.arange(70, dtype=np.uint8).reshape(7, 10)
    bad = Case(Study("s17", "p", "test", (Shown("x", image),)), 0, ((Mask("x", "rle_siim", "60 99"),), ()), (True, True))
    for call in (score.judge, lambda it, cases: score.choose(it, cases, "dice_pooled")):
        with pytest.raises(DataError, match=r"^D040 s17: "):
            call(head(), [*some(), bad])


def test_a_row_stands_for_every_image_and_class_that_is_known() -> None:
    cases = some()
    found = score.judge(head(), cases)
    rows = score.per_case(found, ["bright", "dark"])
    expected = [(c.id, name) for c in cases for k, name in enumerate(("bright", "dark")) if c.known[k]]
    assert [(row["id"], row["class"]) for row in rows] == expected
    assert len(rows) == 9
    for row in rows:
        n, k = int(row["id"][1:]), ("bright", "dark").index(row["class"])
        tp, fp, fn = found.parts[n][k]
        assert (row["tp"], row["fp"], row["fn"], row["patient"], row["split"]) == (tp, fp, fn, f"p{n // 2}", "test")
        assert row["dice"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
        np.testing.assert_equal(row["hausdorff95"], found.hd95[n][k])
    nothing = score.judge(head((0.9, 0.9)), [case("n", np.tile(np.arange(100, 116, dtype=np.uint8), (12, 1)), *np.zeros((2, 12, 16), bool))])
    assert [row["dice"] for row in score.per_case(nothing, ["bright", "dark"])] == [1.0, 1.0]


# ------------------------------------------------------------------------------------------------------- thresholds

LEVELS = (51, 102, 204)  # probabilities .2, .4, .8 of the first class, .8, .6, .2 of the second


def levels() -> np.ndarray:
    return np.repeat(np.array(LEVELS, np.uint8), 64).reshape(12, 16)


def test_each_class_has_the_threshold_that_is_best_for_it() -> None:
    image = levels()
    found = score.choose(head(), [case("v", image, image >= 102, image <= 51)], "dice_pooled")
    assert found[0] == pytest.approx(0.30, abs=0.011)  # the middle of those that are perfect, above .2 and up to .4
    assert found[1] == pytest.approx(0.70, abs=0.011)
    both = score.judge(replace(head(), thresholds=found), [case("v", image, image >= 102, image <= 51)])
    assert both.parts[0].tolist() == [[128, 0, 0], [64, 0, 0]]


def test_a_threshold_is_chosen_over_all_images_at_full_size_and_over_those_that_know_the_class() -> None:
    it, cases = head(), some(1)
    found = score.choose(it, cases, "dice_pooled")
    for k in range(2):
        best = -1.0
        values = []
        for threshold in metrics.THRESHOLDS:
            sums = np.zeros(3)
            for one in cases:
                if one.known[k]:
                    image = one.study.images[0].read()  # type: ignore[union-attr]
                    sums += counted(it.probabilities([image])[0][k] >= np.float32(threshold), truth(one, image.shape)[k])
            values.append(2 * sums[0] / (2 * sums[0] + sums[1] + sums[2]))
            best = max(best, values[-1])
        assert values[round(100 * found[k]) - 1] == best
    flipped = [replace(one, regions=tuple(r if known else () for r, known in zip(one.regions, one.known, strict=True))) for one in cases]
    assert score.choose(it, flipped, "dice_pooled") == found


def test_the_definition_of_dice_decides_which_threshold_is_best() -> None:
    there = levels()
    empty = np.full((12, 16), 128, np.uint8)  # .5 everywhere
    empty[0, 0] = 0
    cases = [case("a", there, there >= 102, there < 0), case("b", empty, empty > 255, empty > 255)]
    assert score.choose(head(), cases, "dice_positive_only")[0] == pytest.approx(0.30, abs=0.011)
    assert score.choose(head(), cases, "dice_pooled")[0] == pytest.approx(0.655, abs=0.011)  # above .5 and up to .8: nothing is painted on b


def test_a_class_without_an_image_that_knows_it_keeps_one_half() -> None:
    image = levels()
    assert score.choose(head(), [case("v", image, image >= 102, image <= 51, known=(True, False))], "dice_pooled")[1] == 0.5
    assert score.choose(head(), [broken()], "dice_pooled") == (0.5, 0.5)
    assert score.choose(head(), [case("v", image, image > 255, image > 255)], "dice_positive_only") == (0.5, 0.5)


# ------------------------------------------------------------------------------------------------- while it is trained


def test_the_quick_number_is_the_pooled_dice_at_the_models_size_and_the_best_threshold_of_each_class() -> None:
    it, cases = head(), some(2)
    data = MaskDataset(cases, it.preprocess)
    values = []
    for k in range(2):
        best = 0.0
        for threshold in metrics.THRESHOLDS:
            sums = np.zeros(3)
            for n, one in enumerate(cases):
                if one.known[k]:
                    item = data.item(n)
                    small = np.clip(item.image / 255, 0.001, 0.999).astype(np.float32)
                    sums += counted((small if k == 0 else 1 - small) >= threshold, item.masks[k] == 1)
            best = max(best, 2 * sums[0] / (2 * sums[0] + sums[1] + sums[2]))
        values.append(best)
    assert score.quick(it, data, 2) == pytest.approx(np.mean(values), abs=1e-3)
    assert score.quick(it, data, 3) == score.quick(it, data, 2) == score.quick(it, data, 99)


def test_the_quick_number_passes_over_unreadable_images_and_is_zero_where_nothing_is_defined() -> None:
    it, cases = head(), some(2)
    expected = score.quick(it, MaskDataset(cases, it.preprocess), 2)
    assert score.quick(it, MaskDataset([broken("a"), *cases, broken("b")], it.preprocess), 2) == expected > 0
    assert score.quick(it, MaskDataset([broken()], it.preprocess), 2) == 0.0
    image = levels()
    nobody = [case("v", image, image > 255, image > 255, known=(False, False))]
    assert score.quick(it, MaskDataset(nobody, it.preprocess), 2) == 0.0
    assert not it.segmenter.training


# ---------------------------------------------------------------------------------------------------- several seeds


def arrays(seed: int, quality: float = 0.8, images: int = 14, classes: int = 2, split: str = "test") -> dict[str, np.ndarray]:
    """What `scored.npz` holds of a made-up run: the truth and what is known are the same for every seed, what is predicted is not."""
    fixed, rng = np.random.default_rng(0), np.random.default_rng(100 + seed)
    there = fixed.random((images, classes, 8, 9)) > 0.6
    there[::5] = False
    known = fixed.random((images, classes)) > 0.2
    predicted = np.where(rng.random(there.shape) < quality, there, rng.random(there.shape) > 0.5)
    predicted[3] = False
    distances = [[metrics.hausdorff95(p, t) for p, t in zip(*pair, strict=True)] for pair in zip(predicted, there, strict=True)]
    found = {"parts": metrics.overlap(predicted, there), "hd95": np.array(distances), "known": known}
    found |= {"patients": np.array([f"p{n // 2}" for n in range(images)]), "ids": np.array([f"i{n}" for n in range(images)])}
    return {f"{split}/{name}": value for name, value in found.items()}


NAMES = {*metrics.DEFINITIONS, "hausdorff95", "hausdorff95_missing"}


def alone(files: dict[str, np.ndarray], chosen: Sequence[int]) -> dict[str, float]:
    """Each metric of one seed, its mean over the chosen classes."""
    sums = metrics.case_sums(files["test/parts"][:, chosen], files["test/hd95"][:, chosen], files["test/known"][:, chosen])
    return {name: float(np.mean([terms[:, k, 0].sum() / terms[:, k, 1].sum() for k in range(len(chosen))])) for name, terms in sums.items()}


def test_a_summary_is_the_mean_over_seeds_with_their_standard_deviation_and_an_interval_around_it() -> None:
    files = [arrays(seed) for seed in range(3)]
    found = compare.summary(files, "test", ["a", "b"], 200)
    assert found.keys() == NAMES | {f"{name}[{k}]" for name in NAMES for k in "ab"}
    for suffix, chosen in {"": [0, 1], "[a]": [0], "[b]": [1]}.items():
        each = [alone(one, chosen) for one in files]
        for name in NAMES:
            metric, values = found[name + suffix], [one[name] for one in each]
            assert metric.value == pytest.approx(sum(values) / 3)
            mean = sum(values) / 3
            assert metric.sd == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in values) / 2))
            assert metric.low <= metric.value <= metric.high
    for name in ("dice_pooled", "precision", "hausdorff95"):
        assert found[name].low < found[name].value < found[name].high
        assert found[name].sd > 0


def test_one_seed_has_no_standard_deviation_and_one_class_no_names() -> None:
    found = compare.summary([arrays(0)], "test", ["a", "b"], 50)
    assert {metric.sd for metric in found.values()} == {None}
    parts, distances, known, patients = (arrays(0)[f"test/{name}"] for name in ("parts", "hd95", "known", "patients"))
    expected = metrics.summarise(parts, distances, patients.tolist(), known=known, classes="ab", resamples=50)
    assert found.keys() == expected.keys()
    for name, metric in expected.items():
        assert (found[name].value, found[name].low, found[name].high) == pytest.approx((metric.value, metric.low, metric.high)), name
    assert compare.summary([arrays(0, classes=1)], "test", ["a"], 50).keys() == NAMES


def test_an_interval_over_seeds_resamples_patients_and_not_images() -> None:
    files = [arrays(seed) for seed in range(2)]
    whole = compare.summary(files, "test", ["a", "b"], 200)["dice_pooled"]
    one = [{**f, "test/patients": np.array(["p"] * 14)} for f in files]
    assert compare.summary(one, "test", ["a", "b"], 200)["dice_pooled"].low is None
    assert compare.summary(one, "test", ["a", "b"], 200)["dice_pooled"].value == pytest.approx(whole.value)
    assert whole.low is not None


def scrambled(files: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same, with nonsense wherever a class is not known."""
    known = files["test/known"]
    nothing = np.where(known[..., None], files["test/parts"], 10_000.0)
    return {**files, "test/parts": nothing, "test/hd95": np.where(known, files["test/hd95"], 7.0)}


def test_a_class_that_is_not_known_takes_part_in_nothing(tmp_path: Path) -> None:
    files = [arrays(seed) for seed in range(2)]
    assert not files[0]["test/known"].all()
    one, other = (compare.summary(some, "test", ["a", "b"], 50) for some in (files, [scrambled(f) for f in files]))
    assert one == other
    plain = compare.differences([unit(tmp_path, "a", 0), unit(tmp_path, "b", 0, quality=0.6)], CONFIG)
    odd = compare.differences([unit(tmp_path / "o", "a", 0, change=scrambled), unit(tmp_path / "o", "b", 0, quality=0.6, change=scrambled)], CONFIG)
    assert plain[0].metrics == odd[0].metrics


def test_seeds_that_were_judged_on_different_images_are_refused() -> None:
    other = arrays(1)
    other["test/ids"] = other["test/ids"][::-1]
    with pytest.raises(DataError, match="judged on different images of 'test'"):
        compare.summary([arrays(0), other], "test", ["a", "b"], 20)


# ----------------------------------------------------------------------------------------------------- differences

CONFIG = Segmentation(data={"name": "phantom"}, classes={"a": ["a"], "b": ["b"]}, resamples=100)


def unit(
    out: Path, name: str, seed: int, *, fraction: float = 1.0, labels: int = 40, quality: float = 0.8, like: int | None = None, change: Any = None
) -> runs.Unit:
    """A run that is done. `like`: the number its predictions are drawn by (the seed)."""
    made = runs.Unit(runs.Backbone(name, "resnet10t"), fraction, seed, out)
    made.folder.mkdir(parents=True)
    files = arrays(seed if like is None else like, quality)
    np.savez(made.folder / "scored.npz", **(change(files) if change else files))
    about = {"labels": labels, "thresholds": {"a": 0.5, "b": 0.5}}
    result = {"task": "segmentation", "dataset": "phantom", "protocol": "unet", "split": "test", "row": name, "metrics": {}, "per_case": []}
    (made.folder / "results.json").write_text(json.dumps([{**result, "config": about, "provenance": {"backbone": "x"}}]))
    return made


def test_a_model_does_not_differ_from_itself(tmp_path: Path) -> None:
    done = [unit(tmp_path, name, seed) for name in ("a", "b") for seed in range(2)]
    (found,) = compare.differences(done, CONFIG)
    assert (found.split, found.row) == ("test, minus a", "b, 100 % (40)")
    assert found.metrics.keys() == set(compare.COMPARED)
    assert {(m.value, m.low, m.high) for m in found.metrics.values()} == {(0.0, 0.0, 0.0)}


def test_a_difference_is_the_other_minus_the_first_paired_by_image(tmp_path: Path) -> None:
    worse = [unit(tmp_path, "a", seed, quality=0.6) for seed in range(2)]
    better = [unit(tmp_path, "b", seed, quality=0.9) for seed in range(2)]
    (up,), (down,) = compare.differences([*worse, *better], CONFIG), compare.differences([*better, *worse], CONFIG)
    for name in compare.COMPARED:
        files = ([dict(np.load(u.folder / "scored.npz", allow_pickle=False)) for u in some] for some in (better, worse))
        one, other = (np.mean([alone(file, [0, 1])[name] for file in some]) for some in files)
        metric, turned = up.metrics[name], down.metrics[name]
        assert metric.value == pytest.approx(one - other)
        assert 0 < metric.low < metric.value < metric.high
        assert (turned.value, turned.low, turned.high) == pytest.approx((-metric.value, -metric.high, -metric.low))
    plain = compare.summary([dict(np.load(u.folder / "scored.npz", allow_pickle=False)) for u in better], "test", ["a", "b"], 100)["dice_pooled"]
    assert up.metrics["dice_pooled"].high - up.metrics["dice_pooled"].low != pytest.approx(plain.high - plain.low)


def test_differences_are_at_the_same_amount_of_labels_and_rows_stand_by_labels(tmp_path: Path) -> None:
    done = [
        unit(tmp_path, name, 0, fraction=fraction, labels=labels, quality=0.7 + 0.2 * (name == "b") * (fraction < 1))
        for fraction, labels in ((1.0, 40), (0.25, 10), (20, 20))
        for name in ("a", "b")
    ]
    found = compare.differences(done, CONFIG)
    assert [r.row for r in found] == ["b, 25 % (10)", "b, 20 labels", "b, 100 % (40)"]
    assert [r.metrics["dice_pooled"].value > 0.01 for r in found] == [True, False, False]
    assert [r.row for r in compare.rows(done, CONFIG)] == [
        f"{name}, {amount}" for amount in ("25 % (10)", "20 labels", "100 % (40)") for name in ("a", "b")
    ]


def test_backbones_that_were_judged_on_different_images_are_not_compared(tmp_path: Path) -> None:
    turned = unit(tmp_path, "b", 0, change=lambda files: {name: value[::-1] for name, value in files.items()})
    with pytest.raises(DataError, match="different images of 'test'"):
        compare.differences([unit(tmp_path, "a", 0), turned], CONFIG)


def test_a_row_holds_the_mean_over_seeds_and_the_thresholds_of_each(tmp_path: Path) -> None:
    done = [unit(tmp_path, "a", seed) for seed in range(3)]
    (row,) = compare.rows(done, CONFIG)
    assert row.metrics == compare.summary([arrays(seed) for seed in range(3)], "test", ["a", "b"], 100)
    assert row.config["seeds"] == [0, 1, 2]
    assert row.config["thresholds"] == [{"a": 0.5, "b": 0.5}] * 3
    assert row.row == "a, 100 % (40)"
