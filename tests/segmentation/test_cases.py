"""From a table of studies to masks: what belongs to a class, what an image says nothing about, every dialect, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from downstream.segmentation import config as configs
from downstream.segmentation import runs
from downstream.segmentation.cases import UNKNOWN, Case, MaskDataset, collate, gather, truth
from elvis.data import masks as dialects
from elvis.data.augment import Augment
from elvis.data.batches import loader
from elvis.data.images import BadImage, ImageFile, Preprocess, read
from elvis.data.order import StepSampler
from elvis.data.phantoms.files import write_image
from elvis.data.phantoms.layouts import export
from elvis.data.prepare import prepare
from elvis.data.shards import Make
from elvis.data.studies import load
from elvis.errors import ConfigError, DataError
from elvis.types import Grounding, Mask, Study

SHAPES = [(7, 11), (12, 5)]
BOX = (2.0, 1.0, 6.0, 3.0)  # x1 y1 x2 y2


@dataclass(frozen=True, eq=False)
class Shown:
    """An image that is an array, and counts how often it is read."""

    id: str
    pixels: np.ndarray
    reads: list[int] = field(default_factory=list)

    def read(self) -> np.ndarray:
        self.reads.append(1)
        return self.pixels


def noise(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def blobs(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Bool H W at random; never empty, never full."""
    mask = np.random.default_rng(seed).random(shape) > 0.6
    mask[0, :2] = True, False
    return mask


def study(id: str = "s", *masks: Mask, images: int = 1, shape: tuple[int, int] = (7, 11), **more: Any) -> Study:
    shown = tuple(Shown(f"{id}/{n}", noise(shape, n)) for n in range(images))
    return Study(id, f"patient {id}", more.pop("split", "train"), shown, masks=masks, **more)  # type: ignore[arg-type]


def boxed(name: str, *boxes: tuple[float, ...], **more: Any) -> Mask:
    return Mask(name, "boxes", boxes, **more)


def box(shape: tuple[int, int], x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    out = np.zeros(shape, bool)
    out[y1:y2, x1:x2] = True
    return out


def only(found: Any) -> Case:
    (case,) = (case for cases in found.cases.values() for case in cases)
    return case


# ---------------------------------------------------------------------------------------------------------- gather


def test_a_class_is_the_union_of_the_masks_that_it_names_and_of_no_other() -> None:
    one = study(
        "s", boxed("left lung", (0, 0, 3, 2)), boxed("right lung", (5, 1, 9, 4)), boxed("heart", (4, 4, 6, 6)), boxed("left lung", (0, 5, 2, 7))
    )
    case = only(gather([one], {"lungs": ["left lung", "right lung"], "heart": ["heart"]}, "negative"))
    shape = (7, 11)
    both = box(shape, 0, 0, 3, 2) | box(shape, 5, 1, 9, 4) | box(shape, 0, 5, 2, 7)
    np.testing.assert_array_equal(truth(case, shape), [both, box(shape, 4, 4, 6, 6)])
    assert case.known == (True, True)
    assert case.positive
    assert case.id == "s"


def test_boxes_of_a_category_are_masks_in_pixels_in_their_owners_frame_and_as_fractions() -> None:
    shape = (7, 11)
    fractions = (BOX[0] / 11, BOX[1] / 7, BOX[2] / 11, BOX[3] / 7)
    for grounding in (
        Grounding("A mass.", (BOX,), "Mass"),
        Grounding("A mass.", (BOX,), "Mass", size=shape),
        Grounding("A mass.", (fractions,), "Mass", size=(1, 1)),
    ):
        case = only(gather([study("s", groundings=(grounding,))], {"mass": ["Mass"]}, "unknown"))
        np.testing.assert_array_equal(truth(case, shape)[0], box(shape, 2, 1, 6, 3))
    several = Grounding("Masses.", (BOX, (8, 5, 11, 7)), "Mass", masks=(boxed("x", (0, 0, 1, 1)),))
    case = only(gather([study("s", boxed("Mass", (4, 4, 5, 5)), groundings=(several,))], {"mass": ["Mass"]}, "unknown"))
    expected = box(shape, 2, 1, 6, 3) | box(shape, 8, 5, 11, 7) | box(shape, 0, 0, 1, 1) | box(shape, 4, 4, 5, 5)
    np.testing.assert_array_equal(truth(case, shape)[0], expected)


def test_boxes_that_were_drawn_in_another_image_name_the_study() -> None:
    case = only(gather([study("s17", groundings=(Grounding("A mass.", (BOX,), "Mass", size=(70, 110)),))], {"mass": ["Mass"]}, "negative"))
    with pytest.raises(DataError, match=r"s17: an image is 11 x 7, its boxes were drawn in 110 x 70") as error:
        truth(case, (7, 11))
    assert error.value.code == "D032"
    assert "resized=true" not in error.value.fix  # there is no such option here


def test_a_phrase_without_a_box_says_nothing_and_a_box_of_another_category_neither() -> None:
    silent = study("s", groundings=(Grounding("No mass.", (), "Mass"), Grounding("A nodule.", (BOX,), "Nodule")))
    there = study("t", groundings=(Grounding("A mass.", (BOX,), "Mass"),))
    found = gather([silent, there], {"mass": ["Mass"]}, "unknown")
    assert [case.id for case in found.cases["train"]] == ["t"]


def test_an_image_without_a_mask_is_negative_or_says_nothing_unless_every_label_denies_it() -> None:
    classes = {"lungs": ["left lung", "right lung"]}
    there = study("there", boxed("left lung", (0, 0, 1, 1)))
    silent, yes = study("silent"), study("yes", labels={"left lung": 1, "right lung": 0})
    half, denied = study("half", labels={"left lung": 0}), study("denied", labels={"left lung": 0, "right lung": 0})
    unsure = study("unsure", labels={"left lung": 0, "right lung": -1})
    every = [there, silent, yes, half, denied, unsure]
    found = gather(every, classes, "negative")
    assert [case.id for case in found.cases["train"]] == [one.id for one in every]
    assert not found.excluded
    assert not found.notes
    assert not any(truth(case, (7, 11)).any() for case in found.cases["train"][1:])
    found = gather(every, classes, "unknown")
    assert [case.id for case in found.cases["train"]] == ["there", "denied"]
    assert [case.positive for case in found.cases["train"]] == [True, False]
    assert dict(found.excluded) == {"image without a mask": 4}


def test_a_class_that_an_image_says_nothing_about_is_noted_and_unknown_there() -> None:
    some = [study("a", boxed("x", (0, 0, 1, 1))), study("b", boxed("y", (0, 0, 1, 1)), labels={"x": 0}), study("c")]
    found = gather(some, {"x": ["x"], "y": ["y"]}, "unknown")
    assert {case.id: case.known for case in found.cases["train"]} == {"a": (True, False), "b": (True, True)}
    assert dict(found.excluded) == {"image without a mask": 1}
    assert any(note.startswith("1 times an image says nothing about a class") for note in found.notes)


def test_each_image_of_a_study_is_a_case_with_its_own_masks() -> None:
    two = study("s", boxed("x", (0, 0, 1, 1), image=1), images=3, groundings=(Grounding("An x.", (BOX,), "x", image=2),))
    shape = (7, 11)
    found = gather([two], {"x": ["x"]}, "unknown")
    assert [(case.id, case.image) for case in found.cases["train"]] == [("s@1", 1), ("s@2", 2)]
    np.testing.assert_array_equal([truth(case, shape)[0] for case in found.cases["train"]], [box(shape, 0, 0, 1, 1), box(shape, 2, 1, 6, 3)])
    assert dict(found.excluded) == {"image without a mask": 1}
    assert [case.id for case in gather([two], {"x": ["x"]}, "negative").cases["train"]] == ["s", "s@1", "s@2"]


def test_cases_are_in_the_split_of_their_study_in_the_order_of_the_table() -> None:
    some = [study(id, boxed("x", (0, 0, 1, 1)), split=split) for id, split in (("b", "train"), ("t", "test"), ("a", "train"))]
    found = gather(some, {"x": ["x"]}, "negative")
    assert {split: [case.id for case in cases] for split, cases in found.cases.items()} == {"train": ["b", "a"], "test": ["t"]}


def test_a_class_that_nobody_has_is_refused_with_what_there_is() -> None:
    some = [study("a", boxed("left lung", (0, 0, 1, 1)), groundings=(Grounding("A mass.", (BOX,), "Mass"), Grounding("No nodule.", (), "Nodule")))]
    with pytest.raises(ConfigError) as error:
        gather(some, {"lung": ["left lung"], "right": ["left lnug"]}, "negative")
    said = str(error.value)
    assert "class 'right': no mask is called left lnug (did you mean 'left lung'?)" in said
    assert "left lung (1), Mass (1)" in said
    assert "Nodule" not in said
    with pytest.raises(ConfigError, match="masks of this table: none"):
        gather([study("a")], {"lung": ["lung"]}, "negative")
    with pytest.raises(ConfigError, match="no mask is called Nodule"):
        gather(some, {"nodule": ["Nodule"]}, "negative")
    assert gather(some, {"lung": ["left lung", "right lung"]}, "negative").cases  # one of the names is enough


# -------------------------------------------------------------------------------------------------- every dialect


def runs_of(mask: np.ndarray) -> list[tuple[int, int, int]]:
    """(row, first column, end) of each run of true pixels."""
    found = []
    for y, row in enumerate(mask.tolist()):
        start = None
        for x, on in enumerate([*row, False]):
            if on and start is None:
                start = x
            elif not on and start is not None:
                found.append((y, start, x))
                start = None
    return found


def gaps(flat: list[bool]) -> list[int]:
    """Lengths of the runs of false, true, false, ..."""
    counts, last = [0], False
    for on in flat:
        if on != last:
            counts.append(0)
            last = on
        counts[-1] += 1
    return counts


def siim(mask: np.ndarray) -> str:
    counts = gaps(mask.T.ravel().tolist())
    return " ".join(map(str, counts[: len(counts) // 2 * 2])) or "-1"


def chexmask(mask: np.ndarray) -> str:
    width = mask.shape[1]
    return " ".join(f"{y * width + a + 1} {b - a}" for y, a, b in runs_of(mask))


def png(mask: np.ndarray, root: Path) -> ImageFile:
    write_image(root / "mask.png", mask * np.uint8(255))
    return ImageFile(str(root), "mask.png")


ENCODERS: Mapping[str, Callable[[np.ndarray, Path], Any]] = {
    "rle_siim": lambda mask, root: siim(mask),
    "rle_chexmask": lambda mask, root: chexmask(mask),
    "rle_coco": lambda mask, root: {"size": list(mask.shape), "counts": gaps(mask.T.ravel().tolist())},
    "png": png,
    "boxes": lambda mask, root: tuple((a, y, b, y + 1) for y, a, b in runs_of(mask)),
    "polygons": lambda mask, root: tuple(((a, y), (b, y), (b, y + 1), (a, y + 1)) for y, a, b in runs_of(mask)),
    "shapes_objcxr": lambda mask, root: ";".join(f"0 {a} {y} {b} {y + 1}" for y, a, b in runs_of(mask)),
}


@pytest.mark.parametrize("kind", dialects.FLAT)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_random_mask_of_every_dialect_comes_back_through_a_study(kind: str, shape: tuple[int, int], tmp_path: Path) -> None:
    for seed in range(3):
        there = blobs(shape, seed)
        assert there.shape[0] != there.shape[1]
        one = study("s", Mask("x", kind, ENCODERS[kind](there, tmp_path)), shape=shape)
        np.testing.assert_array_equal(truth(only(gather([one], {"x": ["x"]}, "unknown")), shape)[0], there)


@pytest.mark.parametrize("kind", dialects.FLAT)
def test_an_empty_mask_of_every_dialect_is_known_and_empty(kind: str, tmp_path: Path) -> None:
    one = study("s", Mask("x", kind, ENCODERS[kind](np.zeros((7, 11), bool), tmp_path)))
    case = only(gather([one], {"x": ["x"]}, "unknown"))
    assert case.known == (True,)
    assert not truth(case, (7, 11)).any()


SIZED = {
    "rle_siim": ("1 1", (11, 7)),
    "rle_chexmask": ("1 1", (14, 22)),
    "rle_coco": ({"size": [11, 7], "counts": [77]}, None),
    "boxes": (((0, 0, 1, 1),), (70, 110)),
    "polygons": ((((0, 0), (1, 0), (1, 1)),), (11, 7)),
    "shapes_objcxr": ("0 0 0 1 1", (8, 11)),
}


@pytest.mark.parametrize("kind", dialects.FLAT)
def test_a_mask_of_another_size_than_its_image_is_refused_with_the_study(kind: str, tmp_path: Path) -> None:
    data, size = (png(blobs((11, 7)), tmp_path), None) if kind == "png" else SIZED[kind]
    one = study("study 17", Mask("x", kind, data, size))
    with pytest.raises(DataError, match=r"study 17: mask 'x' is .*, its image 11 x 7") as error:
        truth(only(gather([one], {"x": ["x"]}, "unknown")), (7, 11))
    assert error.value.code == "D041"
    assert len(str(error.value)) < 400


BROKEN = {
    "overflows": ("rle_siim", "70 8", "ends at 78, the image has 77 pixels"),
    "overflows, late": ("rle_siim", "1 1 1 1000000000000", "the image has 77 pixels"),
    "overflows, absolute": ("rle_chexmask", "76 3", "ends at 78, the image has 77 pixels"),
    "odd": ("rle_siim", "3 4 5", "3 numbers, not pairs"),
    "odd, absolute": ("rle_chexmask", "3", "1 numbers, not pairs"),
    "negative": ("rle_siim", "3 -2", "negative"),
    "negative gap": ("rle_siim", "3 2 -1 4", "negative"),
    "starts before the end": ("rle_chexmask", "5 4 6 1", "begins before the end of the run before"),
    "starts at 0": ("rle_chexmask", "0 4", "begins before"),
    "a word": ("rle_siim", "3 many", "holds 'many'"),
    "nothing": ("rle_siim", "", "is empty"),
    "short": ("rle_coco", {"size": [7, 11], "counts": [3, 4]}, "ends at 7, the image has 77 pixels"),
    "short, as text": ("rle_coco", {"size": [7, 11], "counts": "34"}, "ends at 7, the image has 77 pixels"),
    "long": ("rle_coco", {"size": [7, 11], "counts": [3, 75]}, "ends at 78"),
    "negative, coco": ("rle_coco", {"size": [7, 11], "counts": [-3, 80]}, "negative"),
    "cut off, as text": ("rle_coco", {"size": [7, 11], "counts": "3P"}, "cut off"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_run_length_code_is_refused_with_the_id_and_the_row_of_its_table(name: str) -> None:
    kind, data, words = BROKEN[name]
    good = Mask("x", "rle_siim", "1 1")
    one = study("1.2.276", good, Mask("x", kind, data), good, extra={"mask_rows": [7, 12, 31]})
    with pytest.raises(DataError) as error:
        truth(only(gather([one], {"x": ["x"]}, "unknown")), (7, 11))
    said = str(error.value)
    assert said.startswith("D040 1.2.276, row 12: the run-length code of 'x'")
    assert words in said
    assert error.value.fix
    assert len(said) < 400
    with pytest.raises(DataError, match=r"^D040 1\.2\.276: the"):  # a table without rows
        truth(only(gather([replace(one, extra={})], {"x": ["x"]}, "unknown")), (7, 11))


def test_a_mask_with_other_values_than_two_is_refused_with_the_study(tmp_path: Path) -> None:
    write_image(tmp_path / "mask.png", np.arange(77, dtype=np.uint8).reshape(7, 11))
    one = study("s17", Mask("x", "png", ImageFile(str(tmp_path), "mask.png")))
    with pytest.raises(DataError, match=r"^D042 s17: .*holds the values"):
        truth(only(gather([one], {"x": ["x"]}, "unknown")), (7, 11))
    labels = study("s", Mask("x", "png", ImageFile(str(tmp_path), "mask.png"), value=5))
    np.testing.assert_array_equal(truth(only(gather([labels], {"x": ["x"]}, "unknown")), (7, 11))[0], box((7, 11), 5, 0, 6, 1))


def test_a_volume_has_no_flat_mask() -> None:
    one = study("s17", Mask("x", "nifti", None))
    with pytest.raises(DataError, match=r"^s17: mask 'x' has the kind 'nifti'"):
        truth(only(gather([one], {"x": ["x"]}, "unknown")), (7, 11))


# ------------------------------------------------------------------------------------------ through owners' files


def loaded(name: str, root: Path, *overrides: str) -> runs.Table:
    return runs.load_table(configs.load(name, [f"data.root={root}", *overrides]))


def test_the_masks_of_siim_are_those_that_were_drawn(tmp_path: Path) -> None:
    made = export("siim", tmp_path)
    seen = 0
    for cases in loaded("siim", tmp_path).gathered.cases.values():
        for case in cases:
            film = made.truth[case.study.images[0].id]
            np.testing.assert_array_equal(truth(case, (80, 96))[0], film.kind_mask("pneumothorax"))
            seen += case.positive
    assert seen == made.counts["positive images"] > 0


@pytest.mark.parametrize(
    ("dataset", "break_", "words"),
    [
        ("siim", "D040_odd", ("train-rle.csv, row 4 (1.2.276.", "numbers, not pairs")),
        ("siim", "D040_word", ("train-rle.csv, row 4 (1.2.276.", "holds 'many'")),
        ("siim", "D040_empty", ("train-rle.csv, row 4 (1.2.276.", "is empty")),
        ("chexlocalize", "D040", ("gt_segmentations_val.json, patient", "not COCO's, or cut off")),
        ("chexlocalize", "D040_short", ("gt_segmentations_val.json, patient", "the image has 7680 pixels")),
    ],
)
def test_a_broken_code_of_an_owner_is_refused_before_anything_is_trained(dataset: str, break_: str, words: tuple[str, ...], tmp_path: Path) -> None:
    export(dataset, tmp_path, break_=break_)
    with pytest.raises(DataError) as error:
        loaded(dataset, tmp_path)
    assert error.value.code == "D040"
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(("change", "words"), [("past", "the image has 7680 pixels (96 x 80)"), ("negative", "or is negative")])
def test_a_code_of_siim_that_leaves_its_image_is_refused_with_its_row_when_it_is_decoded(change: str, words: str, tmp_path: Path) -> None:
    export("siim", tmp_path, break_="D040_past")
    table = tmp_path / "train-rle.csv"
    lines = table.read_text().splitlines()
    row = next(place for place, line in enumerate(lines) if line.endswith(" 1 1000000"))
    if change == "negative":
        lines[row] = lines[row].removesuffix("1 1000000") + "-1 1"
        table.write_text("\n".join(lines) + "\n")
    image = lines[row].partition(",")[0]
    found = loaded("siim", tmp_path).gathered.cases
    (case,) = (case for cases in found.values() for case in cases if case.study.id == image)
    with pytest.raises(DataError) as error:
        truth(case, (80, 96))
    assert str(error.value).startswith(f"D040 {image}, row {row + 1}: the run-length code of 'pneumothorax'")
    assert words in str(error.value)


def test_an_image_of_chexlocalize_that_was_made_smaller_is_refused_with_its_study(tmp_path: Path) -> None:
    export("chexlocalize", tmp_path, break_="D041")
    found = loaded("chexlocalize", tmp_path, "classes.Support Devices=null").gathered.cases
    (case,) = (c for cases in found.values() for c in cases if read(c.study.images[0]).shape == (40, 48))
    assert case.study.masks
    with pytest.raises(DataError, match=rf"^D041 {case.id}: mask '.*' is 96 x 80, its image 48 x 40"):
        truth(case, (40, 48))


def nearest(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The pixel of the original that the centre of each smaller pixel lies in."""
    out = np.zeros(shape, bool)
    for y, x in np.ndindex(shape):
        out[y, x] = mask[int((y + 0.5) * mask.shape[0] / shape[0]), int((x + 0.5) * mask.shape[1] / shape[1])]
    return out


@pytest.mark.parametrize(("dataset", "kinds"), [("siim", {"rle_siim"}), ("montgomery", {"png"}), ("rsna", {"boxes"}), ("chexlocalize", {"polygons"})])
def test_prepared_masks_are_the_original_ones_made_smaller(dataset: str, kinds: set[str], tmp_path: Path) -> None:
    options = {"truth": "annotations"} if dataset == "chexlocalize" else {}
    export(dataset, tmp_path / "raw", counts={"train": 4, "val": 4, "test": 4})
    table = load(dataset, root=str(tmp_path / "raw"), need_text=False, **options)
    prepare(table, tmp_path / "ready", Make(40), name=dataset, progress=False)
    back = load("prepared", root=str(tmp_path / "ready"), need_text=False)
    names = {mask.name for one in table.studies for mask in one.masks}
    classes = {name: [name] for name in sorted(names)}
    raw, small = (gather(t.studies, classes, "negative", shrunk=shrunk).cases for t, shrunk in ((table, False), (back, True)))
    assert {mask.kind for one in back.studies for mask in one.masks} == kinds
    seen = 0
    for split in raw:
        for one, other in zip(raw[split], small[split], strict=True):
            assert (one.id, one.known) == (other.id, other.known)
            full, shape = truth(one, read(one.study.images[0]).shape), read(other.study.images[0]).shape
            assert (full.shape[1:], shape) == ((80, 96), (33, 40))
            for plane, found in zip(full, truth(other, shape), strict=True):
                np.testing.assert_array_equal(found, nearest(plane, shape))
                seen += bool(plane.any())
    assert seen > 0


def test_boxes_of_a_category_follow_their_prepared_image(tmp_path: Path) -> None:
    export("rsna", tmp_path / "raw", counts={"train": 6})
    table = load("rsna", root=str(tmp_path / "raw"), need_text=False)
    prepare(table, tmp_path / "ready", Make(40), name="rsna", progress=False)
    back = load("prepared", root=str(tmp_path / "ready"), need_text=False)
    cases = gather(back.studies, {"p": ["Pneumonia"]}, "negative", shrunk=True).cases
    old = {one.id: one for one in table.studies}
    seen = 0
    for case in (case for some in cases.values() for case in some):
        expected = np.zeros((33, 40), bool)
        for grounding in old[case.id].groundings:
            for x1, y1, x2, y2 in grounding.boxes:
                expected |= box((33, 40), int(x1 * 40 / 96), int(y1 * 33 / 80), -int(-x2 * 40 // 96), -int(-y2 * 33 // 80))
        np.testing.assert_array_equal(truth(case, (33, 40))[0], expected)
        seen += bool(expected.any())
    assert seen > 0


# --------------------------------------------------------------------------------------------------------- dataset


def preprocess(fit: str = "pad", size: tuple[int, int] = (32, 24)) -> Preprocess:
    return Preprocess(size, fit, (0.0,), (1.0,))  # type: ignore[arg-type]


def drawn(id: str, mask: np.ndarray, known: bool = True, *, image: np.ndarray | None = None, **more: Any) -> Case:
    """An image that shows its own mask: 255 where it is."""
    shown = Shown(id, mask * np.uint8(255) if image is None else image)
    one = Study(id, id, "train", (shown,), masks=(Mask("x", "rle_chexmask", dialects.encode_chexmask(mask)),), **more)  # type: ignore[arg-type]
    return Case(one, 0, (one.masks,), (known,))


def rectangles(count: int = 6) -> list[Case]:
    """Images that show their masks, of two sizes that are not square."""
    shapes = [(60, 90), (90, 50)]
    return [drawn(f"s{n}", box(shapes[n % 2], 10 + n, 20, 40 + n, 45 - n)) for n in range(count)]


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize("shape", [(60, 90), (90, 50), (32, 24)])
def test_an_image_and_its_masks_are_resized_by_one_frame(fit: str, shape: tuple[int, int]) -> None:
    (h, w), (x1, y1, x2, y2) = shape, (shape[1] // 10, shape[0] // 5, shape[1] * 7 // 10, shape[0] * 3 // 5)
    item = MaskDataset([drawn("s", box(shape, x1, y1, x2, y2))], preprocess(fit)).item(0)
    assert item.image.shape == (32, 24)
    assert item.masks.shape == (1, 32, 24)
    np.testing.assert_array_equal(item.masks[0], item.image >= 128)
    scale = (min if fit == "pad" else max)(32 / h, 24 / w)
    top, left = (32 - scale * h) / 2, (24 - scale * w) / 2
    rows, columns = np.flatnonzero(item.masks[0].any(1)), np.flatnonzero(item.masks[0].any(0))
    for found, low, high, offset, end in ((rows, y1, y2, top, 32), (columns, x1, x2, left, 24)):
        assert found[0] == pytest.approx(max(0, scale * low + offset), abs=1)
        assert found[-1] + 1 == pytest.approx(min(end, scale * high + offset), abs=1)
    assert set(np.unique(item.masks)) == {0, 1}


def test_a_class_that_is_not_known_is_unknown_in_every_pixel_whatever_is_augmented() -> None:
    one = study("s", boxed("x", (0, 0, 9, 9)), shape=(60, 90))
    case = Case(one, 0, (one.masks, (), one.masks), (True, False, False))
    for augment in (None, Augment(scale=0.2, shift=0.1, rotate=20, crop_scale=0.7)):
        masks = MaskDataset([case], preprocess(), augment=augment).item(0).masks
        assert set(np.unique(masks[0])) == {0, 1}
        assert (masks[1:] == UNKNOWN).all()


def same(one: Any, other: Any) -> bool:
    return one.id == other.id and np.array_equal(one.image, other.image) and np.array_equal(one.masks, other.masks) and one.bad == other.bad


def test_an_item_is_a_function_of_seed_epoch_and_id() -> None:
    cases, augment = rectangles(), Augment(scale=0.2, shift=0.1, rotate=20, noise=0.1)
    data = MaskDataset(cases, preprocess(), augment=augment, seed=3)
    turned = MaskDataset(cases[::-1], preprocess(), augment=augment, seed=3)
    firsts = [data[1, n] for n in range(6)]
    torch.manual_seed(5)
    np.random.seed(5)
    assert all(same(firsts[n], data[1, n]) for n in reversed(range(6)))
    assert all(same(firsts[n], turned[1, 5 - n]) for n in range(6))
    assert not any(np.array_equal(firsts[n].image, data[2, n].image) for n in range(6))
    other = MaskDataset(cases, preprocess(), augment=augment, seed=4)
    assert not any(np.array_equal(firsts[n].image, other[1, n].image) for n in range(6))


def test_masks_move_with_their_image_when_it_is_augmented() -> None:
    data = MaskDataset(rectangles(), preprocess(size=(64, 64)), augment=Augment(scale=0.2, shift=0.1, rotate=20, crop_scale=0.8))
    plain = MaskDataset(rectangles(), preprocess(size=(64, 64)))
    for n in range(6):
        for epoch in range(3):
            item = data[epoch, n]
            image, mask = item.image >= 128, item.masks[0] > 0
            assert (image & mask).sum() / (image | mask).sum() > 0.85
            assert set(np.unique(item.masks)) <= {0, 1}
            assert not np.array_equal(mask, plain[0, n].masks[0] > 0)


@pytest.mark.parametrize("cache", [False, True])
def test_workers_change_nothing(cache: bool) -> None:
    cases, augment = rectangles(), Augment(rotate=20, brightness=0.2)

    def batches(workers: int) -> list[Any]:
        data = MaskDataset(cases, preprocess(), augment=augment, cache=cache)
        return list(loader(data, StepSampler([c.id for c in cases], 2, steps=4), workers=workers))

    for one, other in zip(batches(0), batches(2), strict=True):
        assert one.ids == other.ids
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.masks, other.masks)
        assert one.images.dtype == one.masks.dtype == torch.uint8
        assert (one.images.shape, one.masks.shape) == ((2, 32, 24), (2, 1, 32, 24))
        assert len(one) == 2


def test_an_image_that_cannot_be_read_is_replaced_and_named(tmp_path: Path) -> None:
    cases = rectangles()
    gone = replace(cases[2].study, images=(ImageFile(str(tmp_path), "gone.png"),))
    cases[2] = replace(cases[2], study=gone)
    data = MaskDataset(cases, preprocess())
    item = data[0, 2]
    assert item.id != "s2"
    assert item.bad == (("s2", "missing"),)
    assert same(replace(item, bad=()), next(data[0, n] for n in range(6) if cases[n].id == item.id))
    assert same(item, data[0, 2])
    with pytest.raises(BadImage):
        data.item(2)
    batch = collate([data[0, 0], item])
    assert batch.ids == ("s0", item.id)
    assert batch.extra["bad"] == (("s2", "missing"),)
    with pytest.raises(DataError, match=r"1 studies in a row cannot be read: s2 \(missing\)"):
        next(iter(loader(MaskDataset(cases[2:3], preprocess()), StepSampler(["s2"], 1, steps=1))))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_mask_ends_the_run_and_names_the_study(workers: int) -> None:
    cases = rectangles()
    broken = Mask("x", "rle_siim", "1 1000000")
    cases[3] = replace(cases[3], regions=((broken,),), study=replace(cases[3].study, masks=(broken,), extra={"mask_rows": [17]}))
    data = MaskDataset(cases, preprocess())
    assert isinstance(data[0, 3], DataError)
    assert collate([data[0, 0], data[0, 3], data[0, 1]]).what == data[0, 3].what  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"^D040 s3, row 17: ") as error:
        list(loader(data, StepSampler([c.id for c in cases], 2, steps=3), workers=workers))
    assert error.value.code == "D040"


@pytest.mark.parametrize("augment", [None, Augment(rotate=20)])
def test_a_cache_gives_the_same_items_and_reads_each_image_once(augment: Augment | None) -> None:
    cases = rectangles()
    plain, cached = (MaskDataset(cases, preprocess(), augment=augment, cache=cache) for cache in (False, True))
    expected = [plain[epoch, n] for epoch in range(3) for n in range(6)]
    for case in cases:
        case.study.images[0].reads.clear()  # type: ignore[union-attr]
    assert all(same(one, cached[place // 6, place % 6]) for place, one in enumerate(expected))
    assert [len(case.study.images[0].reads) for case in cases] == [1] * 6  # type: ignore[union-attr]
