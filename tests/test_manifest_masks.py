"""Masks of a user's own table: which image they belong to, what is wrong with them, and who may read studies that have nothing else."""

from collections import Counter

import numpy as np
import pytest

from elvis import assembly, config
from elvis.data import masks
from elvis.data.datasets.manifest import manifest
from elvis.data.images import ImageFile, read
from elvis.data.phantoms import files
from elvis.data.studies import load
from elvis.data.volumes import VolumeFile
from elvis.errors import ConfigError, DataError
from elvis.types import Mask
from tests.layouts import REAL, write_manifest, write_table
from tests.test_manifest import by_id, row


def write_mask(path, height=40, width=56, top=5):
    """Rows from `top` on, 255; returns bool H W."""
    pixels = np.zeros((height, width), np.uint8)
    pixels[top:, 3:] = 255
    files.write_image(path, pixels)
    return pixels > 0


def drawn(number=0, **values):
    return {"image": f"images/{number}.png", "mask": f"masks/{number}.png", "class": "lung", **values}


def write(root, rows, listed, name="masks.csv", made=None):
    """A manifest, and a table of masks beside it; their files are written but where `made` says which."""
    write_manifest(root, rows)
    for path in made if made is not None else [line["mask"] for line in listed if line["mask"]]:
        write_mask(root / path)
    write_table(root / name, listed)
    return str(root)


def names(study):
    return [(mask.name, mask.image, mask.data.name) for mask in study.masks]


# ------------------------------------------------------------------------------------------------- a table of masks


@pytest.mark.parametrize("name", ["masks.csv", "masks/masks.csv", "masks/all.jsonl"])
def test_each_row_is_a_mask_of_its_image_and_of_the_image_alone(tmp_path, name):
    rows = [row(0, view="PA"), row(0, image="images/b.png", view="LATERAL"), row(1), row(2)]
    listed = [drawn(1), drawn(0, image="images/b.png", mask="masks/b.png"), drawn(1, mask="masks/heart.png", **{"class": "heart"})]
    table = load("manifest", root=write(tmp_path, rows, listed, name), masks=name)
    studies = by_id(table)
    assert {id: names(study) for id, study in studies.items()} == {
        "s0": [("lung", 1, "masks/b.png")],
        "s1": [("lung", 0, "masks/1.png"), ("heart", 0, "masks/heart.png")],
        "s2": [],
    }
    assert studies["s0"].masks[0] == Mask("lung", "png", ImageFile(str(tmp_path), "masks/b.png"), image=1)
    assert f"masks: {name}" in table.notes
    assert not table.problems


def test_a_decoded_mask_is_the_file_and_one_of_another_size_is_refused(tmp_path):
    root = write(tmp_path, [row(0), row(1)], [drawn(0), drawn(1)])
    truth = write_mask(tmp_path / "masks/0.png", top=11)
    write_mask(tmp_path / "masks/1.png", height=56, width=40)
    first, second = load("manifest", root=root, masks="masks.csv").studies
    assert np.array_equal(masks.decode(first.masks[0], *read(first.images[0]).shape), truth)
    with pytest.raises(DataError, match="is 40 x 56, its image 56 x 40") as error:
        masks.decode(second.masks[0], *read(second.images[0]).shape)
    assert error.value.code == "D041"


@pytest.mark.parametrize(
    ("image", "mask", "shows"), [("path", "mask_path", "label"), ("file_name", "segmentation", "Structure"), ("images", "MASKS", "classes")]
)
def test_columns_are_found_by_their_usual_names(tmp_path, image, mask, shows):
    write_manifest(tmp_path, [row()])
    write_mask(tmp_path / "masks/0.png")
    write_table(tmp_path / "m.csv", [{image: "images/0.png", mask: "masks/0.png", shows: "left lung"}])
    assert names(manifest(root=str(tmp_path), table="manifest.csv", masks="m.csv").studies[0]) == [("left lung", 0, "masks/0.png")]


def test_without_a_column_of_classes_a_mask_is_called_mask(tmp_path):
    root = write(tmp_path, [row()], [{"image": "images/0.png", "mask": "masks/0.png"}])
    assert names(manifest(root=root, masks="masks.csv").studies[0]) == [("mask", 0, "masks/0.png")]


def test_the_table_of_masks_is_not_taken_for_that_of_the_images(tmp_path):
    root = write(tmp_path, [row()], [drawn()])
    with pytest.raises(DataError, match=r"several tables in .*: manifest\.csv, masks\.csv"):
        manifest(root=root)
    assert "table: manifest.csv" in manifest(root=root, masks="masks.csv").notes


def test_only_the_rows_that_are_asked_for_count(tmp_path):
    listed = [drawn(0, set="a", fold=1), drawn(0, mask="masks/other.png", set="b", fold=1), drawn(1, set="a", fold=2)]
    root = write(tmp_path, [row(0), row(1)], listed, made=["masks/0.png", "masks/1.png"])
    assert [names(study) for study in manifest(root=root, masks="masks.csv", masks_where={"Set": "a", "fold": "1"}).studies] == [
        [("lung", 0, "masks/0.png")],
        [],
    ]
    with pytest.raises(DataError, match=r"D004 .*none of its 3 rows has set=c\n.*data.masks_where"):
        manifest(root=root, masks="masks.csv", masks_where={"set": "c"})
    with pytest.raises(DataError, match=r"D003 .*no column 'sett' \(did you mean 'set'\?\); it has image, mask, class, set, fold"):
        manifest(root=root, masks="masks.csv", masks_where={"sett": "a"})
    with pytest.raises(ConfigError, match=r"none is named\nname it: data.masks="):
        manifest(root=root, table="manifest.csv", masks_where={"set": "a"})


def test_masks_of_images_that_no_study_has_are_counted(tmp_path):
    root = write(tmp_path, [row()], [drawn(), drawn(7), drawn(8)], made=["masks/0.png"])
    table = manifest(root=root, masks="masks.csv")
    assert "masks: masks.csv, 2 are of images that are not in the table" in table.notes
    assert (len(table.studies[0].masks), table.problems) == (1, ())


def test_a_mask_whose_file_is_missing_is_said_and_left_out(tmp_path):
    listed = [drawn(0), drawn(0, mask="masks/heart.png", **{"class": "heart"}), drawn(1)]
    table = load("manifest", root=write(tmp_path, [row(0), row(1, report="")], listed, made=["masks/0.png"]), masks="masks.csv")
    assert {id: names(study) for id, study in by_id(table).items()} == {"s0": [("lung", 0, "masks/0.png")]}
    missing, textless = table.problems
    assert (missing.code, missing.severity, missing.count) == ("D010", "Q", 2)
    assert "masks.csv, row 2: no mask masks/heart.png" in missing.what
    assert (textless.code, textless.what) == ("D020", "manifest: manifest.csv: 1 studies without a sentence or a mask")


@pytest.mark.parametrize(
    ("listed", "code", "message"),
    [
        (drawn(mask="../secret.png"), "D005", r"masks\.csv, row 1: '\.\./secret\.png' is not a path under the root"),
        (drawn(image="/etc/secret.png"), "D005", "'/etc/secret.png' is not a path"),
        (drawn(mask=""), "D004", r"masks\.csv, row 1: no mask\nfill column 'mask'"),
        (drawn(image=""), "D004", "row 1: no image"),
        (drawn(**{"class": ""}), "D004", "row 1: no class"),
        ({"image": "images/0.png", "class": "lung"}, "D003", r"masks\.csv: no column of masks \(have image, class\)\ncall it mask or mask_path"),
        ({"mask": "masks/0.png"}, "D003", "no column of images"),
    ],
)
def test_a_row_or_column_that_cannot_be_read_is_an_error_with_its_place(tmp_path, listed, code, message):
    root = write(tmp_path, [row()], [listed], made=[])
    with pytest.raises(DataError, match=message) as error:
        manifest(root=root, masks="masks.csv", table="manifest.csv")
    assert error.value.code == code


def test_a_table_that_is_not_there_or_empty_is_an_error(tmp_path):
    write_manifest(tmp_path, [row()])
    (tmp_path / "none.csv").write_text("image,mask\n")
    with pytest.raises(DataError, match=r"D001 no table .*nope\.csv\ncheck data.masks"):
        manifest(root=str(tmp_path), masks="nope.csv")
    with pytest.raises(DataError, match=r"D004 .*none\.csv has no rows"):
        manifest(root=str(tmp_path), masks="none.csv", table="manifest.csv")


def test_a_mask_that_is_listed_twice_is_one_and_one_image_of_two_texts_gives_it_to_both(tmp_path):
    rows = [row(), row(report="The effusion has grown since."), row(1)]
    studies = by_id(manifest(root=write(tmp_path, rows, [drawn(), drawn(), drawn(1)]), masks="masks.csv"))
    assert {id: len(study.masks) for id, study in studies.items()} == {"s0": 1, "s0#2": 1, "s1": 1}


def test_a_mask_of_a_volume_is_a_volume(tmp_path):
    files.write_nifti(tmp_path / "a.nii.gz", np.arange(24).reshape(2, 3, 4).astype(np.int16))
    files.write_nifti(tmp_path / "lung.nii.gz", (np.arange(24).reshape(2, 3, 4) > 9).astype(np.int16))
    write_table(tmp_path / "manifest.csv", [{"id": "a", "image": "a.nii.gz", "mask": "lung.nii.gz", "class": "lung"}])
    (mask,) = load("manifest", root=str(tmp_path), need_text=False).studies[0].masks
    assert (mask.kind, mask.data) == ("nifti", VolumeFile(str(tmp_path), "lung.nii.gz"))
    assert masks.decode_volume(mask).sum() == 14


# ------------------------------------------------------------------------------------------- masks in the table itself


def test_masks_may_stand_beside_their_images(tmp_path):
    rows = [
        row(0, mask="masks/0.png", **{"class": "lung"}),
        row(1, mask="masks/r.png;masks/l.png", **{"class": "right lung;left lung"}),
        row(2, image="images/x.png;images/y.png", mask="masks/x.png;masks/y.png", **{"class": "lung"}),
        row(3, mask="", **{"class": ""}),
    ]
    write_manifest(tmp_path, rows, images=["images/0.png", "images/1.png", "images/x.png", "images/y.png", "images/3.png"])
    for name in "0rlxy":
        write_mask(tmp_path / f"masks/{name}.png")
    table = load("manifest", root=str(tmp_path))
    assert {id: names(study) for id, study in by_id(table).items()} == {
        "s0": [("lung", 0, "masks/0.png")],
        "s1": [("right lung", 0, "masks/r.png"), ("left lung", 0, "masks/l.png")],
        "s2": [("lung", 0, "masks/x.png"), ("lung", 1, "masks/y.png")],
        "s3": [],
    }
    assert "masks: manifest.csv" in table.notes


def test_a_row_a_mask_is_one_study_of_one_image(tmp_path):
    rows = [row(mask="masks/r.png", **{"class": "right lung"}), row(mask="masks/l.png", **{"class": "left lung"})]
    write_manifest(tmp_path, rows)
    for name in "rl":
        write_mask(tmp_path / f"masks/{name}.png")
    (study,) = manifest(root=str(tmp_path)).studies
    assert (len(study.images), len(study.views), names(study)) == (1, 1, [("right lung", 0, "masks/r.png"), ("left lung", 0, "masks/l.png")])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image": "a.png;b.png", "mask": "c.png"}, "row 1: 1 masks for 2 images, 1 classes"),
        ({"mask": "c.png;d.png;e.png", "class": "x;y"}, "row 1: 3 masks for 3 images, 2 classes"),
        ({"mask": "c.png", "class": ""}, "row 1: 1 masks for 1 images, 0 classes"),
    ],
)
def test_masks_that_fit_neither_images_nor_classes_are_an_error(tmp_path, values, message):
    write_manifest(tmp_path, [row(**values)], images=["images/0.png", "a.png"])
    with pytest.raises(DataError, match=f"D004 .*{message}"):
        manifest(root=str(tmp_path))


def test_a_named_table_of_masks_is_read_instead_of_the_tables_own_column(tmp_path):
    root = write(tmp_path, [row(mask="masks/own.png")], [drawn()])
    assert names(manifest(root=root, masks="masks.csv").studies[0]) == [("lung", 0, "masks/0.png")]


# ------------------------------------------------------------------------------------------------------ without a text


def test_with_masks_no_text_is_needed_and_what_has_neither_is_left_out(tmp_path):
    rows = [{"image": f"images/{n}.png", "split": split} for n, split in enumerate(("train", "val", "test", "train"))]
    root = write(tmp_path, rows, [drawn(n) for n in range(3)])
    table = load("manifest", root=root, masks="masks.csv", need_text=False)
    assert [(study.id, study.split, len(study.masks), study.sentences) for study in table.studies] == [
        ("images/0", "train", 1, ()),
        ("images/1", "val", 1, ()),
        ("images/2", "test", 1, ()),
    ]
    assert table.left_out == {"no_text": 1}
    with pytest.raises(DataError, match=r"D003 .*no column of text"):
        manifest(root=root, table="manifest.csv")
    with pytest.raises(DataError, match=r"D003 .*no column 'report'"):
        manifest(root=root, masks="masks.csv", text="report")
    with pytest.raises(DataError, match="D020 manifest: not one study with text among 3"):
        load("manifest", root=root, masks="masks.csv")


def test_pretraining_leaves_out_training_studies_that_have_only_masks(tmp_path):
    rows = [row(n, split=split, report="" if n % 2 else f"Nodule {n}. No effusion.") for n, split in enumerate(["train"] * 6 + ["val"] * 2)]
    root = write(tmp_path, rows, [drawn(n) for n in range(8)])
    words = [f"data.root={root}", "data.table=manifest.csv", "data.masks=masks.csv", "data.masks_where={class: lung}", "data.size=32"]
    run = assembly.assemble(config.load("real_smoke", words))
    assert [study.id for study in run.split("train")] == ["s0", "s2", "s4"] == [run.dataset.item(n).id for n in range(len(run.dataset))]
    assert [study.id for study in run.split("val")] == ["s6", "s7"]
    assert "3 training studies left out: they have no sentence" in run.notes
    plain = assembly.assemble(config.load("real_smoke", [words[0], words[1], words[4]]))
    assert [study.id for study in plain.split("train")] == ["s0", "s2", "s4"]
    assert not any("no sentence" in note for note in plain.notes)


# --------------------------------------------------------------------------------------------------------- real images


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real radiographs in {REAL} (set ELVIS_REAL)")
def test_the_lungs_of_the_real_radiographs_lie_on_their_images():
    table = load("manifest", root=str(REAL), masks="masks/masks.csv", masks_where={"set": "lung_v7"})
    found = [(study, mask) for study in table.studies for mask in study.masks]
    assert Counter(study.split for study, _ in found) == {"train": 109, "val": 13, "test": 20}
    assert {mask.name for _, mask in found} == {"lung"}
    assert len({study.images[mask.image].name for study, mask in found}) == 142
    assert any(mask.image for _, mask in found)
    for study, mask in found:
        assert study.images[mask.image].path.stem == mask.data.path.stem
    for study, mask in found[::12]:
        share = masks.decode(mask, *read(study.images[mask.image]).shape).mean()
        assert 0.05 < share < 0.8
    assert table.left_out == {"no_text": 27}
