"""Generated reports as files: JSON with all they rest on, plain text to read, and ReXrank's JSON to compare with others.

    save(out / "reports.json", to_json(reports))      from_json(path.read_text())  ->  the same reports
    save(out / "reports.txt", to_text(reports))
    save(out / "rexrank.json", to_rexrank(reports, entries))

A text about a patient is for its owner alone: `save` writes with mode 0600 unless told otherwise (phantoms).

ReXrank: a submission is {study: {what its test set says of the study ..., "model_prediction": text}}; its evaluation script reads
section_findings, section_impression and model_prediction of every study, and scores against "Findings: ... Impression: ...".
Source: github.com/rajpurkarlab/ReXrank, data/READMD.md (fields), example_files/evaluation_script.md and merversa_inference.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from downstream.reportgen.reports import Generated, Spoken
from elvis.errors import DataError
from elvis.results import write_file

FORMAT = "elvis reports 1"
CELLS = 2**24  # of a map that is read
DIGITS, FINER = 4, 6  # of confidences and maps in a file, and of maps of volumes
PREDICTION, SECTIONS = "model_prediction", ("section_findings", "section_impression")


def save(path: Path | str, content: str, *, private: bool = True) -> Path:
    """Write a file, whole or not at all; private: readable by its owner alone."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, content.encode("utf-8", "backslashreplace"), private=private)  # bytes of a file's name that are not UTF-8; in JSON that is right
    return path


# ------------------------------------------------------------------------------------------------------------- JSON


def to_json(reports: Sequence[Generated]) -> str:
    """Everything of every report: {format, reports: [{id, text, cut, image, sentences: [{text, confidence, ..., map, box, ...}]}]}.

    A report a line. `text` is there for other programs, it is what the kept sentences make. Confidences and maps (nested lists, h w) have
    4 digits, so the sum of a map read again is only nearly 1. The map of a volume has thousands of cells: {"shape": [z, h, w], "place", "weight"}
    names those above 0, by their number in row-major order, to 6 digits.
    """
    lines = (json.dumps(_report(report), ensure_ascii=False, allow_nan=False) for report in reports)
    return f'{{"format": "{FORMAT}", "reports": [\n' + ",\n".join(lines) + "\n]}\n"


def is_ours(text: str) -> bool:
    """Whether a file is one of `to_json`."""
    value = _parsed(text, "a file of reports")
    return isinstance(value, dict) and value.get("format") == FORMAT


def from_json(text: str) -> tuple[Generated, ...]:
    """What `to_json` wrote. DataError: another kind of file, or one that lacks something."""
    value = _parsed(text, "reports.json")
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise DataError("this is no file of generated reports", f"it should begin with the format '{FORMAT}', as `to_json` writes it")
    try:
        return tuple(_generated(report) for report in value["reports"])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(f"a report in the file is not complete: {type(error).__name__} {str(error)[:60]}", "write it again with `to_json`") from None


def _report(report: Generated) -> dict[str, Any]:
    sentences = [_sentence(sentence) for sentence in report.sentences]
    return {"id": report.id, "text": report.text, "cut": report.cut, "image": report.image, "sentences": sentences}


def _sentence(said: Spoken) -> dict[str, Any]:
    return {
        "text": said.text,
        "confidence": round(float(said.confidence), DIGITS),
        "topic": None if said.topic is None else int(said.topic),
        "topic_confidence": None if said.topic_confidence is None else round(float(said.topic_confidence), DIGITS),
        "map": None if said.map is None else _map(np.asarray(said.map, np.float64)),
        "box": None if said.box is None else [float(edge) for edge in said.box],
        "region": said.region,
        "kept": bool(said.kept),
        "cut": bool(said.cut),
    }


def _map(map: np.ndarray) -> Any:
    if map.ndim == 2:
        return [[round(cell, DIGITS) for cell in row] for row in map.tolist()]
    weights = map.ravel().round(FINER)
    place = np.flatnonzero(weights)
    return {"shape": list(map.shape), "place": place.tolist(), "weight": weights[place].tolist()}


def _read_map(told: Any) -> np.ndarray | None:
    if told is None:
        return None
    if not isinstance(told, Mapping):
        map = np.asarray(told, np.float32)
    else:
        if math.prod(told["shape"]) > CELLS:
            raise ValueError("a map of too many cells")
        map = np.zeros(tuple(told["shape"]), np.float32)
        map.ravel()[np.asarray(told["place"], np.int64)] = told["weight"]
    if map.ndim != (3 if isinstance(told, Mapping) else 2):
        raise ValueError("a map that is no grid")
    return map


def _generated(told: Mapping[str, Any]) -> Generated:
    return Generated(str(told["id"]), tuple(_spoken(sentence) for sentence in told["sentences"]), bool(told["cut"]), int(told["image"]))


def _spoken(told: Mapping[str, Any]) -> Spoken:
    box = None
    if told["box"] is not None:
        x1, y1, x2, y2 = map(float, told["box"])
        box = (x1, y1, x2, y2)
    return Spoken(
        text=str(told["text"]),
        confidence=float(told["confidence"]),
        topic=told["topic"],
        topic_confidence=told["topic_confidence"],
        map=_read_map(told["map"]),
        box=box,
        region=str(told["region"]),
        kept=bool(told["kept"]),
        cut=bool(told["cut"]),
    )


# ------------------------------------------------------------------------------------------------------------- text


def to_text(reports: Sequence[Generated]) -> str:
    """One report a study, a blank line between: its id, its text, and lines in brackets for what a reader has to know.

    Sentences on which the model abstained are left out, and a line says how many; so does one for a report that reached its limit.
    """
    return "\n".join("\n".join([report.id, *_told(report)]) + "\n" for report in reports)


def _told(report: Generated) -> list[str]:
    out = sum(not sentence.kept for sentence in report.sentences)
    lines = [report.text or "(no sentence)"]
    if out:
        lines.append(f"({out} sentence{'s' * (out > 1)} left out: the model was not sure enough)")
    if short := sum(sentence.cut and sentence.kept for sentence in report.sentences):
        lines.append(f"({short} sentence{'s' * (short > 1)} reached the limit of length before the end)")
    if report.cut:
        lines.append("(cut: the report reached its limit before its end)")
    return lines


# ---------------------------------------------------------------------------------------------------------- ReXrank


class Judged(NamedTuple):
    """A study of a ReXrank file: what a model said of it, and the text that ReXrank's script scores it against."""

    prediction: str
    reference: str


def to_rexrank(reports: Sequence[Generated], entries: Mapping[str, Mapping[str, Any]]) -> str:
    """A submission: `entries` are those of the test set (ReXRank_*.json as read from JSON), study -> fields; each gets its model_prediction.

    Raises DataError for a study of the test set without a report, for two reports of one, and for a report of another study: a submission
    that lacks studies is not scored.
    """
    told: dict[str, str] = {}
    for report in reports:
        if report.id in told:
            raise DataError(f"two reports of study '{report.id[:60]}'", "give one report a study: ReXrank scores studies, not images", "D050")
        told[report.id] = report.text
    if missing := [study for study in entries if study not in told]:
        raise DataError(f"no report of {len(missing):,} studies, such as '{missing[0][:60]}'", "generate reports for the whole test set")
    if others := [study for study in told if study not in entries]:
        raise DataError(f"{len(others):,} reports are of no study of the test set, such as '{others[0][:60]}'", "use the ids of its JSON file")
    filled = {study: {**fields, PREDICTION: told[study]} for study, fields in entries.items()}
    return json.dumps(filled, indent=4, ensure_ascii=False) + "\n"


def from_rexrank(text: str) -> dict[str, Judged]:
    """{study: (prediction, reference)} of a submission, anybody's. An absent section counts as the word None, as in ReXrank's own script.

    Raises DataError where the file is none, or a study lacks a field.
    """
    value = _parsed(text, "a ReXrank file")
    if not isinstance(value, dict) or not all(isinstance(fields, dict) for fields in value.values()):
        raise DataError("this is no ReXrank file", "it should hold {study: {..., 'model_prediction': text}}", "D004")
    needed = (*SECTIONS, PREDICTION)
    for study, fields in value.items():
        if lacks := [name for name in needed if name not in fields]:
            raise DataError(f"study '{study[:60]}' has no {lacks[0]}", f"every study needs {', '.join(needed)}", "D003")
    return {study: Judged(_words(fields[PREDICTION]) or "", _reference(fields)) for study, fields in value.items()}


def _reference(fields: Mapping[str, Any]) -> str:
    findings, impression = (_words(fields[name]) for name in SECTIONS)
    return f"Findings: {findings} Impression: {impression}"


def _words(value: Any) -> str | None:
    """A text; None for null and NaN (which Python's JSON knows)."""
    return None if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise DataError(f"{what}: its lists and objects are nested too deep", "give the file as it was written", "D004") from None
    except ValueError as error:
        raise DataError(f"{what} is not JSON: {str(error)[:80]}", "give the file as it was written", "D004") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """ValueError for a key that is there twice: json.loads would take the last one without a word."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found
