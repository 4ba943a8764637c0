"""R2Gen's annotation.json of IU X-ray (`r2gen`) and of MIMIC-CXR (`r2gen_mimic`), and a test set of ReXrank (`rexrank`).

elvis.data.datasets.r2gen tells the trees. IU: two images a study, the second one lateral; the film's removed words are XXXX. MIMIC: a film
is an image of its own, two follow each other in one study with one report. ReXrank: every third study's key image is its second one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from elvis.data.phantoms.files import cut, write_image, write_json
from elvis.data.phantoms.film import Film
from elvis.data.phantoms.layouts import Export, digits, hexes, layout
from elvis.data.phantoms.layouts._images import PICTURE, break_image

BREAKS = {
    **PICTURE,
    "D001": "the annotation is missing",
    "D002": "everything lies a folder deeper",
    "D003": "the second example of train has no report",
    "D004": "the annotation is cut off",
    "D004_list": "the annotation is a list",
    "D005": "the first image lies outside",
    "D020": "the first report is empty",
    "D050": "two examples have one id",
    "D060": "a patient of train is in test too",
    "D064": "no id names a report of IU X-ray",
}


@layout("r2gen", breaks=BREAKS)
def write(films: Sequence[Film], out: Path, break_: str) -> Export:
    root = out / "iu_xray" if break_ == "D002" else out
    annotation: dict[str, list[dict[str, Any]]] = {"train": [], "val": [], "test": []}
    truth: dict[str, Film] = {}
    for number, film in enumerate(films):
        name = f"{'study' if break_ == 'D064' else 'CXR'}{number + 1}_IM-{number + 1:04}"
        truth |= _write_pair(root, name, film, frontal=0)
        example = {"id": name, "report": report(film), "image_path": [f"{name}/0.png", f"{name}/1.png"], "split": film.study.split}
        annotation[film.study.split].append(example)
    _break(annotation, break_)
    break_image(root / next(iter(truth)), break_)
    _write(root / "annotation.json", [annotation] if break_ == "D004_list" else annotation, break_)
    return Export({split: len(listed) for split, listed in annotation.items()}, truth)


@layout("r2gen_mimic", dataset="r2gen", breaks=PICTURE)
def write_mimic(films: Sequence[Film], out: Path, break_: str) -> Export:
    annotation: dict[str, list[dict[str, Any]]] = {"train": [], "val": [], "test": []}
    truth = {}
    for split, listed in annotation.items():
        of_split = [film for film in films if film.study.split == split]
        for place, film in enumerate(of_split):
            owner = of_split[place - place % 2]  # of the report
            subject, study = digits(owner.study.patient, 8, "1"), digits(owner.id, 8, "5")
            dicom = "-".join(hexes(f"{film.id} {part}", 8) for part in range(5))
            name = f"p{subject[:2]}/p{subject}/s{study}/{dicom}.jpg"
            write_image(out / "images" / name, film.read())
            text = owner.report().partition("FINDINGS:")[2].partition("IMPRESSION:")[0]
            listed.append({"id": dicom, "study_id": int(study), "subject_id": int(subject), "report": text, "image_path": [name], "split": split})
            truth[f"images/{name}"] = film
    break_image(out / next(iter(truth)), break_)
    _write(out / "annotation.json", annotation, break_)
    return Export({split: len(listed) for split, listed in annotation.items()}, truth)


@layout(
    "rexrank",
    dataset="r2gen",
    breaks={"D003": "the first study has no section_findings", "D004": "the file is cut off", "D004_split": "a split is dev_2"},
)
def write_rexrank(films: Sequence[Film], out: Path, break_: str) -> Export:
    studies, truth = {}, {}
    for number, film in enumerate(films):
        name, frontal = f"CXR{number + 1}_IM-{number + 1:04}", int(number % 3 == 2)
        truth |= _write_pair(out, name, film, frontal)
        findings, impression = (_marked(film.study.sections.get(section, "")) for section in ("findings", "impression"))
        studies[name] = {
            "key_image_path": f"{name}/{frontal}.png", "image_path": [f"{name}/0.png", f"{name}/1.png"],
            "report": f"Findings: {findings} Impression: {impression}", "section_findings": findings, "section_impression": impression,
            "split": "test", "frontal_lateral": ["Lateral", "Frontal"] if frontal else ["Frontal", "Lateral"],
            "context": f"Indication: {_marked(film.study.sections['indication'])} Comparison: None.",
        }  # fmt: skip
    first = next(iter(studies.values()))
    if break_ == "D003":
        del first["section_findings"]
    if break_ == "D004_split":
        first["split"] = "dev_2"
    _write(out / "ReXRank_IUXray_test.json", studies, break_)
    return Export({"test": len(studies)}, truth)


def report(film: Film) -> str:
    """As R2Gen has it for IU: the findings alone."""
    return _marked(film.study.sections["findings"])


def _marked(text: str) -> str:
    return text.replace("___", "XXXX")


def _write_pair(root: Path, name: str, film: Film, frontal: int) -> dict[str, Film]:
    """0.png and 1.png of a study: the film, and its mirror image as a lateral one."""
    for place in (0, 1):
        pixels = film.read() if place == frontal else film.read()[:, ::-1]
        write_image(root / "images" / name / f"{place}.png", pixels)
    return {f"images/{name}/{frontal}.png": film}


def _write(path: Path, value: Any, break_: str) -> None:
    if break_ != "D001":
        write_json(path, value)
    if break_ == "D004":
        cut(path)


def _break(annotation: dict[str, list[dict[str, Any]]], break_: str) -> None:
    first, second = annotation["train"][:2]
    match break_:
        case "D003":
            del second["report"]
        case "D005":
            first["image_path"][0] = f"../{first['image_path'][0]}"
        case "D020":
            first["report"] = " "
        case "D050":
            second["id"] = first["id"]
        case "D060":
            annotation["test"][0]["id"] = f"{first['id'].partition('_')[0]}_IM-9999"
