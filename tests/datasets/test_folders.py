"""Images and masks in two folders of equal names: every layout written by phantoms, read back, and every way it can be wrong."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from elvis.data import images, masks, studies
from elvis.data.__main__ import main
from elvis.data.datasets.folders import folders
from elvis.data.phantoms.files import write_image
from elvis.data.phantoms.film import Film
from elvis.errors import ConfigError, DataError
from tests.datasets.conftest import assert_sound, phantoms

LUNGS = {"right lung": 1, "left lung": 2}


@pytest.fixture(scope="module")
def films() -> list[Film]:
    return phantoms("montgomery")  # type: ignore[return-value]  # 80 x 96


def name(number: int) -> str:
    return f"p{number // 2}_{number}"


def lungs(film: Film) -> np.ndarray:
    return np.isin(film.labels(), (1, 2))


def write(root: Path, films: list[Film], image: str = "images/{}.jpg", mask: str = "masks/{}.png") -> Path:
    """`{}`: the name of a film."""
    for number, film in enumerate(films):
        write_image(root / image.format(name(number)), film.read())
        write_image(root / mask.format(name(number)), lungs(film) * np.uint8(255))
    return root


def check(study, film: Film, label: str = "mask") -> None:
    (mask,) = study.masks
    assert mask.name == label
    np.testing.assert_array_equal(masks.decode(mask, *images.read(study.images[0]).shape), lungs(film))


# --------------------------------------------------------------------------------------------------------- the layouts


@pytest.mark.parametrize(
    ("options", "image", "mask"),
    [
        ({}, "images/{}.png", "masks/{}.png"),
        ({"mask_suffix": "_mask"}, "images/{}.PNG", "masks/{}_mask.gif"),
        ({"images": "x/films", "masks": "y", "mask_name": "lungs"}, "x/films/{}.png", "y/{}.tif"),
        ({"images": "all", "masks": "all", "mask_suffix": "_m"}, "all/{}.png", "all/{}_m.png"),
    ],
)
def test_every_image_has_the_mask_of_its_name_bit_for_bit(films, options, image, mask, tmp_path: Path) -> None:
    root = write(tmp_path, films[:4], image, mask)
    table = studies.load("folders", root=str(root), need_text=False, **options)
    assert [study.id for study in table.studies] == ["p0_0", "p0_1", "p1_2", "p1_3"]
    for study, film in zip(table.studies, films, strict=False):
        assert_sound(study)
        np.testing.assert_array_equal(images.read(study.images[0]), film.read())
        check(study, film, options.get("mask_name", "mask"))
    assert pickle.loads(pickle.dumps(table)) == table == folders(root=str(root), **options)
    assert table.card.access == "yours"
    assert studies.fingerprints(table) is None  # names of a user's own patients do not travel
    assert (table.notes, table.left_out) == (("split: 80/10/10 by a hash of the image",), {})


def test_a_folder_in_masks_is_a_class(films, tmp_path: Path) -> None:
    for number, film in enumerate(films[:3]):
        write_image(tmp_path / f"images/{number}.png", film.read())
        for label, value in LUNGS.items():
            if (number, label) != (2, "left lung"):
                write_image(tmp_path / f"masks/{label}/{number}.png", (film.labels() == value).astype(np.uint8))
    table = folders(root=str(tmp_path))
    assert [{mask.name for mask in study.masks} for study in table.studies] == [set(LUNGS), set(LUNGS), {"right lung"}]
    for study, film in zip(table.studies, films, strict=False):
        for mask in study.masks:
            np.testing.assert_array_equal(masks.decode(mask, 80, 96), film.labels() == LUNGS[mask.name])


@pytest.mark.parametrize("label", ["", "lung/"])
def test_folders_of_splits_are_the_splits(films, label, tmp_path: Path) -> None:
    inner = {"train": "train", "valid": "val", "Test": "test"}
    for part, film in zip(inner, films, strict=False):
        write_image(tmp_path / f"images/{part}/0.png", film.read())
        write_image(tmp_path / f"masks/{part}/{label}0.png", lungs(film).astype(np.uint8))
    table = studies.load("folders", root=str(tmp_path), need_text=False)
    found = {study.split: study for study in table.studies}
    for (part, split), film in zip(inner.items(), films, strict=False):
        assert found[split].id == found[split].patient == f"{part}/0"
        check(found[split], film, label.rstrip("/") or "mask")
    assert table.notes[0] == "split: the folders of images"


def test_a_split_without_masks_keeps_its_images_and_masks_of_a_split_without_images_are_counted(films, tmp_path: Path) -> None:
    write(tmp_path, films[:2], "images/train/{}.png", "masks/train/{}.png")
    write_image(tmp_path / "images/test/a.png", films[2].read())
    write_image(tmp_path / "masks/val/a.png", lungs(films[2]).astype(np.uint8))
    table = folders(root=str(tmp_path))
    assert [(study.split, len(study.masks)) for study in table.studies] == [("test", 0), ("train", 1), ("train", 1)]
    assert "1 images have no mask" in table.notes
    assert table.left_out == {"no_image": 1}


def test_an_image_without_a_mask_stays_and_masks_without_an_image_are_counted(films, tmp_path: Path) -> None:
    write(tmp_path, films[:3])
    (tmp_path / "masks/p0_0.png").unlink()
    write_image(tmp_path / "masks/other.png", lungs(films[3]).astype(np.uint8))
    (tmp_path / "masks/.hidden.png").write_bytes(b"")
    (tmp_path / "masks/readme.txt").write_text("masks")
    table = folders(root=str(tmp_path))
    assert [len(study.masks) for study in table.studies] == [0, 1, 1]
    assert "1 images have no mask" in table.notes
    assert table.left_out == {"no_image": 1}


# -------------------------------------------------------------------------------------------------------- the patients


def test_without_a_pattern_an_image_is_its_own_patient_and_that_is_said(films, tmp_path: Path) -> None:
    table = folders(root=str(write(tmp_path, films[:4])))
    assert all(study.patient == study.id and study.split == studies.patient_split(study.id) for study in table.studies)
    assert [(p.code, p.severity, p.count) for p in table.problems] == [("D064", "W", 4)]
    assert "data.patient=" in table.problems[0].fix


def test_the_group_of_a_pattern_is_the_patient_who_stays_in_one_split(films, tmp_path: Path) -> None:
    table = folders(root=str(write(tmp_path, films[:4])), patient=r"^p(\d+)_")
    assert [study.patient for study in table.studies] == ["0", "0", "1", "1"]
    assert all(study.split == studies.patient_split(study.patient) for study in table.studies)
    assert table.notes[0] == "split: 80/10/10 by a hash of the patient"
    assert not table.problems


def test_a_patient_in_two_folders_of_splits_is_an_error(films, tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_image(tmp_path / f"images/{split}/p1_{split}.png", films[0].read())
        write_image(tmp_path / f"masks/{split}/p1_{split}.png", lungs(films[0]).astype(np.uint8))
    assert len(studies.load("folders", root=str(tmp_path), need_text=False).studies) == 2
    with pytest.raises(DataError, match="D060 1 patient"):
        studies.load("folders", root=str(tmp_path), need_text=False, patient="(p[0-9]+)_")


def test_a_name_without_a_patient_is_left_out_and_said(films, tmp_path: Path) -> None:
    table = folders(root=str(write(tmp_path, films[:4])), patient="(p1)_")
    assert [study.id for study in table.studies] == ["p1_2", "p1_3"]
    assert [(p.code, p.severity, p.count) for p in table.problems] == [("D004", "E", 2)]
    assert table.problems[0].what == "folders: images/p0_0.jpg: data.patient='(p1)_' finds no patient in the name"


@pytest.mark.parametrize(("pattern", "message"), [("p[0-9]+", "has 0 groups"), ("(p)([0-9])", "has 2 groups"), ("(p", "patient=[(]p: missing")])
def test_a_pattern_that_is_none_is_a_config_error(pattern: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        folders(root=str(tmp_path), patient=pattern)


# ------------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("image", "mask", "options", "code", "message"),
    [
        ("pictures/{}.png", "masks/{}.png", {}, "D001", r"no 'images' .*\nname it, relative to data.root: data.images="),
        ("images/{}.png", "labels/{}.png", {}, "D001", r"no 'masks' .*\nname it, relative to data.root: data.masks="),
        ("all/images/{}.png", "all/masks/{}.png", {}, "D002", r"no 'images' in .*, it is found at .*all\nset data.root=.*all"),
        ("images/{}.png", "masks/{}_mask.png", {}, "D001", r"none of 2 masks in .*masks has the name of an image\n.*mask_suffix=_mask"),
        ("images/{}.png", "masks/{}.png", {"mask_suffix": "_m"}, "D001", "none of 0 masks in .* has the name of an image and _m"),
        ("images/train/{}.png", "masks/{}.png", {}, "D001", "images holds the folders train, and masks does not"),
        ("images/{}.png", "masks/test/{}.png", {}, "D001", "masks holds the folders test, and images does not"),
        ("images/{}.png", "masks/{}.png", {"images": "../elsewhere"}, "D005", r"data\.images: '\.\./elsewhere' is not a path under the root"),
    ],
)
def test_folders_that_do_not_fit_are_an_error_at_once(films, image, mask, options, code, message, tmp_path: Path) -> None:
    root = write(tmp_path / "root", films[:2], image, mask)
    with pytest.raises(DataError, match=message) as error:
        folders(root=str(root), **options)
    assert error.value.code == code


def test_folders_without_an_image_say_what_was_looked_for(films, tmp_path: Path) -> None:
    write(tmp_path, films[:1])
    (tmp_path / "images/p0_0.jpg").rename(tmp_path / "images/p0_0.txt")
    with pytest.raises(DataError, match=r"D001 folders: no image in .*images\nthey lie in it, .*\.png"):
        folders(root=str(tmp_path))
    (tmp_path / "images/p0_0.txt").unlink()
    (tmp_path / "images").rmdir()
    (tmp_path / "images").write_text("no folder")
    with pytest.raises(DataError, match=r"D001 folders: .*images is no folder\nname it"):
        folders(root=str(tmp_path))


@pytest.mark.parametrize(
    ("before", "loose", "message"),
    [
        ("{}.png", "masks/lung/a.png", r"masks/p0_0\.png lies beside the folder lung"),
        ("train/{}.png", "images/a.png", r"images/a\.png lies beside train"),
        ("train/{}.png", "images/more/a.png", r"images/more lies beside train"),
    ],
)
def test_what_lies_beside_folders_is_not_passed_over(films, before, loose, message, tmp_path: Path) -> None:
    write(tmp_path, films[:2], f"images/{before}", f"masks/{before}")
    write_image(tmp_path / loose, lungs(films[0]).astype(np.uint8))
    with pytest.raises(DataError, match=f"D004 .*{message}"):
        folders(root=str(tmp_path))


def test_one_folder_for_both_needs_a_suffix(films, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"both lie in images\n.*mask_suffix"):
        folders(root=str(write(tmp_path, films[:1])), masks="images")


def test_two_masks_or_two_images_of_one_name_are_an_error(films, tmp_path: Path) -> None:
    write(tmp_path, films[:1])
    write_image(tmp_path / "masks/p0_0.gif", lungs(films[0]).astype(np.uint8))
    with pytest.raises(DataError, match=r"D050 folders: masks/p0_0\.png: a second mask of this name, beside masks/p0_0\.gif"):
        studies.load("folders", root=str(tmp_path), need_text=False)
    (tmp_path / "masks/p0_0.gif").rename(tmp_path / "images/p0_0.gif")
    with pytest.raises(DataError, match=r"D050 1 study id\(s\) occur more than once: p0_0"):
        studies.load("folders", root=str(tmp_path), need_text=False)


@pytest.mark.parametrize(("pixels", "code"), [(np.ones((96, 80), np.uint8), "D041"), (np.arange(80 * 96, dtype=np.uint8).reshape(80, 96), "D042")])
def test_a_mask_that_is_none_is_refused_when_it_is_decoded(films, pixels, code, tmp_path: Path) -> None:
    write(tmp_path, films[:1])
    write_image(tmp_path / "masks/p0_0.png", pixels)
    with pytest.raises(DataError, match=code):
        masks.decode(folders(root=str(tmp_path)).studies[0].masks[0], 80, 96)


def test_the_commands_know_it(films, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = f"root={write(tmp_path / 'root', films[:3], mask='masks/{}_mask.png')}"
    words = ["folders", root, "mask_suffix=_mask", "patient=^(p[0-9]+)_", "mask_name=lungs"]
    assert main(["doctor", *words]) == 0
    assert "6 looked for, 0 missing" in capsys.readouterr().out
    assert main(["prepare", *words, f"out={tmp_path / 'ready'}", "size=48", "workers=1"]) == 0
    assert main(["show", *words, f"out={tmp_path / 'sheet.png'}"]) == 0
    for study, film in zip(studies.load("prepared", root=str(tmp_path / "ready"), need_text=False).studies, films, strict=False):
        assert (study.patient, study.masks[0].name, study.masks[0].size) == (study.id.split("_")[0], "lungs", (80, 96))
        np.testing.assert_array_equal(masks.resized(study.masks[0], (40, 48)), lungs(film)[1::2, 1::2])
