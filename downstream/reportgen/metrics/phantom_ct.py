"""Exact scores of reports on phantom CT: what a report claims is read back from its sentences (elvis.data.phantoms.scan_parse), not guessed.

    phantom_ct(hypotheses, references)      against what the reference report says
    against_truth(hypotheses, studies)      against what is in the volume, mentioned or not

A claim is (kind, structure), "" where the words do not say which; both hospitals' words (domains A and B) are read. Of a structure the
sentence that claims most of a kind counts ("two nodules in the left lower lobe", again in the impression: two claims); claims
without a structure are as many as are said. Matching is maximal, one to one; what the reference does not say asks for nothing.

    finding_precision finding_recall finding_f1         claims matched by kind
    location_precision location_recall location_f1      by kind and structure (nodule, right upper lobe)
    structure_precision structure_recall structure_f1   which of the 17 structures are told abnormal, whatever the kind: yes or no each
        f1 = 2 matched / (generated + reference), over all reports ("micro"); NaN where nothing is claimed
        f1[kind] (of structures: f1[structure]), and f1_macro: the mean over those that the references claim; finding_f1_rare: over `rare` kinds
    hallucination   generated claims of a kind that the reference does not claim, of all generated claims
    omission        reference claims of a kind that is not generated, of all reference claims
    contradiction   share of reports that claim a kind where they deny it, or a finding in a structure that they call normal (reports of these
                    phantoms call normal only a structure without any finding)
    unparsed        generated sentences that the grammar cannot make, of all generated sentences
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache

from downstream.reportgen.metrics import claims
from downstream.reportgen.metrics.claims import Told
from downstream.reportgen.metrics.sums import Sums
from elvis.data.phantoms.scan import KINDS, STRUCTURES
from elvis.data.phantoms.scan_parse import Statement, parse, split
from elvis.types import Study

LEVELS = {"finding": 1, "location": 2}  # how many of (kind, structure) must fit


@lru_cache(maxsize=1 << 14)
def told(text: str) -> Told:
    """What a report says: the text of its sections, raw or lower case with stops between blanks. Takes any string."""
    statements = [parse(sentence) for sentence in split(text)]
    known = [statement for statement in statements if statement is not None]
    said = [Counter(statement.claims) for statement in known]
    counts = {claim: (max if claim[1] else sum)(one[claim] for one in said) for claim in dict.fromkeys(claim for one in said for claim in one)}
    claimed = tuple(claim for claim, count in counts.items() for _ in range(count))
    denied = frozenset(denial for statement in known for denial in _denials(statement))
    return Told(claimed, denied, len(statements), len(statements) - len(known))


def named(claim: tuple[str, ...]) -> str:
    """A claim in words: nodule, right upper lobe."""
    return ", ".join(word for word in claim if word)


def abnormal(reference: str) -> bool:
    """Whether a report claims a finding."""
    return bool(told(reference).claims)


def rare_kinds(references: Iterable[str], share: float) -> set[str]:
    """The kinds that less than `share` of the training reports claim, one at least."""
    return claims.rare_kinds(map(told, references), share)


def phantom_ct(hypotheses: Sequence[str], references: Sequence[str], *, rare: Collection[str] = ()) -> dict[str, Sums]:
    """Every score by its name; text i of both is of study i. `rare` (see `rare_kinds`) adds finding_f1_rare.

    DataError where the two do not have one text a study or no sentence of the references is of a phantom CT; ConfigError for an unknown kind.
    """
    claims.one_each(hypotheses, references, "reference reports")
    ours, truth = [told(text) for text in hypotheses], [told(text) for text in references]
    scores = claims.compare(ours, truth, LEVELS, tuple(KINDS), rare)
    said, true = (claims.counts([{place for _, place in report.claims} for report in side], STRUCTURES[1:]) for side in (ours, truth))
    return scores | claims.rates("structure", said * true, said, true, STRUCTURES[1:]) | claims.own(ours)


def against_truth(hypotheses: Sequence[str], studies: Sequence[Study]) -> dict[str, Sums]:
    """Against the kinds that are in the volume (`Study.labels` of phantom CT), mentioned in its report or not; a kind counts once a report.

    truth_hallucination: generated claims of a kind that is not in the volume, of all generated claims. truth_omission: kinds in a volume that
    are not generated, of all kinds in volumes. truth_f1, truth_f1[kind], truth_f1_macro over the kinds that are in a volume. DataError where
    the two do not have one each or a study is no phantom CT.
    """
    claims.one_each(hypotheses, studies, "studies")
    return claims.against_truth([told(text) for text in hypotheses], studies, tuple(KINDS))


def _denials(statement: Statement) -> Iterator[tuple[str, str]]:
    """(kind, structure) of what a sentence denies or what being normal excludes; structure "" = nowhere."""
    yield from statement.denied
    for structure in statement.normal:
        yield from ((kind, structure) for kind in KINDS)
