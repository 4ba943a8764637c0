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
from functools import lru_cache

import numpy as np

from downstream.reportgen.metrics import claims
from downstream.reportgen.metrics.claims import Told
from downstream.reportgen.metrics.sums import Sums, ratio
from elvis.data.phantoms.grammar import Claim
from elvis.data.phantoms.parse import Statement, parse, split
from elvis.data.phantoms.scene import FOCAL, KINDS, LATERAL
from elvis.types import Study

LEVELS = {"finding": 1, "side": 2, "location": 3}  # how many of (kind, side, zone) must fit


@lru_cache(maxsize=1 << 14)
def told(text: str) -> Told:
    """What a report says: the text of its sections, raw or as R2Gen's cleaning leaves it. Takes any string."""
    statements = [parse(sentence) for sentence in split(text)]
    known = [statement for statement in statements if statement is not None]
    counts = Counter(claim for statement in known for claim in statement.claims)
    claimed = tuple(claim for claim, count in counts.items() for _ in range(1 if _placed(claim) else count))
    denied = frozenset(denial for statement in known for denial in _denials(statement))
    return Told(claimed, denied, len(statements), len(statements) - len(known))


def named(claim: Claim) -> str:
    """A claim in words: right upper nodule."""
    kind, side, zone = claim
    return " ".join(word for word in (side, zone, kind) if word)


def abnormal(reference: str) -> bool:
    """Whether a report claims a finding."""
    return bool(told(reference).claims)


def rare_kinds(references: Iterable[str], share: float) -> set[str]:
    """The kinds that less than `share` of the training reports claim, one at least."""
    return claims.rare_kinds(map(told, references), share)


def phantom(hypotheses: Sequence[str], references: Sequence[str], *, rare: Collection[str] = ()) -> dict[str, Sums]:
    """Every score by its name; text i of both is of study i. `rare` (see `rare_kinds`) adds finding_f1_rare.

    DataError where the two do not have one text a study or no sentence of the references is a phantom's; ConfigError for an unknown kind.
    """
    claims.one_each(hypotheses, references, "reference reports")
    ours, truth = [told(text) for text in hypotheses], [told(text) for text in references]
    scores = claims.compare(ours, truth, LEVELS, tuple(KINDS), rare)
    wrong = np.array([_wrong_sides(a.claims, b.claims) for a, b in zip(ours, truth, strict=True)]).reshape(-1, 2)
    scores["wrong_side"] = Sums(wrong.astype(np.float64), ratio)
    return scores | claims.own(ours)


def against_truth(hypotheses: Sequence[str], studies: Sequence[Study]) -> dict[str, Sums]:
    """Against the kinds that are in the image (`Study.labels` of phantoms), mentioned in its report or not; a kind counts once a report.

    truth_hallucination: generated claims of a kind that is not in the image, of all generated claims. truth_omission: kinds in an image that
    are not generated, of all kinds in images. truth_f1, truth_f1[kind], truth_f1_macro over the kinds that are in an image. DataError where
    the two do not have one each or a study is no phantom.
    """
    claims.one_each(hypotheses, studies, "studies")
    return claims.against_truth([told(text) for text in hypotheses], studies, tuple(KINDS))


# --------------------------------------------------------------------------------------------------------- matching


def matched(said: Iterable[Claim], true: Iterable[Claim], depth: int) -> list[int]:
    """Of each kind, how many claims of two reports can be paired one to one; `depth`: 1 by kind, 2 and side, 3 and zone."""
    return claims.matched(said, true, depth, KINDS)


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
