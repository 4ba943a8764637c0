"""What `python -m elvis.data prepare` wrote, of any dataset: studies with their pixels at training size, nothing left to decode.

root/  manifest.arrow  meta.json  pixels/00000.bin ...       (elvis.data.prepare)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elvis.data.problems import Problem
from elvis.data.rows import from_rows
from elvis.data.shards import FORMAT, MANIFEST, META, PIXELS, file_sum
from elvis.data.studies import StudyTable
from elvis.data.tables import Card
from elvis.errors import DataError
from elvis.registry import DATASETS
from elvis.types import Study


@DATASETS.register("prepared")
def prepared(*, root: str) -> StudyTable:
    """Studies as they were prepared: the splits, notes and problems of their dataset; boxes in pixels of the stored images.

    Raises DataError when the folder was not made by prepare, is not finished, or by another version.
    """
    folder = Path(root).expanduser().absolute()
    again = "make it again: python -m elvis.data prepare NAME root=... out=..."
    try:
        about = json.loads((folder / META).read_bytes())
        form, digest = about["format"], about["manifest"]
    except FileNotFoundError:
        raise DataError(f"prepared: no {META} in {folder}: not prepared, or not to its end", again, "D001") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise DataError(f"prepared: {folder / META} is not what prepare writes", again, "D004") from None
    if form != FORMAT:
        raise DataError(f"prepared: {folder} has format {form}, this version reads {FORMAT}", again, "D004")
    from datasets import Dataset  # not at the top: the registry is listed without it

    try:
        if file_sum(folder / MANIFEST) != digest:
            raise DataError(f"prepared: {folder / MANIFEST} has changed since it was written", again, "D004")
        table = Dataset.from_file(str(folder / MANIFEST))
        studies = tuple(study for batch in table.data.table.to_batches() for study in from_rows(batch, folder / PIXELS))
        return _table(about, studies)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"prepared: cannot read {folder} ({type(error).__name__})", again, "D004") from None


def _table(about: Mapping[str, Any], studies: tuple[Study, ...]) -> StudyTable:
    """What was an error when it was prepared has been left out then: it is a note now."""
    lost = [p for p in about["problems"] if p["severity"] == "E"]
    fields = ("code", "what", "fix", "count", "warning")
    kept = [Problem(**{name: p[name] for name in fields}, examples=tuple(p["examples"])) for p in about["problems"] if p["severity"] != "E"]
    notes = [f"prepared from {about['dataset']} at {about['made']}", *about["notes"]]
    notes += [f"left out when prepared: {p['code']} ({p['count']:,}), first: {p['what']}" for p in lost]
    return StudyTable(
        studies,
        about["left_out"],
        tuple(notes),
        tuple(kept),
        {name: (found, owner) for name, (found, owner) in about["counts"].items()},
        tuple(about["excluded"]),
        Card(**about["card"]) if about["card"] else None,
    )
