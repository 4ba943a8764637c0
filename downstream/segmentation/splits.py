"""Splits and label fractions as data: who is trained on, who is tested, and a hash that names each list.

    table = load("rsna", root=..., need_text=False)
    made = assign(table, "mgca", "rsna")                      made.studies, made.notes, made.marked
    digest(study.id for study in made.studies if study.split == "test")      "e75061d168ffcae0"
    subset(ids, fraction=0.1, seed=0)                         1 % lies inside 10 %, for every seed
    balanced(train, lambda study: bool(study.masks), seed=0)  as many negatives as positives

A published protocol is its authors' code run again, not their lists: `PUBLISHED` holds the hash of each list, computed from the owner's
whole table, and `assign` says whether yours are the same. A protocol is a function below; its docstring says where it comes from and what
it was checked against. None draws from numpy's global state; `np.random.RandomState` gives the same numbers in every version of numpy.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from elvis.data.datasets.nih_boxes import BOXES, CARD
from elvis.data.order import draw
from elvis.data.studies import StudyTable, digest, leaked, patient_split, stable_hash
from elvis.data.tables import find, names, read_table, rows
from elvis.errors import ConfigError, DataError, nearest
from elvis.types import Study

SPLITS = ("train", "val", "test")
UNUSED = "unused"
WORDS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", UNUSED: UNUSED}  # of a list -> ours
LISTS = {"train.csv": "train", "validation.csv": "val", "test.csv": "test"}  # LoVT's files -> ours

Made = tuple[list[Study], list[str]]  # every study with its new split, and notes
Lists = Mapping[str, tuple[int, str]]  # split -> (count, digest)


@dataclass(frozen=True)
class Assigned:
    """`marked`: "", or one sentence to print beside every number: a published protocol that leaks, reproduced as it is."""

    studies: tuple[Study, ...]  # of train, val and test; the others are counted in the notes
    notes: tuple[str, ...] = ()
    marked: str = ""


def assign(table: StudyTable, protocol: str, dataset: str) -> Assigned:
    """The studies of a table in the splits of a protocol (a name of PROTOCOLS[dataset], or the path of lists: `from_file`).

    ConfigError for a protocol the dataset does not have. DataError D060 for a patient in two splits, except in REPRODUCTIONS, which are then
    marked; D001, D003, D004, D050 for lists that are missing or wrong.
    """
    known = PROTOCOLS.get(dataset, OTHERS)
    if protocol in known:
        studies, notes = known[protocol](table)
    elif "/" in protocol or protocol.endswith((".csv", ".tsv", ".jsonl", ".gz")):
        studies, notes = from_file(table, Path(protocol).expanduser())
    else:
        about = INSTEAD.get((dataset, protocol), nearest(protocol, known) if len(known) > 1 else "")
        fix = f"known: {', '.join(known)}; or a path (./lists.csv): a CSV with columns id and split"
        raise ConfigError(f"{dataset} has no split '{protocol[:60]}'{about}", fix)
    kept = tuple(study for study in studies if study.split in SPLITS)
    if not kept:
        raise DataError(f"{dataset}, split={protocol}: not one study in train, val or test", "choose another split, or list some", "D004")
    found = leaked(kept)
    if found and protocol not in REPRODUCTIONS:
        where = ", ".join(sorted(found[min(found)]))
        what = f"split={Path(protocol).name}: {len(found)} patient(s) in more than one split: {_some(sorted(found))} (the first: {where})"
        raise DataError(what, "give all studies of a patient one split, or use split=patient", "D060")
    sizes = Counter(study.split for study in kept)
    notes += [f"{dataset}, split {Path(protocol).name}: {', '.join(f'{name} {sizes[name]:,}' for name in SPLITS)}"]
    if left := Counter(study.split for study in studies if study.split not in SPLITS):
        notes.append(f"left out: {', '.join(f'{name} {count:,}' for name, count in sorted(left.items()))}")
    if empty := [name for name in SPLITS if not sizes[name]]:
        notes.append(f"no study in {' and '.join(empty)}")
    notes += _compared(dataset, protocol, kept)
    if protocol in REPRODUCTIONS and not found and any(problem.code == "D064" for problem in table.problems):
        notes.append("images are split: which show the same patient is not known here (D064), one may be in several splits")
    marked = _marked(protocol, kept, found) if found or protocol == "mgca_rows" else ""
    return Assigned(kept, tuple(notes), marked)


def subset(ids: Iterable[str], *, fraction: float = 1.0, count: int = 0, seed: int = 0) -> list[str]:
    """The first ceil(fraction * n) ids, at least one, or the first `count`, in the order of a hash of (seed, id).

    So a smaller subset lies inside a larger one of the same seed, whatever order the ids come in. ConfigError for a fraction outside (0, 1],
    a count of more than there are, or both; DataError for no ids.
    """
    ordered = _by_hash(ids, seed, "subset")
    if not ordered:
        raise DataError("no studies to take a part of", "is there a train split? Choose another split")
    if not 0 < fraction <= 1:
        raise ConfigError(f"label fraction {fraction:g}", "give a number above 0 and up to 1: 0.01 is 1 %")
    if not 0 <= count <= len(ordered):
        raise ConfigError(f"label count {count}, there are {len(ordered)} studies", f"give 1 to {len(ordered)}, or a share such as 0.1")
    if count and fraction != 1:
        raise ConfigError(f"label count {count} and label fraction {fraction:g}", "give one of them")
    return ordered[: count or math.ceil(Fraction(repr(float(fraction))) * len(ordered))]  # the fraction as it is written: 0.07 of 100 are 7


def balanced(studies: Sequence[Study], has: Callable[[Study], bool], seed: int) -> list[Study]:
    """Every study that has it, and as many that do not (all, where there are fewer), by a hash of (seed, id); in the order given.

    The rule of GLoRIA and MGCA for the training images of SIIM (never val or test), whose negatives are drawn anew at every start.
    DataError when none has it.
    """
    positive = {study.id for study in studies if has(study)}
    if not positive:
        raise DataError(f"not one of {len(studies)} training studies is positive: nothing to balance", "leave balancing out, or take more labels")
    negative = _by_hash((study.id for study in studies if study.id not in positive), seed, "balanced")
    chosen = positive.union(negative[: len(positive)])
    return [study for study in studies if study.id in chosen]


def _by_hash(ids: Iterable[str], seed: int, what: str) -> list[str]:
    return sorted(ids, key=lambda id: (draw(seed, 0, id, what), id))


# --------------------------------------------------------------------------------------------------- the protocols


def patient(table: StudyTable) -> Made:
    """80/10/10 by a hash of the patient (elvis.data.studies.patient_split), ours: it cannot leak. A patient not known is an image (D064)."""
    return [replace(study, split=patient_split(study.patient)) for study in table.studies], ["split: 80/10/10 by a hash of the patient"]


def as_told(table: StudyTable) -> Made:
    """As the table says: its split column or folders, or a phantom's. Other splits than train, val and test are left out."""
    return list(table.studies), ["split: as the table says"]


def official(table: StudyTable) -> Made:
    """The owner's, as the adapter gives it. Where there is no train, val is divided 4:1 by a hash of the patient (ours).

    NIH: all images with boxes are in the owner's test list. CheXlocalize has val and test. DataError D001 when the owner's lists are not there.
    """
    if not any(note.startswith("split: the owner's") for note in table.notes):
        what = "split=official: the owner's lists are not there (NIH: train_val_list.txt and test_list.txt)"
        raise DataError(what, "put them into data.root, or use split=patient", "D001")
    studies, there = list(table.studies), {study.split for study in table.studies}
    if "train" in there or "val" not in there:
        return studies, ["split: the owner's"]
    divided = [replace(study, split=_fifth(study.patient)) if study.split == "val" else study for study in studies]
    return divided, ["split: the owner's, who has no train: val is divided 4:1 by a hash of the patient, into train and val"]


def _fifth(patient: str) -> str:
    return "train" if stable_hash(f"val:{patient}") % 5 else "val"


def mgca(table: StudyTable) -> Made:
    """RSNA for segmentation and detection, 16,010/5,337/5,337 images: `prepare_detection_data` of HKU-MedAI/MGCA, mgca/preprocess/rsna.py.

    Over the sorted ids, sklearn's train_test_split(test_size=10674, random_state=0); what it held out is split again, test_size=0.5: its first
    part is MGCA's test, its second MGCA's valid. Checked on the owner's table against sklearn 1.9.1 and pandas, all ids. Other numbers of
    images are split in the same proportions.
    """
    count = len(table.studies)
    return _sorted(table, -(-count * 10_674 // 26_684)), ["split: MGCA's of RSNA for segmentation, made by its steps"]


def gloria(table: StudyTable) -> Made:
    """RSNA 70/15/15, 18,678/4,003/4,003 images: marshuang80/gloria, gloria/datasets/preprocess_datasets.py (MGCA's for classification is the same).

    The steps of `mgca` with test_size=0.3. Checked on the owner's table against sklearn 1.9.1 and pandas, all ids.
    """
    return _sorted(table, math.ceil(0.3 * len(table.studies))), ["split: GLoRIA's 70/15/15 of RSNA, made by its steps"]


def _sorted(table: StudyTable, held: int) -> list[Study]:
    ids = sorted(study.id for study in table.studies)
    split = dict(zip(ids, _sklearn(len(ids), held), strict=True))
    return [replace(study, split=split[study.id]) for study in table.studies]


def _sklearn(count: int, held: int) -> list[str]:
    """The split of each of `count` rows: train_test_split(test_size=held, random_state=0), the held rows again in halves (the odd one to val).

    sklearn's ShuffleSplit permutes the rows: the first are its test part, the next its train part.
    """
    split, first = np.full(count, "train"), np.random.RandomState(0).permutation(count)[:held]
    second = np.random.RandomState(0).permutation(held)
    half = -(-held // 2)
    split[first[second[:half]]], split[first[second[half:]]] = "val", "test"
    return split.tolist()


def mgca_rows(table: StudyTable) -> Made:
    """SIIM as GLoRIA and MGCA split it, 70/15/15 over the ROWS of its table: pieces of one image land in several splits. A marked reproduction.

    gloria/datasets/preprocess_datasets.py and mgca/preprocess/siim.py take the same steps: those of `gloria`, over rows. An image in several
    splits becomes a study of each, "<image>#<split>", with the masks (and extra["rows"], extra["mask_rows"]) of its rows there.
    Checked on the owner's later table (12,954 rows) against sklearn 1.9.1, all rows: 8,578/1,910/1,903 images, 311 in several splits, 154 of test
    also in train. MGCA names "stage 1" as its source, an earlier and smaller table that was not at hand: a reconstruction.
    """
    numbers = [number for study in table.studies for number in _rows(study)[0]]
    count = max(table.counts.get("rows", (0, 0))[0], max(numbers, default=1) - 1)  # rows of images that are not there count, too
    split = _sklearn(count, math.ceil(0.3 * count))
    made = [part for study in table.studies for part in _parts(study, split)]
    return made, [f"split: MGCA's and GLoRIA's of the {count:,} rows of SIIM's table, made by their steps"]


def _rows(study: Study) -> tuple[Sequence[int], Sequence[int]]:
    """Its rows, and those of its masks. DataError D004 when the table does not tell them."""
    its, of_masks = study.extra.get("rows", ()), study.extra.get("mask_rows", ())
    if not its or len(of_masks) != len(study.masks):
        raise DataError(f"study {study.id[:80]} does not say which rows its masks are", "read SIIM's own folder, or prepare it again", "D004")
    return its, of_masks


def _parts(study: Study, split: Sequence[str]) -> Iterator[Study]:
    """One study for each split that its rows are in. The first row of the table has number 2."""
    its, of_masks = _rows(study)
    there = [name for name in SPLITS if any(split[number - 2] == name for number in its)]
    for name in there:
        masks = [(number, mask) for number, mask in zip(of_masks, study.masks, strict=True) if split[number - 2] == name]
        here = {"rows": [number for number in its if split[number - 2] == name], "mask_rows": [number for number, _ in masks]}
        yield replace(
            study,
            id=f"{study.id}#{name}" if len(there) > 1 else study.id,
            split=name,
            masks=tuple(mask for _, mask in masks),
            extra={**study.extra, **here},
        )


LOVT_SEED = 123  # not in its repository (--seed is None there): found by trial, and every list of RSNA, SIIM and NIH comes out as shipped


def lovt(table: StudyTable) -> Made:
    """LoVT's 60/20/20 of RSNA (16,010/5,337/5,337) and SIIM (7,229/2,409/2,409) by image: philip-mueller/lovt, src/data/datasets.

    `random_split_indices` over the images in the order of the table: test, validation, train. Checked: the lists made from the owners' tables have
    the size in bytes of the files that LoVT ships, and the same ids wherever these were read (beginning and end of them).
    """
    ids = [study.id for study in table.studies]
    order, held = np.random.RandomState(LOVT_SEED).permutation(len(ids)), round(0.2 * len(ids))
    split = {ids[at]: "test" if place < held else "val" if place < 2 * held else "train" for place, at in enumerate(order.tolist())}
    return [replace(study, split=split[study.id]) for study in table.studies], ["split: LoVT's 60/20/20 by image, made by its steps"]


def lovt_nih(table: StudyTable) -> Made:
    """LoVT's 60/20/20 by patient of the 880 NIH images with boxes (528/176/176) and of 100 without finding of the owner's test list: 588/196/196.

    src/data/datasets/nih_cxr/nih_cxr_dataset.py: patients in the order of BBox_List_2017.csv, then those of pandas' `sample` of 100. The 100 need
    data.boxes_only=false and the owner's lists. The two parts are split apart: 30 patients are in several splits of the whole (marked), none of the
    images with boxes. Checked against LoVT's files as `lovt` was; the 100 for their split, the owner's test list (9,861 images) was not at hand.
    """
    if not (root := _root(table)):
        raise DataError("nih_boxes, split=lovt: needs BBox_List_2017.csv, which a prepared folder does not have", "read NIH's own folder", "D001")
    generator = np.random.RandomState(LOVT_SEED)
    boxed = dict.fromkeys(row["Image Index"] for row in read_table(find(root, (BOXES,), CARD), ("Image Index",), ragged=True))
    listed = list(_lovt_patients(list(boxed), generator))
    if any(note.startswith("split: the owner's") for note in table.notes):
        clear = [s.id for s in table.studies if s.split == "test" and s.id not in boxed and not any(s.labels.values())]
        listed += _lovt_patients([clear[at] for at in generator.permutation(len(clear))[:100].tolist()], generator)
    made, notes = _by_list(table, listed, "LoVT's lists")
    return made, ["split: LoVT's 60/20/20 of NIH's boxes by patient, made by its steps", *notes]


def _lovt_patients(ids: Sequence[str], generator: np.random.RandomState) -> Iterator[tuple[str, str]]:
    """(id, split) by patient, the first eight digits: patients in random order fill test, then val, up to a fifth of the images each."""
    groups: dict[str, list[str]] = {}
    for id in ids:
        groups.setdefault(id[:8], []).append(id)
    patients, full, sizes = list(groups), round(0.2 * len(ids)), Counter[str]()
    for at in generator.permutation(len(patients)).tolist():
        split = "test" if sizes["test"] < full else "val" if sizes["val"] < full else "train"
        sizes[split] += len(groups[patients[at]])
        yield from ((id, split) for id in groups[patients[at]])


def lovt_covid(table: StudyTable) -> Made:
    """LoVT's 60/20/20 of COVID Rural by patient, 133/44/44 images: read from its own train.csv, validation.csv and test.csv in data.root.

    They cannot be made again: src/data/datasets/COVID_rural splits patients in the order of os.listdir, that of a disk. DataError D001 says where
    LoVT keeps them. The hashes are those of the files as read in the repository.
    """
    root = _root(table)
    if missing := [name for name in LISTS if not (root and (root / name).is_file())]:
        where = "datasets/Opacity-Segmentation-COVID/opacity_segmentation_covid_chest_X_ray-master/covid_rural_annot"
        fix = f"copy them from github.com/philip-mueller/lovt, {where}"
        raise DataError(f"covid_rural, split=lovt: no {', '.join(missing)} in {root or 'a prepared folder'}", fix, "D001")
    return from_file(table, root)


def from_file(table: StudyTable, path: Path) -> Made:
    """Lists of your own: a CSV with columns id (of a study; .png may be left out) and split, or a folder with train.csv, validation.csv, test.csv.

    Such a folder is how LoVT ships its lists: a column ID in each, what else they hold is not read. Studies that are not listed are left out.
    """
    if not path.exists():
        raise DataError(f"split={path}: no table or folder there", f"give a CSV with columns id and split, or one of {', '.join(OTHERS)}", "D001")
    if path.is_dir():
        listed = (pair for name, split in LISTS.items() for pair in _listed(path / name, split))
    else:
        listed = _listed(path)
    made, notes = _by_list(table, listed, path.name)
    return made, [f"split: that of {path.name}", *notes]


def _listed(path: Path, split: str = "") -> Iterator[tuple[str, str]]:
    """(id, split) of each row; `split`: of the whole file. DataError D001, D003, D004."""
    for number, row in rows(path, ()):
        row = {name.lower(): value for name, value in row.items()}
        if missing := [name for name in ("id", "split") if name not in row and not (split and name == "split")]:
            fix = "give a CSV with columns id and split; for train.csv, validation.csv and test.csv name their folder"
            raise DataError(f"{path}: no column {' and '.join(missing)} (have {names(row)})", fix, "D003")
        word = (split or str(row["split"])).lower()
        if word not in WORDS:
            raise DataError(f"{path.name}, row {number}: split '{word[:20]}'", f"known: {', '.join(WORDS)}", "D004")
        yield str(row["id"]), WORDS[word]


def _by_list(table: StudyTable, listed: Iterable[tuple[str, str]], where: str) -> Made:
    """The studies in the splits of a list. An id that is no study is an error, unless the table says that it left so many out."""
    known = {study.id.removesuffix(".png"): study.id for study in table.studies} | {study.id: study.id for study in table.studies}
    split, unknown = dict[str, str](), list[str]()
    for id, name in listed:
        if (own := known.get(id)) is None:
            unknown.append(id)
        elif own in split:
            raise DataError(f"{where}: {own[:80]} is listed twice", "list each study once", "D050")
        else:
            split[own] = name
    left = sum(table.left_out.values())
    if not split or len(unknown) > left:
        what = f"{where}: {len(unknown)} of {len(unknown) + len(split)} ids are no study of the table: {_some(unknown)}"
        raise DataError(what, f"ids look like {table.studies[0].id[:60]}" if table.studies else "the table is empty", "D004")
    notes = [f"{len(unknown)} ids of {where} are no study of the table, which left out {left:,}"] if unknown else []
    return [replace(study, split=split.get(study.id, UNUSED)) for study in table.studies], notes


def _root(table: StudyTable) -> Path | None:
    """The owner's folder, where the images are files of it."""
    root = next((getattr(image, "root", "") for study in table.studies for image in study.images), "")
    return Path(root) if root else None


def _some(ids: Sequence[str], count: int = 3) -> str:
    return ", ".join(id[:40] for id in ids[:count]) + (", ..." if len(ids) > count else "")


Protocol = Callable[[StudyTable], Made]
PROTOCOLS: Mapping[str, Mapping[str, Protocol]] = {  # dataset -> its splits by name
    "rsna": {"patient": patient, "mgca": mgca, "gloria": gloria, "lovt": lovt},
    "siim": {"patient": patient, "lovt": lovt, "mgca_rows": mgca_rows},
    "covid_rural": {"patient": patient, "lovt": lovt_covid},
    "nih_boxes": {"official": official, "patient": patient, "lovt": lovt_nih},
    "chexlocalize": {"official": official, "patient": patient},
    "montgomery": {"patient": patient},
}
OTHERS: Mapping[str, Protocol] = {"table": as_told, "patient": patient}  # of every other dataset: manifest, folders, phantom, an outside one
REPRODUCTIONS = ("mgca", "gloria", "lovt", "mgca_rows")  # published by others: a leak is theirs, and marked
INSTEAD = dict.fromkeys(
    (("siim", "mgca"), ("siim", "gloria"), ("siim", "gloria_rows")),
    ": GLoRIA and MGCA take the same steps, over rows, which leaks; that is mgca_rows, marked. By image: lovt, patient",
)


# ------------------------------------------------------------------------------------------------ published lists

PUBLISHED: Mapping[
    tuple[str, str], Lists
] = {  # computed from the owners' tables (covid_rural: LoVT's files); nih_boxes lovt: with, and without, its 100
    ("rsna", "mgca"): {"train": (16_010, "3941bdb6a942688b"), "val": (5_337, "93e72ac638814123"), "test": (5_337, "e75061d168ffcae0")},
    ("rsna", "gloria"): {"train": (18_678, "fdea2323542c4f7d"), "val": (4_003, "6279287fa3e3d1e3"), "test": (4_003, "00eda73bce215e4b")},
    ("rsna", "lovt"): {"train": (16_010, "4a17616f989893f0"), "val": (5_337, "ca6de81cd228a53d"), "test": (5_337, "795d5c00f744d462")},
    ("siim", "lovt"): {"train": (7_229, "6b0e391d17f939a0"), "val": (2_409, "c57ac00364b3c4f8"), "test": (2_409, "e0b2cf57c706f261")},
    ("siim", "mgca_rows"): {"train": (8_578, "42ccde3e304301d7"), "val": (1_910, "ae1f7959db566e12"), "test": (1_903, "25101aa9e30ffa8a")},
    ("covid_rural", "lovt"): {"train": (133, "955630ce9d549dca"), "val": (44, "2428642193b269aa"), "test": (44, "124baa2c619070f6")},
    ("nih_boxes", "lovt"): {"train": (588, "2278737164b0a5a0"), "val": (196, "7b0c8243ded0f623"), "test": (196, "87f9475b692a5ad0")},
    ("nih_boxes", "lovt boxes"): {"train": (528, "713cfb2c77501fc0"), "val": (176, "797edf950012ceb1"), "test": (176, "786aedd799c98e26")},
}


def _compared(dataset: str, protocol: str, studies: Sequence[Study]) -> list[str]:
    """A note that the lists have the published hashes, or a warning (D062) that they have not; nothing for other protocols."""
    published = [lists for (name, which), lists in PUBLISHED.items() if name == dataset and which.partition(" ")[0] == protocol]
    if not published:
        return []
    ids = {name: [study.id for study in studies if study.split == name] for name in SPLITS}
    own = {name: (len(its), digest(its)) for name, its in ids.items()}
    if own in published:
        return [f"the lists are those computed from the owner's whole table: {', '.join(f'{name} {own[name][1]}' for name in SPLITS)}"]
    sizes = {name: count for name, (count, _) in own.items()}
    for lists in published:
        if sizes == {name: count for name, (count, _) in lists.items()}:
            other = ", ".join(f"{name} {own[name][1]} instead of {lists[name][1]}" for name in SPLITS if own[name] != lists[name])
            return [f"D062 these are not the published lists, of the same size with other ids: {other}"]
    whole = "/".join(f"{published[0][name][0]:,}" for name in SPLITS)
    return [f"D062 these are not the published lists, which have {whole} studies: is the table whole, and in its owner's order?"]


def _marked(protocol: str, studies: Sequence[Study], found: Mapping[str, set[str]]) -> str:
    test = [study for study in studies if study.split == "test"]
    seen = sum("train" in found.get(study.patient, ()) for study in test)
    what = "images in several splits, a part of their mask in each" if protocol == "mgca_rows" else "patients in several splits"
    return (
        f"LEAKS, as published: '{protocol}' has {len(found):,} {what}; {seen:,} of {len(test):,} test images have theirs in train, too: "
        "compare only with numbers made the same way"
    )
