"""What a run reports of itself, on studies it did not train on. A result is a row (model, prior, oracle) on a split.

    grounding      every phrase with a box: CNR, pointing game, mIoU (macro over findings), and the same over phrases of a focal
                   finding that name no place (`lf_*`: the headline, a text prior cannot help there); WID within an image
    swap           twin images that differ in one finding's place: does each image prefer its own sentence to its twin's?
    retrieval      recall at 1, 5 and 10 among the held-out studies, both ways, an equal report counts as correct; [distinct]: each text asked once
    structures     of a model with learned structure queries: retrieval by structures (`structure_r@k`: mean cosine of what each query saw with the
                   text of its structure), and the share of each query's attention that lies inside its structure (`mass`, macro over structures;
                   `mass_chance`: of even attention)
    preservation   ELVIS' Figure 1: are similarities inside an image, inside a report, the same before and after the projection?

Beside the model stand priors that never look at the image, and the oracle: the true mask seen through the model's token grid (what a
perfect model of this grid would show; not a strict bound, a map with sharper edges inside a cell can score a little more).
All maps go through the same exact inverse of the preprocessing to original pixels, and are scored by the same functions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from elvis.data.images import BadImage, Look, read
from elvis.data.masks import resized
from elvis.data.montage import montage, montage_map, slices
from elvis.data.reports import text_hash
from elvis.data.studies import in_frame, placed
from elvis.errors import DataError
from elvis.metrics import attention as attention_metrics
from elvis.metrics import bootstrap, grounding, representation, retrieval, twins
from elvis.metrics.priors import LocationPrior, gaussian
from elvis.ops import normalize
from elvis.types import Grounding, Mask, Metric, Regions, Result, Study

if TYPE_CHECKING:
    from elvis.pretrained import Pretrained

MAP = "cosine of projected tokens with the projected phrase, bilinear to original pixels"
PROTOCOL = "phrase alone; union of its boxes; CNR signed; pointing: ties share; mIoU at .1-.5 of the map rescaled to [-1, 1]; macro over findings"
MAPS = {
    "centre_prior": "a Gaussian at the image's centre, the image unseen",
    "mean_box": "mean box map of the training phrases, the image unseen",
    "text_prior": "mean box map of the training phrases with the same finding, side and zone, the image unseen",
    "oracle": "true mask averaged over the cells of the model's token grid, bilinear to original pixels",
}
SWAP = "swap: the maximum of the map (*_global: cosine of pooled features) of each twin's own altered sentence above the other's"
PIXELS = 2**18  # map pixels scored at once: few enough to stay in a core's cache (three times faster than 2**23)
PRIOR_PHRASES = 4000  # of training, evenly spread: enough for a mean, and an image is opened for each
PRESERVATION_STUDIES = 1000
RECALLS = (1, 5, 10)
SLICES, COLUMNS = 12, 4  # of a volume, where it is shown


def evaluate(
    pretrained: Pretrained,
    studies_by_split: Mapping[str, Sequence[Study]],
    *,
    row: str = "model",
    dataset: str = "",
    start: Mapping[str, Metric] | None = None,
    pooled: bool = True,
    batch_size: int = 64,
    resamples: int = 1000,
    seed: int = 0,
    provenance: Mapping[str, Any] | None = None,
) -> list[Result]:
    """Rows for every split but "train" (which only feeds the priors): `row`, "mean_box", "text_prior", "oracle"; without boxes in training
    "centre_prior" stands for the two priors.

    `pooled`: False where no objective trained the pooled features, so that retrieval by them would say nothing.
    `start`: what `preservation` said before training; it becomes the row "{row}, step 0". What a split does not allow (no
    boxes, no twins, no text, fewer than two studies) is simply not among its metrics; `config["absent"]` says why a row is missing.
    Retrieval and preservation are measured on "test", or on "val" where there is no test split.
    Intervals resample patients. `per_case` holds every phrase by study, sentence number and hash, never its text.
    """
    pretrained.model.eval()
    priors, absent = _priors(studies_by_split.get("train", ()))
    held_out = "test" if studies_by_split.get("test") else "val"
    results = []
    for split, studies in studies_by_split.items():
        if split == "train" or not studies:
            continue
        seen = _look(pretrained, studies, priors=priors, batch_size=batch_size, preservation=split == held_out)
        new = partial(Result, task="pretraining", dataset=dataset, split=split, provenance=dict(provenance or {}))
        config = {"studies": len(studies), "patients": len({s.patient for s in studies}), "unreadable": seen.unreadable, "resamples": resamples}
        config |= {"structures_with_bad_masks": dict(seen.bad_masks)} if seen.bad_masks else {}
        cases = seen.cases.get("model", [])
        metrics = _grounding(cases, resamples, seed) | _swap(seen, studies, resamples, seed)
        metrics |= _mass(seen, resamples, seed)
        if split == held_out:
            metrics |= _retrieval(pretrained, seen, studies, batch_size, resamples, seed, pooled) | _preserved(seen, resamples, seed)
            if start:
                results.append(new(row=f"{row}, step 0", protocol="preservation only", metrics=start, config=config))
        about = config | _counts(cases)
        model = about | {"map": MAP} | ({"absent": absent} if absent else {})
        results.append(new(row=row, protocol=f"{MAP}; {PROTOCOL}; {SWAP}", metrics=metrics, per_case=tuple(cases), config=model))
        for name, map in MAPS.items():
            cases = seen.cases.get(name, [])
            if cases:
                found = _grounding(cases, resamples, seed)
                results.append(new(row=name, protocol=f"{map}; {PROTOCOL}", metrics=found, per_case=tuple(cases), config=about | {"map": map}))
    return results


def preservation(
    pretrained: Pretrained, studies: Sequence[Study], *, batch_size: int = 64, resamples: int = 1000, seed: int = 0
) -> dict[str, Metric]:
    """Intra-modal preservation on these studies (the first PRESERVATION_STUDIES): call it before the first step and after the last.

    image_corr is the mean over images of each image's Pearson, report_corr is pooled over all pairs of sentences (a short
    report has no correlation of its own); *_spread and *_rank, before and after, tell a kept geometry from a collapsed one.
    """
    pretrained.model.eval()
    plain = [replace(study, groundings=(), extra={}) for study in studies[:PRESERVATION_STUDIES]]
    return _preserved(_look(pretrained, plain, priors=None, batch_size=batch_size, preservation=True), resamples, seed)


def score(pretrained: Pretrained, studies: Sequence[Study], *, batch_size: int = 64) -> float:
    """One quick number to choose a checkpoint by, higher is better: macro pointing game if phrases have boxes, else mean recall at 5."""
    pretrained.model.eval()
    seen = _look(pretrained, studies, priors=None, batch_size=batch_size)
    found = _grounding(seen.cases.get("model", []), 1, 0) or _retrieval(pretrained, seen, studies, batch_size, 1, 0)
    best = found.get("pointing") or found.get("structure_r@5") or found.get("r@5")
    return best.value if best else float("nan")


@torch.inference_mode()
def examples(
    pretrained: Pretrained, studies: Sequence[Study], *, count: int = 12
) -> list[tuple[str, np.ndarray, np.ndarray, tuple[tuple[float, ...], ...], str]]:
    """For the page: (title, uint8 H W, map H W, boxes, phrase) of up to `count` phrases, findings in turn, one phrase a study."""
    pretrained.model.eval()
    queues: dict[str, list[tuple[Study, Grounding]]] = {}
    for study in studies:
        for truth in truths(study):
            queues.setdefault(truth.category, []).append((study, truth))
    chosen, used = [], set()
    while len(chosen) < count and any(queues.values()):
        for queue in queues.values():
            while queue and queue[0][0].id in used:
                queue.pop(0)
            if queue and len(chosen) < count:
                used.add(queue[0][0].id)
                chosen.append(queue.pop(0))
    out = []
    for study, truth in chosen:
        try:
            image = read(study.images[truth.image])
        except BadImage:
            continue
        map = pretrained.similarity([image], [truth.phrase])[0][0].cpu()
        hit = float(grounding.pointing(map, grounding.boxes_to_mask(truth.boxes, image.shape)))
        title = f"{truth.category or 'finding'}{', no place named' if 'location_free' in truth.tags else ''}: {'hit' if hit >= 0.5 else 'miss'}"
        out.append((title, image, map.numpy(), truth.boxes, truth.phrase))
    return out


class Told(NamedTuple):
    """A sentence of a report over the study's first image; heat H W, NaN = unseen; boxes as of an Overlay."""

    report: int  # counted from 1, as `place` is; no id: a page may be passed on
    place: int
    count: int
    text: str
    category: str  # of its findings, "" where none has a box
    image: np.ndarray  # uint8 H W; of a volume slices of what the model sees, side by side from the feet to the head
    heat: np.ndarray
    boxes: tuple[tuple[float, ...], ...]


@torch.inference_mode()
def sentences(pretrained: Pretrained, studies: Sequence[Study], *, count: int = 3, most: int = 8) -> Iterator[Told]:
    """For the page: where the sentences (the first `most`) of `count` reports look, each read within its report. The first studies that have two."""
    pretrained.model.eval()
    for number, study in enumerate([study for study in studies if len(study.sentences) > 1][:count], 1):
        try:
            look = pretrained.see(study.images[0], study.spacing)
        except BadImage:
            continue
        image = pretrained.images([look.pixels], [look.spacing])[0]
        units = pretrained.reports([[s.text for s in study.sentences]])[0].units["sentence"]
        maps = pretrained.maps(image, units.vectors[0])[0].float().cpu()  # U *grid
        pixels, over = _shown(pretrained, look)
        for place in [i for i in range(min(most, len(study.sentences))) if units.mask[0, i]]:
            truths = [placed(g, *pixels.shape) for g in study.groundings if g.sentence == place and not g.image and g.boxes and look.pixels.ndim == 2]
            category = ", ".join(dict.fromkeys(g.category for g in study.groundings if g.sentence == place and g.category))
            boxes = tuple(box for g in truths for box in g.boxes)
            yield Told(number, place + 1, len(study.sentences), study.sentences[place].text, category, pixels, over(maps[place]), boxes)


def _shown(pretrained: Pretrained, look: Look) -> tuple[np.ndarray, Callable[[Tensor], np.ndarray]]:
    """What a page shows of an image (itself) or a volume (slices): uint8 H W; and how a map on its token grid lies over that: H W."""
    if look.pixels.ndim == 2:
        frame = pretrained.frame(look.pixels)
        return look.pixels, lambda map: frame.to_original(map[None])[0].numpy()
    seen = pretrained.preprocess.resize(look.pixels, look.spacing)
    where = slices(len(seen), SLICES)
    pixels = montage(seen, where, COLUMNS)
    over = lambda map: torch.from_numpy(montage_map(map.numpy(), len(seen), where, COLUMNS))[None, None]  # noqa: E731
    return pixels, lambda map: F.interpolate(over(map), pixels.shape, mode="nearest")[0, 0].numpy()


# --------------------------------------------------------------------------------------------- one pass over a split


@dataclass
class _Seen:
    """What one pass over the images of a split leaves behind."""

    cases: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # row -> a dict a phrase
    pooled: dict[str, Tensor] = field(default_factory=dict)  # study id -> D, of its first image
    observed: dict[str, Tensor] = field(default_factory=dict)  # study id -> S D, what each structure's query saw in it
    mass: list[tuple[str, str, float, float]] = field(default_factory=list)  # (patient, structure, attention inside it, by chance)
    swap: dict[str, np.ndarray] = field(default_factory=dict)  # study id -> (own, twin's) x (map, global)
    moments: dict[str, list[tuple[str, np.ndarray]]] = field(default_factory=lambda: {"image": [], "report": []})  # of (patient, 6)
    spaces: dict[str, representation.Covariance] = field(default_factory=dict)  # image_before, ...
    unreadable: int = 0
    bad_masks: Counter[str] = field(default_factory=Counter)  # code of what is wrong -> structures left out of `mass`


@dataclass(frozen=True)
class _Shot:
    """An image of a study, read."""

    study: Study
    number: int
    look: Look

    @property
    def pixels(self) -> np.ndarray:
        return self.look.pixels

    @property
    def truths(self) -> list[Grounding]:
        return [placed(truth, *self.pixels.shape) for truth in truths(self.study) if truth.image == self.number]


def truths(study: Study) -> list[Grounding]:
    """What a study's phrases are scored against: equal phrases of an image are one phrase with all their boxes (as AFLoc merges MS-CXR).

    The category is the first one's; a tag stays if all of them carry it. Phrases without a box are left out.
    """
    same: dict[tuple[int, int], Grounding] = {}
    for truth in study.groundings:
        if truth.boxes:
            key = truth.image, text_hash(truth.phrase)
            first = same.get(key)
            same[key] = replace(first, boxes=first.boxes + truth.boxes, tags=first.tags & truth.tags) if first else truth
    return list(same.values())


@torch.inference_mode()
def _look(pretrained: Pretrained, studies: Sequence[Study], *, priors: LocationPrior | None, batch_size: int, preservation: bool = False) -> _Seen:
    """Encode every image once; score its phrases at once, so that no more than a batch of pixels is in memory."""
    seen = _Seen()
    watched = {study.id for study in studies[:PRESERVATION_STUDIES]}
    altered = _twins(studies)
    phrases = {g.phrase for s in studies for g in s.groundings if g.boxes} | {text for pair in altered.values() for text in pair}
    vectors = _encode_phrases(pretrained, sorted(phrases), batch_size)
    query = pretrained.model.learned_query
    for shots in _batches(pretrained, studies, batch_size, seen):
        after, before = pretrained.images([shot.pixels for shot in shots], [shot.look.spacing for shot in shots])
        if query and pretrained.structures is not None:
            _observe(pretrained, seen, shots, pretrained.model.look(query, after), after.grid)
        if preservation:
            first = [i for i, shot in enumerate(shots) if shot.number == 0 and shot.study.id in watched]
            patients = [shots[i].study.patient for i in first]
            _preserve(seen, "image", patients, before.tokens[first], after.tokens[first], after.mask[first])
        tokens, pooled = after.tokens.float().cpu(), after.pooled.float().cpu()
        for i, shot in enumerate(shots):
            if shot.number == 0:
                seen.pooled[shot.study.id] = pooled[i]
                if shot.study.id in altered:
                    pairs = [vectors[text] for text in altered[shot.study.id]]
                    seen.swap[shot.study.id] = _swap_scores(pretrained, shot, tokens[i], pooled[i], pairs, after.grid)
        for chosen in _chunks(shots):
            _ground(pretrained, seen, [(shots[i], tokens[i]) for i in chosen], vectors, after.grid, priors)
    if preservation:
        texts = [s for s in studies if s.sentences and s.id in watched]
        for some in _cut(texts, batch_size):
            after, before = pretrained.reports([[sentence.text for sentence in s.sentences] for s in some])
            new, old = after.units["sentence"], before.units["sentence"]
            _preserve(seen, "report", [s.patient for s in some], old.vectors, new.vectors, new.mask)
    return seen


def _batches(pretrained: Pretrained, studies: Sequence[Study], batch_size: int, seen: _Seen) -> Iterator[list[_Shot]]:
    """Images that are needed: the first of a study, and those with a box. What cannot be read is counted, not raised."""
    shots: list[_Shot] = []
    for study in studies:
        for number in sorted({0, *(g.image for g in study.groundings if g.boxes)}):
            try:
                shots.append(_Shot(study, number, pretrained.see(study.images[number], study.spacing)))
            except BadImage:
                seen.unreadable += 1
            if len(shots) == batch_size:
                yield shots
                shots = []
    if shots:
        yield shots


def _observe(pretrained: Pretrained, seen: _Seen, shots: Sequence[_Shot], regions: Regions, grid: tuple[int, ...]) -> None:
    """What each structure's query saw in the first image of a study, and how much of its attention lies inside the structure's true mask."""
    attention = regions.attention.mean(2).float().cpu()  # B S N
    for i, shot in enumerate(shots):
        if shot.number:
            continue
        seen.observed[shot.study.id] = regions.vectors[i].float().cpu()
        share = structure_shares(pretrained, shot.study, shot.look, grid, seen.bad_masks)
        if share.any():
            inside, even = attention_metrics.mass(attention[i], share), attention_metrics.chance(share)
            seen.mass += [
                (shot.study.patient, name, float(inside[s]), float(even[s]))
                for s, name in enumerate(pretrained.structures.names)  # type: ignore[union-attr]
                if share[s].any()
            ]


def structure_shares(pretrained: Pretrained, study: Study, seen: Look, grid: tuple[int, ...], bad: Counter[str] | None = None) -> Tensor:
    """How much of each cell of the token grid is each structure, by the study's masks of its first image: S N in [0, 1]; 0 without a mask.

    A mask is of the structure that the lexicon gives its name to (the five lobes are the lung). A structure with a mask that cannot be
    read, or is of another shape than the image, is left out: 0, and counted in `bad` by the code of what is wrong.
    """
    structures, frame = pretrained.structures, pretrained.frame(seen.pixels, seen.spacing)
    share = np.zeros((len(structures.names), int(np.prod(grid))))  # type: ignore[union-attr]
    of: dict[int | None, list[Mask]] = {}
    for mask in study.masks:
        if not mask.image:
            of.setdefault(structures.of_region(mask.name), []).append(mask)  # type: ignore[union-attr]
    of.pop(None, None)
    for s, masks in of.items():  # a lung and its lobes lie on each other: their union
        try:
            where = reduce(np.logical_or, (resized(mask, seen.pixels.shape) for mask in masks))
        except DataError as error:
            if bad is not None:
                bad[error.code] += 1
            continue
        cells = frame.to_cells(grid, where) if where.ndim == 3 else frame.to_cells(grid, (slice(0, None), slice(0, None)), where)  # type: ignore[arg-type,call-arg]
        share[s] = cells.ravel()
    return torch.from_numpy(share.clip(0, 1)).float()


def _mass(seen: _Seen, resamples: int, seed: int) -> dict[str, Metric]:
    """Attention inside the structures: macro over structures, each by itself, and what chance gives."""
    rows = [row for row in seen.mass if np.isfinite(row[2])]
    if not rows:
        return {}
    patients, names, inside, even = (list(column) for column in zip(*rows, strict=True))
    options = {"resamples": resamples, "seed": seed}
    found = {"mass": bootstrap.mean(np.array(inside), patients, categories=names, **options)}
    found["mass_chance"] = bootstrap.mean(np.array(even), patients, categories=names, **options)
    for name in dict.fromkeys(names):
        own = [i for i, other in enumerate(names) if other == name]
        found[f"mass[{name}]"] = bootstrap.mean(np.array(inside)[own], [patients[i] for i in own], **options)
    return found


def _chunks(shots: Sequence[_Shot]) -> Iterator[list[int]]:
    """Indices of images with boxes, of one size each, so few that their maps fit into PIXELS (an image is never split: WID)."""
    sizes: dict[tuple[int, ...], list[int]] = {}
    for i, shot in enumerate(shots):
        if shot.truths:
            sizes.setdefault(shot.pixels.shape, []).append(i)
    for (height, width), same in sizes.items():
        chunk, phrases = [], 0
        for i in same:
            count = len(shots[i].truths)
            if chunk and (phrases + count) * height * width > PIXELS:
                yield chunk
                chunk, phrases = [], 0
            chunk.append(i)
            phrases += count
        yield chunk


def _cut(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[i : i + size] for i in range(0, len(items), size))


def _encode_phrases(pretrained: Pretrained, phrases: Sequence[str], batch_size: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Each phrase alone: its sentence vector D, which maps are made with, and its pooled vector D."""
    out = {}
    for some in _cut(phrases, batch_size):
        text, _ = pretrained.phrases(some)
        sentence, pooled = text.units["sentence"].vectors[:, 0].float().cpu(), text.pooled.float().cpu()
        out |= {phrase: (sentence[i], pooled[i]) for i, phrase in enumerate(some)}
    return out


# ---------------------------------------------------------------------------------------------------------- grounding


def _ground(
    pretrained: Pretrained,
    seen: _Seen,
    images: Sequence[tuple[_Shot, Tensor]],
    vectors: Mapping[str, tuple[Tensor, Tensor]],
    grid: tuple[int, ...],
    priors: LocationPrior | None,
) -> None:
    """Score the phrases of images of one size on the model's map, the priors' and the oracle's."""
    rows = [(k, shot, truth) for k, (shot, _) in enumerate(images) for truth in shot.truths]
    height, width = shape = images[0][0].pixels.shape
    frame = pretrained.preprocess.frame(height, width)
    masks = torch.stack([grounding.boxes_to_mask(truth.boxes, shape) for *_, truth in rows])  # T H W
    image = torch.tensor([k for k, *_ in rows])
    tokens = normalize(torch.stack([tokens for _, tokens in images]))[image]  # T N D
    phrase = normalize(torch.stack([vectors[truth.phrase][0] for *_, truth in rows]))  # T D
    maps = {"model": frame.to_original((tokens @ phrase.unsqueeze(-1)).squeeze(-1).unflatten(-1, grid))}  # T H W
    if priors is not None:
        unseen = maps["model"].isnan()
        blind = priors.mean_box() if priors.count else gaussian()
        maps["mean_box" if priors.count else "centre_prior"] = _stretch(blind.expand(len(rows), -1, -1), shape).masked_fill(unseen, torch.nan)
        if priors.count:
            named = torch.stack([priors.text(truth.phrase, truth.category) for *_, truth in rows])
            maps["text_prior"] = _stretch(named, shape).masked_fill(unseen, torch.nan)
        whole = slice(0, height), slice(0, width)
        cells = np.stack([frame.to_cells(grid, whole, mask.numpy()) for mask in masks])
        maps["oracle"] = frame.to_original(torch.from_numpy(cells).float())
    for name, map in maps.items():
        values = {
            "cnr": grounding.cnr(map, masks),
            "pointing": grounding.pointing(map, masks),
            "miou": grounding.miou(map, masks),
            "wid": grounding.wid(map, masks, image),
        }
        columns = {key: value.tolist() for key, value in values.items()}
        seen.cases.setdefault(name, []).extend(
            {
                "study": shot.study.id,
                "patient": shot.study.patient,
                "image": shot.number,
                "sentence": truth.sentence,
                "phrase": text_hash(truth.phrase),
                "category": truth.category,
                "tags": sorted(truth.tags),
                **{key: column[t] for key, column in columns.items()},
            }
            for t, (_, shot, truth) in enumerate(rows)
        )


def _stretch(maps: Tensor, shape: tuple[int, int]) -> Tensor:
    """Maps in normalised coordinates, T h w, to pixels, T H W."""
    return F.interpolate(maps[:, None], shape, mode="bilinear", align_corners=False)[:, 0]


def _priors(train: Sequence[Study]) -> tuple[LocationPrior, dict[str, str]]:
    """The priors of the training phrases, and which row has to be absent and why."""
    examples = [(study, truth) for study in train for truth in truths(study)]
    examples = examples[:: max(1, -(-len(examples) // PRIOR_PHRASES))]
    framed = ((truth, in_frame(study, truth)) for study, truth in examples)
    prior = LocationPrior.fit((truth.phrase, truth.category, *where) for truth, where in framed if where is not None)
    return prior, {} if prior.count else {"mean_box": "no training phrase has a box", "text_prior": "no training phrase has a box"}


def _grounding(cases: Sequence[Mapping[str, Any]], resamples: int, seed: int) -> dict[str, Metric]:
    """Macro over findings; `*_micro` over phrases; `focal_*` and `lf_*` macro over the focal findings, all their phrases or the location-free
    ones; WID over phrases."""
    found: dict[str, Metric] = {}
    if not cases:
        return found
    focal = [case for case in cases if "focal" in case["tags"]]
    free = [case for case in focal if "location_free" in case["tags"]]
    for prefix, some in (("", cases), ("focal_", focal), ("lf_", free)):
        if not some:
            continue
        patients, categories = [c["patient"] for c in some], [c["category"] for c in some]
        options = {"resamples": resamples, "seed": seed}
        for key in ("pointing", "miou", "cnr"):
            values = np.array([c[key] for c in some])
            found[prefix + key] = bootstrap.mean(values, patients, categories=categories, **options)
            if not prefix:
                found[key + "_micro"] = bootstrap.mean(values, patients, **options)
        if not prefix:
            found["cnr_abs"] = bootstrap.mean(np.abs([c["cnr"] for c in some]), patients, categories=categories, **options)
        found[prefix + "wid"] = bootstrap.mean(np.array([c["wid"] for c in some]), patients, **options)
    return _defined(found)


def _counts(cases: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    free = sum({"location_free", "focal"} <= set(case["tags"]) for case in cases)
    return {"phrases": len(cases), "location_free_focal_phrases": free}


# --------------------------------------------------------------------------------------------------------------- swap


def _twins(studies: Sequence[Study]) -> dict[str, tuple[str, str]]:
    """Study id -> (its own altered sentence, its twin's), for twins that are both here."""
    here = {study.id: study for study in studies if "twin" in study.extra and study.extra.get("altered") is not None}
    out = {}
    for study in here.values():
        twin = here.get(study.extra["twin"])
        if twin is not None:
            out[study.id] = tuple(s.sentences[s.extra["altered"]].text for s in (study, twin))
    return out


def _swap_scores(
    pretrained: Pretrained, shot: _Shot, tokens: Tensor, pooled: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], grid: tuple[int, ...]
) -> np.ndarray:
    """(own sentence, twin's) x (maximum of the map in original pixels, cosine of the pooled vectors)."""
    sentences, reports = (normalize(torch.stack(vectors)) for vectors in zip(*pairs, strict=True))  # 2 D each
    maps = pretrained.preprocess.frame(*shot.pixels.shape).to_original((sentences @ normalize(tokens).T).unflatten(-1, grid))  # 2 H W
    highest = maps.nan_to_num(nan=-1).flatten(1).amax(1)
    return torch.stack([highest, reports @ normalize(pooled)], 1).numpy()


def _swap(seen: _Seen, studies: Sequence[Study], resamples: int, seed: int) -> dict[str, Metric]:
    """Of the maximum of the map, and (`*_global`) of the cosine of the pooled vectors: see elvis.metrics.twins."""
    twin = {study.id: (study.extra["twin"], study.patient) for study in studies if study.id in seen.swap}
    found = {}
    for column, suffix in enumerate(("", "_global")):
        scores = {id: (float(both[0, column]), float(both[1, column])) for id, both in seen.swap.items()}
        found |= {f"{name}{suffix}": metric for name, metric in twins.metrics(scores, twin, resamples=resamples, seed=seed).items()}
    return found


# ---------------------------------------------------------------------------------------------------------- retrieval


@torch.inference_mode()
def _retrieval(
    pretrained: Pretrained, seen: _Seen, studies: Sequence[Study], batch_size: int, resamples: int, seed: int, pooled: bool = True
) -> dict[str, Metric]:
    """Recall at k among studies with a readable image and a text; `r@k` is the mean of both ways. The first image stands for the study.

    structure_r@k: by structures, of a model that has queries for them. [distinct]: each text asked once; where a fifth of the reports are one
    text, that one query decides a fifth of `r@1_text_to_image`.
    """
    usable = [study for study in studies if study.sentences and study.id in seen.pooled]
    if len(usable) < 2:
        return {}
    reports = [[sentence.text for sentence in study.sentences] for study in usable]
    text = [
        pretrained.reports([[s.text for s in one.sentences] for one in some], [[s.region for s in one.sentences] for one in some])[0]
        for some in _cut(usable, batch_size)
    ]
    group = torch.tensor([text_hash(" ".join(report)) for report in reports])
    patients = [study.patient for study in usable]
    again = np.ones(len(usable), bool)
    again[np.unique(group.numpy(), return_index=True)[1]] = False
    compared = {}
    if pooled:
        image = torch.stack([seen.pooled[study.id] for study in usable])  # n D
        compared[""] = retrieval.ranks(image, torch.cat([t.pooled.float().cpu() for t in text]), group)
    if all(study.id in seen.observed for study in usable):
        units = [t.units["structure"] for t in text]
        told, mask = torch.cat([u.vectors.float().cpu() for u in units]), torch.cat([u.mask.cpu() for u in units])  # n S D, n S
        observed = torch.stack([seen.observed[study.id] for study in usable])  # n S D
        compared["structure_"] = retrieval.structure_ranks(observed, told, mask, group)
    found = {}
    for name, ranks in compared.items():
        to_text, to_image = (each.numpy() for each in ranks)
        for k in RECALLS:
            hits = {
                "": ((to_text < k) * 1.0 + (to_image < k)) / 2, "_image_to_text": to_text < k, "_text_to_image": to_image < k,
                "_text_to_image[distinct]": np.where(again, np.nan, to_image < k),
            }  # fmt: skip
            found |= {f"{name}r@{k}{way}": bootstrap.mean(values, patients, resamples=resamples, seed=seed) for way, values in hits.items()}
    return found


# ------------------------------------------------------------------------------------------------------- preservation


def _preserve(seen: _Seen, side: str, patients: Sequence[str], before: Tensor, after: Tensor, mask: Tensor) -> None:
    seen.moments[side].extend(zip(patients, representation.similarity_moments(before, after, mask), strict=True))
    for name, space in (("before", before), ("after", after)):
        seen.spaces.setdefault(f"{side}_{name}", representation.Covariance()).add(space, mask)


def _preserved(seen: _Seen, resamples: int, seed: int) -> dict[str, Metric]:
    found: dict[str, Metric] = {}
    for side, moments in seen.moments.items():
        if not moments:
            continue
        patients, sums = [patient for patient, _ in moments], np.stack([m for _, m in moments])  # n, n 6
        per_study: Callable[[np.ndarray], Metric] = lambda v: bootstrap.mean(v, patients, resamples=resamples, seed=seed)  # noqa: B023, E731
        pooled: Callable[[Any], Metric] = lambda f: bootstrap.interval(sums, patients, f, resamples=resamples, seed=seed)  # noqa: B023, E731
        own, joint = per_study(representation.pearson(sums)), pooled(representation.pearson)
        spreads = representation.spread(sums)
        if side == "image":
            found |= {"image_corr": own, "image_corr_pooled": joint}
            found |= {f"image_spread_{name}": per_study(spreads[i]) for i, name in enumerate(("before", "after"))}
        else:
            found |= {"report_corr": joint, "report_corr_study": own}
            found |= {f"report_spread_{name}": pooled(lambda m, i=i: representation.spread(m)[i]) for i, name in enumerate(("before", "after"))}
        found |= {f"{side}_rank_{name}": Metric(seen.spaces[f"{side}_{name}"].effective_rank()) for name in ("before", "after")}
    return _defined(found)


def _defined(found: dict[str, Metric]) -> dict[str, Metric]:
    """Without the metrics that have no value here (no two regions in one image, no report of three sentences)."""
    return {name: metric for name, metric in found.items() if np.isfinite(metric.value)}
