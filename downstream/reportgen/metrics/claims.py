"""What the exact scores of phantom radiographs (phantom.py) and phantom CT (phantom_ct.py) share: claims, their matching, and sums of them.

A claim is (kind, place, finer place ...), "" where the words do not say. Matching is maximal, one to one; what the reference does not say
asks for nothing. Scores of N reports are sums of N K counts, K = kinds (or structures) in their order.

    f1 = 2 matched / (generated + reference)      micro: of all reports and kinds together; NaN where nothing is claimed
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from downstream.reportgen.metrics.sums import Sums, mean, ratio
from elvis.errors import ConfigError, DataError, nearest
from elvis.types import Study


@dataclass(frozen=True, slots=True)
class Told:
    """What a report says. claims: with repetition. denied: (kind, place), place "" = nowhere. sentences, unknown: counts."""

    claims: tuple[tuple[str, ...], ...]
    denied: frozenset[tuple[str, str]]
    sentences: int
    unknown: int

    @property
    def contradicted(self) -> bool:
        """Whether it claims what it denies. A claim without a place fits beside what is denied in one."""
        return any((kind, "") in self.denied or (place and (kind, place) in self.denied) for kind, place, *_ in self.claims)


def matched(said: Iterable[tuple[str, ...]], true: Iterable[tuple[str, ...]], depth: int, kinds: Iterable[str]) -> list[int]:
    """Of each kind, how many claims of two reports can be paired one to one by the first `depth` of (kind, place, finer place).

    Exact where one claim fits all that another fits or nothing of it (a finer place is never said without its place), so that the
    reference claims that say most may choose first.
    """
    free = Counter(said)
    count = dict.fromkeys(kinds, 0)
    for wanted in sorted((claim[:depth] for claim in true), key=lambda claim: claim.count("")):
        found = next((claim for claim in free if all(want in ("", have) for want, have in zip(wanted, claim, strict=False))), None)
        if found is not None:
            count[found[0]] += 1
            free[found] -= 1
            free += Counter()  # drops what is used up
    return list(count.values())


def compare(ours: Sequence[Told], truth: Sequence[Told], levels: Mapping[str, int], kinds: Sequence[str], rare: Collection[str]) -> dict[str, Sums]:
    """Precision, recall and F1 of each level (name -> depth of `matched`), hallucination, omission; `rare` kinds are of the first level alone.

    DataError where no sentence of the references is a phantom's, ConfigError for an unknown kind.
    """
    if strangers := sorted(set(rare) - set(kinds)):
        raise ConfigError(f"no kind of finding is called '{strangers[0]}'{nearest(strangers[0], kinds)}", f"known: {', '.join(kinds)}")
    if truth and all(report.unknown == report.sentences for report in truth):
        raise DataError("no sentence of the references is one of a phantom's report", "use clinical metrics on other data")
    said, true = (counts([[kind for kind, *_ in report.claims] for report in side], kinds) for side in (ours, truth))
    scores: dict[str, Sums] = {}
    for number, (level, depth) in enumerate(levels.items()):
        hits = np.array([matched(a.claims, b.claims, depth, kinds) for a, b in zip(ours, truth, strict=True)]).reshape(-1, len(kinds))
        scores |= rates(level, hits, said, true, kinds, () if number else rare)
    scores["hallucination"] = share(said * (true == 0), said)
    scores["omission"] = share(true * (said == 0), true)
    return scores


def against_truth(ours: Sequence[Told], studies: Sequence[Study], kinds: Sequence[str]) -> dict[str, Sums]:
    """Against `Study.labels`, a kind once a report: truth_hallucination, truth_omission, truth_f1, truth_f1[kind], truth_f1_macro.

    DataError for a study that has not a label of every kind.
    """
    if strangers := [study.id for study in studies if any(kind not in study.labels for kind in kinds)]:
        raise DataError(f"study {strangers[0]} has no label of every kind of phantom finding", "give the studies of a phantom dataset")
    there = np.array([[study.labels[kind] == 1 for kind in kinds] for study in studies]).reshape(-1, len(kinds))
    claims = counts([[kind for kind, *_ in report.claims] for report in ours], kinds)
    said = claims > 0
    scores = {"truth_hallucination": share(claims * ~there, claims), "truth_omission": share(there & ~said, there)}
    return scores | f1("truth", said & there, said, there, kinds)


def own(reports: Sequence[Told]) -> dict[str, Sums]:
    """What can be said of generated reports without a reference: contradiction, unparsed."""
    unparsed = np.array([(report.unknown, report.sentences) for report in reports], np.float64).reshape(-1, 2)
    return {"contradiction": mean([float(report.contradicted) for report in reports]), "unparsed": Sums(unparsed, ratio)}


def rare_kinds(training: Iterable[Told], limit: float) -> set[str]:
    """The kinds that less than `limit` (a share) of the training reports claim, one at least."""
    found = [{kind for kind, *_ in report.claims} for report in training]
    total = Counter(kind for kinds in found for kind in kinds)
    return {kind for kind, count in total.items() if count < limit * len(found)}


def one_each(hypotheses: Sequence[str], others: Sequence[object], what: str) -> None:
    """DataError where the two are not one text a study."""
    if len(hypotheses) != len(others):
        raise DataError(f"{len(hypotheses)} generated reports and {len(others)} {what}", "give one of each for every study")


# ------------------------------------------------------------------------------------------------------------ sums


def counts(reports: Iterable[Iterable[str]], names: Sequence[str]) -> np.ndarray:
    """N K: how often each name is in each report."""
    found = [Counter(report) for report in reports]
    return np.array([[count[name] for name in names] for count in found]).reshape(-1, len(names))


def rates(level: str, hits: np.ndarray, said: np.ndarray, true: np.ndarray, names: Sequence[str], rare: Collection[str] = ()) -> dict[str, Sums]:
    """`level`_precision, _recall and all of `f1`; the counts are N K."""
    return f1(level, hits, said, true, names, rare) | {f"{level}_precision": share(hits, said), f"{level}_recall": share(hits, true)}


def f1(level: str, hits: np.ndarray, said: np.ndarray, true: np.ndarray, names: Sequence[str], rare: Collection[str] = ()) -> dict[str, Sums]:
    """`level`_f1, of each name, and its means over the names that the references have (_macro), over `rare` ones of them (_rare)."""
    both = np.stack([2 * hits, 1 * said + true], 1).astype(np.float64)  # N 2 K
    there = [place for place, found in enumerate(true.any(0)) if found]
    scores = {f"{level}_f1": Sums(both.sum(2), ratio), f"{level}_f1_macro": _over_names(both, there)}
    scores |= {f"{level}_f1[{name}]": Sums(both[:, :, place], ratio) for place, name in enumerate(names)}
    if rare:
        scores[f"{level}_f1_rare"] = _over_names(both, [place for place in there if names[place] in rare])
    return scores


def share(part: np.ndarray, whole: np.ndarray) -> Sums:
    """Sum of N K counts over that of others."""
    return Sums(np.stack([part.sum(1), whole.sum(1)], 1).astype(np.float64), ratio)


def _over_names(both: np.ndarray, places: Sequence[int]) -> Sums:
    """The mean over names of their ratios; NaN without a name, or where one is neither claimed nor generated."""
    return Sums(both[:, :, list(places)].reshape(len(both), -1), partial(_mean_ratio, names=len(places)))


def _mean_ratio(sums: np.ndarray, names: int) -> np.ndarray:
    """(..., 2 names) -> (...)."""
    if not names:
        return np.full(sums.shape[:-1], np.nan)
    return ratio(np.stack([sums[..., :names], sums[..., names:]], -1)).mean(-1)
