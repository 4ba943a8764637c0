"""Every code of elvis.data.problems: a phantom export that triggers it, and a message that says where and what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from elvis.data import doctor
from elvis.data.phantoms.layouts import export, layouts
from elvis.data.prepare import prepare
from elvis.data.problems import CODES, Problem
from elvis.data.shards import Make
from elvis.errors import DataError
from elvis.registry import DATASETS

DOCS = Path(__file__).parents[1] / "docs" / "datasets.md"
TRIGGERS = {  # code -> the layout and its mistake ("" = it is in the layout as it is); options of the dataset
    "D001": ("rsna", "D001", {}),
    "D002": ("padchest", "D002", {}),
    "D003": ("siim", "D003", {}),
    "D004": ("mimic_cxr", "D004", {}),
    "D005": ("chexpert", "D005", {}),
    "D010": ("siim", "D010", {}),
    "D011": ("chexpert", "D011", {}),
    "D012": ("siim", "D012", {}),
    "D013": ("siim", "", {}),
    "D014": ("siim", "D014", {}),
    "D015": ("mimic_cxr", "D015", {}),
    "D016": ("mimic_cxr", "D016", {}),
    "D020": ("mimic_cxr", "D020", {}),
    "D021": ("mimic_cxr", "D021", {}),
    "D022": ("mimic_cxr", "D022", {}),
    "D023": ("mimic_cxr", "D023", {}),
    "D030": ("nih_boxes", "D030", {}),
    "D031": ("rsna", "D031", {}),
    "D032": ("nih_boxes", "", {}),  # boxes in the owner's frame of 1024 pixels, films that are smaller
    "D040": ("siim", "D040_odd", {}),
    "D041": ("covid_rural", "D041", {}),
    "D042": ("covid_rural", "D042", {}),
    "D050": ("mimic_cxr", "D050", {}),
    "D051": ("mimic_cxr", "D051", {}),
    "D052": ("siim", "D052", {}),
    "D060": ("mimic_cxr", "D060", {}),
    "D061": ("mimic_cxr", "", {}),
    "D062": ("r2gen", "", {}),
    "D063": ("siim", "", {}),
    "D064": ("rsna", "D064", {}),
    "D070": ("mimic_cxr", "D070", {}),
    "D080": ("ct_rate", "D080", {"release": "v2"}),
    "D081": ("ct_rate", "D081", {"release": "v2"}),
    "D082": ("ct_rate", "", {"release": "v2"}),
    "D083": ("ct_rate", "D083", {"release": "v2"}),
    "D084": ("ct_rate", "D084", {"release": "v2"}),
}


def found(name: str, break_: str, options: dict[str, object], folder: Path) -> list[Problem | DataError]:
    """All that an adapter, the doctor and prepare say of an export."""
    export(name, folder / "root", break_=break_, counts={"train": 5, "val": 2, "test": 3})
    dataset = layouts()[name].dataset
    try:
        table = DATASETS.create(dataset, root=str(folder / "root"), **options)
    except DataError as error:
        return [error]
    against = {"ms_cxr": table} if name == "mimic_cxr" and not break_ else {}
    said = doctor.examine(dataset, table, against={n: _as_test(t) for n, t in against.items()}).problems
    done = prepare(table, folder / "out", Make(64), name=dataset, max_missing=1.0, progress=False)
    return [*said, *done.problems]


def _as_test(table):
    from dataclasses import replace

    return replace(table, studies=tuple(replace(study, split="test") for study in table.studies))


@pytest.mark.parametrize("code", CODES)
def test_every_code_has_an_export_that_triggers_it_and_a_message_with_place_and_fix(code: str, tmp_path: Path) -> None:
    met = [problem for problem in found(*TRIGGERS[code], tmp_path) if problem.code == code]
    assert met, f"{TRIGGERS[code][:2]} does not lead to {code}"
    problem = met[0]
    assert ":" in problem.what
    assert len(f"{problem.what}\n{problem.fix}") < 500
    if isinstance(problem, DataError) or problem.severity == "E":
        assert problem.fix
    assert not re.search(r"lungs are clear|nodule", problem.what)


def test_every_mistake_of_every_layout_names_a_known_code() -> None:
    for layout in layouts().values():
        for name in layout.breaks:
            assert name[:4] in CODES, f"{layout.name}: {name}"


def test_the_page_lists_every_dataset_and_every_code_as_they_are() -> None:
    page = DOCS.read_text()
    assert set(re.findall(r"^\| \[`(\w+)`\]", page, re.M)) == set(DATASETS.names())
    assert re.findall(r"^\| (D\d+) \| (\w) \| (.*) \|$", page, re.M) == [(code, severity, what) for code, (severity, what) in CODES.items()]
