"""How CT-RATE calls its volumes, and with it RadGenome-Chest CT and ReXGroundingCT, which are made of them: split_patient_scan_reconstruction."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from elvis.data.datasets._choices import patients
from elvis.data.datasets._lists import examples
from elvis.data.problems import Problems
from elvis.data.tables import inside, read_json
from elvis.errors import DataError

LPS = "LPS"  # the axes of nearly all volumes: rows run to the left, columns to the back, slices to the head

_NAME = re.compile(r"(train|valid)(?:ation)?_(\d{1,9})_([a-z]+)_(\d{1,9})(?:\.nii\.gz)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Name:
    """A volume's name taken apart; `validation_` and `valid_` are the same."""

    part: str  # train | valid: the owner's split
    patient: str  # train_53
    scan: str  # train_53_a
    volume: str  # train_53_a_1

    @property
    def path(self) -> str:
        """From the folder of the split on."""
        return f"{self.patient}/{self.scan}/{self.volume}.nii.gz"


def parse_name(text: str, where: str, problems: Problems) -> Name | None:
    """A name of a table, or None with a problem D004. DataError D005 for one that leads out of the root."""
    if (match := _NAME.fullmatch(inside(text, where))) is None:
        problems.add("D004", where, f"'{text[:40]}' is no volume name such as train_53_a_1.nii.gz", "is it the table as distributed?")
        return None
    part, patient, scan, reconstruction = match.groups()
    patient = f"{part}_{patient}"
    return Name(part, patient, f"{patient}_{scan}", f"{patient}_{scan}_{reconstruction}")


def unwanted(exclude: str | Sequence[str]) -> set[str]:
    """The patients to leave out: a list, a file with one a line, or those of ReXGroundingCT by its root or its dataset.json.

    DataError D001 for a path where nothing is, D004 for a table of another form, also for one name in it that names no patient of CT-RATE:
    they are left out of training by it.
    """
    path = Path(exclude).expanduser() if isinstance(exclude, str) else Path()
    whole = isinstance(exclude, str) and os.path.isdir(path)
    if not whole and path.suffix != ".json":
        return patients(exclude, ", or the root of ReXGroundingCT or its dataset.json")
    table, problems = path / "dataset.json" if whole else path, Problems("rexgroundingct")
    names = [parse_name(str(entry["name"]), where, problems) for _, where, entry in examples(read_json(table, "data.exclude"), table, ("name",))]
    for problem in problems.listed():
        raise DataError(problem.what, problem.fix, problem.code)
    return {name.patient for name in names if name is not None}
