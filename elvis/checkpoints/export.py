"""What of a checkpoint is handed on: without the trainer's state; `public`, also without what could lead back to a patient, a user or a machine.

    left out, always   state/ (optimizer, queue of texts, counts)
    left out, public   patients.npy (hashes of ids); contents of queues; strings that are paths of somebody's machine; user and host names
    marked             provenance.json: contains_text_derived, and which parts were made of report texts

Weights are kept as they are. A text decoder, a vocabulary or a tokenizer that was trained on reports may repeat words of them: whoever
trained on credentialed data shares such a checkpoint under that data's own terms only (PhysioNet: models and derivatives, too).
"""

from __future__ import annotations

import contextlib
import getpass
import json
import re
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elvis.checkpoints.border import believed, read_json, read_tensors
from elvis.checkpoints.contents import write_json, write_tensors
from elvis.checkpoints.directory import resolve, verify, write
from elvis.errors import CheckpointError, ConfigError
from elvis.registry import OBJECTIVES

TEXTS = {  # what in a checkpoint is made of report texts -> how it is called
    "tokenizer": "tokenizer trained on the reports",
    "decoder.safetensors": "text decoder",
    "vocabulary": "vocabulary of the decoder",
    "topics.json": "sentences that many studies say",
}
HUB = re.compile(r"[\w.-]{1,80}/[\w.-]{1,80}")  # an id of a model hub looks like a path, and is none
UNKNOWN = "???"


def text_derived(folder: Path) -> list[str]:
    """The parts of a checkpoint that were made of report texts, by their names."""
    found = [called for name, called in TEXTS.items() if (folder / name).exists()]
    recipe = read_json(folder / "model.json")
    text: Any = recipe.get("text") if isinstance(recipe.get("text"), dict) else {}
    if text.get("name") != "tiny":  # others bring a tokenizer that was trained elsewhere
        found = [called for called in found if called != TEXTS["tokenizer"]]
    return [*found, *(["queue of texts"] if _queues(folder) else [])]


def _queues(folder: Path) -> list[str]:
    """Labels of the objectives of a checkpoint that hold texts. Their state for --resume is not looked at: it is never handed on."""
    file = folder / "objectives.json"
    recipes = read_json(file) if file.is_file() else {}
    with believed(file):
        return [label for label, recipe in recipes.items() if dict(_fresh(recipe).named_buffers())]


def _fresh(recipe: Mapping[str, Any]) -> Any:
    return OBJECTIVES.create(recipe["name"], **{k: v for k, v in recipe.items() if k != "name"})


def export(source: Path | str, target: Path, *, public: bool = False) -> Path:
    """A copy of a checkpoint, or of the best one of a run, as a new directory at `target`. Raises CheckpointError, ConfigError."""
    folder = resolve(source)
    if target.exists():
        raise ConfigError(f"{target} is there already", "give a new folder")
    if target.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"{target} lies inside the checkpoint itself", "give a folder outside of it")
    left_out = ("state/", *(["patients.npy"] if public else []))

    def fill(stage: Path) -> None:
        for name in verify(folder):  # what it lists, and nothing else that may lie there
            if not name.startswith(left_out):
                (stage / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / name, stage / name)
        if public:
            _empty_queues(stage)
            for path in (stage / "config.yaml", *stage.glob("*_CARD.md"), *stage.glob("*.json")):
                if path.is_file():
                    _scrub(path)
        parts = text_derived(folder)
        about = read_json(stage / "provenance.json")
        write_json(stage / "provenance.json", {**about, "contains_text_derived": bool(parts), "text_derived": parts, "public": public})
        with (stage / "MODEL_CARD.md").open("a") as card:
            card.write(f"\n## Texts\n\n{_sentence(parts)}\n")

    try:
        return write(target, fill)
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{folder} is not what elvis writes ({type(error).__name__}: {error})", "export a checkpoint of this version"
        ) from error


def _sentence(parts: list[str]) -> str:
    if not parts:
        return "Nothing in this checkpoint but the weights was made of report texts."
    return f"Made of report texts: {', '.join(parts)}. Share it under the terms of the data it was trained on."


def _empty_queues(stage: Path) -> None:
    """Buffers of objectives (queues) as those of a new one."""
    if not (labels := _queues(stage)):
        return
    recipes, weights = read_json(stage / "objectives.json"), read_tensors(stage / "objectives.safetensors")
    for label in labels:
        weights |= {f"{label}.{name}": buffer for name, buffer in _fresh(recipes[label]).named_buffers()}
    write_tensors(stage / "objectives.safetensors", weights)


def _scrub(path: Path) -> None:
    """Strings that are paths become ???; so do the names of this user and machine where they stand as words of their own."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        write_json(path, _scrubbed(json.loads(text)))
        return
    lines = []
    for line in text.splitlines():
        key, colon, value = line.partition(": ")
        lines.append(f"{key}{colon}{_word(value)}" if colon and path.suffix == ".yaml" else " ".join(map(_word, line.split(" "))))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _scrubbed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _scrubbed(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_scrubbed(each) for each in value]
    return _word(value) if isinstance(value, str) else value


def _word(text: str) -> str:
    """The text, or ??? for a path or an address; names of this user and machine inside it are ???, too."""
    bare = text.strip("'\"`,;()")
    if re.match(r"[/~\\]|\.\.?/|\w:\\|\w+://", bare) or (
        re.search(r"[/\\]\S", bare) and " " not in bare and (not HUB.fullmatch(bare) or Path(bare).exists())
    ):
        return text.replace(bare, UNKNOWN)
    for name in _names():
        text = re.sub(rf"\b{re.escape(name)}\b", UNKNOWN, text)
    return text


def _names() -> set[str]:
    """Of this user and machine; short ones and everybody's would be found in words."""
    names = {socket.gethostname()}
    with contextlib.suppress(KeyError, OSError):  # a user without a name
        names.add(getpass.getuser())
    return {name for name in names if len(name) > 3 and name not in ("root", "localhost")}
