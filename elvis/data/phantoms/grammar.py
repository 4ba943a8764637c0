"""The report of a scene, with each sentence's link to the findings it fits.

    report   := preamble FINDINGS: shuffled sentence*  [IMPRESSION: 1-2 summary sentences]
    sentence := positive | uncertain | location-free | two findings in one | denied | denied on the other side | normal

The truth of a phrase is everything that fits its words: kind, and side and zone where it says them. So "A nodule is
present." means all nodules of the image, and a sentence that names a cell means the one finding there. Written like a
MIMIC-CXR report (headers, a blank before every line, lines of at most 79 characters, `___` for what was removed), so
that `elvis.data.reports` has to take it apart again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from elvis.data.phantoms.scene import FOCAL, KINDS, LATERAL, SIDES, WORDS, Finding, Scene

Claim = tuple[str, str, str]  # kind, side, zone; "" = not said


@dataclass(frozen=True)
class Line:
    """A sentence. `findings`: places in Scene.findings of all that fits it; none for what is denied or normal."""

    text: str
    section: str
    findings: tuple[int, ...] = ()
    kind: str = ""  # of the first thing it claims
    tags: frozenset[str] = frozenset()  # location_free focal same_kind multi uncertain; kind: side: zone: as far as the words say
    altered: bool = False  # swap split: the one sentence that differs between the twins


@dataclass(frozen=True)
class Report:
    lines: tuple[Line, ...]  # in the order of the text
    raw: str


def write(scene: Scene) -> Report:
    """The report of a scene."""
    writer = _Writer(scene)
    findings, impression = writer.findings(), writer.impression()
    return Report((*findings, *impression), _lay_out(scene, findings, impression))


# ------------------------------------------------------------------------------------------------------ lexicon

NOUNS = {
    "nodule": ("nodule", "nodular opacity", "rounded nodule"),
    "mass": ("mass", "mass-like opacity", "rounded mass"),
    "consolidation": ("consolidation", "airspace opacity", "focal consolidation"),
    "atelectasis": ("band of atelectasis", "plate of atelectasis", "linear atelectatic band"),
    "effusion": ("pleural effusion", "effusion", "pleural fluid collection"),
    "pneumothorax": ("pneumothorax", "collection of pleural air", "pleural air collection"),
    "cardiomegaly": ("cardiomegaly", "cardiac enlargement", "enlargement of the heart"),
    "edema": ("pulmonary edema", "interstitial edema", "pulmonary vascular congestion"),
}
PLURALS = {
    "nodule": ("nodules", "nodular opacities", "rounded nodules"),
    "mass": ("masses", "mass-like opacities", "rounded masses"),
    "consolidation": ("consolidations", "airspace opacities", "focal consolidations"),
    "atelectasis": ("bands of atelectasis", "plates of atelectasis", "linear atelectatic bands"),
    "effusion": ("pleural effusions", "effusions", "pleural fluid collections"),
    "pneumothorax": ("pneumothoraces", "collections of pleural air", "pleural air collections"),
}
SIZES = (("small", "relatively small"), ("moderate", "medium-sized"), ("large", "sizeable"))
DEGREES = (("mild", "slight"), ("moderate", "moderate"), ("severe", "marked"))
ZONE_WORDS = {"upper": ("upper", "apical"), "mid": ("mid", "middle"), "lower": ("lower", "basal"), "": ("", "")}

_FOCAL = (
    "there is a {size} {noun} in the {side} {zone} lung zone.",
    "{size} {noun} in the {side} {zone} zone.",
    "a {size} {noun} projects over the {side} {zone} lung.",
)
_FOCAL_UNCERTAIN = ("a {size} opacity in the {side} {zone} lung zone may represent {a_noun}.", "possible {size} {noun} in the {side} {zone} zone.")
_FOCAL_PAIR = (
    "there are {nouns} in the {side} {zone} and {side2} {zone2} lung zones.",
    "{nouns} project over the {side} {zone} and {side2} {zone2} lung.",
)
_PLEURAL = ("there is a {size} {side} {noun}.", "{size} {side}-sided {noun} is present.", "a {size} {noun} is noted on the {side}.")
POSITIVE = {
    **dict.fromkeys(FOCAL, _FOCAL),
    "effusion": _PLEURAL,
    "pneumothorax": _PLEURAL,
    "cardiomegaly": ("there is {size} {noun}.", "the cardiac silhouette shows {size} enlargement.", "{size} {noun} is noted."),
    "edema": ("there is {size} bilateral {noun}.", "bilateral perihilar haze is consistent with {size} {noun}.", "{size} {noun} is present."),
}
UNCERTAIN = {
    **dict.fromkeys(FOCAL, _FOCAL_UNCERTAIN),
    "effusion": ("a {size} {side} basal opacity may represent {a_noun}.", "possible {size} {side} {noun}."),
    "pneumothorax": ("a {size} {side} apical lucency may represent {a_noun}.", "possible {size} {side} {noun}."),
    "cardiomegaly": ("prominence of the heart may represent {size} {noun}.", "possible {size} {noun}."),
    "edema": ("bilateral perihilar haze may represent {size} {noun}.", "possible {size} {noun}."),
}
FREE = ("{a_noun} is present.", "there is {a_noun}.", "findings include {a_noun}.")
FREE_UNCERTAIN = ("{a_noun} may be present.", "possible {noun}.")
SHORT = {**dict.fromkeys(LATERAL, "there is a {side} {noun}."), **dict.fromkeys(KINDS[6:], "there is {noun}.")}
PAIR = {
    **dict.fromkeys(FOCAL, _FOCAL_PAIR),
    **dict.fromkeys(("effusion", "pneumothorax"), ("there are bilateral {nouns}.", "bilateral {nouns} are present.")),
}
ADJACENT = ("there is a {size} {side} {noun} with adjacent atelectasis.", "{size} {side} {noun} and underlying atelectasis.")
DENIED = ("no {noun} is seen.", "there is no evidence of {noun}.", "no definite {noun}.")
DENIED_SIDE = {
    **dict.fromkeys(FOCAL, ("no {noun} in the {side} lung.", "there is no {side} {noun}.", "no {noun} is seen on the {side}.")),
    **dict.fromkeys(("effusion", "pneumothorax"), ("no {side} {noun}.", "there is no {side} {noun}.", "no {noun} is seen on the {side}.")),
}
NORMAL = {
    "lungs": ("the lungs are clear.", "the lungs are well expanded and clear.", "no focal abnormality is seen in the lungs."),
    "heart": ("heart size is normal.", "the cardiac silhouette is normal in size.", "the heart is not enlarged."),
    "mediastinum": ("the mediastinal contours are unremarkable.", "the mediastinum is not widened.", "normal mediastinal contours."),
    "bones": ("the osseous structures are intact.", "no acute bony abnormality.", "the ribs are unremarkable."),
    "side": ("the {side} lung is clear.", "the {side} lung is well aerated.", "clear {side} lung."),
    "summary": ("no acute cardiopulmonary process.", "normal chest radiograph.", "no acute findings."),
}
SUMMARY = {
    **dict.fromkeys(FOCAL, "{side} {zone} lung {noun}."),
    **dict.fromkeys(("effusion", "pneumothorax"), "{size} {side} {noun}."),
    **dict.fromkeys(KINDS[6:], "{size} {noun}."),
}
MOST_LINES = 8  # of the findings section: what is denied or normal gives way


# ----------------------------------------------------------------------------------------------------- sentences


class _Writer:
    """Chooses the words of one scene. `mentioned`: the findings that the report speaks of."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.knobs, self.draws = scene, scene.knobs, scene.draws
        self.count = {kind: sum(f.kind == kind for f in scene.findings) for kind in KINDS}
        self.mentioned = [f for f in scene.findings if f.twin is not None or self.words(f)[0] >= self.knobs.omission]

    def words(self, finding: Finding) -> list[float]:
        """The random numbers for a finding's wording: omit, free, uncertain, paraphrase, template, noun, size, zone, dup."""
        at = (KINDS.index(finding.kind) + finding.second * len(KINDS)) * WORDS
        return self.draws["words"][at : at + WORDS]

    def line(self, text: str, *claims: Claim, section: str = "findings", uncertain: bool = False, altered: bool = False) -> Line:
        """A sentence and what fits it."""
        text = text[0].upper() + text[1:]
        if not claims:
            return Line(text, section)
        findings = tuple(i for i, f in enumerate(self.scene.findings) if any(_fits(f, claim) for claim in claims))
        tags = {f"{name}:{value}" for claim in claims for name, value in zip(("kind", "side", "zone"), claim, strict=True) if value}
        kinds = {kind for kind, _, _ in claims}
        tags |= {"focal"} if kinds <= set(FOCAL) else set()
        tags |= {"same_kind"} if any(self.count[kind] > 1 for kind in kinds) else set()
        tags |= {"multi"} if len(claims) > 1 else set()
        tags |= {"uncertain"} if uncertain else set()
        tags |= {"location_free"} if claims[0][0] in LATERAL and not claims[0][1] else set()
        return Line(text, section, findings, claims[0][0], frozenset(tags), altered)

    def findings(self) -> list[Line]:
        lines, told = self.merged()
        lines += [self.positive(f) for f in self.mentioned if f not in told]
        others = [*self.denied(), *self.normal()]
        if not lines and not others:
            others = [self.line(self.pick(NORMAL["mediastinum"], *self.draws["normal"][:2]))]
        lines += others[: max(0, MOST_LINES - len(lines))]
        order = sorted(zip(self.draws["shuffle"], range(len(lines)), strict=False))
        return [lines[i] for _, i in order]

    def pick(self, choices: tuple[str, ...], paraphrase: float, which: float) -> str:
        """The first, or any with the probability of the knob; the first also for near-duplicates."""
        free = paraphrase < self.knobs.paraphrase and which >= self.knobs.dup
        if not free:
            return choices[0]
        return choices[int((which - self.knobs.dup) / (1 - self.knobs.dup) * len(choices))]

    def positive(self, f: Finding) -> Line:
        """The sentence about one finding: with its place or without, certain or not, short where it is to be a near-duplicate."""
        _, free, unsure, paraphrase, template, *u, dup = self.words(f)
        free = f.twin is None and f.kind in LATERAL and free < self.knobs.location_free
        dup = f.twin is None and dup < self.knobs.dup
        unsure = not dup and unsure < self.knobs.uncertainty
        if free:
            forms = FREE_UNCERTAIN if unsure else FREE
        else:
            forms = (SHORT[f.kind],) if dup else (UNCERTAIN if unsure else POSITIVE)[f.kind]
        if dup or paraphrase >= self.knobs.paraphrase:
            template, u = 0.0, [0.0] * 3
        text = forms[int(template * len(forms))].format(**self.slots(f, u))
        return self.line(text, _claim(f, side=not free, zone=not (free or dup)), uncertain=unsure, altered=f.twin is not None)

    def slots(self, f: Finding, u: list[float]) -> dict[str, str]:
        """The words of a finding by three numbers: noun, size, zone."""
        noun = NOUNS[f.kind][int(3 * u[0])]
        size = (SIZES if f.kind in LATERAL else DEGREES)[f.size][int(2 * u[1])]
        return {"noun": noun, "a_noun": with_article(noun, f.kind), "size": size, "side": f.side, "zone": ZONE_WORDS[f.zone][int(2 * u[2])]}

    def merged(self) -> tuple[list[Line], list[Finding]]:
        """Sentences about two findings: two of one kind, or an effusion and the atelectasis beside it; and these findings."""
        lines: list[Line] = []
        told: list[Finding] = []
        for kind, (chance, template, noun) in zip((*LATERAL, "beside"), _triples(self.draws["merge"]), strict=True):
            free = [f for f in self.mentioned if f.twin is None and f not in told]
            test = _beside if kind == "beside" else lambda a, b, kind=kind: a.kind == b.kind == kind and b.second and not a.second
            pair = next(((a, b) for a in free for b in free if test(a, b)), None)
            if pair is None or chance >= self.knobs.multi:
                continue
            (a, b), paraphrase, u = pair, self.words(pair[0])[3], self.words(pair[0])[5:8]
            slots = self.slots(a, u if paraphrase < self.knobs.paraphrase and noun >= self.knobs.dup else [0.0] * 3)
            if kind != "beside":
                slots |= {"nouns": self.pick(PLURALS[kind], paraphrase, noun), "side2": b.side, "zone2": ZONE_WORDS[b.zone][0]}
            text = self.pick(ADJACENT if kind == "beside" else PAIR[kind], paraphrase, template).format(**slots)
            lines.append(self.line(text, _claim(a), _claim(b)))
            told += pair
        return lines, told

    def denied(self) -> Iterator[Line]:
        """Kinds that are not there; kinds that are, on the side where they are not. For twins: of neither."""
        for kind, (chance, template, noun) in zip(KINDS, _triples(self.draws["deny"]), strict=True):
            if self.count[kind] == 0 and chance < 0.3 * self.knobs.negation:
                yield self.line(self.pick(DENIED, 0.0, template).format(noun=self.pick(NOUNS[kind], 0.0, noun)))
        for kind, (chance, template, noun) in zip(KINDS, _triples(self.draws["deny_side"]), strict=True):
            sides = {side for f in self.scene.findings if f.kind == kind for side in (f.side, *(f.twin or ())[:1])}
            if kind in LATERAL and len(sides) == 1 and chance < 0.3 * self.knobs.negation:
                (side,) = set(SIDES) - sides
                yield self.line(self.pick(DENIED_SIDE[kind], 0.0, template).format(noun=self.pick(NOUNS[kind], 0.0, noun), side=side))

    def normal(self) -> Iterator[Line]:
        """What is as it should be."""
        u = self.draws["normal"]
        likely = 0.25 * self.knobs.negation
        sides = {side for f in self.scene.findings for side in (f.side, *(f.twin or ())[:1])}
        if not self.scene.findings:
            yield self.line(self.pick(NORMAL["lungs"], u[2], u[3]))
        elif "bilateral" not in sides:
            for side, chance in zip(SIDES, u[4:6], strict=True):
                if side not in sides and chance < likely:
                    yield self.line(self.pick(NORMAL["side"], u[6], u[7]).format(side=side))
        for name, chance, which in (("heart", u[8], u[9]), ("mediastinum", u[0], u[1]), ("bones", u[10], u[11])):
            if chance < likely and not (name == "heart" and self.count["cardiomegaly"]):
                yield self.line(self.pick(NORMAL[name], chance / likely, which))

    def impression(self) -> list[Line]:
        """Up to two summary sentences."""
        chance, which, noun, *order = self.draws["impression"]
        if chance >= self.knobs.impression:
            return []
        if not self.scene.findings:
            return [self.line(self.pick(NORMAL["summary"], noun, which), section="impression")]
        told = [f for f in self.mentioned if f.twin is None]
        told = [f for _, f in sorted(zip(order, told, strict=False), key=lambda pair: pair[0])][: 1 + int(2 * which)]
        return [self.summary(f) for f in told]

    def summary(self, f: Finding) -> Line:
        dup = self.words(f)[8] < self.knobs.dup
        text = (SHORT if dup else SUMMARY)[f.kind].format(**self.slots(f, [0.0] * 3))
        return self.line(text, _claim(f, zone=not dup), section="impression")


def _claim(f: Finding, side: bool = True, zone: bool = True) -> Claim:
    """What a sentence about this finding says of it."""
    return f.kind, f.side if side and f.kind in LATERAL else "", f.zone if zone else ""


def _fits(finding: Finding, claim: Claim) -> bool:
    kind, side, zone = claim
    return finding.kind == kind and side in ("", finding.side) and zone in ("", finding.zone)


def _beside(a: Finding, b: Finding) -> bool:
    return a.kind == "effusion" and b.kind == "atelectasis" and (b.side, b.zone) == (a.side, "lower")


def with_article(noun: str, kind: str) -> str:
    """A nodule, an effusion; none for what is not counted."""
    return noun if kind not in LATERAL else f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _triples(numbers: list[float]) -> Iterator[tuple[float, float, float]]:
    return zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)


# -------------------------------------------------------------------------------------------------------- layout

WIDTH = 79
_REASONS = ("cough and fever", "shortness of breath", "chest pain", "follow-up", "a fall", "hypoxia, evaluate for pneumonia")
VIEWS = ("PA", "AP")


def view(scene: Scene) -> str:
    """PA or AP: what the report's header says (the picture does not differ)."""
    return VIEWS[int(2 * scene.draws["preamble"][0])]


def _lay_out(scene: Scene, findings: list[Line], impression: list[Line]) -> str:
    _, person, reason, technique, comparison, *_ = scene.draws["preamble"]
    portable = view(scene) == "AP"
    parts = [
        " " * 33 + "FINAL REPORT",
        f" EXAMINATION:  CHEST ({'PORTABLE AP' if portable else 'PA'})",
        *_wrap(f"INDICATION:  ___ year old {'man' if person < 0.5 else 'woman'} with {_REASONS[int(reason * len(_REASONS))]}."),
    ]
    parts += [" TECHNIQUE:  Single frontal view of the chest."] if technique < 0.5 else []
    parts += [f" COMPARISON:  {'___.' if comparison < 0.6 else 'None.'}"]
    for header, lines in (("FINDINGS", findings), ("IMPRESSION", impression)):
        if lines:
            parts += [f" {header}: ", *_wrap(" ".join(line.text for line in lines))]
    return "\n \n".join(parts) + "\n"


def _wrap(text: str) -> list[str]:
    """One paragraph in lines of at most WIDTH characters, each after a blank."""
    lines, width = [""], 0
    for word in text.split(" "):
        if width + 1 + len(word) > WIDTH:
            lines.append("")
            width = 0
        lines[-1] += " " + word
        width += 1 + len(word)
    return ["\n".join(lines)]
