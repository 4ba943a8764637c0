"""No report text, patient name or path of this machine is in what a run hands on; a canary in each is looked for in every file."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest

from elvis import pretrain
from elvis.data.__main__ import main
from elvis.data.phantoms import files
from tests import layouts
from tests.test_pretrain import SMALL

TEXT, NAME = "Quagmirefinch opacity xyzzyplugh", "CANARYNAME^GOLDEN"
OWN = [word for word in SMALL if not word.startswith(("data.train", "data.val", "data.test", "data.comp", "data.decor", "data.swap"))]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DICOM files of a named patient, one of whose reports is like no other; one file cannot be read."""
    root = tmp_path_factory.mktemp("canaryfolder")
    rows = []
    for number in range(16):
        image = f"images/{number}.dcm"
        files.write_dicom(root / image, layouts.pixels(number, 64, 48), tags={"PatientName": NAME})
        text = f"{TEXT}. No effusion." if number == 3 else f"A nodule of {number} mm. The lungs are clear."
        rows.append({"id": f"s{number}", "patient": f"p{number}", "image": image, "text": text, "split": "train" if number < 12 else "test"})
    files.cut(root / "images/5.dcm")
    layouts.write_table(root / "manifest.csv", rows)
    return root


def canaries(root: Path) -> list[bytes]:
    return [word.encode() for word in (*TEXT.split()[::2], "CANARYNAME", str(root))]


def found(folder: Path, root: Path, *without: str) -> list[tuple[str, bytes]]:
    whole = [path for path in folder.rglob("*") if path.is_file() and path.name not in without]
    assert whole
    return [(path.name, word) for path in whole for word in canaries(root) if word.lower() in path.read_bytes().lower()]


def test_a_training_run_holds_none_of_it(root: Path, tmp_path: Path) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = pretrain.main(
            ["--out", str(tmp_path / "run"), "--quiet", "--config", "real_smoke", *OWN, f"data.root={root}", "data.max_bad_fraction=0.5"]
        )
    assert code == 0
    assert (tmp_path / "run" / "bad_studies.jsonl").is_file()
    # the run directory's own config.yaml has the root, to be resumed; those of the checkpoints have ???
    assert found(tmp_path / "run", root, "config.yaml") == []
    assert found(tmp_path / "run" / "checkpoints", root) == []
    assert not any(word.decode().lower() in said.getvalue().lower() for word in canaries(root)[:-1])


def test_the_doctor_says_none_of_it_and_prepare_keeps_it_to_its_private_folder(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "manifest", f"root={root}"]) == 0
    assert main(["prepare", "manifest", f"root={root}", f"out={tmp_path / 'out'}", "size=32", "workers=1"]) == 0
    said = capsys.readouterr().out.lower()
    assert not any(word.decode().lower() in said for word in canaries(root)[:-1])
    assert {name for name, _ in found(tmp_path / "out", root)} == {"manifest.arrow"}  # 0700, and what training reads
    assert b"CANARYNAME" not in (tmp_path / "out" / "manifest.arrow").read_bytes()
    assert "5.dcm" in (tmp_path / "out" / "bad_images.jsonl").read_text()


def test_an_error_holds_none_of_it(root: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="cannot be read") as error:
        pretrain.main(["--out", str(tmp_path / "run"), "--quiet", "--config", "real_smoke", *OWN, f"data.root={root}", "data.max_bad_fraction=0"])
    assert not any(word.decode().lower() in str(error.value).lower() for word in canaries(root)[:-1])
