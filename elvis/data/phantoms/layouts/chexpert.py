"""CheXpert v1.0-small: elvis.data.datasets.chexpert tells the tree. What CheXpert Plus and CheXlocalize share with it stands here, too.

Every third study has a lateral image, every fifth a second one that the table calls frontal and LL. The first person's sex and age are
not known. Blank labels, uncertain ones and all fourteen columns are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from elvis.data.phantoms.files import write_image, write_table
from elvis.data.phantoms.film import Film
from elvis.data.phantoms.layouts import Export, layout
from elvis.data.phantoms.layouts._images import FILE, break_image

COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA")
OBSERVATIONS = {  # in the order of the table -> the kinds of phantoms that are one; None = the table says nothing
    "No Finding": (),
    "Enlarged Cardiomediastinum": ("cardiomegaly",),
    "Cardiomegaly": ("cardiomegaly",),
    "Lung Opacity": ("consolidation", "atelectasis", "edema", "mass"),
    "Lung Lesion": ("nodule", "mass"),
    "Edema": ("edema",),
    "Consolidation": ("consolidation",),
    "Pneumonia": ("consolidation",),
    "Atelectasis": ("atelectasis",),
    "Pneumothorax": ("pneumothorax",),
    "Pleural Effusion": ("effusion",),
    "Pleural Other": None,
    "Fracture": None,
    "Support Devices": None,
}
BREAKS = {
    "D001": "neither table is there",
    "D002": "everything lies a folder deeper",
    "D003": "the training table has no column AP/PA",
    "D004": "the first path is not CheXpert's",
    "D004_label": "the first study has a label 2.0",
    "D005": "the first path leaves the root",
    **FILE,
    "D050": "the first image is listed twice",
    "D060": "a patient of train is in valid, too",
    "D070": "the first study has only a lateral image",
}


@dataclass(frozen=True)
class Shot:
    """An image of CheXpert: `path` without suffix, under the folder of its split (valid/patient64541/study1/view1_frontal)."""

    film: Film
    path: str
    projection: str  # AP, PA, LL or, for a lateral image, empty

    @property
    def study(self) -> str:
        return "/".join(self.path.split("/")[1:3])

    @property
    def side(self) -> str:
        return "Lateral" if self.path.endswith("lateral") else "Frontal"

    @property
    def first(self) -> bool:
        return "view1_" in self.path


FOLDERS = {"train": ("train", 1), "val": ("valid", 64_541), "test": ("test", 64_741)}  # split -> folder, number of its first patient


def shots(films: Sequence[Film], *, extra: bool = True) -> Iterator[Shot]:
    """The images of the films; with `extra`, further ones of some of their studies."""
    numbers: dict[str, int] = {}
    studies: dict[str, int] = {}
    first = {split: start for split, (_, start) in FOLDERS.items()}
    for place, film in enumerate(films):
        patient, split = film.study.patient, film.study.split
        if patient not in numbers:
            numbers[patient], first[split] = first[split], first[split] + 1
        studies[patient] = studies.get(patient, 0) + 1
        at = f"{FOLDERS[split][0]}/patient{numbers[patient]:05d}/study{studies[patient]}"
        yield Shot(film, f"{at}/view1_frontal", film.study.views[0])
        if extra and place % 3 == 1:
            yield Shot(film, f"{at}/view2_lateral", "")
        if extra and place % 5 == 2:
            yield Shot(film, f"{at}/view2_frontal", "LL")


def observations(film: Film) -> dict[str, str]:
    """The labels of a film as CheXpert writes them: 1.0, 0.0, -1.0 or blank. Pneumonia is never more than uncertain."""
    found = {kind for kind, value in film.study.labels.items() if value}
    labels = {name: "" if kinds is None else "1.0" if found & set(kinds) else "0.0" for name, kinds in OBSERVATIONS.items()}
    return labels | {"No Finding": "" if found else "1.0", "Pneumonia": "-1.0" if labels["Pneumonia"] == "1.0" else ""}


def row(shot: Shot, prefix: str, place: int) -> dict[str, str]:
    """A row of train.csv or valid.csv; of `place` 0 nothing is known about the person."""
    person = {"Sex": "Unknown", "Age": "0"} if place == 0 else {"Sex": ("Female", "Male")[place % 2], "Age": str(40 + place)}
    path = {"Path": f"{prefix}/{shot.path}.jpg"}
    return path | person | {"Frontal/Lateral": shot.side, "AP/PA": shot.projection} | observations(shot.film)


@layout("chexpert", breaks=BREAKS)
def write(films: Sequence[Film], out: Path, break_: str) -> Export:
    """Films of train and val, as train and valid; CheXpert's test images come with CheXlocalize."""
    root = out / "CheXpert-v1.0-small" if break_ == "D002" else out
    made = list(shots([film for film in films if film.study.split != "test"]))
    rows: dict[str, list[dict[str, str]]] = {"train": [], "valid": []}
    for place, shot in enumerate(made):
        write_image(root / f"{shot.path}.jpg", shot.film.read())
        rows[shot.path.partition("/")[0]].append(row(shot, "CheXpert-v1.0-small", place))
    _break(root, rows, break_)
    columns = [column for column in (*COLUMNS, *OBSERVATIONS) if (break_, column) != ("D003", "AP/PA")]
    for name, listed in rows.items() if break_ != "D001" else ():
        write_table(root / f"{name}.csv", [{column: values[column] for column in columns} for values in listed], columns)
    counts = {"images": len(made), "studies": len({shot.study for shot in made})}
    return Export(counts, {f"{shot.path}.jpg": shot.film for shot in made if shot.side == "Frontal"})


def _break(root: Path, rows: dict[str, list[dict[str, str]]], break_: str) -> None:
    train = rows["train"]
    first, file = train[0], root / train[0]["Path"].partition("/")[2]
    break_image(file, break_)
    match break_:
        case "D004":
            first["Path"] = "CheXpert-v1.0-small/train/00001.jpg"
        case "D004_label":
            first["Edema"] = "2.0"
        case "D005":
            first["Path"] = "CheXpert-v1.0-small/../../train/patient00001/study1/view1_frontal.jpg"
        case "D050":
            train.append(first)
        case "D060":
            rows["valid"].append(first | {"Path": first["Path"].replace("train/", "valid/").replace("study1", "study9")})
        case "D070":
            first.update({"Frontal/Lateral": "Lateral", "AP/PA": ""})
