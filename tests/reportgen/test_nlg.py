"""Metrics of wording: against pycocoevalcap where it is installed, against loops written from the formulas, and against numbers made by hand."""

from __future__ import annotations

import json
import math
import random
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from downstream.reportgen.metrics import cider, meteor, nlg
from downstream.reportgen.metrics.cider import Frequencies
from elvis.errors import ConfigError, DataError

TEXT = "the lungs are clear no effusion seen small left right heart size normal nodule . , lobe"
VOCABULARY = TEXT.split()
KINDS = [(1, 1, 6), (1, 0, 4), (1, 20, 60), (3, 1, 6), (3, 0, 4), (3, 20, 60)]  # references a case, least and most words
CLEAR = "the lungs are clear . no effusion ."


def synthetic(several: int, least: int, most: int, cases: int = 40) -> tuple[list[str], list[list[str]]]:
    """Reports that are their first reference with words changed, cut short or said again; the first is right."""
    draw = random.Random(f"{several} {least} {most}")
    references = [[" ".join(draw.choices(VOCABULARY, k=draw.randint(least, most))) for _ in range(several)] for _ in range(cases)]
    reports = [references[0][0]]
    for texts in references[1:]:
        tokens = [token if draw.random() < 0.7 else draw.choice(VOCABULARY) for token in texts[0].split()]
        reports.append(" ".join(tokens[: draw.randint(0, len(tokens))] + tokens[: draw.randint(0, 3)]))
    return reports, references


# --------------------------------------------------------------------------------------------------- words


def test_text_of_r2gen_is_just_split() -> None:
    for reports, references in (synthetic(*kind) for kind in KINDS):
        for texts in (reports, *references):
            assert [nlg.words(text) for text in texts] == [text.split() for text in texts]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The lungs are clear.  No effusion.", "the lungs are clear . no effusion ."),
        ("Nodule (1.5 cm), 10:30; stable?!", "nodule ( 1.5 cm ) , 10:30 ; stable ? !"),
        ("Seen at T12.Normal", "seen at t12 . normal"),
        ("cardio-mediastinal / 1,5...\n\tx", "cardio-mediastinal / 1,5 . . . x"),
        (" \n", ""),
    ],
)
def test_marks_become_words_except_between_digits(text: str, tokens: str) -> None:
    assert " ".join(nlg.words(text)) == tokens
    assert nlg.words(tokens) == nlg.words(text)


# ------------------------------------------------------------------------------------ parity with the library


@pytest.mark.parametrize("kind", KINDS)
def test_all_metrics_equal_pycocoevalcap(kind: tuple[int, int, int]) -> None:
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu")
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge")
    coco = pytest.importorskip("pycocoevalcap.cider.cider")
    reports, references = synthetic(*kind)
    truth, said = dict(enumerate(references)), {number: [text] for number, text in enumerate(reports)}
    ours = nlg.nlg(reports, references)

    values, each = bleu.Bleu(4).compute_score(truth, said, verbose=0)
    for order in range(4):
        assert ours[f"bleu_{order + 1}"].value == pytest.approx(values[order], abs=1e-9)
    if kind[0] == 1:
        single = [nlg.sentence_bleu(report.split(), texts[0].split()) for report, texts in zip(reports, references, strict=True)]
        np.testing.assert_allclose(single, np.mean(each, 0), atol=1e-9)
    value, cases = rouge.Rouge().compute_score(truth, said)
    assert ours["rouge_l"].value == pytest.approx(value, abs=1e-9)
    np.testing.assert_allclose(ours["rouge_l"].parts[:, 0], cases, atol=1e-9)
    value, cases = coco.Cider().compute_score(truth, said)
    assert ours["cider_d"].value == pytest.approx(value, abs=1e-9)
    np.testing.assert_allclose(ours["cider_d"].parts[:, 0], cases, atol=1e-9)


# ---------------------------------------------------------------------------------------------------- BLEU


def grams_of(tokens: list[str], order: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[start : start + order]) for start in range(len(tokens) - order + 1)]


def bleu_by_loop(reports: list[str], references: list[list[str]], order: int) -> float:
    product, length, closest = 1.0, 0, 0
    for k in range(1, order + 1):
        matched = total = 0
        for report, texts in zip(reports, references, strict=True):
            ours = grams_of(report.split(), k)
            total += len(ours)
            for gram in set(ours):
                matched += min(ours.count(gram), max(grams_of(text.split(), k).count(gram) for text in texts))
        product *= (matched + 1e-15) / (total + 1e-9)
    for report, texts in zip(reports, references, strict=True):
        length += len(report.split())
        closest += sorted((abs(len(text.split()) - len(report.split())), len(text.split())) for text in texts)[0][1]
    ratio = (length + 1e-15) / (closest + 1e-9)
    return product ** (1 / order) * (math.exp(1 - 1 / ratio) if ratio < 1 else 1)


@pytest.mark.parametrize("kind", KINDS)
def test_bleu_is_the_formula(kind: tuple[int, int, int]) -> None:
    reports, references = synthetic(*kind)
    for order in range(1, 5):
        assert nlg.bleu(reports, references)[f"bleu_{order}"].value == pytest.approx(bleu_by_loop(reports, references, order), abs=1e-12)


def test_bleu_made_by_hand() -> None:
    scores = nlg.bleu(["no effusion no effusion", "clear"], ["no effusion seen", "clear lungs"])
    assert scores["bleu_1"].value == pytest.approx(3 / 5)  # no, effusion once each, clear; 5 words against 5
    assert scores["bleu_2"].value == pytest.approx(math.sqrt(3 / 5 * 1 / 3))  # "no effusion" once of 3 bigrams
    short = nlg.bleu(["the lungs are clear"], [CLEAR])
    for order in range(1, 5):
        assert short[f"bleu_{order}"].value == pytest.approx(math.exp(1 - 8 / 4))  # nothing wrong but short


def test_the_closest_reference_gives_the_length_and_of_two_the_shorter() -> None:
    near = nlg.bleu(["a b c"], [["a b c d e f", "a b c d"]])["bleu_1"].value
    assert near == pytest.approx(math.exp(1 - 4 / 3))
    tied = nlg.bleu(["a b c"], [["a b c d", "a b"]])["bleu_1"].value
    assert tied == pytest.approx(1.0)


def test_bleu_of_chosen_cases_is_bleu_of_those_texts() -> None:
    reports, references = synthetic(1, 20, 60)
    chosen = [number % 3 == 0 for number in range(len(reports))]
    some = [index for index, use in enumerate(chosen) if use]
    for name, sums in nlg.bleu(reports, references).items():
        expected = nlg.bleu([reports[i] for i in some], [references[i] for i in some])[name].value
        assert sums.where(chosen).value == pytest.approx(expected, abs=1e-12)
        stacked = np.stack([sums.parts.sum(0), sums.where(chosen).parts.sum(0)])
        np.testing.assert_allclose(sums.statistic(stacked), [sums.value, expected])


def test_sentence_bleu_is_the_mean_of_corpus_bleu_of_one_case() -> None:
    for kind in KINDS[:3]:
        reports, references = synthetic(*kind)
        for report, (text,) in zip(reports, references, strict=True):
            expected = np.mean([bleu_by_loop([report], [[text]], order) for order in range(1, 5)])
            assert nlg.sentence_bleu(report.split(), text.split()) == pytest.approx(expected, abs=1e-12)


def test_sentence_bleu_takes_codes_as_words() -> None:
    codes = {word: number for number, word in enumerate(VOCABULARY)}
    reports, references = synthetic(1, 20, 60)
    for report, (text,) in zip(reports, references, strict=True):
        by_code = nlg.sentence_bleu([codes[word] for word in report.split()], [codes[word] for word in text.split()])
        assert by_code == nlg.sentence_bleu(report.split(), text.split())


def test_sentence_bleu_at_its_ends() -> None:
    assert nlg.sentence_bleu(CLEAR.split(), CLEAR.split()) == pytest.approx(1.0)
    assert nlg.sentence_bleu([], CLEAR.split()) == 0.0
    assert nlg.sentence_bleu(CLEAR.split(), []) < 1e-3
    assert nlg.sentence_bleu([1, 2, 3, 4], [5, 6, 7, 8]) < 1e-3
    assert nlg.sentence_bleu([1, 1, 1, 1], [1, 2, 3, 4]) == pytest.approx(0.25 / 4, abs=1e-3)  # one of the four is right


# --------------------------------------------------------------------------------------------------- ROUGE


def common_by_table(first: list[str], second: list[str]) -> int:
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, left in enumerate(first):
        for j, right in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if left == right else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@pytest.mark.parametrize("kind", KINDS)
def test_rouge_is_the_formula_on_the_usual_table(kind: tuple[int, int, int]) -> None:
    reports, references = synthetic(*kind)
    expected, expected_f1 = [], []
    for report, texts in zip(reports, references, strict=True):
        ours = report.split(" ")  # "" is a word: pycocoevalcap
        precision = max(common_by_table(ours, text.split(" ")) / len(ours) for text in texts)
        recall = max(common_by_table(ours, text.split(" ")) / len(text.split(" ")) for text in texts)
        expected.append(2.44 * precision * recall / (recall + 1.44 * precision) if precision else 0.0)
        best = 0.0
        for text in texts:
            plain = [[token for token in side.split() if token.isalnum()] for side in (report, text)]
            common = common_by_table(*plain)
            if common:
                precision, recall = common / len(plain[0]), common / len(plain[1])
                best = max(best, 2 * precision * recall / (precision + recall))
        expected_f1.append(best)
    np.testing.assert_allclose(nlg.rouge_l(reports, references).parts[:, 0], expected, atol=1e-12)
    np.testing.assert_allclose(nlg.rouge_l_f1(reports, references).parts[:, 0], expected_f1, atol=1e-12)


def test_rouge_made_by_hand() -> None:
    shorter = "the lungs are clear"
    assert nlg.rouge_l([shorter], [CLEAR]).value == pytest.approx(2.44 * 1 * 0.5 / (0.5 + 1.44))
    assert nlg.rouge_l_f1([shorter], [CLEAR]).value == pytest.approx(0.8)  # rouge_score 0.1.2: P 1, R 4/6 without the full stops
    assert nlg.rouge_l_f1(["Non-specific T2 change"], ["t2: change, specific"]).value == pytest.approx(4 / 7)  # "non", "specific" are two words
    assert nlg.rouge_l_f1(["a b c"], [["a b c d", "b c"]]).value == pytest.approx(6 / 7)  # the better of 6/7 and 4/5


# --------------------------------------------------------------------------------------------------- CIDEr


def cider_by_loop(reports: list[str], references: list[list[str]], number: int, *, clipped: bool) -> float:
    """From the formula, of one case, with the document frequencies of all."""
    total = 0.0
    for order in range(1, 5):
        frequency = Counter(gram for texts in references for gram in {g for text in texts for g in grams_of(text.split(), order)})

        def weights(text: str, order: int = order, frequency: Counter = frequency) -> dict[tuple[str, ...], float]:
            grams = grams_of(text.split(), order)
            return {gram: grams.count(gram) * math.log(len(references) / max(1, frequency[gram])) for gram in grams}

        ours = weights(reports[number])
        for text in references[number]:
            theirs = weights(text)
            norm = math.sqrt(sum(w * w for w in ours.values())) * math.sqrt(sum(w * w for w in theirs.values()))
            product = sum((min(w, theirs.get(g, 0.0)) if clipped else w) * theirs.get(g, 0.0) for g, w in ours.items())
            difference = len(reports[number].split()) - len(text.split())
            term = math.exp(-(difference**2) / 72) if clipped else 1.0
            total += product / norm * term if norm else 0.0
    return 10 * total / 4 / len(references[number])


@pytest.mark.parametrize("kind", KINDS)
def test_cider_is_the_formula(kind: tuple[int, int, int]) -> None:
    reports, references = synthetic(*kind)
    ours = nlg.nlg(reports, references)
    for name, clipped in (("cider", False), ("cider_d", True)):
        expected = [cider_by_loop(reports, references, number, clipped=clipped) for number in range(len(reports))]
        np.testing.assert_allclose(ours[name].parts[:, 0], expected, atol=1e-9)
        assert ours[name].value == pytest.approx(np.mean(expected))


def test_cider_made_by_hand() -> None:
    table = Frequencies.of([["clear"], ["no", "effusion"], ["no", "effusion", "seen"]])
    assert cider.cider_d(["clear"], [["clear"]], table) == pytest.approx(10 / 4)  # one word: no bigrams
    assert cider.cider_d(["no", "effusion"], [["no", "effusion"]], table) == pytest.approx(10 * 2 / 4)
    weight, seen = math.log(3 / 2), math.log(3)  # unigrams: no, effusion; no, effusion, seen
    expected = 2 * weight**2 / (math.sqrt(2) * weight * math.sqrt(2 * weight**2 + seen**2))
    expected += weight**2 / (weight * math.sqrt(weight**2 + seen**2))  # bigrams: no effusion; no effusion, effusion seen
    assert cider.cider(["no", "effusion"], [["no", "effusion", "seen"]], table) == pytest.approx(10 * expected / 4)
    assert cider.cider_d(["no", "effusion"], [["no", "effusion", "seen"]], table) == pytest.approx(10 * expected / 4 * math.exp(-1 / 72))


def test_words_said_again_gain_nothing_in_cider_d_but_something_in_cider() -> None:
    table = Frequencies.of([["effusion", "left"], ["clear", "lungs"]], n=1)
    reference = [["effusion", "left", "effusion"]]
    once, again = ["effusion", "left"], ["effusion"] * 2 + ["left"]
    often = ["effusion"] * 9 + ["left"]
    assert cider.cider_d(again, reference, table) == pytest.approx(10)
    assert cider.cider_d(often, reference, table) < cider.cider_d(once, reference, table) < cider.cider_d(again, reference, table)
    assert cider.cider(often, reference, table) > 2 * cider.cider_d(often, reference, table)


def test_one_document_makes_every_score_zero() -> None:
    table = Frequencies.of([CLEAR.split()])
    for report in (CLEAR, "anything else"):
        assert cider.cider_d(report.split(), [CLEAR.split()], table) == 0.0
        assert cider.cider(report.split(), [CLEAR.split()], table) == 0.0
    scores = nlg.nlg([CLEAR], [CLEAR])
    assert scores["cider_d"].value == 0.0
    assert scores["bleu_4"].value == pytest.approx(1.0)


def test_what_every_document_says_counts_nothing() -> None:
    table = Frequencies.of([["lungs", "clear"], ["lungs", "opaque"]])
    assert cider.cider_d(["lungs"], [["lungs", "clear"]], table) == 0.0
    assert cider.cider_d(["clear"], [["lungs", "clear"]], table) == pytest.approx(10 / 4 * math.exp(-1 / 72))


def test_rare_topics_are_worth_more() -> None:
    table = Frequencies.of([[1, 2], [1, 3], [1, 2], [2, 9]], n=1)
    truth = [[1, 2, 9]]
    rare, common = cider.cider_d([9, 4, 4], truth, table), cider.cider_d([1, 4, 4], truth, table)
    assert rare > 2 * common > 0
    assert cider.cider_d([1, 2, 9], truth, table) == pytest.approx(10)
    assert cider.cider_d([9], [[9, 1]], table) == cider.cider([9], [[9, 1]], table)  # no bigrams, no length term


def test_all_references_of_a_case_are_one_document() -> None:
    table = Frequencies.of_several([[["no", "effusion"], ["no", "fluid"]], [["clear"]]])
    assert table.documents == 2
    assert table.counts[("no",)] == 1
    assert table.counts == {("no",): 1, ("effusion",): 1, ("no", "effusion"): 1, ("fluid",): 1, ("no", "fluid"): 1, ("clear",): 1}


@pytest.mark.parametrize("tokens", [["no", "effusion", 'é " ,'], [3, np.int64(7), 3]])
def test_a_table_comes_back_from_its_file(tmp_path: Path, tokens: list) -> None:
    table = Frequencies.of([tokens, tokens[:1]], n=2)
    table.save(tmp_path / "table.json")
    back = Frequencies.load(tmp_path / "table.json")
    assert (back.n, back.documents, back.counts) == (2, 2, table.counts)
    assert cider.cider_d(tokens, [tokens], back) == cider.cider_d(tokens, [tokens], table)
    assert cider.cider_d(tokens, [tokens], back) > 0


@pytest.mark.parametrize(
    "broken",
    [
        "no json",
        "[1]",
        "{}",
        '{"kind":"other","n":1,"documents":2,"counts":[["a",1]]}',
        '{"kind":"document frequencies","n":1,"documents":2,"counts":[["a",3]]}',
        '{"kind":"document frequencies","n":1,"documents":2,"counts":[["a","b",1]]}',
        '{"kind":"document frequencies","n":1,"documents":2,"counts":[["a"]]}',
        '{"kind":"document frequencies","n":1.5,"documents":2,"counts":[["a",1]]}',
        '{"kind":"document frequencies","n":1,"documents":0,"counts":[]}',
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, broken: str) -> None:
    (tmp_path / "table.json").write_text(broken)
    with pytest.raises(DataError, match="not a table of document frequencies"):
        Frequencies.load(tmp_path / "table.json")


def test_a_table_is_a_document_that_json_reads(tmp_path: Path) -> None:
    Frequencies.of([["a", "b"]], n=2).save(tmp_path / "t.json")
    assert json.loads((tmp_path / "t.json").read_text()) == {
        "kind": "document frequencies",
        "n": 2,
        "documents": 1,
        "counts": [["a", 1], ["b", 1], ["a", "b", 1]],
    }


def test_tables_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no reference at all"):
        Frequencies.of([])
    with pytest.raises(ConfigError, match="n = 0"):
        Frequencies.of([["a"]], n=0)
    with pytest.raises(ConfigError, match="tuple tokens cannot be saved"):
        Frequencies.of([[(1, 2)]], n=1).save(tmp_path / "t.json")
    with pytest.raises(DataError, match="without a reference"):
        cider.cider_d(["a"], [], Frequencies.of([["a"]]))


# ------------------------------------------------------------------------------------------------ together


def test_a_table_of_training_weighs_the_words() -> None:
    reports, references = ["small nodule", "clear"], ["small nodule seen", "clear lungs"]
    table = Frequencies.of([nlg.words(text) for text in ("clear lungs", "clear", "a nodule")])
    expected = np.mean([cider.cider_d(nlg.words(report), [nlg.words(text)], table) for report, text in zip(reports, references, strict=True)])
    assert nlg.nlg(reports, references, table)["cider_d"].value == pytest.approx(expected)
    assert nlg.nlg(reports, references)["cider_d"].value != pytest.approx(expected)
    with pytest.raises(ConfigError, match="n = 1"):
        nlg.nlg(reports, references, Frequencies.of([["a"]], n=1))


def test_identical_texts_are_the_best_there_is() -> None:
    texts = [CLEAR, "heart size is normal . small left nodule ."]
    scores = nlg.nlg(texts, texts)
    assert list(scores) == ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "rouge_l_f1", "cider", "cider_d"]
    for name, sums in scores.items():
        assert sums.value == pytest.approx(10 if name.startswith("cider") else 1)


def test_an_empty_text_scores_nothing() -> None:
    for reports, references in ((["", ""], [CLEAR, "clear"]), ([CLEAR, "clear"], ["", ""])):
        for sums in nlg.nlg(reports, references).values():
            assert sums.value == pytest.approx(0, abs=1e-3)
    both = nlg.nlg(["", "clear"], ["", "clear"])
    assert both["rouge_l"].value == 1.0  # pycocoevalcap: one empty word that is right
    assert both["rouge_l_f1"].value == 0.5
    assert both["bleu_1"].value == pytest.approx(1.0)  # nothing said, nothing missed


def test_without_a_case_nothing_is_defined() -> None:
    assert all(math.isnan(sums.value) for sums in nlg.nlg([], []).values())


def test_intervals_and_paired_differences_come_with_it() -> None:
    reports, references = synthetic(1, 20, 60)
    patients = [number // 2 for number in range(len(reports))]
    right = nlg.nlg([texts[0] for texts in references], references)
    for name, sums in nlg.nlg(reports, references).items():
        metric, difference = sums.metric(patients, resamples=200), right[name].metric(patients, minus=sums, resamples=200)
        assert metric.low < metric.value < metric.high
        assert 0 < difference.low < difference.value < difference.high


def test_texts_that_do_not_pair_are_refused() -> None:
    for metric in (nlg.nlg, nlg.bleu, nlg.rouge_l, nlg.rouge_l_f1, meteor.meteor):
        with pytest.raises(DataError, match="2 reports and references for 1"):
            metric(["a", "b"], ["a"])
        with pytest.raises(DataError, match="report 2 has no reference"):
            metric(["a", "b"], ["a", []])
    with pytest.raises(DataError, match="1 reports and references for 0"):
        cider.corpus([["a"]], [])


# -------------------------------------------------------------------------------------------------- METEOR

COUNTED = [  # what meteor-1.5.jar counted of synthetic texts, and the score it made of each
    ("5 5 3 3 2 2 3 3 0 0 0 0 0 0 0 0 0 0 0 0 1 5 5", 1.0),
    ("7 5 5 2 1 1 2 2 0 0 0 0 0 0 0 0 0 0 0 0 3 3 3", 0.18181818181818182),
    ("7 9 3 4 1 2 1 1 1 1 0 0 0 1 1 0 1 0 1 2 3 5 6", 0.30178725376805227),
    ("10 10 6 6 4 4 6 6 0 0 0 0 0 0 0 0 0 0 0 0 2 10 10", 0.5651322017933826),
    ("5 5 3 3 0 0 3 3 2 2 0 0 0 0 0 0 0 0 0 0 1 5 5", 0.7333333333333333),
    ("0 5 0 3 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0", 0.0),
    ("4 0 2 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0", 0.0),
]
OF_FIRST_TWO = 0.35481211580138255  # the program's score of the sum of the first two


def counted() -> np.ndarray:
    return meteor.parts_of(np.array([[*map(float, line.split())] for line, _ in COUNTED]))


def test_meteor_of_counts_is_what_the_program_makes_of_them() -> None:
    np.testing.assert_allclose(meteor.meteor_of(counted()), [score for _, score in COUNTED], atol=1e-9)
    assert meteor.meteor_of(counted()[:2].sum(0)) == pytest.approx(OF_FIRST_TWO, abs=1e-9)
    assert math.isnan(meteor.meteor_of(np.zeros(24)))


@pytest.fixture
def fake_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `java` that writes down what it is asked and answers with counts in turn; and a program to be found."""
    folder = tmp_path / "meteor"
    (folder / "data").mkdir(parents=True)
    (folder / meteor.JAR).touch()
    (folder / meteor.TABLE).touch()
    program = tmp_path / "java"
    answers = [line for line, _ in COUNTED[:2]]
    program.write_text(
        f"#!{sys.executable}\nimport sys\nlines = sys.stdin.read().splitlines()\n"
        f"open({str(tmp_path / 'asked')!r}, 'w').write(chr(10).join([' '.join(sys.argv[1:]), *lines]))\n"
        f"for number, line in enumerate(lines): print({answers!r}[number % 2])\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(meteor, "_folder", lambda: folder)
    return tmp_path


def test_meteor_is_that_of_the_summed_counts(fake_java: Path) -> None:
    assert meteor.available() == ""
    sums = meteor.meteor(["The lungs are clear.", "x ||| y"], [CLEAR, ["no fluid", ""]])
    assert sums.value == pytest.approx(OF_FIRST_TWO)
    assert sums.where([True, False]).value == pytest.approx(1.0)
    command, *asked = (fake_java / "asked").read_text().split("\n")
    assert command == "-jar -Xmx2G meteor-1.5.jar - - -stdio -l en -norm"
    assert asked == [f"SCORE ||| {CLEAR} ||| the lungs are clear .", "SCORE ||| no fluid |||  ||| x  y"]
    assert math.isnan(meteor.meteor([], []).value)


def test_meteor_says_what_is_missing(fake_java: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fake_java / "java").write_text("#!/bin/sh\necho 'Error: no memory' >&2\nexit 3\n")
    with pytest.raises(ConfigError, match=r"Java failed \(exit code 3\): Error: no memory"):
        meteor.meteor(["a"], ["a"])
    (fake_java / "meteor" / meteor.TABLE).unlink()
    assert meteor.available() == "pycocoevalcap has no data/paraphrase-en.gz"
    monkeypatch.setattr(meteor, "_folder", lambda: None)
    assert meteor.available() == "pycocoevalcap is not installed"
    (fake_java / "java").unlink()
    assert meteor.available() == "no java on PATH"
    with pytest.raises(ConfigError, match=r"METEOR: no java on PATH\npip install --no-deps pycocoevalcap"):
        meteor.meteor(["a"], ["a"])


@pytest.mark.slow
def test_meteor_equals_pycocoevalcap() -> None:
    if reason := meteor.available():
        pytest.skip(reason)
    from pycocoevalcap.meteor.meteor import Meteor

    reports, references = ["", "clear", CLEAR], [["clear"], [""], [CLEAR]]
    for kind in KINDS:
        more_reports, more_references = synthetic(*kind, cases=8)
        reports, references = reports + more_reports, references + more_references
    program = Meteor()
    value, cases = program.compute_score(dict(enumerate(references)), {number: [text] for number, text in enumerate(reports)})
    for pipe in (program.meteor_p.stdout, program.meteor_p.stderr):  # it does not close them itself
        pipe.close()
    sums = meteor.meteor(reports, references)
    assert sums.value == pytest.approx(value, abs=1e-9)
    np.testing.assert_allclose(meteor.meteor_of(sums.parts), cases, atol=1e-9)
    assert any(left != right for left, right in pairwise(cases))
