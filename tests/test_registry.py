"""Registries: names without prior imports, and what other packages add by entry point."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from elvis import registry
from elvis.data.studies import StudyTable
from elvis.registry import DATASETS, Registry

OWNERS = (
    "mimic_cxr chexpert chexpert_plus padchest padchest_gr openi r2gen ct_rate radgenome_ct ctrg rexgroundingct"
    " ms_cxr vindr_cxr rsna siim covid_rural nih_boxes chexlocalize montgomery manifest"
)


def my_hospital(*, root: str) -> StudyTable:
    return StudyTable((), notes=(root,))


def test_all_datasets_are_listed_without_prior_imports_and_without_torch() -> None:
    code = "import sys; from elvis.registry import DATASETS; print(*DATASETS.names()); assert 'torch' not in sys.modules"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120).stdout.split()
    assert set(OWNERS.split()) <= set(said)
    assert {"phantom", "prepared"} <= set(said)


def test_another_package_adds_a_dataset_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = EntryPoint("my_hospital", "tests.test_registry:my_hospital", "elvis.datasets")
    monkeypatch.setattr(registry, "entry_points", lambda group: [mine] if group == "elvis.datasets" else [])
    fresh = Registry("dataset", DATASETS.package, group=DATASETS.group)
    assert "my_hospital" in fresh.names()
    unknown, missing = fresh.check("my_hospital", {"rot": "/x"})
    assert (unknown, missing) == ("dataset 'my_hospital' has no option 'rot' (did you mean 'root'?)", "dataset 'my_hospital' needs 'root'")
    assert fresh.create("my_hospital", root="/x").notes == ("/x",)


def test_a_file_that_cannot_be_imported_is_said_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("broken", "no_such_package:thing", "elvis.datasets")
    monkeypatch.setattr(registry, "entry_points", lambda group: [broken])
    fresh = Registry("dataset", DATASETS.package, group=DATASETS.group)
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError):
            fresh.names()
