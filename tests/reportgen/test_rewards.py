"""Rewards on cases made by hand, and their sum."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest

from downstream.reportgen import train
from downstream.reportgen.config import REWARDS, Tune
from downstream.reportgen.metrics.cider import Frequencies
from downstream.reportgen.metrics.nlg import words
from downstream.reportgen.rewards import Rewards, common
from downstream.reportgen.tune import rewards
from downstream.reportgen.vocabulary import Vocabulary
from tests.reportgen import tiny

CLEAR = "The lungs are clear."
NODULE = "There is a small nodule in the right upper lung zone."
LEFT = "There is a small nodule in the left upper lung zone."
EFFUSION = "There is a left pleural effusion."
NO_EFFUSION = "No pleural effusion."
PERHAPS = "Possible pneumonia."
HEART = "The heart is enlarged."
LOBE, OTHER_LOBE = "There is a nodule in the right upper lobe.", "There is a nodule in the left upper lobe."  # of phantom CT
TEXTS = (CLEAR, NODULE, LEFT, EFFUSION, NO_EFFUSION, PERHAPS, HEART, LOBE, OTHER_LOBE)
VOCABULARY = Vocabulary.train(TEXTS)


def made(**weights: float) -> Rewards:
    return Rewards(weights, Frequencies.of([words(text) for text in TEXTS]), lambda ids: words(VOCABULARY.decode(ids)), VOCABULARY.decode)


def row(*texts: str) -> list[list[int]]:
    return [VOCABULARY.encode(text) for text in texts]


def value(name: str, said: Sequence[str], true: Sequence[str]) -> float:
    (found,) = made(**{name: 1.0})([row(*said)], [row(*true)])
    return found


CASES = [
    ("bleu", [CLEAR], [CLEAR], 1.0),
    ("bleu", [CLEAR], ["The heart is enlarged."], (2 / 5 + 0 + 0 + 0) / 4),  # "the" and "."
    ("rouge_l", [CLEAR], [CLEAR], 1.0),
    ("rouge_l", [CLEAR], ["The heart is enlarged."], 2 * 2 / 10),
    ("rouge_l", [NODULE], [LEFT], 2 * 11 / 24),
    ("rouge_l", [NODULE, CLEAR], [CLEAR, NODULE], 2 * 12 / 34),  # sentences of a row are one text
    ("cider_d", [EFFUSION], [EFFUSION], 10.0),
    ("cider_d", [EFFUSION], [CLEAR], 0.0),  # nothing but the full stop in common, and that is everywhere
    ("repetition", [CLEAR, CLEAR, NODULE, CLEAR], [CLEAR], -2 / 4),
    ("repetition", [CLEAR, NODULE], [CLEAR], 0.0),
    ("length", [CLEAR], [CLEAR], 0.0),
    ("length", [CLEAR], [CLEAR, CLEAR], -0.5),
    ("length", [CLEAR, CLEAR, CLEAR], [CLEAR], -2.0),
    ("chexpert14", [EFFUSION], [EFFUSION], 1.0),
    ("chexpert14", [NO_EFFUSION], [EFFUSION], 0.0),
    ("chexpert14", [PERHAPS], [PERHAPS], 1.0),  # uncertain: neither tells anything
    ("chexpert14", [PERHAPS], [EFFUSION], 0.0),
    ("phantom", [NODULE], [NODULE], 1.0),
    ("phantom", [LEFT], [NODULE], 0.0),
    ("phantom", [CLEAR], [CLEAR], 1.0),  # both claim nothing
    ("phantom", [CLEAR], [NODULE], 0.0),
    ("phantom", [NODULE, LEFT], [NODULE], 2 * 1 / 3),
    ("phantom", [NODULE, EFFUSION], [EFFUSION, LEFT], 2 * 1 / 4),
    ("ctrate18", [EFFUSION], [EFFUSION], 1.0),
    ("ctrate18", [EFFUSION], [NO_EFFUSION], 0.0),
    ("phantom_ct", [LOBE], [LOBE], 1.0),
    ("phantom_ct", [LOBE], [OTHER_LOBE], 0.0),
    ("phantom_ct", [LOBE, HEART], [HEART], 2 * 1 / 3),
]


@pytest.mark.parametrize(("name", "said", "true", "expected"), CASES)
def test_a_reward_of_a_case_made_by_hand(name: str, said: list[str], true: list[str], expected: float) -> None:
    assert value(name, said, true) == pytest.approx(expected, abs=1e-3)


def test_every_reward_of_the_config_has_a_case() -> None:
    assert {case[0] for case in CASES} == set(REWARDS)


def test_labels_that_are_too_many_cost_what_f1_costs() -> None:
    """Example F1 of the positive labels: found by the labeller itself, counted by hand."""
    from downstream.reportgen.metrics.chexpert14 import label

    said, true = (EFFUSION, "The heart is enlarged."), (EFFUSION,)
    ours, theirs = ({name for name, status in label(" ".join(texts)).items() if status == 1} for texts in (said, true))
    hits = sum(name in theirs for name in ours)
    precision, recall = hits / len(ours), hits / len(theirs)
    assert precision < 1
    assert value("chexpert14", said, true) == pytest.approx(2 * precision * recall / (precision + recall))


def test_cider_weighs_rare_words_more() -> None:
    """Next to a loop over the formula, n-grams up to four."""
    said, true = words(LEFT), words(NODULE)
    documents = [words(text) for text in TEXTS]
    total = 0.0
    for n in range(1, 5):

        def grams(text: list[str], n: int = n) -> list[tuple[str, ...]]:
            return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]

        def weight(gram: tuple[str, ...], text: list[str]) -> float:
            holding = sum(gram in grams(document) for document in documents)
            return grams(text).count(gram) * (math.log(len(documents)) - math.log(max(1, holding)))

        ours, theirs = ({gram: weight(gram, text) for gram in grams(text)} for text in (said, true))
        norm = math.sqrt(sum(w * w for w in ours.values())) * math.sqrt(sum(w * w for w in theirs.values()))
        total += sum(min(ours[g], theirs[g]) * theirs[g] for g in ours if g in theirs) / norm
    assert value("cider_d", [LEFT], [NODULE]) == pytest.approx(10 * total / 4)


def test_saying_nothing_is_worth_nothing_and_breaks_nothing() -> None:
    for name in REWARDS:
        found = made(**{name: 1.0})([[[]], row(CLEAR), [[]]], [row(LOBE if name == "phantom_ct" else NODULE), [[]], [[]]])
        assert all(math.isfinite(v) for v in found)
        assert found[0] <= 1e-3
    assert value("length", [], [NODULE]) == -1.0


def test_rewards_are_a_weighted_sum() -> None:
    weights = {"bleu": 0.5, "cider_d": 2.0, "rouge_l": -1.0, "length": 0.0, "chexpert14": 0.25, "phantom": 3.0}
    both = made(**weights)
    said, true = [row(CLEAR, NODULE), row(EFFUSION), row(LEFT)], [row(CLEAR, LEFT), row(NO_EFFUSION), row(LEFT)]
    alone = {name: made(**{name: 1.0})(said, true) for name in weights if weights[name]}
    assert both(said, true) == pytest.approx([sum(weights[n] * alone[n][r] for n in alone) for r in range(3)])
    assert both.each(said, true) == alone  # unweighted, without those of no weight


@pytest.mark.parametrize("lengths", [(0, 0), (0, 3), (1, 1), (4, 5), (6, 3)])
def test_the_longest_common_subsequence_is_the_longest_of_all(lengths: tuple[int, int]) -> None:
    for seed in range(6):
        a, b = ([(seed * 7 + n * n * (k + 2)) % 3 for n in range(length)] for k, length in enumerate(lengths))
        every = [{c for n in range(len(t) + 1) for c in itertools.combinations(t, n)} for t in (a, b)]
        assert common(a, b) == max(map(len, every[0] & every[1]))


# ---------------------------------------------------------------------------------------- of a config, for a generator


def counted(documents: list[list[object]], n: int) -> dict[tuple[object, ...], int]:
    out: dict[tuple[object, ...], int] = {}
    for document in documents:
        for gram in {tuple(document[i : i + k]) for k in range(1, n + 1) for i in range(len(document) - k + 1)}:
            out[gram] = out.get(gram, 0) + 1
    return out


def test_topics_are_rewarded_over_codes_one_at_a_time() -> None:
    """Each report is a document, and each of its sentences a code: rare topics weigh more (MGRRG)."""
    it, listed = tiny.generator(), tiny.studies(6)
    found = rewards(it, Tune(part="topics", level="topic", rewards={"cider_d": 1.0, "repetition": 1.0}), listed)
    code = dict(zip(tiny.TEXTS, tiny.OF_TEXT, strict=True))
    assert train.codes(it.pretrained, list(tiny.TEXTS)) == list(tiny.OF_TEXT)
    documents: list[list[object]] = [[code[s.text] for s in study.sentences] for study in listed]
    assert (found.frequencies.n, found.frequencies.documents) == (1, 6)
    assert found.frequencies.counts == counted(documents, 1)
    rare, common_one = min(code.values(), key=lambda c: counted(documents, 1)[c,]), max(code.values(), key=lambda c: counted(documents, 1)[c,])
    said = [[[rare, common_one]]]
    assert found.cider_d(said[0], [[rare]]) > found.cider_d(said[0], [[common_one]])
    assert found.repetition([[3, 1, 3, 3]], [[1]]) == -0.5
    assert found.repetition([[]], [[1]]) == 0.0


@pytest.mark.parametrize("kind", ["word", "wordpiece"])
@pytest.mark.parametrize("level", ["sentence", "report"])
def test_documents_are_sentences_or_reports_of_training(level: str, kind: str) -> None:
    it, listed = tiny.generator(kind=kind), tiny.studies(6)
    found = rewards(it, Tune(level=level), listed)
    spell = it.vocabulary.encode if kind == "word" else words
    documents: list[list[object]] = [list(spell(s.text)) for study in listed for s in study.sentences]
    if level == "report":
        documents = [[t for s in study.sentences for t in spell(s.text)] for study in listed]
    assert found.frequencies.documents == len(documents)
    assert found.frequencies.counts == counted(documents, 4)
    true = [it.vocabulary.encode(s.text) for s in listed[2].sentences]
    assert found.words(true) == [t for s in listed[2].sentences for t in spell(s.text)]
    assert words(found.text(true)) == words(" ".join(s.text for s in listed[2].sentences))


def test_a_report_written_as_one_text_is_a_document() -> None:
    it, listed = tiny.generator("transformer"), tiny.studies(4)
    found = rewards(it, Tune(part="report", level="report"), listed)
    assert found.frequencies.counts == counted([[t for s in one.sentences for t in it.vocabulary.encode(s.text)] for one in listed], 4)
