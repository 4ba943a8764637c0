"""Reports and images as R2Gen's annotation.json lists them (IU X-ray, MIMIC-CXR), and the test sets of ReXrank.

    root/  annotation.json            {train, val, test: [{id, report, image_path: [...], split}]}           R2Gen and what follows it
           ReXRank_*.json             {study: {image_path, key_image_path, section_findings, section_impression, split, frontal_lateral, ...}}
           images/<image_path>        IU: CXR3030_IM-1405/0.png; MIMIC: p10/p10000032/s50414267/<dicom_id>.jpg
                                      (or files/ and PNG/, as ReXrank names them, or in the root itself)

IU: a study is two images or more. MIMIC: each image is an example of its own; those of one study share a `group`. The patient is CXR3030
(as in dataset openi), or 10000032 (as in mimic_cxr).

clean="r2gen" gives the text that R2Gen's models learn and are scored against, since NLG scores depend on it. Own implementation of what
its modules/tokenizers.py does: list numbers up to 5 are removed (a text's "1. " everywhere, so "11. " loses its end), sentences end at
". ", all is lower-cased, and in each sentence .,?;*!%^&_+() and quotes, slashes, braces go; so does everything from ":" to "[" in ASCII,
since `:-\\[` in its character class is a range. Hyphens stay. Sentences are joined by " . ", empty ones too. XXXX, what was removed
from IU X-ray, becomes xxxx; raw text keeps it as it is.

Sources: Chen et al. 2020 (arXiv 2010.16056), github.com/zhjohnchan/R2Gen; github.com/rajpurkarlab/ReXrank, data/.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from elvis.data.datasets._choices import View
from elvis.data.datasets._lists import AS_DISTRIBUTED, SPLITS, Entry, complete, examples, strings
from elvis.data.images import ImageFile
from elvis.data.problems import Problems
from elvis.data.reports import join_lines, sentences
from elvis.data.studies import StudyTable
from elvis.data.tables import Card, find, folder, inside, published, read_json
from elvis.errors import DataError
from elvis.registry import DATASETS
from elvis.types import Sentence, Study

CARD = Card(
    "r2gen", "R2Gen's annotation of IU X-ray or MIMIC-CXR, ReXrank's test sets", access="IU: open; MIMIC-CXR: credentialed (PhysioNet)",
    licence="that of the images", url="github.com/zhjohnchan/R2Gen", root="data.root must hold annotation.json (or ReXRank_*.json) and images",
)  # fmt: skip
OWNER = {  # owner's examples of each split
    ("r2gen", "iu"): {"train": 2_069, "val": 296, "test": 590},
    ("rexrank", "iu"): {"val": 296, "test": 590},
    ("rexrank", "mimic"): {"test": 2_347},
}
FOLDERS = ("images", "files", "PNG")
PATIENTS = {"iu": "openi", "mimic": "mimic_cxr"}  # kind -> whose patients they are
IU, MIMIC, CHEXPERT = re.compile(r"(CXR\d+)(?:_|$)"), re.compile(r"(?:^|/)p(\d{8})/"), re.compile(r"patient\d+")


@DATASETS.register("r2gen")
def r2gen(
    *,
    root: str,
    table: str | None = None,  # relative to root; None = annotation.json, another *annotation*.json, or the first ReXRank_*.json
    clean: Literal["raw", "r2gen"] = "raw",  # r2gen: the text as its models learn it, and are scored against
) -> StudyTable:
    """Studies in the split of the annotation; the text is `report` as findings, or ReXrank's two sections.

    left_out: no_image, no_text. Raises DataError D001 to D005.
    """
    base, problems = folder(root, CARD), Problems(CARD.name)
    path = find(base, (table,) if table else ("annotation.json", "*annotation*.json", "ReXRank_*.json"), CARD)
    below = next((f"{name}/" for name in FOLDERS if (base / name).is_dir()), "")
    form, entries = _entries(path)
    kind = _kind(entry for _, _, entry in entries)
    read = _cleaned_text(clean_mimic if kind == "mimic" else clean_iu) if clean == "r2gen" else _raw_text

    studies, left_out = [], Counter[str]()
    for where, split, entry in entries:
        if entry["id"] in (None, ""):
            problems.add("D004", where, "an empty id", AS_DISTRIBUTED)
            continue
        shown, (sections, spoken) = _images(entry, where), read(_sections(entry))
        if shown and spoken:
            studies.append(_study(entry, split, base, below, shown, sections, spoken))
        else:
            left_out["no_text" if shown else "no_image"] += 1
    if count := left_out["no_text"]:
        problems.add("D020", "", f"{count:,} examples without a sentence", "they are left out", count=count)
    if strangers := sum(study.patient == study.id for study in studies):
        problems.add("D064", "", "neither ids nor paths name the patient", "every example counts as a patient", count=strangers)

    rules = f" ({'MIMIC-CXR' if kind == 'mimic' else 'IU X-ray'} rules)" if clean == "r2gen" else ""
    notes = (f"split: that of {path.name}", f"text: {clean}{rules}")
    found = Counter(split for _, split, _ in entries)
    owner = {split: count for split, count in OWNER.get((form, kind), {}).items() if split in found}
    if any(found[split] != count for split, count in owner.items()):
        sizes = ", ".join(f"{split} {found[split]:,} (published: {count:,})" for split, count in owner.items())
        problems.add("D062", path.name, f"not the published split: {sizes}", "numbers on it cannot be compared with the literature")
    card = replace(CARD, patients=PATIENTS.get(kind, ""))
    return StudyTable(tuple(studies), +left_out, notes, problems.listed(), published(found, owner), card=card)


def _study(
    entry: Entry, split: str, base: Path, below: str, shown: Sequence[tuple[str, View]], sections: dict[str, str], spoken: tuple[Sentence, ...]
) -> Study:
    name = str(entry["id"])
    return Study(
        id=name,
        patient=_patient(entry, shown) or name,
        split=split,
        images=tuple(ImageFile(str(base), below + file) for file, _ in shown),
        views=tuple(view for _, view in shown),
        sections=sections,
        sentences=spoken,
        text_source="structured" if "section_findings" in entry else "full",
        group=str(entry.get("study_id") or ""),
        extra={"context": entry["context"]} if entry.get("context") else {},
    )


def _entries(path: Path) -> tuple[str, list[tuple[str, str, Entry]]]:
    """(r2gen | rexrank, [(where, split, example)]). DataError D003 names what an example lacks, D004 when it is another kind of file."""
    value = read_json(path)
    if isinstance(value, dict) and any(isinstance(listed, list) for listed in value.values()):
        return "r2gen", [(where, split, entry) for split, where, entry in examples(value, path, ("id", "report", "image_path"))]
    if not isinstance(value, dict) or not value:
        raise DataError(f"{path}: neither R2Gen's {{train, val, test}} nor ReXrank's {{study: ...}}", AS_DISTRIBUTED, "D004")
    entries = []
    for name, told in value.items():
        where = f"{path.name}, '{name[:60]}'"
        entry = {"id": name, **complete(told, ("split", "image_path", "section_findings", "section_impression"), where)}
        if (split := str(entry["split"])) not in SPLITS:
            raise DataError(f"{where}: split '{split[:40]}'", f"known: {', '.join(SPLITS)}", "D004")
        entries.append((where, SPLITS[split], entry))
    return "rexrank", entries


def _kind(entries: Iterable[Entry]) -> str:
    """iu | mimic | "": by the first example."""
    first = next(iter(entries), {})
    return "iu" if IU.match(str(first.get("id"))) else "mimic" if any(map(MIMIC.search, _paths(first))) else ""


def _paths(entry: Entry) -> list[str]:
    return strings(entry.get("image_path"))


def _images(entry: Entry, where: str) -> list[tuple[str, View]]:
    """(file, view), the key image first; frontal may be AP or PA and is UNKNOWN."""
    files, sides = [inside(path, where) for path in _paths(entry)], strings(entry.get("frontal_lateral"))
    views: list[View] = ["LATERAL" if side == "Lateral" else "UNKNOWN" for side in sides] if len(sides) == len(files) else ["UNKNOWN"] * len(files)
    return sorted(zip(files, views, strict=True), key=lambda image: image[0] != entry.get("key_image_path"))


def _patient(entry: Entry, shown: Sequence[tuple[str, str]]) -> str:
    """CXR3030 of IU X-ray, the subject of MIMIC-CXR, patient12345 of CheXpert; "" when nothing says so."""
    name, file = str(entry["id"]), shown[0][0]
    if match := IU.match(name):
        return match[1]
    if match := MIMIC.search(file):
        return match[1]
    match = CHEXPERT.search(file)
    return match[0] if match else str(entry.get("subject_id") or "")


# ----------------------------------------------------------------------------------------------------------- text

Text = tuple[dict[str, str], tuple[Sentence, ...]]  # sections and their sentences


def _sections(entry: Entry) -> dict[str, str]:
    if "section_findings" in entry:
        return {name: str(entry[f"section_{name}"] or "") for name in ("findings", "impression")}
    return {"findings": str(entry["report"] or "")}


def _raw_text(given: Mapping[str, str]) -> Text:
    sections = {name: text for name, given_text in given.items() if (text := join_lines(given_text))}
    return sections, sentences(sections)


def _cleaned_text(clean: Callable[[str], str]) -> Callable[[Mapping[str, str]], Text]:
    def read(given: Mapping[str, str]) -> Text:
        sections = {name: clean(text) for name, text in given.items() if text.strip()}
        return sections, tuple(sentence for name, text in sections.items() for sentence in _between_stops(text, name))

    return read


def _between_stops(text: str, section: str) -> Iterator[Sentence]:
    """The sentences of a cleaned text, which holds no full stops but those between them; of two words or more, as in elvis.data.reports."""
    for match in re.finditer(r"[^\s.](?:[^.]*[^\s.])?", text):
        if len(match[0].split()) > 1:
            yield Sentence(match[0], section, match.start(), match.end())


def clean_iu(report: str) -> str:
    """A report of IU X-ray as R2Gen's tokenizer leaves it."""
    return _cleaned(_halved(report, ".", 3))


def clean_mimic(report: str) -> str:
    """A report of MIMIC-CXR as R2Gen's tokenizer leaves it: line breaks, removed words and runs of blanks become single characters."""
    return _cleaned(_halved(_halved(_halved(report.replace("\n", " "), "_", 7), " ", 6), ".", 8))


def _halved(text: str, character: str, times: int) -> str:
    for _ in range(times):
        text = text.replace(2 * character, character)
    return text


_QUOTES = str.maketrans("", "", "\"/\\'")
_MARKS = str.maketrans("", "", ".,?;*!%^&_+():<=>@[]{}")  # the range from : to [ holds capitals too, of which none is left


def _cleaned(text: str) -> str:
    text = text.replace("1. ", "")
    for before in (". ", " "):
        for number in "2345":
            text = text.replace(f"{before}{number}. ", ". ")
    return " . ".join(part.translate(_QUOTES).strip().translate(_MARKS) for part in text.strip().lower().split(". ")) + " ."
