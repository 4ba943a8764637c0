"""From studies to targets: against plain loops over the sentences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from downstream.reportgen.data import Context, Encoded, ReportDataset, context_of, encode, target, told
from downstream.reportgen.decoders.base import MOST_CONTEXT
from downstream.reportgen.decoders.topic_sentence import sentences_of
from downstream.reportgen.vocabulary import BEGIN, END, PAD, UNKNOWN, Vocabulary
from elvis.data.batches import loader
from elvis.data.order import StepSampler
from elvis.errors import DataError
from elvis.types import Sentence, Study
from tests.reportgen import tiny
from tests.reportgen.tiny import TEXTS, study

WORDS = Vocabulary.train([" ".join(f"w{n}" for n in range(40)), *TEXTS])
LIMITS = {"max_tokens": 6, "max_sentences": 60, "max_report": 1000}


def spoken(*lengths: int) -> list[str]:
    """A report of sentences of that many words."""
    return [" ".join(f"w{(n + s) % 40}" for n in range(length)) for s, length in enumerate(lengths)]


def ids(text: str) -> tuple[int, ...]:
    return tuple(WORDS.encode(text))


# ---------------------------------------------------------------------------------------------------- told


def report(name: str, *sections: str, views: tuple[str, ...] = ("PA",), **more: Any) -> Study:
    """A study with one sentence in each of these sections."""
    one = study(name, ["x"], views=len(views))
    return replace(one, views=views, sentences=tuple(Sentence(f"{s} {n}", s) for n, s in enumerate(sections)), **more)


def test_only_the_sentences_of_the_sections_are_told_in_the_order_of_the_sections() -> None:
    given = [report("a", "impression", "findings", "history", "findings"), report("b", "impression"), report("c", "history"), report("d")]
    findings = told(given, ["findings"])
    assert [[s.text for s in one.sentences] for one in findings.studies] == [["findings 1", "findings 3"]]
    assert findings.left_out == {"no sentence in findings": 3}
    both = told(given, ["findings", "impression"])
    assert [[s.text for s in one.sentences] for one in both.studies] == [["findings 1", "findings 3", "impression 0"], ["impression 0"]]
    assert both.left_out == {"no sentence in findings or impression": 2}
    assert len(both.studies) + sum(both.left_out.values()) == len(given)


def test_frontal_only_keeps_frontal_images_and_counts_studies_without_one() -> None:
    given = [
        report("a", "findings", views=("LATERAL", "PA", "AP")),
        report("b", "findings", views=("LATERAL",)),
        report("c", "findings", views=("UNKNOWN", "OTHER")),
        report("d", "findings", views=("AP",)),
        replace(report("e", "findings"), views=()),  # nothing is known of its image
    ]
    found = told(given, ["findings"], frontal_only=True)
    images = {one.id: one.images for one in given}
    assert {one.id: (one.images, one.views) for one in found.studies} == {
        "a": (images["a"][1:], ("PA", "AP")),
        "c": (images["c"][:1], ("UNKNOWN",)),
        "d": (images["d"], ("AP",)),
        "e": (images["e"], ()),
    }
    assert found.left_out == {"no frontal image": 1}
    assert told(given, ["findings"]).studies == tuple(given)


def test_what_is_drawn_on_an_image_that_is_left_out_goes_with_it() -> None:
    from elvis.types import Grounding

    drawn = report("a", "findings", views=("LATERAL", "PA"), groundings=(Grounding("x", ((0, 0, 1, 1),), image=1),))
    (kept,) = told([drawn], ["findings"], frontal_only=True).studies
    assert kept.groundings == ()  # its number would be another's


def test_the_sentence_of_a_grounding_is_the_one_it_was() -> None:
    """Where sentences are chosen, a grounding points at the same sentence, or at none."""
    from elvis.types import Grounding

    boxes = ((0.0, 0.0, 1.0, 1.0),)
    drawn = report("a", "impression", "findings", "findings", groundings=tuple(Grounding(f"p{n}", boxes, sentence=n) for n in range(3)))
    (kept,) = told([drawn], ["findings"]).studies
    for grounding in kept.groundings:
        if grounding.sentence is not None:
            assert kept.sentences[grounding.sentence] == drawn.sentences[int(grounding.phrase[1:])]


# -------------------------------------------------------------------------------------------------- encode


@pytest.mark.parametrize("lengths", [(), (3,), (5,), (3,) * 60, (1,) * 60])
def test_a_report_within_the_limits_is_whole(lengths: tuple[int, ...]) -> None:
    texts = spoken(*lengths)
    assert encode(texts, WORDS, **LIMITS) == Encoded(tuple(map(ids, texts)))


def test_a_sentence_beyond_the_limit_is_cut_and_counted() -> None:
    texts = spoken(3, 6, 9, 5)  # with its end a sentence has at most 6 tokens
    found = encode(texts, WORDS, **LIMITS)
    assert found == Encoded(tuple(ids(text)[:5] for text in texts), cut=2)


@pytest.mark.parametrize("most", [1, 2, 59, 60])
def test_sentences_beyond_the_limit_are_counted(most: int) -> None:
    texts = spoken(*(3,) * 61)
    found = encode(texts, WORDS, **{**LIMITS, "max_sentences": most})
    assert found == Encoded(tuple(map(ids, texts[:most])), cut=61 - most)


@pytest.mark.parametrize("room", range(3, 30))
def test_a_report_beyond_its_limit_ends_with_a_whole_sentence(room: int) -> None:
    texts = spoken(2, 5, 1, 4, 3)
    kept, length = [], 1  # its end
    for text in texts:
        length += 1 + len(ids(text))
        if length > room:
            break
        kept.append(ids(text))
    found = encode(texts, WORDS, **{**LIMITS, "max_report": room})
    if kept:
        assert found == Encoded(tuple(kept), cut=len(texts) - len(kept))
    else:  # the first one is cut: an empty report teaches to say nothing
        assert found == Encoded((ids(texts[0])[: room - 2],), cut=1 + len(texts) - 1)
    whole = target([found], WORDS).report
    assert whole.shape[1] <= room


def test_unknown_words_are_counted_in_what_is_learned() -> None:
    texts = ["w1 ω w2 ω w3 ω ω", "ω w1", "ω ω ω"]
    found = encode(texts, WORDS, **{**LIMITS, "max_sentences": 2})
    assert found.sentences == ((ids("w1")[0], UNKNOWN, ids("w2")[0], UNKNOWN, ids("w3")[0]), (UNKNOWN, ids("w1")[0]))
    assert found.unknown == sum(token == UNKNOWN for sentence in found.sentences for token in sentence) == 3
    assert found.cut == 2


# -------------------------------------------------------------------------------------------------- target

REPORTS = [(), (3,), (1, 5, 2), (4,) * 60, (2, 2)]


def test_a_target_is_what_a_loop_lays_out() -> None:
    reports = [encode(spoken(*lengths), WORDS, **LIMITS) for lengths in REPORTS]
    found = target(reports, WORDS)
    length, longest = max(sum(n + 2 for n in r) for r in REPORTS), max(sum(n + 1 for n in r) + 1 for r in REPORTS)
    assert found.ids.shape == found.sentence.shape == found.place.shape == (len(REPORTS), length)
    assert found.mask.shape == (len(REPORTS), 60)
    assert found.report.shape == found.report_mask.shape == (len(REPORTS), longest)
    for b, report in enumerate(reports):
        row: list[tuple[int, int, int]] = []
        for s, sentence in enumerate(report.sentences):
            row += [(token, s, place) for place, token in enumerate((BEGIN, *sentence, END))]
        row += [(PAD, -1, 0)] * (length - len(row))
        assert list(zip(found.ids[b].tolist(), found.sentence[b].tolist(), found.place[b].tolist(), strict=True)) == row
        assert found.mask[b].tolist() == [s < len(report.sentences) for s in range(60)]
        text = [token for sentence in report.sentences for token in (BEGIN, *sentence)] + [END]
        assert found.report[b].tolist() == text + [PAD] * (longest - len(text))
        assert found.report_mask[b].tolist() == [True] * len(text) + [False] * (longest - len(text))
    assert [[tuple(s) for s in own] for own in sentences_of(found)] == [list(report.sentences) for report in reports]


def test_a_target_of_no_sentence_at_all_has_one_column() -> None:
    found = target([Encoded(()), Encoded(())], WORDS)
    assert (found.ids.tolist(), found.sentence.tolist(), found.mask.tolist()) == ([[PAD]] * 2, [[-1]] * 2, [[False]] * 2)
    assert (found.report.tolist(), found.report_mask.tolist()) == ([[END]] * 2, [[True]] * 2)


# ------------------------------------------------------------------------------------------------- context


def test_a_context_is_padded_and_cut() -> None:
    rows = [(5, 6, 7), (), tuple(range(4, 4 + MOST_CONTEXT + 9))]
    found = Context.of(rows, WORDS)
    assert found.ids.shape == found.mask.shape == (3, MOST_CONTEXT)
    for row, own, mask in zip(rows, found.ids.tolist(), found.mask.tolist(), strict=True):
        kept = list(row)[:MOST_CONTEXT]
        assert own == kept + [PAD] * (MOST_CONTEXT - len(kept))
        assert mask == [True] * len(kept) + [False] * (MOST_CONTEXT - len(kept))
    assert Context.of([(), ()], WORDS).mask.tolist() == [[False], [False]]


def test_a_context_is_a_section_or_the_context_of_a_rexrank_file() -> None:
    one = study("a", ["x"], context="Cough.")
    assert context_of(one, "indication") == "Cough."
    assert context_of(one, "history") == ""
    assert context_of(one, "") == ""
    assert context_of(replace(one, extra={"context": "Age: 50."}), "history") == "Age: 50."
    assert context_of(replace(one, extra={"context": "Age: 50."}), "indication") == "Cough."
    assert context_of(replace(one, extra={"context": "Age: 50."}), "") == ""


# ------------------------------------------------------------------------------------------------- dataset


def dataset(studies: tuple[Study, ...] = (), **options: Any) -> ReportDataset:
    return ReportDataset(studies or tiny.studies(5), tiny.pretrained(heads=False), WORDS, LIMITS, **options)


def test_sentence_s_of_the_target_is_unit_s_of_the_text() -> None:
    """Also where the text encoder reads less than the decoder writes: the sentences it does not read have no unit."""
    visual = tiny.pretrained(heads=False)
    for most in (64, 20, 12):
        it = ReportDataset(tiny.studies(6), visual, WORDS, {**LIMITS, "max_tokens": 20}, max_tokens=most)
        batch = it.collate([it.item(n) for n in range(6)])
        units, spoken = batch.units["sentence"], batch.extra["target"]
        said = sentences_of(spoken)
        for b, one in enumerate(it.studies):
            assert [WORDS.decode(s) for s in said[b]] == [WORDS.decode(ids(s.text)) for s in one.sentences]
            for s in range(int(units.mask[b].sum())):
                own = batch.text_ids[b][units.tokens[b, s]].tolist()
                alone = list(visual.tokenizer.encode([one.sentences[s].text], 64).ids[1:-1])
                assert own == alone[: len(own)]
                assert own == alone or most < 64
            assert int(units.mask[b].sum()) == len(one.sentences) or most < 64


def test_only_a_dataset_with_a_context_gives_one() -> None:
    assert "context" not in dataset().collate([dataset().item(0)]).extra
    it = dataset(context="indication")
    batch = it.collate([it.item(n) for n in range(3)])
    assert batch.extra["context"].ids[0][batch.extra["context"].mask[0]].tolist() == list(ids("Cough, nodule."))
    moved = batch.to("cpu")
    assert torch.equal(moved.extra["target"].ids, batch.extra["target"].ids)


def test_the_report_of_a_substitute_stands_beside_its_image() -> None:
    good = tiny.studies(4)
    bad = study("bad", TEXTS[:3], bad=True)
    it = dataset((*good, bad))
    items = [it[0, n] for n in range(5)]
    assert items[4].id != "bad"
    assert items[4].bad == (("bad", "truncated"),)
    own = {one.id: n for n, one in enumerate(it.studies)}[items[4].id]
    assert items[4].report == it.encoded[own]
    batch = it.collate(items)
    assert batch.extra["bad"] == (("bad", "truncated"),)
    assert sentences_of(batch.extra["target"])[4] == [list(s) for s in it.encoded[own].sentences]
    assert batch.ids[4] == items[own].id


def test_an_error_among_the_items_is_handed_on() -> None:
    it = dataset(tuple(study(f"bad{n}", TEXTS[:1], bad=True) for n in range(3)))
    found = it[0, 0]
    assert isinstance(found, DataError)
    assert it.collate([found, found]) is found


def test_worker_processes_give_the_batches_of_one_process() -> None:
    it = dataset(tiny.studies(6), context="indication")
    names = [one.id for one in it.studies]

    def batches(workers: int) -> list[Any]:
        return list(loader(it, StepSampler(names, 3, seed=1, rank=0, world=1, start_step=0, steps=2), workers=workers))

    for alone, apart in zip(batches(0), batches(1), strict=True):
        assert alone.ids == apart.ids
        for name in ("target", "context"):
            for field, value in vars(alone.extra[name]).items():
                assert torch.equal(value, getattr(apart.extra[name], field)), field
