"""Prepared folders whose files were cut, exchanged, edited or replaced: what is read is what was written, or it is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from elvis.data import prepare, shards
from elvis.data.images import BadImage, read
from elvis.data.phantoms.files import write_nifti
from elvis.data.shards import MANIFEST, META, Make, ShardImage, ShardVolume, checksum, file_sum
from elvis.data.studies import load
from elvis.errors import DataError
from tests.hostile.reading import in_time  # noqa: F401
from tests.layouts import write_image, write_manifest, write_table

pytestmark = pytest.mark.usefixtures("in_time")

ROWS = [{"study_id": f"s{n}", "patient_id": f"p{n}", "image": f"images/{n}.png", "report": f"A nodule number {n}."} for n in range(4)]


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four images in two shards."""
    monkeypatch.setattr(shards, "IMAGES", 2)
    write_manifest(tmp_path / "root", ROWS)
    run(tmp_path / "out")
    return tmp_path / "out"


def run(out: Path, **options: Any) -> prepare.Prepared:
    return prepare.prepare(load("manifest", root=str(out.parent / "root")), out, Make(32), name="manifest", progress=False, **options)


def images(out: Path) -> list[ShardImage]:
    return [study.images[0] for study in load("prepared", root=str(out)).studies]


def pixels(out: Path) -> list[np.ndarray]:
    return [read(image).copy() for image in images(out)]


# ------------------------------------------------------------------------------------------------------------- pixels


def replaced(by: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.unlink()
        by(path)

    return change


PIXELS: dict[str, tuple[Callable[[Path], object], str]] = {  # what happens to the first shard
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes have changed"),
    "emptied": (lambda path: path.write_bytes(b""), "cannot be read"),
    "moved by a byte": (lambda path: path.write_bytes(b"\0" + path.read_bytes()[:-1]), "bytes have changed"),
    "the other shard": (lambda path: path.write_bytes(path.with_name("00001.bin").read_bytes()), "bytes have changed"),
    "gone": (lambda path: path.unlink(), "cannot be read"),
    "a folder": (replaced(Path.mkdir), "not a file"),
    "a pipe": (replaced(os.mkfifo), "not a file"),
    "a device": (replaced(lambda path: path.symlink_to("/dev/zero")), "not a file"),
    "a link to itself": (replaced(lambda path: path.symlink_to(path)), "cannot be read"),
}


@pytest.mark.parametrize("name", PIXELS)
def test_pixels_that_are_not_those_that_were_written_are_refused_and_made_again(name: str, out: Path) -> None:
    before, listed = pixels(out), images(out)
    change, reason = PIXELS[name]
    path = out / "pixels" / "00000.bin"
    change(path)
    with pytest.raises(BadImage, match=reason) as error:  # the last of the shard: a cut need not reach the first
        read(listed[1])
    assert str(path) in str(error.value)
    assert "check=true" in error.value.fix
    for image, pixel in zip(listed[2:], before[2:], strict=True):
        np.testing.assert_array_equal(read(image), pixel)
    if path.is_dir():
        path.rmdir()
    assert run(out, check=True).made == 1
    for seen, pixel in zip(pixels(out), before, strict=True):
        np.testing.assert_array_equal(seen, pixel)


def test_a_shard_that_is_cut_while_it_is_mapped_is_refused(out: Path) -> None:
    """To touch a page of a mapped file behind its end kills the process."""
    image = images(out)[1]
    read(image)
    os.truncate(image.file, 10)
    with pytest.raises(BadImage, match="bytes have changed"):
        read(image)


@pytest.mark.parametrize(
    "edit",
    [{"offset": -5}, {"offset": 10**15}, {"shape": (-23, -32)}, {"shape": (10**6, 10**6)}, {"shape": (0, 32)}, {"shape": (23, 31)}, {"sum": 0}],
    ids=str,
)
def test_a_place_that_leads_elsewhere_is_refused(edit: dict[str, Any], out: Path) -> None:
    with pytest.raises(BadImage, match="bytes have changed"):
        replace(images(out)[0], **edit).read()


def test_a_place_that_was_edited_with_its_checksum_gives_no_other_shape(out: Path) -> None:
    image = images(out)[0]
    data = np.fromfile(image.file, np.uint8)
    for shape in ((-23, -32), (10**3, 10**3)):
        total = checksum(data[: abs(int(np.prod(shape)))])
        with pytest.raises(BadImage, match="bytes have changed"):
            replace(image, shape=shape, sum=total).read()


def test_a_volume_of_hounsfield_units_is_held_to_the_same(tmp_path: Path) -> None:
    values = np.linspace(-1000, 400, 9 * 20 * 30).reshape(9, 20, 30).astype(np.int16)
    write_nifti(tmp_path / "root" / "a.nii.gz", values)
    write_table(tmp_path / "root" / "manifest.csv", [{"id": "a", "image": "a.nii.gz", "text": "No effusion is seen."}])
    table = load("manifest", root=str(tmp_path / "root"))
    prepare.prepare(table, tmp_path / "out", Make(30, dtype="int16"), name="manifest", progress=False)
    (image,) = images(tmp_path / "out")
    assert isinstance(image, ShardVolume)
    np.testing.assert_array_equal(image.load().values, values)
    data = bytearray(Path(image.file).read_bytes())
    data[100] ^= 1
    Path(image.file).write_bytes(data)
    for call in (image.load, image.look, image.read):
        with pytest.raises(BadImage, match="bytes have changed"):
            call()


# -------------------------------------------------------------------------------------------------------------- index

INDEX: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another key": lambda found: found | {"key": "0" * 32},
    "one image less": lambda found: found | {"images": found["images"][:1]},
    "images that are none": lambda found: found | {"images": [7, 8]},
    "a list": lambda found: [found],
    "a shape of text": lambda found: found | {"images": [entry | {"shape": ["a", "b"]} for entry in found["images"]]},
    "a shape beyond the file": lambda found: found | {"images": [entry | {"shape": [10**6, 10**6]} for entry in found["images"]]},
    "a type that is none": lambda found: found | {"images": [entry | {"dtype": "nothing"} for entry in found["images"]]},
    "another attribute": lambda found: found | {"images": [entry | {"more": 1} for entry in found["images"]]},
    "an attribute less": lambda found: found | {"images": [{name: entry[name] for name in list(entry)[1:]} for entry in found["images"]]},
}


@pytest.mark.parametrize("name", INDEX)
def test_a_shard_whose_index_was_edited_is_made_again(name: str, out: Path) -> None:
    before, path = pixels(out), out / "pixels" / "00000.json"
    path.write_text(json.dumps(INDEX[name](json.loads(path.read_bytes()))))
    assert run(out).made == 1
    for seen, pixel in zip(pixels(out), before, strict=True):
        np.testing.assert_array_equal(seen, pixel)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"key": NaN}', b"9" * 10_000], ids=["empty", "cut", "bytes", "deep", "nan", "digits"]
)
def test_a_shard_whose_index_is_no_json_is_made_again(content: bytes, out: Path) -> None:
    path = out / "pixels" / "00000.json"
    path.write_bytes(content)
    assert run(out).made == 1
    assert len(json.loads(path.read_bytes())["images"]) == 2


def test_two_shards_whose_indexes_were_exchanged_are_made_again(out: Path) -> None:
    before = pixels(out)
    first, second = (out / "pixels" / f"0000{number}.json" for number in (0, 1))
    held = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(held)
    assert run(out).made == 2
    for seen, pixel in zip(pixels(out), before, strict=True):
        np.testing.assert_array_equal(seen, pixel)


# ----------------------------------------------------------------------------------------------------------- manifest


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"{", b"null", b'{"format": 3}', b'{"format": "x", "manifest": ""}'], ids=["deep", "cut", "null", "bare", "text"]
)
def test_a_meta_file_that_is_not_ours_is_one_message(content: bytes, out: Path) -> None:
    (out / META).write_bytes(content)
    with pytest.raises(DataError, match="prepare") as error:
        load("prepared", root=str(out))
    assert error.value.code == "D004"
    assert len(str(error.value)) < 400
    assert "make it again" in error.value.fix


def test_a_manifest_of_another_folder_is_refused(out: Path) -> None:
    write_image(out.parent / "root" / "images" / "0.png", seed=99)
    prepare.prepare(load("manifest", root=str(out.parent / "root")), out.parent / "other", Make(16), name="manifest", progress=False)
    (out / MANIFEST).write_bytes((out.parent / "other" / MANIFEST).read_bytes())
    with pytest.raises(DataError, match="has changed since it was written"):
        load("prepared", root=str(out))


@pytest.mark.parametrize("part", [0.0, 0.2, 0.5, 0.9, 0.999])
def test_a_cut_manifest_is_refused_even_where_its_checksum_was_made_to_fit(part: float, out: Path) -> None:
    manifest = out / MANIFEST
    manifest.write_bytes(manifest.read_bytes()[: int(part * manifest.stat().st_size)])
    about = json.loads((out / META).read_bytes())
    (out / META).write_text(json.dumps(about | {"manifest": file_sum(manifest)}))
    with pytest.raises(DataError, match="cannot read") as error:
        load("prepared", root=str(out))
    assert error.value.code == "D004"
    assert str(out) in str(error.value)
