"""CTRG-Chest-548K: 1,804 chest CT volumes with a report each, as its owner (github.com/tangyuhao2016/CTRG) and its readers pass it on.

    annotation.json                        {"train": [{"id", "finding", ...}], "val": [...], "test": [...]}
    CTRG-Chest-548K_volume/<id>.nii.gz     as Dia-LLaMA made them of the slices (huggingface.co/datasets/Trusure/CTRG-Chest-548K_volume)
    <id>/1.jpg, 2.jpg, ...                 or the slices themselves, a folder a volume
    CTRG_finding_labels.csv                optional: id and 14 columns; 1 is positive, all else is not (so Dia-LLaMA reads it)

The volumes were made of 8-bit pictures: grey values, no Hounsfield units. Nobody tells their spacing or their patients, nor the order
of the slices: they are taken from the feet up by their numbers, rows to the left and columns to the back as pictures of CT are shown.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from elvis.data.datasets._choices import holding
from elvis.data.datasets._lists import Entry, examples
from elvis.data.problems import Problems
from elvis.data.reports import join_lines, sentences
from elvis.data.studies import StudyTable
from elvis.data.tables import Card, find, folder, inside, number, published, read_json, rows
from elvis.data.volumes import VolumeFile
from elvis.registry import DATASETS
from elvis.types import Study

CARD = Card(
    "ctrg",
    "CTRG-Chest-548K",
    access="Baidu link of the repository",
    licence="none stated",
    url="github.com/tangyuhao2016/CTRG",
    root="data.root holds annotation.json and CTRG-Chest-548K_volume, or a folder of slices for each id",
)
OWNER = {"volumes": 1804}
PLACES = ("CTRG-Chest-548K_volume", "CTRG-Chest-548K", "images")
GREY = (0.0, 255.0)  # what the pictures hold


@DATASETS.register("ctrg")
def ctrg(
    *,
    root: str,
    images: str | None = None,  # folder that holds the images, or one of CTRG-Chest-548K_volume, CTRG-Chest-548K, images; None = the root
) -> StudyTable:
    """Volumes with a finding text. Each is its own patient: nobody tells whose they are.

    left_out counts volumes: no_image (neither <id>.nii.gz nor a folder <id>), no_text.
    """
    base = folder(root, CARD)
    table = find(base, ("annotation.json",), CARD)
    place = holding(images, base, CARD)
    below = next((f"{name}/" for name in PLACES if (place / name).is_dir()), "")
    there, labels = set(os.listdir(place / below)), _labels(base)
    problems, left_out, studies, listed = Problems(CARD.name), Counter[str](), [], set()
    for split, where, entry in examples(read_json(table), table, ("id", "finding")):
        name = inside(str(entry["id"]), where)
        listed.add(name)
        if (file := next((file for file in (f"{name}.nii.gz", name) if file in there), None)) is None:
            left_out["no_image"] += 1
            problems.add("D010", where, f"neither {name[:60]}.nii.gz nor a folder of that name in {place / below}", "is the download complete?")
            continue
        volume = VolumeFile(str(place), below + file, "off", window=GREY, axes="LPS")
        study = _study(name, split, volume, entry, labels.get(name, {}))
        if study.sentences:
            studies.append(study)
        left_out["no_text"] += not study.sentences
    if count := left_out["no_text"]:
        problems.add("D020", "", f"{count:,} volumes without a finding", "they are left out", count=count)
    problems.add("D064", "", "nobody tells whose the volumes are: each counts as a patient", "a patient in two splits is not seen", count=len(listed))
    notes = ("split: the owner's", "grey values of 8 bits, no Hounsfield units; spacing and patients are unknown")
    return StudyTable(tuple(studies), +left_out, notes, problems.listed(), published({"volumes": len(listed)}, OWNER), card=CARD)


def _labels(base: Path) -> dict[str, dict[str, int]]:
    """id -> label -> 1 where it is positive, else 0."""
    table = find(base, ("CTRG_finding_labels.csv",), CARD, optional=True)
    return {row.pop("id"): {name: int(number(value) == 1) for name, value in row.items()} for _, row in rows(table, ("id",))} if table else {}


def _study(name: str, split: str, file: VolumeFile, entry: Entry, labels: dict[str, int]) -> Study:
    sections = {section: join_lines(str(entry.get(key) or "")) for section, key in (("findings", "finding"), ("impression", "impression"))}
    sections = {section: text for section, text in sections.items() if text}
    rest = {key: value for key, value in entry.items() if key not in ("id", "finding", "impression")}
    return Study(name, name, split, (file,), sections=sections, sentences=sentences(sections), labels=labels, text_source="structured", extra=rest)
