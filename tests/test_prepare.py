"""prepare: one pass, resumable, private; what it stores is what the raw path reads."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elvis.data import cache, masks, prepare, shards
from elvis.data.images import BadImage, Preprocess, read
from elvis.data.phantoms import files
from elvis.data.phantoms.layouts import export
from elvis.data.shards import Make, ShardImage
from elvis.data.studies import load
from elvis.errors import DataError
from elvis.types import Mask, Sentence, Study
from tests import layouts

PRE = Preprocess((32, 32), "pad", (0.5,), (0.25,))
ROWS = [
    {"study_id": f"s{n}", "patient_id": f"p{n // 2}", "image": f"images/{n}.png", "report": f"A nodule number {n}. No effusion.", "split": split}
    for n, split in enumerate(["train", "train", "train", "train", "test", "test"])
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    layouts.write_manifest(tmp_path / "root", ROWS)
    boxes = [{"image_id": 5, "bbox": [10, 5, 20, 15], "label_text": "A nodule number 4."}]
    layouts.write_boxes(tmp_path / "root" / "boxes.json", [{"file_name": row["image"]} for row in ROWS], boxes)
    return tmp_path / "root"


def run(root: Path, out: Path, *, size: int = 32, resized: bool = False, **options: object) -> prepare.Prepared:
    return prepare.prepare(load("manifest", root=str(root), resized=resized), out, Make(size), name="manifest", progress=False, **options)  # type: ignore[arg-type]


def test_a_prepared_dataset_is_the_raw_one_at_training_size(root: Path, tmp_path: Path) -> None:
    done = run(root, tmp_path / "out")
    assert (done.studies, done.images, done.bad, done.made, done.fresh) == (6, 6, 0, 1, True)
    raw, back = load("manifest", root=str(root)), load("prepared", root=str(tmp_path / "out"))
    for old, new in zip(raw.studies, back.studies, strict=True):
        assert (old.id, old.patient, old.split, old.views, dict(old.sections)) == (new.id, new.patient, new.split, new.views, dict(new.sections))
        assert old.sentences == new.sentences
        assert np.array_equal(PRE.resize(read(old.images[0])), PRE.resize(read(new.images[0])))
    (grounding,) = back.studies[4].groundings
    assert grounding.size == (23, 32)  # 40 x 56 made 23 x 32
    assert grounding.boxes[0] == pytest.approx((10 * 32 / 56, 5 * 23 / 40, 30 * 32 / 56, 20 * 23 / 40))
    assert grounding.sentence == 0


def test_a_second_run_writes_nothing(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.suffix in (".bin", ".json", ".arrow")}
    again = run(root, tmp_path / "out")
    assert (again.made, again.fresh) == (0, False)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_changed_image_and_a_changed_text_are_noticed(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "IMAGES", 2)  # two images a shard
    assert run(root, tmp_path / "out").made == 3
    layouts.write_image(root / "images/3.png", seed=77)
    again = run(root, tmp_path / "out")
    assert (again.made, again.shards, again.fresh) == (1, 3, True)
    new = load("prepared", root=str(tmp_path / "out")).studies[3]
    assert np.array_equal(PRE.resize(read(new.images[0])), PRE.resize(layouts.pixels(77)))
    layouts.write_table(root / "manifest.csv", [*ROWS[:5], {**ROWS[5], "report": "Small left effusion."}])
    again = run(root, tmp_path / "out")
    assert (again.made, again.fresh) == (0, True)
    assert load("prepared", root=str(tmp_path / "out")).studies[5].sentences[0].text == "Small left effusion."


def test_what_a_killed_run_finished_is_kept_and_its_remains_are_swept(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "IMAGES", 2)
    made = shards.write

    def dies(folder: Path, number: int, *rest: object) -> object:
        if number == 2:
            (folder / "00002.part").write_bytes(b"half")
            raise KeyboardInterrupt
        return made(folder, number, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(shards, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        run(root, tmp_path / "out")
    with pytest.raises(DataError, match="not to its end"):
        load("prepared", root=str(tmp_path / "out"))
    monkeypatch.setattr(shards, "write", made)
    assert run(root, tmp_path / "out").made == 1
    assert not list((tmp_path / "out").rglob("*.part"))
    assert len(load("prepared", root=str(tmp_path / "out")).studies) == 6


def test_several_processes_write_the_same_bytes(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "IMAGES", 2)
    for name, workers in (("one", 1), ("two", 2)):
        run(root, tmp_path / name, workers=workers)
    for path in (tmp_path / "one" / "pixels").glob("*.bin"):
        assert path.read_bytes() == (tmp_path / "two" / "pixels" / path.name).read_bytes()


def test_bad_files_are_quarantined_by_name_and_reason(root: Path, tmp_path: Path) -> None:
    (root / "images/1.png").write_bytes(b"<html>not found</html>")
    (root / "images/2.png").write_bytes((root / "images/2.png").read_bytes()[:200])
    done = run(root, tmp_path / "out")
    assert (done.studies, done.bad) == (4, 2)
    lines = [json.loads(line) for line in (tmp_path / "out" / "bad_images.jsonl").read_text().splitlines()]
    assert [(line["id"], line["image"], line["code"]) for line in lines] == [("s1", "images/1.png", "D011"), ("s2", "images/2.png", "D011")]
    assert [(p.code, p.count) for p in done.problems] == [("D011", 2)]
    assert [s.id for s in load("prepared", root=str(tmp_path / "out")).studies] == ["s0", "s3", "s4", "s5"]


def test_too_many_missing_files_stop_before_anything_is_decoded(root: Path, tmp_path: Path) -> None:
    (root / "images/1.png").unlink()
    with pytest.raises(DataError, match="1 of 6 listed images are missing, first: ") as error:
        run(root, tmp_path / "out")
    assert error.value.code == "D010"
    assert run(root, tmp_path / "out", max_missing=1.0).bad == 1


def test_the_same_pixels_twice_are_a_warning(root: Path, tmp_path: Path) -> None:
    (root / "images/1.png").write_bytes((root / "images/0.png").read_bytes())
    (problem,) = run(root, tmp_path / "out").problems
    assert (problem.code, problem.severity) == ("D052", "W")
    assert "images/0.png" in problem.what


def test_boxes_drawn_in_another_size_are_left_out_and_said_or_scaled(root: Path, tmp_path: Path) -> None:
    layouts.write_image(root / "images/4.png", 4, 20, 28)  # half the size its boxes were drawn in
    done = run(root, tmp_path / "out")
    assert [(p.code, p.severity) for p in done.problems] == [("D032", "E")]
    assert "resized=true" in done.problems[0].fix
    assert run(root, tmp_path / "out2", resized=True).problems == ()
    (grounding,) = load("prepared", root=str(tmp_path / "out2")).studies[4].groundings
    assert grounding.boxes == ((5.0, 2.5, 15.0, 10.0),)  # 28 x 20 is smaller than 32: stored as it is


def test_bytes_that_went_bad_are_refused(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "out")
    pixels = tmp_path / "out" / "pixels" / "00000.bin"
    data = bytearray(pixels.read_bytes())
    data[5] ^= 1
    pixels.write_bytes(data)
    image = load("prepared", root=str(tmp_path / "out")).studies[0].images[0]
    with pytest.raises(BadImage, match="bytes have changed"):
        read(image)
    assert run(root, tmp_path / "out").made == 0
    assert run(root, tmp_path / "out", check=True).made == 1
    assert read(image).max() > 0


def test_a_damaged_manifest_is_refused_and_made_again(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "out")
    manifest = tmp_path / "out" / "manifest.arrow"
    whole = manifest.read_bytes()
    for damaged in (whole[:1000], whole.replace(b"nodule", b"module"), b""):
        manifest.write_bytes(damaged)
        with pytest.raises(DataError, match="has changed since"):
            load("prepared", root=str(tmp_path / "out"))
        again = run(root, tmp_path / "out")
        assert (again.made, again.fresh) == (0, True)
    for text in (b"[]", b"\xff", b'{"format": 1}'):
        (tmp_path / "out" / "meta.json").write_bytes(text)
        with pytest.raises(DataError, match=r"meta\.json is not what prepare writes"):
            load("prepared", root=str(tmp_path / "out"))
        assert run(root, tmp_path / "out").fresh


def test_an_image_that_can_be_read_now_is_not_left_out_for_ever(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = shards.look

    def fails(source: object) -> object:
        if getattr(source, "name", "") == "images/1.png":
            raise BadImage("no decoder for it", "images/1.png", "D012")
        return seen(source)  # type: ignore[arg-type]

    monkeypatch.setattr(shards, "look", fails)
    assert [run(root, tmp_path / "out").bad, run(root, tmp_path / "out").made] == [1, 0]
    monkeypatch.setattr(shards, "look", seen)
    again = run(root, tmp_path / "out")
    assert (again.bad, again.made) == (0, 1)


def test_what_no_reader_foresaw_is_one_bad_image_and_not_the_end(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = shards.look

    def fails(source: object) -> object:
        if getattr(source, "name", "") == "images/1.png":
            raise ZeroDivisionError
        return seen(source)  # type: ignore[arg-type]

    monkeypatch.setattr(shards, "look", fails)
    done = run(root, tmp_path / "out")
    assert (done.bad, done.problems[0].code) == (1, "D011")
    assert "ZeroDivisionError" in done.problems[0].what


def test_a_dataset_of_which_nothing_can_be_read_is_an_error(root: Path, tmp_path: Path) -> None:
    for path in (root / "images").iterdir():
        files.cut(path, 0.3)
    with pytest.raises(DataError, match=r"not one of 6 images can be read, first: manifest: images/0\.png"):
        run(root, tmp_path / "out")


def test_another_dataset_or_size_does_not_replace_what_is_there_unasked(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "out")
    with pytest.raises(DataError, match="holds 'manifest 32 pad', not 'manifest 16 pad'"):
        run(root, tmp_path / "out", size=16)
    assert run(root, tmp_path / "out", size=16, again=True).made == 1


def test_a_file_name_of_another_encoding_stops_before_anything_is_decoded(root: Path, tmp_path: Path) -> None:
    table = load("manifest", root=str(root))
    strange = replace(table, studies=(replace(table.studies[0], id="caf\udce9"), *table.studies[1:]))
    with pytest.raises(DataError, match="is not UTF-8"):
        prepare.prepare(strange, tmp_path / "out", Make(32), name="manifest", progress=False)


def test_the_folder_is_private_and_only_ours_is_written_to(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "out")
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match="not made by prepare"):
        run(root, tmp_path / "mine")


def test_two_at_once_into_one_folder_are_refused(root: Path, tmp_path: Path) -> None:
    with prepare._locked(tmp_path / "out", "manifest 32 pad"), pytest.raises(DataError, match="another prepare"):
        run(root, tmp_path / "out")


def test_a_volume_keeps_its_slices_and_its_millimetres(tmp_path: Path) -> None:
    values = np.linspace(-1000, 400, 9 * 20 * 30).reshape(9, 20, 30).astype(np.int16)
    files.write_nifti(tmp_path / "root/a.nii.gz", values, spacing=(5.0, 1.0, 2.0))
    layouts.write_table(tmp_path / "root/manifest.csv", [{"id": "a", "image": "a.nii.gz", "text": "No effusion is seen."}])
    run(tmp_path / "root", tmp_path / "out", size=15)
    (study,) = load("prepared", root=str(tmp_path / "out")).studies
    assert read(study.images[0]).shape == (9, 10, 15)
    assert study.spacing == pytest.approx((5.0, 2.0, 4.0))


@pytest.mark.parametrize("name", ["rsna", "siim", "chexlocalize", "covid_rural", "montgomery"])
def test_a_mask_is_that_of_the_raw_image_made_smaller_as_the_pixels_were(name: str, tmp_path: Path) -> None:
    """RSNA's masks are boxes without a size of their own: at the size of the stored pixels they would lie elsewhere."""
    export(name, tmp_path / "raw")
    table = load(name, root=str(tmp_path / "raw"), need_text=False)
    prepare.prepare(table, tmp_path / "out", Make(48), name=name, progress=False)
    back, seen = load("prepared", root=str(tmp_path / "out"), need_text=False).studies, 0
    assert len(back) == len(table.studies)
    for old, new in zip(table.studies, back, strict=True):
        assert len(old.masks) == len(new.masks)
        large, small = read(old.images[0]).shape, read(new.images[0]).shape
        assert small == (40, 48) != large == (80, 96)
        whole = masks.union(old.masks, *large)
        found = np.logical_or.reduce([masks.resized(mask, small) for mask in new.masks]) if new.masks else np.zeros(small, bool)
        assert np.array_equal(found, np.asarray(Image.fromarray(whole).resize(small[::-1], Image.Resampling.NEAREST)))
        assert {mask.size for mask in new.masks} <= {large}
        seen += bool(found.any())
    assert seen > 2


def test_a_row_keeps_all_of_a_study(tmp_path: Path) -> None:
    from datasets import Dataset

    from elvis.data import rows
    from elvis.data.images import ImageFile
    from elvis.types import Grounding

    mask = Mask("effusion", "polygons", (((1.0, 2.0), (3.0, 4.0), (5.0, 1.0)),), (4, 6))
    whole = Study(
        id="a", patient="p", split="val", images=(ImageFile("/r", "a.png"),), views=("AP",), spacing=(1.5, 0.5), sections={"findings": "A b. C."},
        sentences=(Sentence("A b.", "findings", 0, 4, True, "lung"), Sentence("C.", "findings", 5, 7)),
        groundings=(Grounding("A b.", ((1.0, 1.0, 2.0, 2.0),), "x", 0, 0, frozenset({"template"}), (4.0, 6.0), (mask,)),),
        masks=(Mask("lung", "png", ImageFile("/r", "m.png", 8), None, 0, 2), mask),
        labels={"x": -1}, text_source="header", group="g", extra={"age": 5},
    )  # fmt: skip
    entry = {"offset": 0, "shape": [4, 6], "original": [4, 6], "sum": 2**63 - 1, "dtype": "uint8", "spacing": [1.5, 0.5]}
    table = Dataset.from_list([rows.to_row(whole, [rows.Stored(3, entry)])], features=rows.features())
    (back,) = rows.from_rows(table.data.table.to_batches()[0], tmp_path)
    assert back.images == (ShardImage(str(tmp_path / "00003.bin"), "a.png", 0, (4, 6), 2**63 - 1),)
    for field in (
        "id",
        "patient",
        "split",
        "views",
        "spacing",
        "sections",
        "sentences",
        "groundings",
        "masks",
        "labels",
        "text_source",
        "group",
        "extra",
    ):
        assert getattr(back, field) == getattr(whole, field), field


def test_the_cache_is_where_it_is_told_to_be_and_can_be_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELVIS_CACHE", str(tmp_path / "c"))
    made = cache.private(cache.home() / "prepared")
    (made / "ours").mkdir()
    (made / "ours" / ".prepare").write_bytes(b"1234")
    (made / "mine.txt").write_text("a thesis")
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert cache.purge() == (tmp_path / "c", 4)
    assert [path.name for path in made.iterdir()] == ["mine.txt"]
    monkeypatch.delenv("ELVIS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache.home() == tmp_path / "x" / "elvis"


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize("shape", [(40, 56), (90, 33), (16, 16)])
def test_shrinking_gives_what_preprocessing_shows(shape: tuple[int, int], fit: str) -> None:
    rows, columns = np.indices(shape)
    image = ((rows * 3 + columns * 2) % 200).astype(np.uint8)
    small, _ = Make(24, fit).shrink(image)  # type: ignore[arg-type]
    assert (max if fit == "pad" else min)(small.shape) == min(24, (max if fit == "pad" else min)(shape))
    pre = Preprocess((24, 24), fit, (0.5,), (0.25,))  # type: ignore[arg-type]
    raw, stored = pre.resize(image).astype(int), pre.resize(small).astype(int)
    if fit == "pad":
        assert np.array_equal(raw, stored)
    else:
        assert np.abs(raw - stored).mean() < 8  # the crop falls half a pixel elsewhere
