"""python -m elvis.doctor: what is there, what would stop a run, and how to mend it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from elvis import doctor
from elvis.errors import ConfigError, run_cli
from elvis.notice import NOTICE


def by_name(checks: object) -> dict[str, doctor.Check]:
    return {check.name: check for check in checks}  # type: ignore[attr-defined]


def test_it_names_every_part_and_ends_with_0_where_nothing_would_stop_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    code = doctor.main([])
    said = capsys.readouterr().out
    for word in ("python", "packages", "machine", "open files", "folder", "cache", "temporary files", "hub", "extra dicom", NOTICE):
        assert word in said, word
    assert code == (2 if "PROBLEM" in said else 0)


def test_programs_get_the_same_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_cli(lambda: doctor.main(["--json"]))
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is (ended.value.code == 0)
    assert {"name", "found", "problem", "fix", "stops"} == set(told["checks"][0])
    assert told["notice"] == NOTICE


def test_a_package_that_is_missing_or_too_old_stops_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"timm": "0.9", "torch": None}
    real = doctor._installed
    monkeypatch.setattr(doctor, "_installed", lambda name: there.get(name, real(name)))
    found = by_name(doctor.packages())
    assert found["timm"].stops
    assert "0.9 is outside of" in found["timm"].problem
    assert "pip install 'timm" in found["timm"].fix
    assert found["torch"].problem == "not installed"
    assert "numpy" not in found


def test_a_folder_nobody_may_write_to_or_without_room_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELVIS_CACHE", str(tmp_path / "deep" / "cache"))
    assert not any(check.problem for check in doctor.places(tmp_path) if check.name != "temporary files")
    assert not (tmp_path / "deep").exists()  # it looks, and makes nothing
    monkeypatch.setattr(doctor, "_writable", lambda folder: folder != tmp_path)
    monkeypatch.setattr(doctor, "free_bytes", lambda folder: 2**40 if folder == tmp_path else 2**20)
    found = by_name(doctor.places(tmp_path))
    assert found["folder"].stops
    assert "nobody may write" in found["folder"].problem
    assert found["cache"].stops
    assert "ELVIS_CACHE" in found["cache"].fix


def test_little_shared_memory_is_said_and_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**26))
    shared = by_name(doctor.machine())["shared memory"]
    assert shared.problem
    assert "data.workers=0" in shared.fix
    assert not shared.stops


def test_a_data_root_that_is_not_there_stops_and_a_secret_is_not_shown(tmp_path: Path) -> None:
    given = {"ELVIS_MIMIC": str(tmp_path / "nowhere"), "ELVIS_HERE": str(tmp_path), "ELVIS_SEED": "3", "HF_HUB_OFFLINE": "1", "HF_TOKEN": "secret"}
    found = by_name(doctor.settings(given))
    assert found["ELVIS_MIMIC"].stops
    assert not found["ELVIS_HERE"].problem
    assert "ELVIS_SEED" not in found
    assert "offline" in found["hub"].found
    assert "secret" not in str(found)


def test_an_extra_says_what_it_would_give(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor._installed
    monkeypatch.setattr(doctor, "_installed", lambda name: None if name == "nibabel" else real(name))
    found = by_name(doctor.extras())
    assert "chest CT: not installed, nibabel missing; pip install 'elvis-vlp[ct]'" in found["extra ct"].found
    assert "not installed" not in found["extra dicom"].found


def test_a_wrong_option_is_one_message() -> None:
    with pytest.raises(ConfigError, match="did you mean '--json'"):
        doctor.main(["--jsn"])
