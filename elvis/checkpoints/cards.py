"""What a checkpoint says of itself in words: MODEL_CARD.md, and DATA_CARD.md of what it was trained on.

    card(about, metrics, provenance, config)      the same parts for every kind of checkpoint; a task tells its own by an `About`
    data_card(name, table, options)               whose data, how much of it, what was left out, what is not in it

Facts only: what was not measured is called so. No report text, no id, no path, no name of a user; a word of a user (a data set's title, a class)
stands as code, on one line.
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from elvis.data.problems import CODES
from elvis.data.studies import COMPUTED, digest
from elvis.errors import visible
from elvis.notice import NOTICE
from elvis.registry import DATASETS, OBJECTIVES
from elvis.types import Metric, Study

if TYPE_CHECKING:
    from torch import nn

    from elvis.data.studies import StudyTable
    from elvis.data.tables import Card
    from elvis.pretrained import Pretrained

SHORT = 16  # studies: of a shorter list the ids could be guessed from its hash
VIEWS = ("AP", "PA", "LATERAL", "OTHER", "UNKNOWN")
TAGS = ["radiology", "research-use-only"]
NOBODY_KNOWS = "**Everything else.** Children, other scanners and hospitals, devices, rare findings, groups of patients: not measured."
TERMS = (
    "The program is Apache-2.0. No licence of these weights is claimed here: they are shared, if at all, under the terms of the data they were "
    "trained on and of the weights they began with."
)
LANGUAGE = {  # of the texts an adapter gives; a data set that is not here has none
    **dict.fromkeys(("mimic_cxr", "chexpert_plus", "openi", "r2gen", "ms_cxr", "rexgroundingct"), "English"),
    **dict.fromkeys(("ct_rate", "radgenome_ct"), "English, translated from Turkish by a machine"),
    "padchest": "Spanish, stemmed, lower case, without accents",
    "padchest_gr": "English, or Spanish with language=es",
    "ctrg": "not told by its owner",
    **dict.fromkeys(("vindr_cxr", "rsna", "nih_boxes"), "English phrases by template; no reports"),
    **dict.fromkeys(("phantom", "phantom_ct"), "English, written by a grammar"),
    "manifest": "the user's own; not told",
}
LABELS = {  # where an adapter's labels, boxes and masks are from
    "mimic_cxr": "read from the reports by a program (CheXpert or NegBio), or by radiologists (687 test studies)",
    "chexpert_plus": "read from the reports by a program (CheXbert)",
    "padchest": "24 % by physicians, the others by a network",
    "padchest_gr": "sentences and boxes by radiologists",
    "ct_rate": "predicted from the reports (RadBERT)",
    "vindr_cxr": "boxes by radiologists: three of each training image, five agreed of each test image",
    **dict.fromkeys(("phantom", "phantom_ct"), "known exactly: what was drawn"),
    **dict.fromkeys(("manifest", "folders"), "the user's own"),
}
LATERALITY, NEGATION = "Left and right", "Negation"
RISKS: Mapping[str, Mapping[str, str]] = {  # what is known to go wrong -> the metrics that would show it
    LATERALITY: {
        "swap": "how often each of two images that differ in a finding's place prefers its own sentence, by the map's maximum; chance is .5",
        "swap_global": "the same by pooled features",
        "swap_image": "how often a sentence prefers its own image to the twin",
    },
    NEGATION: {},
}


@dataclass(frozen=True)
class About:
    """What one kind of checkpoint says of itself. `parts`: name -> (what it is, its parameters); `risks` as RISKS; `notes`: of its training."""

    title: str
    use: str
    takes: str  # what it is fed
    parts: Mapping[str, tuple[str, int]]
    load: str  # code
    tags: tuple[str, ...] = ()
    risks: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: RISKS)
    notes: tuple[str, ...] = ()


def about(pretrained: Pretrained) -> About:
    """Of image and text encoders trained together."""
    model: Any = pretrained.model
    spec = model.image.spec
    stride = " x ".join(map(str, spec.cell if len(set(spec.cell)) > 1 else spec.cell[:1]))
    image = f"{spec.name}, {spec.ndim}D, tokens of width {spec.width} at stride {stride}"
    rest = size(model) - size(model.image) - size(model.text)
    return About(
        title="elvis: image and text encoders",
        use="Research on radiographs and CT: features, maps of phrases, a starting point for segmentation, phrase grounding and report generation.",
        takes=takes(pretrained.preprocess, spec),
        parts={
            "image encoder": (image, size(model.image)),
            "text encoder": (f"`{word(str(model.recipe['text'].get('name')))}`, at most {pretrained.max_tokens} tokens", size(model.text)),
            "projections and heads": (f"into a shared space of {model.dim} dimensions", rest),
        },
        load="import elvis\n\nbackbone = elvis.load_backbone(DIR)          # tokens, grid, pyramid\n"
        'model = elvis.load_pretrained(DIR)           # + text: model.similarity(images, ["small left effusion"])',
        tags=("chest-ct" if spec.ndim == 3 else "chest-x-ray", "image-feature-extraction", "vision-language"),
    )


def card(about: About, metrics: Mapping[str, Any], provenance: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """MODEL_CARD.md. config: the run's, of which `train`, `objectives`, `image` and `text` are told."""
    computed = provenance.get("data") in COMPUTED
    measured = {name: value for name, value in numbers(metrics).items() if name not in ("step", "validation")}
    origin = {"commit": "unknown", "config": "unknown", "python": "unknown", "machine": "unknown", **provenance}
    versions = "".join(f", {package} {version}" for package, version in (provenance.get("versions") or {}).items())
    parts = {name: f"{what} | {count:,}" for name, (what, count) in about.parts.items()}
    total = sum(count for _, count in about.parts.values())
    named = [f"{word(split)}: {word(said)}" for split, said in (provenance.get("lists") or {}).items()]
    sections = {
        "Intended use": f"{about.use} By people who can tell when it is wrong.",
        "Out of scope": "Diagnosis, treatment, triage, any decision about a patient. Other parts of the body, other modalities, and texts in another "
        "language than those it was trained on."
        + (" It has seen drawings of chests only: what it says of an image of a patient means nothing." if computed else ""),
        "Architecture": f"Input: {about.takes}\n\n" + _table("part | what | parameters", {**parts, "all": f" | {total:,}"}),
        "Training data": f"`{word(provenance.get('data', 'unknown'))}`, {_amount(provenance)}. DATA_CARD.md says more."
        + (f" Lists of studies, by the hash of their ids:\n\n{_lines(named)}" if named else ""),
        "Training": _lines([*_objectives(config), *_start(config), *about.notes, _budget(provenance, config)]) or "Nothing is told.",
        "Measured": _table("metric | value | 95 % interval (patients drawn again)", {name: cell(value) for name, value in measured.items()})
        if measured
        else "Nothing was measured yet.",
        "Failure modes": _lines([*(_risk(name, known, measured) for name, known in about.risks.items()), NOBODY_KNOWS]),
        "Licences": TERMS + (" These began at random and saw drawings only." if computed and not _others(config) else ""),
        "How to load": f"```python\n{about.load}\n```",
        "Provenance": f"commit {origin['commit']}, config {origin['config']}, python {origin['python']}{versions}; {origin['machine']}.",
    }
    front = {"license": "other", "license_name": "terms-of-the-training-data", "library_name": "elvis", "tags": [*TAGS, *about.tags]}
    return _page(front, about.title, sections)


def data_card(name: str, table: StudyTable, options: Mapping[str, Any] | None = None) -> str:
    """DATA_CARD.md of a table: counts and kinds, nothing of a single study. options: those of a phantom, which are what made it."""
    computed, owner = name in COMPUTED, table.card
    key = owner.name if owner is not None else name
    splits: dict[str, list[Study]] = {}
    for study in table.studies:
        splits.setdefault(study.split, []).append(study)
    views = Counter(view if view in VIEWS else "OTHER" for study in table.studies for view in study.views)
    left = [f"{word(reason.replace('_', ' '))}: {count:,}" for reason, count in table.left_out.items() if count]
    left += [f"{problem.code}, {CODES[problem.code][1]}: {problem.count:,}" for problem in table.problems if problem.code in CODES]
    left += [f"patients left out on purpose: {len(table.excluded):,}"] if table.excluded else []
    missing = [what for what, held in KINDS.items() if not any(held(study) for study in table.studies)]
    columns = f"split | studies | patients | images | {' | '.join(f'with {what}' for what in KINDS)} | list"
    sections = {
        "Owner": _owner(owner, computed),
        "Counts": _table(columns, {word(split): _counts(studies, computed) for split, studies in splits.items()})
        + f"\n\nViews: {', '.join(f'{view} {count:,}' for view, count in views.most_common()) or 'not told'}. "
        + f"A list is the start of the SHA-256 of its sorted ids; one of fewer than {SHORT} studies is not named.",
        "Texts and labels": f"Language: {LANGUAGE.get(key, 'no texts')}.\nLabels, boxes, masks: {LABELS.get(key, 'as distributed by their owner')}.",
        **({"How it was made": _generator(name, options or {})} if computed else {}),
        "Left out": _lines(left) or "Nothing was counted as left out.",
        "What is not in it": (f"Nowhere: {', '.join(missing)}. " if missing else "")
        + "No counts by sex, age, origin or scanner were made. This page holds no image, no text, no id.",
    }
    front = {"pretty_name": word(key), "license": "other", "license_name": "terms-of-the-owner", "tags": TAGS}
    return _page(front, f"Data of this checkpoint: `{word(key)}`", sections)


def _page(front: Mapping[str, Any], title: str, sections: Mapping[str, str]) -> str:
    body = "".join(f"\n## {name}\n\n{text}\n" for name, text in sections.items())
    return f"---\n{yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=True)}---\n\n# {title}\n\n{NOTICE}\n{body}"


def _table(columns: str, rows: Mapping[str, str]) -> str:
    head = f"| {columns} |\n|{'---|' * (columns.count('|') + 1)}"
    return "\n".join([head, *(f"| {name} | {row} |" for name, row in rows.items())])


def _lines(texts: Iterable[str]) -> str:
    return "\n".join(f"- {text}" for text in texts if text)


def _owner(owner: Card | None, computed: bool) -> str:
    if computed:
        return "Made by elvis' own generator: computed, no patient, nobody's terms."
    if owner is None:
        return "Its owner and their terms are not known to elvis."
    title = word(owner.title.replace(" / ", ", "))
    return f"{title}. Access: {word(owner.access)}. Licence: {word(owner.licence)}. These terms hold for whatever is made of it."


KINDS: Mapping[str, Callable[[Study], Any]] = {
    "text": lambda study: study.sentences,
    "boxes": lambda study: any(g.boxes for g in study.groundings),
    "masks": lambda study: study.masks or any(g.masks for g in study.groundings),
    "labels": lambda study: study.labels,
}


def _counts(studies: Sequence[Study], computed: bool) -> str:
    held = " | ".join(f"{sum(bool(has(study)) for study in studies):,}" for has in KINDS.values())
    patients = "none" if computed else f"{len({study.patient for study in studies}):,}"
    images = sum(len(study.images) for study in studies)
    return f"{len(studies):,} | {patients} | {images:,} | {held} | {_name([study.id for study in studies])}"


def _generator(name: str, options: Mapping[str, Any]) -> str:
    """The settings of a generator of phantoms, its defaults among them; the knobs of radiographs one by one."""
    told = {option: options.get(option, parameter.default) for option, parameter in DATASETS.options(name).items()}
    if name == "phantom":
        from elvis.data.phantoms.knobs import make_knobs

        told["knobs"] = asdict(make_knobs(told["level"], told["knobs"]))
    rows = {option: word(str(value)) for option, value in told.items() if not isinstance(value, dict)}
    rows |= {f"knob: {knob}": f"{value:g}" for knob, value in told.get("knobs", {}).items()}
    return f"Computed from these settings, the same on every machine.\n\n{_table('setting | value', rows)}"


def lists(studies: Iterable[Study]) -> dict[str, str]:
    """split -> "N studies, list HASH": what a result names the studies of a run by; a short list has no hash."""
    found: dict[str, list[str]] = {}
    for study in studies:
        found.setdefault(study.split, []).append(study.id)
    return {split: f"{len(ids)} studies" + (f", list {name}" if (name := _name(ids)) else "") for split, ids in found.items()}


def _name(ids: Sequence[str]) -> str:
    return digest(ids) if len(ids) >= SHORT else ""


def numbers(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """For metrics.json: a `Metric` with an interval as {value, low, high}, one without as its value; what is not finite is left out."""
    plain: dict[str, Any] = {}
    for name, given in metrics.items():
        if not isinstance(given, Metric):
            plain[name] = given
        elif math.isfinite(given.value):
            bounds = {"low": given.low, "high": given.high}
            whole = all(bound is not None and math.isfinite(bound) for bound in bounds.values())
            plain[name] = {"value": given.value, **bounds} if whole else given.value
    return plain


def cell(value: Any) -> str:
    """A number of metrics.json as two cells of a table: value, interval."""
    if isinstance(value, Mapping):
        return f"{value['value']:.4g} | [{value['low']:.4g}, {value['high']:.4g}]"
    return f"{value:.4g} | " if isinstance(value, int | float) else f"{word(value)} | "


def takes(preprocess: Any, spec: Any) -> str:
    """What a model is fed, in words."""
    shown = " x ".join(map(str, preprocess.size))
    more = [f"{name} {' x '.join(f'{each:g}' for each in given)}" for name in ("spacing", "window") if (given := getattr(preprocess, name, ()))]
    return f"{shown} {'voxels (z, y, x)' if spec.ndim == 3 else 'pixels'} ({', '.join([preprocess.fit, *more])}), {spec.in_channels} channel(s)."


def size(module: nn.Module) -> int:
    """Parameters."""
    return sum(p.numel() for p in module.parameters())


def word(text: Any, width: int = 100) -> str:
    """A word of somebody on one line: no markup, no cell's end, no backtick, cut to a width."""
    return re.sub(r"[`|<>\[\]*]", "'", " ".join(visible(str(text)).split()))[:width]


def _amount(provenance: Mapping[str, Any]) -> str:
    if "labels" in provenance:
        return f"{provenance['labels']} labelled images of split {word(provenance.get('split', 'unknown'))}"
    return f"{provenance['studies']:,} training studies" if isinstance(provenance.get("studies"), int) else "number of studies unknown"


def _objectives(config: Mapping[str, Any]) -> list[str]:
    """A line an objective: its weight, what it compares, whether it is a reconstruction (as its own file says)."""
    said = []
    for label, given in (config.get("objectives") or {}).items():
        if given is None:
            continue
        name = given.get("kind", label)
        text = (sys.modules[OBJECTIVES.get(name).__module__].__doc__ or "") if name in OBJECTIVES else ""
        note = " **A reconstruction**: its formula is not published in full." if re.search("(?i)a reconstruction", text) else ""
        said.append(f"`{word(label)}`, weight {word(given.get('weight', 1.0))}. {text.strip().partition(chr(10))[0]}{note}")
    return said


def _others(config: Mapping[str, Any]) -> dict[str, str]:
    """side -> the weights of others that it began with, as the config calls them."""
    found = {}
    for side in ("image", "text"):
        given: Any = config.get(side) if isinstance(config.get(side), Mapping) else {}
        if named := next((given[key] for key in ("weights", "checkpoint", "pretrained") if given.get(key)), None):
            found[side] = f"{given.get('name')}" + ("" if named is True else f", {named}")
    return found


def _start(config: Mapping[str, Any]) -> list[str]:
    if "image" not in config and "text" not in config:
        return []
    began = _others(config)
    lines = [f"{side} encoder: began with weights of others (`{word(named)}`), under their owner's licence" for side, named in began.items()]
    return lines or ["both encoders began at random"]


def _budget(provenance: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    train, step = config.get("train") or {}, provenance.get("step")
    batch = train.get("batch_size")
    if not isinstance(step, int) or not isinstance(batch, int):
        return ""
    seen = step * batch * int(train.get("accumulate") or 1) * int(provenance.get("devices") or 1)
    return f"{step:,} steps, {seen:,} images seen, seed {word(provenance.get('seed', train.get('seed', 'unknown')))}"


def _risk(name: str, known: Mapping[str, str], measured: Mapping[str, Any]) -> str:
    found = [f"{metric} = {cell(measured[metric]).replace(' | ', ' ').strip()} ({says})" for metric, says in known.items() if metric in measured]
    return f"**{name}.** {'; '.join(found) if found else 'Not measured: nothing is known of it.'}"
