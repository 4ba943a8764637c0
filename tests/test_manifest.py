import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from elvis.data import phantoms
from elvis.data.batches import StudyDataset
from elvis.data.datasets.manifest import manifest
from elvis.data.frames import VolumePreprocess
from elvis.data.images import read
from elvis.data.masks import decode_volume
from elvis.data.phantoms.export import export
from elvis.data.phantoms.files import write_nifti, write_series
from elvis.data.studies import load, patient_split, unique
from elvis.data.tokenizer import Tokenizer
from elvis.errors import ConfigError, DataError
from tests.layouts import REAL, pixels, write_boxes, write_image, write_manifest, write_table

TEXT = "There is a small left effusion. No pneumothorax."


def row(number=0, **values):
    return {"study_id": f"s{number}", "image": f"images/{number}.png", "report": TEXT, "patient_id": f"p{number}", "split": "train", **values}


def by_id(table):
    return {study.id: study for study in table.studies}


# -------------------------------------------------------------------------------------------- tables and columns


@pytest.mark.parametrize("name", ["manifest.csv", "manifest.jsonl", "pairs/pairs.csv", "anything.csv"])
def test_a_table_of_a_usual_name_or_form_is_found_by_itself(tmp_path, name):
    study = manifest(root=str(write_manifest(tmp_path, [row(view="PA")], name))).studies[0]
    assert (study.id, study.patient, study.split, study.views) == ("s0", "p0", "train", ("PA",))
    assert [i.path for i in study.images] == [tmp_path / "images/0.png"]
    assert [s.text for s in study.sentences] == ["There is a small left effusion.", "No pneumothorax."]


def test_two_tables_are_an_error_that_lists_them(tmp_path):
    write_manifest(tmp_path, [row()], "manifest.csv")
    write_manifest(tmp_path, [row()], "other.csv")
    with pytest.raises(DataError, match=r"several tables .* manifest\.csv, other\.csv\nchoose one: data.table=manifest\.csv"):
        manifest(root=str(tmp_path))
    assert len(manifest(root=str(tmp_path), table="other.csv").studies) == 1


def test_a_csv_without_images_is_no_candidate(tmp_path):
    write_manifest(tmp_path, [row()])
    write_table(tmp_path / "licences.csv", [{"name": "x", "licence": "y"}])
    (tmp_path / "empty.csv").write_text("")
    assert len(manifest(root=str(tmp_path)).studies) == 1


def test_no_table_and_no_folder_say_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"no table in .*manifest\.jsonl.*\nname it: data\.table="):
        manifest(root=str(tmp_path))
    with pytest.raises(DataError, match=r"no folder .*nope"):
        manifest(root=str(tmp_path / "nope"))


def test_columns_may_be_called_anything(tmp_path):
    write_manifest(tmp_path, [{"Nr": "a", "Bild": "x.png", "Befund": TEXT, "Fall": "q", "Teil": "valid"}], "t.csv", images=["x.png"])
    study = manifest(root=str(tmp_path), table="t.csv", id="nr", image="Bild", text="Befund", patient="Fall", split="Teil").studies[0]
    assert (study.id, study.patient, study.split, len(study.sentences)) == ("a", "q", "val", 2)


def test_a_column_that_is_not_there_is_named_with_its_neighbours(tmp_path):
    write_manifest(tmp_path, [row(**{f"a_long_name_of_column_{n}": "" for n in range(60)})])
    with pytest.raises(DataError, match=r"no column 'reprt' \(did you mean 'report'\?\); it has study_id.*\nset data.text=") as error:
        manifest(root=str(tmp_path), text="reprt")
    assert len(str(error.value)) < 400
    with pytest.raises(DataError, match="no column of images"):
        manifest(root=str(tmp_path), table=str(write_table(tmp_path / "t.csv", [{"a": "1", "text": TEXT}])))
    with pytest.raises(DataError, match="no column of text"):
        manifest(root=str(tmp_path), table=str(write_table(tmp_path / "u.csv", [{"image": "images/0.png"}])))


def test_findings_and_impression_become_sections(tmp_path):
    write_manifest(tmp_path, [{"image": "a.png", "findings": "Lungs are clear.", "impression": "Normal chest.", "text": "Not used here."}])
    study = manifest(root=str(tmp_path)).studies[0]
    assert study.sections == {"findings": "Lungs are clear.", "impression": "Normal chest."}
    assert [s.section for s in study.sentences] == ["findings", "impression"]
    only = manifest(root=str(tmp_path), text="impression").studies[0]
    assert only.sections == {"impression": "Normal chest."}


def test_a_report_with_headers_is_parsed(tmp_path):
    write_manifest(tmp_path, [row(report="INDICATION: Cough.\nFINDINGS: Lungs are clear.")])
    assert manifest(root=str(tmp_path)).studies[0].sections == {"indication": "Cough.", "findings": "Lungs are clear."}


def test_without_ids_the_image_names_the_study_and_its_patient(tmp_path):
    table = manifest(root=str(write_manifest(tmp_path, [{"image": "a/1.png", "text": TEXT}])))
    assert (table.studies[0].id, table.studies[0].patient, table.studies[0].split) == ("a/1", "a/1", patient_split("a/1"))
    assert "every study is a patient" in " ".join(table.notes)
    assert "80/10/10" in " ".join(table.notes)


@pytest.mark.parametrize(("written", "meant"), [("validate", "val"), ("valid", "val"), ("Validation", "val"), ("TRAIN", "train"), ("comp", "comp")])
def test_split_names_are_folded(tmp_path, written, meant):
    assert manifest(root=str(write_manifest(tmp_path, [row(split=written)]))).studies[0].split == meant


def test_an_empty_split_is_an_error_that_names_the_row(tmp_path):
    with pytest.raises(DataError, match="row 2: no split"):
        manifest(root=str(write_manifest(tmp_path, [row(), row(1, split="")])))


@pytest.mark.parametrize(("written", "meant"), [("AP Supine", "AP"), ("pa", "PA"), ("LL", "LATERAL"), ("Lateral", "LATERAL"), ("", "UNKNOWN")])
def test_view_names_are_folded(tmp_path, written, meant):
    assert manifest(root=str(write_manifest(tmp_path, [row(view=written)]))).studies[0].views == (meant,)


# ------------------------------------------------------------------------------------------------------ several rows


def test_rows_of_one_study_and_one_text_become_one_study_of_several_images(tmp_path):
    rows = [row(view="PA"), row(image="images/b.png", view="LATERAL"), row(image="images/c.png", report="", view="LL"), row(1)]
    studies = by_id(manifest(root=str(write_manifest(tmp_path, rows))))
    assert [image.name for image in studies["s0"].images] == ["images/0.png", "images/b.png", "images/c.png"]
    assert studies["s0"].views == ("PA", "LATERAL", "LATERAL")
    assert len(studies["s1"].images) == 1


def test_rows_of_one_study_with_other_texts_are_studies_of_one_group(tmp_path):
    rows = [row(), row(image="images/b.png", report="The effusion has grown since."), row(1)]
    table = manifest(root=str(write_manifest(tmp_path, rows)))
    unique(table.studies)
    assert {study.id: study.group for study in table.studies} == {"s0": "s0", "s0#2": "s0", "s1": ""}
    assert "1 study ids have rows with different texts" in " ".join(table.notes)


def test_one_row_may_list_several_images(tmp_path):
    write_table(tmp_path / "manifest.jsonl", [{"id": "a", "images": ["1.png", "2.png"], "view": ["PA", "LATERAL"], "text": TEXT}])
    write_table(tmp_path / "m.csv", [{"id": "a", "images": "1.png;2.png", "text": TEXT}])
    write_image(tmp_path / "1.png")
    for table in ("manifest.jsonl", "m.csv"):
        study = manifest(root=str(tmp_path), table=table).studies[0]
        assert [path.name for path in study.images] == ["1.png", "2.png"]
    assert manifest(root=str(tmp_path), table="manifest.jsonl").studies[0].views == ("PA", "LATERAL")


def test_a_study_of_two_patients_is_an_error(tmp_path):
    with pytest.raises(DataError, match="study 's0' has two patients or splits"):
        manifest(root=str(write_manifest(tmp_path, [row(), row(patient_id="p9")])))


# ------------------------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize("path", ["../secret.png", "images/../../secret.png", "/etc/secret.png"])
def test_a_path_may_not_leave_the_root(tmp_path, path):
    write_manifest(tmp_path / "root", [row(image=path)], images=["images/0.png"])
    with pytest.raises(DataError, match=r"row 1: '.*secret.png' is not a path under the root"):
        manifest(root=str(tmp_path / "root"))


def test_an_absolute_path_inside_the_root_is_fine(tmp_path):
    path = write_image(tmp_path / "images/0.png")
    write_table(tmp_path / "manifest.csv", [row(image=str(path))])
    assert manifest(root=str(tmp_path)).studies[0].images[0].path == path


def test_a_wrong_root_shows_at_once_but_single_missing_files_wait(tmp_path):
    write_manifest(tmp_path, [row(n) for n in range(3)], images=["images/2.png"])
    assert len(manifest(root=str(tmp_path)).studies) == 3
    (tmp_path / "images/2.png").unlink()
    with pytest.raises(DataError, match=r"do not exist, e.g. images/0.png .*\nare its paths relative to data.root"):
        manifest(root=str(tmp_path))


# ------------------------------------------------------------------------------------------------------------ volumes

CT = np.where(np.indices((8, 10, 12)).sum(0) % 3 == 0, 300, -850).astype(np.int16) + np.arange(12, dtype=np.int16)  # Z Y X, Hounsfield units


def test_a_folder_of_slices_in_the_column_of_images_is_a_volume(tmp_path):
    pytest.importorskip("pydicom")
    for name in ("scans/a.1", "scans/b"):  # uids have dots
        write_series(tmp_path / name, CT, (2.5, 0.8, 0.7))
    write_table(tmp_path / "manifest.csv", [row(n, image=name) for n, name in enumerate(("scans/a.1", "scans/b"))])
    studies = manifest(root=str(tmp_path)).studies
    for study in studies:
        volume = study.images[0].load()
        np.testing.assert_array_equal(volume.values, CT)
        assert volume.spacing == pytest.approx((2.5, 0.8, 0.7))
    preprocess = VolumePreprocess((8, 12, 12), "pad", (0.5,), (0.25,))
    dataset = StudyDataset(studies, Tokenizer.train([TEXT], 50), preprocess)
    batch = dataset.collate([dataset[0, 0], dataset[0, 1]])
    assert batch.images.shape == (2, 1, 1, 8, 12, 12)
    assert batch.extra["bad"] == ()
    assert batch.images[0].any()


@pytest.mark.parametrize("told", ["0 0 0", "-1 1 1", "nan nan nan", "1.5 inf 1"])
def test_a_spacing_that_is_no_length_is_counted_and_not_used(tmp_path, told):
    write_nifti(tmp_path / "a.nii.gz", CT, (2.5, 0.8, 0.7))
    write_table(tmp_path / "manifest.csv", [row(image="a.nii.gz", spacing=told)])
    table = manifest(root=str(tmp_path))
    assert [(p.code, p.severity, p.count) for p in table.problems] == [("D081", "W", 1)]
    assert f"row 1: the spacing '{told}' is no length" in table.problems[0].what
    (study,) = table.studies
    assert (study.spacing, study.images[0].spacing) == ((), None)
    assert study.images[0].load().spacing == pytest.approx((2.5, 0.8, 0.7))


def test_a_table_may_say_how_its_volumes_are_stored(tmp_path):
    shown = np.where(CT > 0, 200, 30).astype(np.uint8)
    write_nifti(tmp_path / "a.nii.gz", shown[:, :, ::-1], affine=np.eye(4))
    write_nifti(tmp_path / "m.nii.gz", (shown[:, :, ::-1] > 99).astype(np.uint8), affine=np.eye(4))
    write_table(tmp_path / "manifest.csv", [row(image="a.nii.gz", mask="m.nii.gz", spacing="2.5 0.8 0.7")])
    (study,) = manifest(root=str(tmp_path), rescale="off", axes="RPS").studies
    volume = study.images[0].load()
    np.testing.assert_array_equal(volume.values, shown)
    assert volume.spacing == (2.5, 0.8, 0.7)
    np.testing.assert_array_equal(decode_volume(study.masks[0]), shown > 99)
    with pytest.raises(DataError, match=r"data\.rescale=off") as caught:
        manifest(root=str(tmp_path), axes="RPS").studies[0].images[0].load()
    assert caught.value.code == "D080"
    with pytest.raises(DataError, match="axes 'RLS'"):
        manifest(root=str(tmp_path), axes="RLS")
    with pytest.raises(ConfigError, match="option 'rescale' must be"):
        load("manifest", root=str(tmp_path), rescale="no")


# ----------------------------------------------------------------------------------------------------- boxes and text


def test_studies_without_text_are_counted_and_left_out_unless_test_boxes_ask_for_them(tmp_path):
    rows = [row(0), row(1, report=""), row(2, report="Normal."), row(3, report="", split="test"), row(4, report="", split="test")]
    write_manifest(tmp_path, rows)
    write_boxes(
        tmp_path / "boxes.json",
        [{"path": "images/1.png"}, {"path": "images/4.png"}],
        [{"image_id": n, "bbox": [1, 2, 3, 4], "label_text": "left nodule"} for n in (1, 2)],
    )
    table = manifest(root=str(tmp_path))
    assert list(by_id(table)) == ["s0", "s4"]
    assert table.left_out == {"no_text": 3}
    assert (by_id(table)["s4"].sentences, len(by_id(table)["s4"].groundings)) == ((), 1)


@pytest.mark.parametrize("name", ["boxes.json", "boxes/findings_boxes.json"])
def test_boxes_are_found_and_grouped_by_image_category_and_phrase(tmp_path, name):
    write_manifest(tmp_path, [row(0), row(0, image="images/b.png"), row(1)])
    write_boxes(
        tmp_path / name,
        [{"path": "images/b.png"}, {"file_name": "images/1.png"}, {"path": "images/other.png"}],
        [
            {"image_id": 1, "bbox": [10, 5, 20, 15], "label_text": "No pneumothorax"},
            {"image_id": 1, "bbox": [0, 0, 4, 8], "label_text": "No pneumothorax", "tags": ["focal"]},
            {"image_id": 1, "bbox": [0, 0, 4, 8], "label_text": "No pneumothorax", "category_id": 2},
            {"image_id": 2, "bbox": [1, 2, 3, 4]},
        ],
        categories=("nodule", "mass"),
    )
    table = manifest(root=str(tmp_path))
    studies = by_id(table)
    first, second = studies["s0"].groundings
    assert first.boxes == ((10, 5, 30, 20), (0, 0, 4, 8))
    assert (first.phrase, first.category, first.sentence, first.image, first.tags) == ("No pneumothorax", "nodule", 1, 1, {"focal"})
    assert (second.category, len(second.boxes)) == ("mass", 1)
    assert [(g.phrase, g.boxes, g.sentence) for g in studies["s1"].groundings] == [("nodule", ((1, 2, 4, 6),), None)]
    assert f"boxes: {name}, 1 of its images are not in the table" in table.notes


def test_the_study_id_of_a_box_decides_where_two_studies_share_an_image(tmp_path):
    write_manifest(tmp_path, [row(0), row(1, image="images/0.png")])
    write_boxes(tmp_path / "b.json", [{"path": "images/0.png", "study_id": "s1"}], [{"image_id": 1, "bbox": [1, 2, 3, 4]}])
    studies = by_id(manifest(root=str(tmp_path), boxes="b.json"))
    assert (len(studies["s0"].groundings), len(studies["s1"].groundings)) == (0, 1)


def test_the_phrase_may_stand_under_another_name(tmp_path):
    write_manifest(tmp_path, [row()])
    write_boxes(tmp_path / "boxes.json", [{"path": "images/0.png"}], [{"image_id": 1, "bbox": [1, 2, 3, 4], "caption": "a nodule"}])
    assert manifest(root=str(tmp_path), box_text="caption").studies[0].groundings[0].phrase == "a nodule"
    with pytest.raises(DataError, match=r"no 'capton' in the annotations \(did you mean 'caption'\?\)"):
        manifest(root=str(tmp_path), box_text="capton")


def test_a_box_up_to_two_pixels_outside_is_cut_and_a_farther_one_refused(tmp_path):
    write_manifest(tmp_path, [row()])

    def boxes(*bbox):
        write_boxes(tmp_path / "boxes.json", [{"path": "images/0.png"}], [{"image_id": 1, "bbox": bbox}])
        return load("manifest", root=str(tmp_path)).studies[0].groundings[0].boxes

    assert boxes(-1, 0, 20, 41.5) == ((0, 0, 19, 40),)
    with pytest.raises(DataError, match=r"annotation 1: box .* exceeds its image of 56 x 40 by 4 px\nare the images, or the boxes, resized"):
        boxes(40, 0, 20, 20)


@pytest.mark.parametrize("bbox", [[1, 2, 0, 4], [1, 2, 3], [1, 2, 3, None], None, "1 2 3 4"])
def test_a_box_that_is_none_is_refused(tmp_path, bbox):
    write_manifest(tmp_path, [row()])
    write_boxes(tmp_path / "boxes.json", [{"path": "images/0.png"}], [{"image_id": 1, "bbox": bbox}])
    with pytest.raises(DataError, match="annotation 1: box") as error:
        load("manifest", root=str(tmp_path))
    assert error.value.code == "D031"


def test_a_boxes_file_of_another_kind_is_refused(tmp_path):
    write_manifest(tmp_path, [row()])
    write_boxes(tmp_path / "boxes.json", [{"path": "images/0.png"}], [{"image_id": 5, "bbox": [1, 2, 3, 4]}])
    with pytest.raises(DataError, match="no image with id 5"):
        manifest(root=str(tmp_path))
    (tmp_path / "boxes.json").write_text(json.dumps([1, 2]))
    with pytest.raises(DataError, match="not COCO-like JSON"):
        manifest(root=str(tmp_path))
    with pytest.raises(DataError, match=r"D001 no file .*nope.json\ncheck data.boxes"):
        manifest(root=str(tmp_path), boxes="nope.json")


def test_boxes_lie_in_the_pixels_that_are_read(tmp_path):
    write_manifest(tmp_path, [row()])
    write_boxes(tmp_path / "boxes.json", [{"path": "images/0.png"}], [{"image_id": 1, "bbox": [10, 5, 20, 15]}])
    study = manifest(root=str(tmp_path)).studies[0]
    x1, y1, x2, y2 = (int(v) for v in study.groundings[0].boxes[0])
    assert (read(study.images[0])[y1:y2, x1:x2] == pixels(0)[5:20, 10:30]).all()


def test_a_sentence_that_occurs_twice_keeps_its_own_boxes(tmp_path):
    write_manifest(tmp_path, [row(report="Small nodule. No effusion. Small nodule.")])
    given = [{"image_id": 1, "bbox": [n, 2, 3, 4], "label_text": "Small nodule.", "sentence": n} for n in (0, 2)]
    write_boxes(tmp_path / "boxes.json", [{"path": "images/0.png"}], given)
    assert [(g.sentence, g.boxes) for g in manifest(root=str(tmp_path)).studies[0].groundings] == [(0, ((0, 2, 3, 6),)), (2, ((2, 2, 5, 6),))]


def test_exported_phantoms_come_back_as_they_were(tmp_path):
    made = [s for split in ("train", "test") for s in phantoms.studies(seed=1, split=split, count=12, size=64, level=2)]
    export(made, tmp_path / "out")
    table = load("manifest", root=str(tmp_path / "out"))
    kept = [s for s in made if s.sentences or (s.groundings and s.split == "test")]
    assert len(kept) > 20
    for study, phantom in zip(table.studies, kept, strict=True):
        for name in ("id", "patient", "split", "views", "sections", "sentences"):
            assert getattr(study, name) == getattr(phantom, name), name
        assert Counter(replace(g, size=None) for g in study.groundings) == Counter(phantom.groundings)
        assert (read(study.images[0]) == phantom.images[0].read()).all()
    assert any(study.groundings for study in table.studies)


# ------------------------------------------------------------------------------------------------------- real images


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real radiographs in {REAL} (set ELVIS_REAL)")
def test_the_real_radiographs_load_by_root_alone():
    table = load("manifest", root=str(REAL))
    listed = Counter((study.split, bool(study.sentences), bool(study.groundings)) for study in table.studies)
    assert listed == {
        ("train", True, False): 131,
        ("val", True, False): 11,
        ("test", True, True): 31,
        ("test", True, False): 3,
        ("test", False, True): 1,
    }
    assert table.left_out == {"no_text": 80}
    groundings = [grounding for study in table.studies for grounding in study.groundings]
    assert (len(groundings), sum(len(grounding.boxes) for grounding in groundings)) == (232, 297)
    assert all(read(image).ndim == 2 for study in table.studies[:20] for image in study.images)
