"""elvis.pretrain on data that is not computed: prepared shards, and MIMIC-CXR without the patients it is to be judged on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from elvis import pretrain
from elvis.data.__main__ import main
from elvis.data.phantoms import layouts
from tests.test_pretrain import SMALL

OWN = [word for word in SMALL if not word.startswith(("data.train", "data.val", "data.test", "data.comp", "data.decor", "data.swap"))]


def losses(out: Path, *words: str) -> list[float]:
    run = ["--out", str(out), "--quiet", "--config", "real_smoke", *OWN, "train.steps=2", "train.checkpoint_every=2", *words]
    assert pretrain.main(run) == 0
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_prepared_dataset_trains_as_its_raw_files_do(tmp_path: Path) -> None:
    root, ready = str(tmp_path / "root"), str(tmp_path / "ready")
    assert main(["export", f"out={root}", "train=14", "val=2", "test=4", "comp=0", "decor=0", "swap=0", "size=80"]) == 0
    assert main(["prepare", "manifest", f"root={root}", f"out={ready}", "size=64", "workers=1"]) == 0
    raw = losses(tmp_path / "a", f"data.root={root}")
    assert losses(tmp_path / "b", "data.name=prepared", f"data.root={ready}") == raw
    raw_rows, rows = ({(r["row"], r["split"]): r["metrics"] for r in json.loads((tmp_path / run / "results.json").read_text())} for run in "ab")
    assert raw_rows.keys() == rows.keys()
    for name in ("r@1", "r@5", "image_corr", "report_corr"):
        assert raw_rows["model", "test"][name] == rows["model", "test"][name]


def test_the_patients_of_ms_cxr_are_left_out_of_mimic_and_written_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = layouts.export("ms_cxr", tmp_path / "root", counts={"train": 10, "val": 2, "test": 4})
    layouts.export("mimic_cxr", tmp_path / "mimic", counts={"train": 10, "val": 2, "test": 4})
    subjects = {name.split("/")[2].removeprefix("p") for name in made.truth}
    words = ["mimic_cxr", f"root={tmp_path / 'mimic'}", "exclude=ms_cxr", f"ms_cxr={tmp_path / 'root'}"]
    against = f"against=ms_cxr:{tmp_path / 'root'}"
    assert main(["doctor", *words[:2], against]) == 2
    assert "D061 ERROR" in capsys.readouterr().out
    assert main(["doctor", *words, against, f"out={tmp_path}"]) == 0
    assert set((tmp_path / "mimic_cxr.excluded.txt").read_text().split()) == subjects
    again = ["doctor", *words[:2], against, f"exclude={tmp_path / 'mimic_cxr.excluded.txt'}", f"out={tmp_path / 'two'}"]
    assert main(again) == 0
