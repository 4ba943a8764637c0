"""The pages that are made of the code: configuration.md, and datasets/<key>.md of every registered dataset.

    python docs/generate.py            writes them; --check says which are not what the code says

A dataset's page is its reader's: the card (who owns it), the docstring (how it lies on the disk), the keywords with their comments (options).
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
NOTE = "<!-- Written by `python docs/generate.py` from {source}: change that, not this page. -->"
TASKS = {"grounding": "phrase grounding", "segmentation": "segmentation", "classification": "classification", "reportgen": "report generation"}
PROGRAMS = {
    "grounding": "evaluate --checkpoint RUN",
    "segmentation": "train --backbone RUN",
    "classification": "probe --backbone RUN",
    "reportgen": "train",
}
PATHS = {"reports": "REPORTS", "images": "IMAGES"}  # options that name another folder, and the word that stands for it
ACCESS = {  # a word of the card's `access` -> what one has to do; from the owners' pages as we know them
    "BIMCV form": "Fill in the form on BIMCV's page; it answers with links.",
    "credentialed": "An account on PhysioNet, its training in human subjects research, the signed agreement of the set; then a download by `wget`.",
    "registration": "Register with Stanford AIMI and agree to its terms; the links it sends expire.",
    "Hugging Face": "An account on Hugging Face and the form on the set's page, which is answered at once or by its owners; then `hf download`.",
    "Kaggle": "A Kaggle account; accept the rules of the competition, then download by the site or its client.",
    "Baidu": "By the link in the repository. It states no licence: ask its owners before you use it.",
    "open": "No registration.",
}


def pages() -> dict[Path, str]:
    """Every generated page, by its path."""
    from elvis.registry import DATASETS

    made = {DOCS / "datasets" / f"{key}.md": dataset(key) for key in DATASETS if DATASETS.get(key).__module__.startswith("elvis.")}
    return {DOCS / "configuration.md": configuration(), **made}


# --------------------------------------------------------------------------------------------------- configuration


def configuration() -> str:
    """Every key of every schema: its type, default and meaning. The options of a dataset stand on its own page."""
    from elvis import reference

    text = [
        "# Configuration",
        NOTE.format(source="the schemas"),
        "",
        "A config is YAML; `extends: other.yaml` starts from another file of the same folder, and `key=value` on the command line has the last word.",
        "`--print-config` shows what came of it, `--help-config KEY` where a value comes from. All mistakes are listed at once, with the nearest",
        "valid names. A part in capitals is a name of your own; the options of a dataset stand on [its page](datasets.md).",
        "",
        "## Pretraining",
        *_sections(row for row in reference.rows() if not row.section.startswith("data: ")),
    ]
    for task, schema in schemas().items():
        text += [
            "",
            f"## {TASKS[task].capitalize()}",
            "",
            f"`python -m downstream.{task}`: [what it does]({task}.md).",
            *_sections(reference.rows(schema)),
        ]
        if task == "reportgen":
            from downstream.reportgen.decoders import DECODERS

            text += _sections(row for name in DECODERS for row in reference.named("decoder", name, DECODERS))
    return "\n".join(text) + "\n"


def schemas() -> dict[str, type]:
    """task -> the schema of its configs: the class that is named like it."""
    found = sorted(path.parent.name for path in (DOCS.parent / "downstream").glob("*/config.py"))
    return {task: getattr(importlib.import_module(f"downstream.{task}.config"), task.capitalize()) for task in found}


def _sections(rows: Iterable[Any]) -> Iterator[str]:
    """A table for each section; where a comment says the choices, they are not said twice."""
    found: dict[str, list[Any]] = {}
    for row in rows:
        found.setdefault(row.section, []).append(row)
    for section, members in found.items():
        yield from ("", f"### {section}", "", "| key | type | default | |", "|---|---|---|---|")
        for row in members:
            kind = "" if row.type in row.description else row.type
            yield f"| `{row.key}` | {_cell(kind)} | `{_cell(row.default)}` | {_cell(row.description)} |"


# -------------------------------------------------------------------------------------------------------- datasets


def dataset(key: str) -> str:
    """The page of one dataset."""
    from elvis.data.phantoms.layouts import layouts
    from elvis.registry import DATASETS

    reader = DATASETS.get(key)
    module = sys.modules[reader.__module__]
    card, known = getattr(module, "CARD", None), DATASETS.options(key)
    row = overview()[key]
    written = [name for name, layout in layouts().items() if layout.dataset == key]
    text = [f"# {_plain(row['what'])}", NOTE.format(source=f"elvis/data/datasets/{key}.py"), ""]
    text += ["| | |", "|---|---|", f"| `data.name` | `{key}` |", *_about(key, card, row), ""]
    if written:
        text += ["## Access", "", f"{card.access[0].upper()}{card.access[1:]}. {_access(card)} Licence: {card.licence}. See {_url(card.url)}.", ""]
        text += ["**Nothing of it was at hand here**: the reader is proved on phantoms written in the layout below, oddities included. Access and"]
        text += ["licence are as we know them, unverified: what the owner says holds.", ""]
    text += ["## On the disk", "", "```text", inspect.cleandoc(module.__doc__ or ""), "```", ""]
    if card and card.root and key not in ("manifest", "folders"):
        root = re.sub(r"data\.\w+", lambda name: f"`{name[0]}`", card.root)
        text += [f"{root[0].upper()}{root[1:]}. A root a level too high or too deep is told (D002), what is missing by its name (D001).", ""]
    text += ["## Commands", "", *_commands(key, card, known, row), ""]
    if written:
        text += ["Without the data, on phantoms in this layout" + (f" (also `{'`, `'.join(written[1:])}`)" if written[1:] else "") + ":", ""]
        text += ["```console", f"$ python -m elvis.data export --layout {written[0]} --out TRY"]
        text += [f"$ python -m elvis.data doctor {key} root=TRY", "```", ""]
    text += ["## Options", "", "On the command line of `elvis.data` as they are, in a config (and for `elvis.pretrain`) under `data:`.", ""]
    text += ["| option | type | default | |", "|---|---|---|---|", *_options(key), ""]
    return "\n".join([*text, "All sets, what `prepare` writes, and every code: [datasets](../datasets.md).", ""])


def overview() -> dict[str, dict[str, str]]:
    """key -> its cells in the table of datasets.md, by column."""
    lines = [line for line in (DOCS / "datasets.md").read_text().splitlines() if line.startswith("|")]
    columns = [cell.strip() for cell in lines[0].strip("|").split("|")]
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines[2:] if line.startswith("| [`") or line.startswith("| `")]
    return {re.sub(r"[^\w]", "", re.split(r"\]", row[0])[0]): dict(zip(columns, row, strict=True)) for row in cells if len(row) == len(columns)}


def tasks(key: str) -> dict[str, list[str]]:
    """task -> its shipped configs that read this dataset."""
    from elvis import config

    found: dict[str, list[str]] = {}
    for task in TASKS:
        for name in config.shipped(task):
            if config.read(config.find(name, task)).get("data", {}).get("name") == key:
                found.setdefault(task, []).append(name)
    return found


def _about(key: str, card: Any, row: Mapping[str, str]) -> Iterator[str]:
    for column, title in (("text", "text"), ("where", "where things are"), ("split", "split")):
        if row[column]:
            yield f"| {title} | {row[column]} |"
    if card and card.patients:
        yield f"| patients | those of `{card.patients}`: a model that was trained on them is refused in an evaluation |"
    owner = getattr(sys.modules[f"elvis.data.datasets.{key}"], "OWNER", {})
    if owner and all(isinstance(count, int) for count in owner.values()):
        yield f"| the owner counts | {', '.join(f'{count:,} {what}' for what, count in owner.items())}; what is found is put beside it |"
    for task, names in tasks(key).items():
        yield f"| {TASKS[task]} | `--config {'`, `--config '.join(names)}` ([page](../{task}.md)) |"


def _access(card: Any) -> str:
    return " ".join(told for word, told in ACCESS.items() if word in card.access)


def _commands(key: str, card: Any, known: Mapping[str, Any], row: Mapping[str, str]) -> list[str]:
    """The exact lines, placeholders in capitals."""
    if key.startswith("phantom"):
        config = {"phantom": "elvis_phantom", "phantom_ct": "structure_ct_phantom"}[key]
        show = [f"$ python -m elvis.data show {key} --out sheet.png"] if key == "phantom" else []
        return ["```console", *show, f"$ python -m elvis.pretrain --config {config}", "```"]
    folder = "READY" if key == "prepared" else "ROOT"
    more = "".join(f" {name}={word}" for name, word in PATHS.items() if name in known and key not in ("manifest", "folders"))
    lines = ["```console", f"$ python -m elvis.data doctor  {key} root={folder}{more}"]
    volumes = "CT" in row["what"]
    if key != "prepared":
        how = "size=[240,480,480] spacing=[1.5,0.75,0.75] dtype=int16" if volumes else "size=512"
        how = "size=[240,480,480]" if key == "ctrg" else how  # grey values whose spacing nobody tells
        lines += [f"$ python -m elvis.data prepare {key} root=ROOT{more} out=READY {how}"]
    lines += ["$ python -m elvis.data show    prepared root=READY out=sheet.html"] if not volumes else []
    if key == "prepared" or (row["text"] and "phrases" not in row["text"]):  # phrases alone are for evaluation
        lines += [f"$ python -m elvis.pretrain --config {'clip_ct' if volumes else 'elvis_cxr'} data.name=prepared data.root=READY"]
    for task, names in tasks(key).items():
        paths = "".join(f" data.{name}={word}" for name, word in PATHS.items() if name in known and task == "grounding" and key != "manifest")
        lines += [f"$ python -m downstream.{task} {PROGRAMS[task]} --config {names[0]} data.root=ROOT{paths}"]
    return [*lines, "```"]


def _options(key: str) -> Iterator[str]:
    """A row for each option, as `elvis.reference` says it."""
    from elvis import reference
    from elvis.registry import DATASETS

    for row in reference.named("data", key, DATASETS):
        said = row.description or ("the folder described above" if row.key == "data.root" else "")
        yield f"| `{row.key.removeprefix('data.')}` | {_cell(row.type)} | `{_cell(row.default)}` | {_cell(said)} |"


def _url(url: str) -> str:
    return f"<https://{url}>" if re.fullmatch(r"[\w./-]+\.\w+/[\w./-]+", url) else url


def _plain(cell: str) -> str:
    return cell[0].upper() + cell[1:].replace("`", "")


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def main() -> int:
    """Write the pages; with --check only say which are not what the code says, and answer 1 if there are any."""
    stale = {path: text for path, text in pages().items() if not path.is_file() or path.read_text() != text}
    for path, text in stale.items():
        print(path.relative_to(DOCS.parent))
        if "--check" not in sys.argv:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    return int("--check" in sys.argv and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
