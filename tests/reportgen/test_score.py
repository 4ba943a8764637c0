"""How reports are judged: every row against the metrics called by hand, parts of it by loops, priors by loops, alarms."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from downstream.reportgen import config as schemas
from downstream.reportgen import score
from downstream.reportgen.config import Decode, Reportgen
from downstream.reportgen.metrics import clinical, diversity, phantom
from downstream.reportgen.metrics.nlg import nlg
from downstream.reportgen.metrics.sums import Sums
from downstream.reportgen.model import Generator
from downstream.reportgen.readers import CT, PHANTOM, PHANTOM_CT, XRAY
from downstream.reportgen.reports import Generated, Spoken
from downstream.reportgen.score import Setting, Split
from elvis.data import studies as tables
from elvis.data.reports import flags
from elvis.errors import ConfigError
from elvis.types import Study
from tests.reportgen import tiny

NORMAL = "The lungs are clear."


@pytest.fixture(scope="module")
def phantoms() -> list[Study]:
    """Phantom studies, 24 to learn from and 12 to judge on, two of them without a finding."""
    return list(tables.load("phantom", train=24, val=0, test=12, comp=0, swap=0, size=64, knobs={"normal": 0.3}).studies)


@pytest.fixture(scope="module")
def how(phantoms: list[Study]) -> Setting:
    return Setting.of(config(), PHANTOM, of(phantoms, "train"))


@pytest.fixture(scope="module")
def generator() -> Generator:
    return tiny.generator()


def of(listed: Sequence[Study], split: str) -> list[Study]:
    return [study for study in listed if study.split == split]


def config(*overrides: str) -> Reportgen:
    return schemas.load("mgrrg_phantom", ["resamples=50", *overrides])


def text(study: Study) -> str:
    return " ".join(sentence.text for sentence in study.sentences)


def generated(study: Study, texts: Sequence[str], kept: Sequence[bool] = ()) -> Generated:
    return Generated(study.id, tuple(Spoken(t, 1.0, kept=k) for t, k in zip(texts, kept or [True] * len(texts), strict=True)))


def shifted(judged: Sequence[Study]) -> list[Generated]:
    """For each study the sentences of the next one, and one of its own."""
    return [
        generated(study, [s.text for s in other.sentences] + [study.sentences[0].text])
        for study, other in zip(judged, [*judged[1:], judged[0]], strict=True)
    ]


def same(a: float, b: float) -> bool:
    return a == pytest.approx(b, abs=1e-12) or (math.isnan(a) and math.isnan(b))


# ------------------------------------------------------------------------------------------------------------ measure


def test_a_row_has_every_metric_as_its_function_gives_it(phantoms: list[Study], how: Setting) -> None:
    judged = of(phantoms, "test")
    reports = shifted(judged)
    said, true = [r.text for r in reports], [text(s) for s in judged]
    found = score.measure(reports, judged, how)
    training = [text(s) for s in of(phantoms, "train")]
    by_hand = {
        **phantom.phantom(said, true, rare=phantom.rare_kinds(training, 0.05)), **phantom.against_truth(said, judged),
        **clinical.clinical(said, true, rare=clinical.rare(clinical.table(training), 0.05)), **nlg(said, true),
        **diversity.diversity(said, true, training),
    }  # fmt: skip
    plain = {name for name in found if not name.endswith(("[abnormal]", "[sentences]"))}
    assert plain == by_hand.keys()
    for name, sums in by_hand.items():
        ours = found[name]
        assert same(ours.value if isinstance(ours, Sums) else ours, sums.value if isinstance(sums, Sums) else sums), name
    assert 0 < found["location_f1"].value < 1
    assert 0 < found["bleu_4"].value < 1


def test_abnormal_is_the_same_metric_on_abnormal_studies_alone(phantoms: list[Study], how: Setting) -> None:
    judged = of(phantoms, "test")
    reports = shifted(judged)
    sick = [number for number, study in enumerate(judged) if any(phantom.told(s.text).claims for s in study.sentences)]
    assert 0 < len(sick) < len(judged)
    found = score.measure(reports, judged, how)
    said, true = [reports[n].text for n in sick], [text(judged[n]) for n in sick]
    by_hand = {**phantom.phantom(said, true), **clinical.clinical(said, true)}
    plain = [name for name in by_hand if not name.endswith("]")]  # those of one kind have no part of their own
    assert len(plain) > 20
    for name in plain:
        assert same(found[f"{name}[abnormal]"].value, by_hand[name].value), name
    for name in ("bleu_1", "bleu_4", "rouge_l"):
        assert same(found[f"{name}[abnormal]"].value, nlg(said, true)[name].value)
    every = nlg([r.text for r in reports], [text(s) for s in judged])["cider_d"]  # the document frequencies stay those of all studies
    values = every.statistic(every.parts)
    assert same(found["cider_d[abnormal]"].value, sum(values[n] for n in sick) / len(sick))
    assert not [name for name in found if name.endswith("][abnormal]")]


def test_sentences_is_the_same_metric_on_abnormal_sentences_of_both_sides(phantoms: list[Study], how: Setting) -> None:
    judged = of(phantoms, "test")
    reports = shifted(judged)
    ours, theirs = [], []
    for report, study in zip(reports, judged, strict=True):
        wanted = [s.text for s in study.sentences if flags(s.text).abnormal]
        if wanted:
            theirs.append(" ".join(wanted))
            ours.append(" ".join(s.text for s in report.sentences if flags(s.text).abnormal))
    assert 0 < len(ours) < len(judged)
    found = score.measure(reports, judged, how)
    for name, sums in nlg(ours, theirs).items():
        assert same(found[f"{name}[sentences]"].value, sums.value), name
        assert len(found[f"{name}[sentences]"].parts) == len(judged)


def test_no_study_with_a_finding_gives_no_numbers_of_abnormal_ones() -> None:
    judged = [tiny.study("a", [NORMAL], seed=1), tiny.study("b", ["The heart is normal in size."], seed=2)]
    found = score.measure([generated(s, [NORMAL]) for s in judged], judged, Setting(XRAY))
    assert not [name for name in found if name.endswith(("[abnormal]", "[sentences]"))]
    assert not {"finding_f1", "location_f1"} & found.keys()  # those are of phantoms


def test_sentences_a_model_abstained_from_are_no_part_of_its_text(phantoms: list[Study], how: Setting) -> None:
    judged = of(phantoms, "test")
    whole = [generated(s, [x.text for x in s.sentences]) for s in judged]
    silent = [generated(s, [x.text for x in s.sentences] + ["There is a nodule."], [True] * len(s.sentences) + [False]) for s in judged]
    ours, theirs = score.measure(silent, judged, how), score.measure(whole, judged, how)
    assert ours.keys() == theirs.keys()
    for name, sums in ours.items():
        other = theirs[name]
        assert same(sums.value if isinstance(sums, Sums) else sums, other.value if isinstance(other, Sums) else other), name
    nothing = score.measure([generated(s, [x.text for x in s.sentences], [False] * len(s.sentences)) for s in judged], judged, how)
    assert nothing["location_f1"].value == 0
    assert nothing["bleu_1[sentences]"].value == 0


# ------------------------------------------------------------------------------------------------------------- priors


def test_the_mode_report_is_the_most_frequent_normal_one_and_of_equal_ones_the_first() -> None:
    sick = "There is a small nodule in the right upper lung zone."
    assert score.mode_report([sick] * 5 + ["B is clear.", "A is clear.", "A is clear.", "B is clear."]) == "A is clear."
    assert score.mode_report([sick] * 5 + [NORMAL]) == NORMAL
    assert score.mode_report([sick, sick, "There is mild cardiomegaly."]) == sick  # nobody is well


def test_the_mode_report_of_phantoms_is_found_by_a_loop(phantoms: list[Study]) -> None:
    texts = [text(s) for s in phantoms]
    normal = [t for t in texts if not phantom.told(t).claims]
    assert len(set(normal)) > 1
    counts = Counter(normal)
    most = max(counts.values())
    assert score.mode_report(texts) == sorted(t for t, count in counts.items() if count == most)[0]


def test_the_mode_report_is_told_sentence_by_sentence_and_only_where_there_is_training() -> None:
    """So that its abnormal sentences are told from its normal ones, where no training report is normal."""
    sick = "There is a small nodule in the right upper lung zone."
    listed, found = list(tiny.studies(2)), Split([], [])
    found.studies = listed
    score.priors(None, found, [tiny.study("a", [NORMAL, sick]), tiny.study("b", ["There is mild cardiomegaly."]), tiny.study("c", [NORMAL, sick])], 2)
    assert [[s.text for s in report.sentences] for report in found.reports["mode_report"]] == [[NORMAL, sick]] * 2
    assert list(found.reports) == ["mode_report", "reference"]
    alone = Split(listed, [])
    score.priors(None, alone, [], 2)
    assert list(alone.reports) == ["reference"]


def test_the_nearest_neighbour_is_found_by_a_loop(generator: Generator) -> None:
    training, judged = tiny.studies(7), [tiny.study(f"t{n}", tiny.TEXTS[:1], seed=3 + n, split="test") for n in range(4)]
    with torch.inference_mode():

        def feature(study: Study) -> np.ndarray:
            memory = generator.seen(tiny.batch(generator, [study]))
            return memory.tokens[0].double().mean(0).numpy()

        known, ours = [feature(s) for s in training], [feature(s) for s in judged]
    centre = sum(known) / len(known)
    for study, own in zip(score.neighbours(generator, judged, training, 3), ours, strict=True):
        alike = []
        for other in known:
            a, b = own - centre, other - centre
            alike.append(float(a @ b / np.sqrt((a @ a) * (b @ b))))
        assert study.id == training[int(np.argmax(alike))].id


def test_a_training_image_that_cannot_be_read_is_nobodys_neighbour(generator: Generator) -> None:
    good = tiny.study("good", tiny.TEXTS[:1], seed=1)
    twin_but_bad = tiny.study("bad", tiny.TEXTS[1:2], seed=2, bad=True)
    asked = tiny.study("asked", tiny.TEXTS[:1], seed=2, split="test")
    assert [s.id for s in score.neighbours(generator, [asked], [twin_but_bad, good, tiny.study("other", tiny.TEXTS[:1], seed=9)], 2)] != ["bad"]


# -------------------------------------------------------------------------------------------------------------- write


def test_unreadable_images_are_counted_and_nothing_else_is_lost(generator: Generator) -> None:
    listed = [tiny.study("a", tiny.TEXTS[:1]), tiny.study("bad", tiny.TEXTS[:1], bad=True), tiny.study("c", tiny.TEXTS[1:3], seed=3)]
    found = score.write(generator, listed, Decode(max_tokens=5), name="m", oracle=True, batch_size=2, seed=0)
    assert [s.id for s in found.studies] == ["a", "c"]
    assert [r.id for r in found.reports["m"]] == [r.id for r in found.reports["oracle_topic"]] == ["a", "c"]
    assert found.references == [tiny.TEXTS[0], " ".join(tiny.TEXTS[1:3])]
    assert list(found.unreadable) == ["bad"]
    assert "truncated" in found.unreadable["bad"]
    score.priors(generator, found, tiny.studies(5), 2)
    results, _ = score.judge(found, Setting(XRAY), config(), dataset="d", split="test", name="m", provenance={})
    assert all(r.config["unreadable"] == 1 for r in results)


def test_the_oracle_speaks_of_the_true_topics_one_sentence_each(generator: Generator) -> None:
    listed = list(tiny.studies(5))
    found = score.write(generator, listed, Decode(max_tokens=5), name="m", oracle=True, batch_size=3, seed=0)
    code = dict(zip(tiny.TEXTS, tiny.OF_TEXT, strict=True))
    for study, report in zip(listed, found.reports["oracle_topic"], strict=True):
        assert [s.topic for s in report.sentences] == [code[s.text] for s in study.sentences] == found.codes[study.id]
        assert all(s.topic_confidence is None for s in report.sentences)  # it was told


def test_what_is_written_does_not_depend_on_the_batch(generator: Generator) -> None:
    listed = list(tiny.studies(5))
    texts = [score.write(generator, listed, Decode(max_tokens=5), name="m", oracle=False, batch_size=size, seed=0).texts("m") for size in (1, 2, 5)]
    assert texts[0] == texts[1] == texts[2]


# -------------------------------------------------------------------------------------------------------------- judge


@pytest.fixture(scope="module")
def judged(phantoms: list[Study], how: Setting) -> tuple[list, list[str], Split]:
    test = of(phantoms, "test")
    found = Split(test, [text(s) for s in test], {"mine": shifted(test)})
    score.priors(None, found, of(phantoms, "train"), 4)
    return *score.judge(found, how, config(), dataset="phantom", split="test", name="mine", provenance={"x": "y"}), found


def test_a_result_a_row_and_the_differences_to_the_priors(judged: tuple) -> None:
    results, alarms, _ = judged
    assert [r.row for r in results] == ["mine", "mode_report", "reference", "mine - mode_report"]
    assert alarms == []
    by_row = {r.row: r.metrics for r in results}
    for name, gap in by_row["mine - mode_report"].items():
        assert same(gap.value, by_row["mine"][name].value - by_row["mode_report"][name].value)
    perfect = by_row["reference"]
    for name in ("location_f1", "bleu_4", "rouge_l", "finding_f1", "location_f1[abnormal]", "bleu_4[sentences]"):
        assert perfect[name].value == pytest.approx(1)
    assert perfect["hallucination"].value == perfect["omission"].value == 0


def test_values_lie_in_their_intervals(judged: tuple) -> None:
    results, _, _ = judged
    seen = 0
    for result in results:
        for name, metric in result.metrics.items():
            if metric.low is not None and not math.isnan(metric.low) and not math.isnan(metric.value):
                assert metric.low - 1e-9 <= metric.value <= metric.high + 1e-9, (result.row, name)
                seen += metric.low < metric.high
    assert seen > 20


def test_cases_tell_scores_of_studies_and_no_word_of_theirs(judged: tuple) -> None:
    results, _, found = judged
    for case, study, report in zip(results[0].per_case, found.studies, found.reports["mine"], strict=True):
        assert case["study"] == study.id
        assert case["sentences"] == len(report.sentences)
        assert case["finding_f1"] == pytest.approx(phantom.phantom([report.text], [text(study)])["finding_f1"].value, abs=1e-4) or (
            case["finding_f1"] is None and not phantom.told(text(study)).claims and not phantom.told(report.text).claims
        )
        assert not any(isinstance(value, str) and " " in value for value in case.values())


def test_what_the_limits_took_and_what_was_abstained_from_is_counted(phantoms: list[Study], how: Setting) -> None:
    test = of(phantoms, "test")[:3]
    spoken = [Spoken("There is a nodule.", 0.5, cut=True), Spoken(NORMAL, 0.1, kept=False), Spoken(NORMAL, 0.9)]
    reports = [Generated(s.id, tuple(spoken), cut=number == 0) for number, s in enumerate(test)]
    found = Split(test, [text(s) for s in test], {"mine": reports})
    (result,), _ = score.judge(found, how, config(), dataset="phantom", split="test", name="mine", provenance={})
    assert {key: result.config[key] for key in ("cut", "cut_sentences", "sentences", "abstained")} == {
        "cut": 1, "cut_sentences": 3, "sentences": 9, "abstained": 3,
    }  # fmt: skip


def test_a_generator_that_says_one_text_of_everything_raises_an_alarm(phantoms: list[Study], how: Setting) -> None:
    test = of(phantoms, "test")
    found = Split(test, [text(s) for s in test], {"mine": [generated(s, [NORMAL]) for s in test]})
    _, alarms = score.judge(found, how, config(), dataset="phantom", split="test", name="mine", provenance={})
    (alarm,) = alarms
    assert alarm.startswith("test: collapse: 100% of 12 reports are one text")


# ----------------------------------------------------------------------------------------------------- names, quick


def test_a_metric_that_chooses_is_known_by_its_name_in_the_tables() -> None:
    assert [PHANTOM.family(name) for name in ("bleu_4", "location_f1", "chexpert14_f1_micro_zeros")] == ["nlg", "phantom", "clinical"]
    assert [PHANTOM_CT.family(name) for name in ("structure_f1", "ctrate18_f1_micro_zeros")] == ["phantom", "clinical"]
    assert CT.family("ctrate18_f1_macro_zeros") == "clinical"
    with pytest.raises(ConfigError, match="did you mean 'rouge_l'"):
        PHANTOM.family("rouge_L")


def test_the_number_that_chooses_is_the_metric_of_the_reports(generator: Generator) -> None:
    listed, settings = list(tiny.studies(4)), Decode(max_tokens=5)
    found = score.write(generator, listed, settings, name="m", oracle=False, batch_size=4, seed=0)
    assert score.quick(generator, listed, settings, 2, "rouge_l") == pytest.approx(nlg(found.texts("m"), found.references)["rouge_l"].value)


def test_a_metric_that_is_not_defined_chooses_nothing(generator: Generator) -> None:
    """No report and no reference claims anything: F1 is none, and no checkpoint is better for it."""
    well = [tiny.study(f"n{n}", [NORMAL], seed=n) for n in range(2)]
    assert score.quick(generator, well, Decode(threshold=1.0, max_tokens=3), 2, "finding_f1") == float("-inf")


@pytest.mark.parametrize("name", score.OTHERS)
def test_the_name_of_another_row_is_no_models(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' is the name of another row"):
        score.named(name)
    assert score.named(f"{name} 2") == f"{name} 2"


def test_a_protocol_says_how_a_row_was_made() -> None:
    drawn = config("decode.sample=true", "decode.top_p=0.9", "seed=4")
    assert score.protocol("mine", "mine", drawn) == "sampled, top_p 0.9, temperature 1, seed 4; sections findings"
    assert score.protocol("mine", "mine", config("decode.beams=3")) == "beams 3; sections findings"
    assert score.protocol("oracle_topic", "mine", config()) == "greedy; topics of the true sentences"
    assert len({score.protocol(row, "mine", config()) for row in ("mine", "mode_report", "nearest_neighbour", "reference", "start")}) == 5


def test_labels_of_the_page_are_places_on_phantoms_and_observations_elsewhere() -> None:
    said = "There is a small nodule in the right upper lung zone."
    assert PHANTOM.labels(said) == ["right upper nodule"]
    assert PHANTOM_CT.labels("There is a nodule in the right upper lobe. Clear.") == ["nodule, right upper lobe"]
    assert XRAY.labels("There is a small left pleural effusion. No pneumothorax.") == ["Pleural Effusion"]
    assert XRAY.labels(NORMAL) == []


def test_answers_show_a_metric_that_does_not_see_a_change(how: Setting, phantoms: list[Study]) -> None:
    table = score.answers([text(s) for s in of(phantoms, "test")], dataclasses.replace(how, adapters={}))
    rows = {line.split("|")[1].strip(): line for line in table.splitlines() if line.startswith("| ")}
    assert "blind" in rows["chexpert14_f1_micro_zeros"]  # to sides
    columns = [cell.strip().split(" ")[0] for cell in rows["metric"].split("|")]
    assert rows["location_f1"].split("|")[columns.index("side")].strip() != "blind"
