"""What `python -m elvis.data prepare` wrote, of any dataset: studies with their pixels at training size, nothing left to decode.

root/  manifest.arrow  meta.json  pixels/00000.bin ...       (elvis.data.prepare)
"""

from __future__ import annotations

import json
from pathlib import Path

from elvis.data.problems import Problem
from elvis.data.rows import from_rows
from elvis.data.shards import FORMAT
from elvis.data.studies import StudyTable
from elvis.data.tables import Card
from elvis.errors import DataError
from elvis.registry import DATASETS


@DATASETS.register("prepared")
def prepared(*, root: str) -> StudyTable:
    """Studies as they were prepared: the splits, notes and problems of their dataset; boxes in pixels of the stored images.

    Raises DataError when the folder was not made by prepare, is not finished, or by another version.
    """
    folder = Path(root).expanduser().absolute()
    again = "make it (again): python -m elvis.data prepare NAME root=... out=..."
    try:
        about = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"prepared: no meta.json in {folder}: not prepared, or not to its end", again, "D001") from None
    except ValueError:
        raise DataError(f"prepared: {folder / 'meta.json'} is not JSON", again, "D004") from None
    if about.get("format") != FORMAT:
        raise DataError(f"prepared: {folder} has format {about.get('format')}, this version reads {FORMAT}", again, "D004")
    from datasets import Dataset  # not at the top: the registry is listed without it

    try:
        table = Dataset.from_file(str(folder / "manifest.arrow"))
    except (OSError, ValueError) as error:
        raise DataError(f"prepared: cannot read {folder / 'manifest.arrow'} ({type(error).__name__})", again, "D004") from None
    studies = tuple(study for batch in table.data.table.to_batches() for study in from_rows(batch, folder / "pixels"))
    problems = tuple(
        Problem(**{name: value for name, value in problem.items() if name not in ("severity", "examples")}, examples=tuple(problem["examples"]))
        for problem in about["problems"]
        if problem["severity"] != "E"  # what was wrong has been left out; prepare has said so
    )
    return StudyTable(
        studies,
        about["left_out"],
        (f"prepared from {about['dataset']} at {about['size']} px", *about["notes"]),
        problems,
        {name: (found, owner) for name, (found, owner) in about["counts"].items()},
        tuple(about["excluded"]),
        Card(**about["card"]) if about["card"] else None,
    )
