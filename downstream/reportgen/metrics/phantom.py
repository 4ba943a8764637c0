"""Exact scores of reports on phantoms: what a report claims is read back from its sentences (elvis.data.phantoms.parse), not guessed.

    phantom(hypotheses, references)         against what the reference report says
    against_truth(hypotheses, studies)      against what is in the image, mentioned or not

A claim is (kind, side, zone), "" where the words do not say. A report's claims are a multiset: two nodules are two claims, also "A nodule
is present." said twice; only a claim that says all a place can say (side and zone of a nodule, the side of an effusion, the heart's
enlargement) is one finding however often it is said, so that an impression does not count twice. A hedged claim ("may represent") counts
as a claim. What the reference does not say asks for nothing: "A nodule is present." is matched by any nodule, but a generated claim
without a place does not match a reference claim with one. Matching is maximal, one to one.

    finding_precision finding_recall finding_f1     claims matched by kind
    side_f1                                         by kind and side
    location_precision location_recall location_f1  by kind, side and zone
        f1 = 2 matched / (generated + reference claims), over all reports ("micro"); NaN where nothing is claimed
        f1[kind], and f1_macro: the mean over the kinds that the references claim; finding_f1_rare: over `rare` ones among them
    hallucination   generated claims of a kind that the reference does not claim, of all generated claims
    omission        reference claims of a kind that is not generated, of all reference claims
    wrong_side      generated claims on a side where the reference has none of the kind, of those that name a side, of kinds whose side the
                    reference names every time
    contradiction   share of reports that claim a kind where they deny it, too ("no nodule", "no nodule in the right lung", and what is
                    called normal: a clear lung has no nodule, mass, consolidation, atelectasis or edema, a normal heart no cardiomegaly)
    unparsed        generated sentences that the grammar cannot make, of all generated sentences
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from downstream.reportgen.metrics.sums import Sums, mean, ratio
from elvis.data.phantoms.grammar import Claim
from elvis.data.phantoms.parse import Statement, parse, split
from elvis.data.phantoms.scene import FOCAL, KINDS, LATERAL
from elvis.errors import ConfigError, DataError, nearest
from elvis.types import Study

LEVELS = {"finding": 1, "side": 2, "location": 3}  # how many of (kind, side, zone) must fit


@dataclass(frozen=True, slots=True)
class Told:
    """What a report says. claims: with repetition. denied: (kind, side), side "" = nowhere. sentences, unknown: counts."""

    claims: tuple[Claim, ...]
    denied: frozenset[tuple[str, str]]
    sentences: int
    unknown: int

    @property
    def contradicted(self) -> bool:
        """Whether it claims what it denies. A claim without a side fits beside what is denied on one."""
        return any((kind, "") in self.denied or (side and (kind, side) in self.denied) for kind, side, _ in self.claims)


@lru_cache(maxsize=1 << 14)
def told(text: str) -> Told:
    """What a report says: the text of its sections, raw or as R2Gen's cleaning leaves it. Takes any string."""
    statements = [parse(sentence) for sentence in split(text)]
    known = [statement for statement in statements if statement is not None]
    counts = Counter(claim for statement in known for claim in statement.claims)
    claims = tuple(claim for claim, count in counts.items() for _ in range(1 if _placed(claim) else count))
    denied = frozenset(denial for statement in known for denial in _denials(statement))
    return Told(claims, denied, len(statements), len(statements) - len(known))


def abnormal(reference: str) -> bool:
    """Whether a report claims a finding."""
    return bool(told(reference).claims)


def rare_kinds(references: Iterable[str], share: float) -> set[str]:
    """The kinds that less than `share` of the training reports claim, one at least."""
    found = [{kind for kind, *_ in told(text).claims} for text in references]
    counts = Counter(kind for kinds in found for kind in kinds)
    return {kind for kind, count in counts.items() if count < share * len(found)}


def phantom(hypotheses: Sequence[str], references: Sequence[str], *, rare: Collection[str] = ()) -> dict[str, Sums]:
    """Every score by its name; text i of both is of study i. `rare` (see `rare_kinds`) adds finding_f1_rare.

    DataError where the two do not have one text a study or no sentence of the references is a phantom's; ConfigError for an unknown kind.
    """
    _one_each(hypotheses, references, "reference reports")
    if strangers := sorted(set(rare) - set(KINDS)):
        raise ConfigError(f"no kind of finding is called '{strangers[0]}'{nearest(strangers[0], KINDS)}", f"known: {', '.join(KINDS)}")
    ours, truth = [told(text) for text in hypotheses], [told(text) for text in references]
    if truth and all(report.unknown == report.sentences for report in truth):
        raise DataError("no sentence of the references is one of a phantom's report", "use clinical metrics on other data")
    said, true = (np.array([_of_kinds(report.claims) for report in side]).reshape(-1, len(KINDS)) for side in (ours, truth))  # N K
    scores: dict[str, Sums] = {}
    for level, depth in LEVELS.items():
        hits = np.array([matched(a.claims, b.claims, depth) for a, b in zip(ours, truth, strict=True)]).reshape(-1, len(KINDS))
        scores |= _f1(level, hits, said, true, rare if level == "finding" else ())
        scores[f"{level}_precision"], scores[f"{level}_recall"] = (_share(hits, of) for of in (said, true))
    scores["hallucination"] = _share(said * (true == 0), said)
    scores["omission"] = _share(true * (said == 0), true)
    wrong = np.array([_wrong_sides(a.claims, b.claims) for a, b in zip(ours, truth, strict=True)]).reshape(-1, 2)
    scores["wrong_side"] = Sums(wrong.astype(np.float64), ratio)
    return scores | _own(ours)


def against_truth(hypotheses: Sequence[str], studies: Sequence[Study]) -> dict[str, Sums]:
    """Against the kinds that are in the image (`Study.labels` of phantoms), mentioned in its report or not; a kind counts once a report.

    truth_hallucination: generated claims of a kind that is not in the image, of all generated claims. truth_omission: kinds in an image that
    are not generated, of all kinds in images. truth_f1, truth_f1[kind], truth_f1_macro over the kinds that are in an image. DataError where
    the two do not have one each or a study is no phantom.
    """
    _one_each(hypotheses, studies, "studies")
    if strangers := [study.id for study in studies if any(kind not in study.labels for kind in KINDS)]:
        raise DataError(f"study {strangers[0]} has no label of every kind of phantom finding", "give the studies of a phantom dataset")
    there = np.array([[study.labels[kind] == 1 for kind in KINDS] for study in studies]).reshape(-1, len(KINDS))
    claims = np.array([_of_kinds(told(text).claims) for text in hypotheses]).reshape(-1, len(KINDS))
    said = claims > 0
    scores = {"truth_hallucination": _share(claims * ~there, claims), "truth_omission": _share(there & ~said, there)}
    return scores | _f1("truth", said & there, said, there, ())


# --------------------------------------------------------------------------------------------------------- matching


def matched(said: Iterable[Claim], true: Iterable[Claim], depth: int) -> list[int]:
    """Of each kind, how many claims of two reports can be paired one to one; `depth`: 1 by kind, 2 and side, 3 and zone.

    Exact: of claims of the grammar, one fits all that another fits or nothing of it (a zone is never said without its side), so the
    reference claims that say most may choose first.
    """
    free = Counter(said)
    count = dict.fromkeys(KINDS, 0)
    for wanted in sorted((claim[:depth] for claim in true), key=lambda claim: claim.count("")):
        found = next((claim for claim in free if all(want in ("", have) for want, have in zip(wanted, claim, strict=False))), None)
        if found is not None:
            count[found[0]] += 1
            free[found] -= 1
            free += Counter()  # drops what is used up
    return list(count.values())


def _wrong_sides(said: Iterable[Claim], true: Collection[Claim]) -> tuple[int, int]:
    """(claims on a side where the reference has none of the kind, claims that can be judged)."""
    sides = {kind: {side for of, side, _ in true if of == kind} for kind, *_ in true}
    judged = [side not in sides[kind] for kind, side, _ in said if side and kind in sides and "" not in sides[kind]]
    return sum(judged), len(judged)


def _placed(claim: Claim) -> bool:
    """Whether it says all that can be said of its kind's place: there is one finding of a kind in a place."""
    kind, side, zone = claim
    return bool(side or kind not in LATERAL) and bool(zone or kind not in FOCAL)


def _denials(statement: Statement) -> Iterator[tuple[str, str]]:
    """(kind, side) of what a sentence denies or what being normal excludes."""
    yield from statement.denied
    match statement.normal:
        case ("summary", _):
            yield from ((kind, "") for kind in KINDS)
        case ("lungs" | "side", side):
            yield from ((kind, side) for kind in FOCAL)
            yield "edema", ""  # it is on both sides
        case ("heart", _):
            yield "cardiomegaly", ""


# ------------------------------------------------------------------------------------------------------------ sums


def _of_kinds(claims: Iterable[Claim]) -> list[int]:
    counts = Counter(kind for kind, *_ in claims)
    return [counts[kind] for kind in KINDS]


def _f1(name: str, hits: np.ndarray, said: np.ndarray, true: np.ndarray, rare: Collection[str]) -> dict[str, Sums]:
    """`name`_f1, of each kind, and its means over kinds; the counts are N K."""
    counts = np.stack([2 * hits, 1 * said + true], 1).astype(np.float64)  # N 2 K
    there = [place for place, found in enumerate(true.any(0)) if found]
    scores = {f"{name}_f1": Sums(counts.sum(2), ratio), f"{name}_f1_macro": _over_kinds(counts, there)}
    scores |= {f"{name}_f1[{kind}]": Sums(counts[:, :, place], ratio) for place, kind in enumerate(KINDS)}
    if rare:
        scores[f"{name}_f1_rare"] = _over_kinds(counts, [place for place in there if KINDS[place] in rare])
    return scores


def _over_kinds(counts: np.ndarray, places: Sequence[int]) -> Sums:
    """The mean over kinds of their ratios; NaN without a kind, or where one is neither claimed nor generated."""
    return Sums(counts[:, :, list(places)].reshape(len(counts), -1), partial(_mean_ratio, kinds=len(places)))


def _mean_ratio(sums: np.ndarray, kinds: int) -> np.ndarray:
    """(..., 2 kinds) -> (...)."""
    if not kinds:
        return np.full(sums.shape[:-1], np.nan)
    return ratio(np.stack([sums[..., :kinds], sums[..., kinds:]], -1)).mean(-1)


def _share(part: np.ndarray, whole: np.ndarray) -> Sums:
    """Sum of N K counts over that of others."""
    return Sums(np.stack([part.sum(1), whole.sum(1)], 1).astype(np.float64), ratio)


def _own(reports: Sequence[Told]) -> dict[str, Sums]:
    """What can be said of generated reports without a reference."""
    unparsed = np.array([(report.unknown, report.sentences) for report in reports], np.float64).reshape(-1, 2)
    return {"contradiction": mean([float(report.contradicted) for report in reports]), "unparsed": Sums(unparsed, ratio)}


def _one_each(hypotheses: Sequence[str], others: Sequence[object], what: str) -> None:
    if len(hypotheses) != len(others):
        raise DataError(f"{len(hypotheses)} generated reports and {len(others)} {what}", "give one of each for every study")
