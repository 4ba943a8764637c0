"""python -m elvis.data as a user types it."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest
from PIL import Image

from elvis.data.__main__ import main
from elvis.data.phantoms import layouts as owners
from elvis.data.studies import load
from elvis.errors import ConfigError, DataError, run_cli
from elvis.registry import DATASETS
from tests import layouts

TEXT = "A nodule is in the left upper zone. No effusion."


@pytest.fixture
def root(tmp_path: Path) -> str:
    rows = [{"study_id": f"s{n}", "patient_id": f"p{n}", "image": f"{n}.png", "report": TEXT, "split": "train", "view": "PA"} for n in range(3)]
    layouts.write_manifest(tmp_path / "root", rows)
    layouts.write_boxes(
        tmp_path / "root" / "boxes.json", [{"file_name": "1.png"}], [{"image_id": 1, "bbox": [10, 5, 20, 15], "label_text": "a nodule"}]
    )
    return str(tmp_path / "root")


def test_doctor_says_what_is_there_and_ends_with_0(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "manifest", f"root={root}"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"train +3 +3 +3 +6 +1 +0", said)
    assert "3 of 3 looked for, 0 missing" in said
    assert "nodule" not in said


def test_doctor_ends_with_2_where_there_is_an_error(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    layouts.write_boxes(Path(root) / "boxes.json", [{"file_name": "1.png"}], [{"image_id": 1, "bbox": [50, 5, 20, 15]}])
    assert main(["doctor", "manifest", f"root={root}"]) == 2
    said = capsys.readouterr().out
    assert "D030 ERROR (1): manifest: boxes.json, annotation 1: box (50, 5, 20, 15) exceeds its image of" in said


def test_prepare_into_a_named_folder_then_into_the_cache_then_purge(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert main(["prepare", "manifest", f"root={root}", f"out={out}", "size=32", "workers=1"]) == 0
    assert "3 studies, 3 images, 0 left out (bad_images.jsonl); 1 of 1 shards made" in capsys.readouterr().out
    assert main(["prepare", "manifest", f"root={root}", f"out={out}", "size=32", "workers=1"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    monkeypatch.setenv("ELVIS_CACHE", str(tmp_path / "cache"))
    assert main(["prepare", "manifest", f"root={root}", "size=32", "workers=1"]) == 0
    (made,) = (tmp_path / "cache" / "prepared").iterdir()
    assert stat.S_IMODE((tmp_path / "cache" / "prepared").stat().st_mode) == 0o700
    assert main(["purge"]) == 0
    assert made.exists()
    assert main(["purge", "yes=true"]) == 0
    assert not made.exists()


@pytest.mark.parametrize("name", ["sheet.png", "sheet.html"])
def test_show_draws_any_dataset(root: str, tmp_path: Path, name: str) -> None:
    assert main(["show", "manifest", f"root={root}", "count=2", f"out={tmp_path / name}"]) == 0
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    if name.endswith(".png"):
        with Image.open(tmp_path / name) as sheet:
            assert sheet.width > 600
    else:
        page = (tmp_path / name).read_text()
        assert page.count("<figure>") == 2
        assert "A nodule is in the left upper zone." in page
        assert not re.search(r"<script|https?://", page)


def test_a_page_shows_text_as_text(tmp_path: Path) -> None:
    layouts.write_manifest(tmp_path, [{"study_id": "a", "image": "a.png", "report": "<script>alert(1)</script> is not a finding."}])
    assert main(["show", "manifest", f"root={tmp_path}", f"out={tmp_path / 's.html'}"]) == 0
    assert "<script" not in (tmp_path / "s.html").read_text()


def test_an_option_of_both_is_the_commands_unless_it_says_data(tmp_path: Path) -> None:
    rows = [{"study_id": "a", "image": "a.png", "report": TEXT, "Teil": "valid"}]
    layouts.write_manifest(tmp_path, rows)
    assert main(["show", "manifest", f"root={tmp_path}", "data.split=Teil", "split=val", f"out={tmp_path / 's.png'}"]) == 0
    with pytest.raises(DataError, match="no study in split 'train'"):
        main(["show", "manifest", f"root={tmp_path}", "data.split=Teil", "split=train", f"out={tmp_path / 's.png'}"])


@pytest.mark.parametrize("name", sorted(owners.layouts()))
def test_every_layout_is_written_and_the_doctor_reads_it(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--layout", name, "--out", str(tmp_path / name), "train=3", "val=1", "test=2"]) == 0
    dataset = owners.layouts()[name].dataset
    assert dataset in DATASETS.names()
    assert main(["doctor", dataset, f"root={tmp_path / name}"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["doctor"], "which dataset?"),
        (["doctor", "mimic"], "did you mean 'mimic_cxr'"),
        (["doctor", "manifest"], "needs 'root'"),
        (["doctor", "manifest", "root=/nowhere"], "D001 manifest: no folder /nowhere"),
        (["doctor", "manifest", "rot=/x"], "did you mean 'root'"),
        (["doctor", "manifest", "root=/x", "against=ms_cxr"], "write against=NAME:ROOT"),
        (["prepare", "manifest", "root=/nowhere", "size=big"], "option 'size' must be int"),
        (["prepare", "manifest", "root=/nowhere", "fit=squeeze"], "fit is pad or crop"),
        (["show", "manifest", "root=/nowhere", "out=sheet.bmp"], ".png or .html"),
        (["export", "--layout", "mimic", "--out", "x"], "did you mean 'mimic_cxr'"),
        (["export", "--layout", "siim", "--out", "x", "break_=D999"], "break_=D999 is not known"),
        (["export", "--layout", "siim"], "--out DIR"),
        (["purge", "manifest"], "purge takes no dataset"),
    ],
)
def test_a_wrong_command_ends_with_2_and_one_message(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        run_cli(lambda: main(words))
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert message in said
    assert "Traceback" not in said
    assert len(said) < 420


def test_options_of_the_dataset_reach_it_and_fixes_that_are_printed_work(root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layouts.write_table(Path(root) / "other.csv", [{"id": "a", "image": "0.png", "words": "A nodule is seen.", "findings": "No effusion is seen."}])
    words = ["prepare", "manifest", f"root={root}", "table=other.csv", "workers=1"]
    assert main([*words, "text=words", f"out={tmp_path / 'one'}", "data.on_leak=drop", "data.strict=true", "data.resized=true"]) == 0
    assert load("prepared", root=str(tmp_path / "one")).studies[0].sentences[0].text == "A nodule is seen."
    with pytest.raises(DataError, match="no column 'wrods'"):
        main([*words, "text=wrods", f"out={tmp_path / 'two'}"])
    with pytest.raises(ConfigError, match="prepared data is prepared"):
        main(["prepare", "prepared", f"root={tmp_path / 'one'}"])


def test_a_prepared_folder_cannot_be_made_of_a_leaking_table(tmp_path: Path) -> None:
    rows = [{"study_id": f"s{n}", "patient_id": "p", "image": f"{n}.png", "report": TEXT, "split": part} for n, part in enumerate(("train", "test"))]
    layouts.write_manifest(tmp_path / "root", rows)
    with pytest.raises(DataError, match="D060"):
        main(["prepare", "manifest", f"root={tmp_path / 'root'}", f"out={tmp_path / 'out'}"])
    assert main(["prepare", "manifest", f"root={tmp_path / 'root'}", f"out={tmp_path / 'out'}", "on_leak=drop", "workers=1"]) == 0
    with pytest.raises(ConfigError, match="on_leak"):
        main(["prepare", "manifest", f"root={tmp_path / 'root'}", f"out={tmp_path / 'out'}", "on_leak=ignore"])
