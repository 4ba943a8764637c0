"""The parser of phantom sentences gives back exactly what the grammar's writer meant, raw and as R2Gen's cleaning leaves a text."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from elvis.data.datasets.r2gen import clean_iu
from elvis.data.phantoms import grammar, scene
from elvis.data.phantoms.grammar import Claim, Line
from elvis.data.phantoms.knobs import make_knobs
from elvis.data.phantoms.parse import Statement, parse, readings, split
from elvis.data.phantoms.scene import KINDS, LATERAL, Scene

ALL_ON = {
    "findings_max": 8, "same_kind": 0.8, "cooccurrence": 0.8, "omission": 0.2, "negation": 1.0, "paraphrase": 1.0, "location_free": 0.3,
    "uncertainty": 0.4, "multi": 0.6, "impression": 0.9, "dup": 0.2,
}  # fmt: skip
SETTINGS = [*((level, {}) for level in range(4)), (2, ALL_ON), (2, ALL_ON | {"normal": 0.7, "findings_max": 2}), (3, {"dup": 0.6, "normal": 0.0})]


@pytest.fixture(scope="module")
def written() -> list[tuple[Scene, Line, tuple[Claim, ...]]]:
    """Sentences of many reports with the claims that the writer itself had in mind."""
    meant: dict[int, tuple[Claim, ...]] = {}
    kept = []
    line = grammar._Writer.line

    def recorded(self: Any, text: str, *claims: Claim, **told: Any) -> Line:
        made = line(self, text, *claims, **told)
        meant[id(made)] = claims
        kept.append(made)  # so that its id is not given again
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grammar._Writer, "line", recorded)
        return [
            (what, made, meant[id(made)])
            for level, changes in SETTINGS
            for split_ in scene.SPLITS
            for index in range(24)
            for what in [scene.draw(7, split_, index, make_knobs(level, changes))]
            for made in grammar.write(what).lines
        ]


def spellings(text: str) -> Iterator[str]:
    yield from (text, text.lower(), text.upper(), text.rstrip("."), text.lower().rstrip(".") + " .", clean_iu(text), f"  {text} ")
    yield from (text.replace("-", " "), text.replace("-", "").lower().rstrip("."))


def test_every_sentence_gives_back_the_claims_of_its_writer(written: list[tuple[Scene, Line, tuple[Claim, ...]]]) -> None:
    seen = set()
    for _, line, meant in written:
        for text in spellings(line.text):
            statement = parse(text)
            assert statement is not None, text
            assert sorted(statement.claims) == sorted(meant), text
            assert statement.uncertain == ("uncertain" in line.tags), text
        tags = {f"{name}:{value}" for claim in statement.claims for name, value in zip(("kind", "side", "zone"), claim, strict=True) if value}
        assert tags == {tag for tag in line.tags if ":" in tag}
        seen.add((line.kind, len(meant), "uncertain" in line.tags, "location_free" in line.tags))
    assert {kind for kind, *_ in seen} == {"", *KINDS}
    assert {(kind, 2, False, False) for kind in LATERAL} <= seen  # two findings in one sentence
    assert {(kind, 1, True, True) for kind in LATERAL} <= seen


def test_every_size_is_that_of_the_finding(written: list[tuple[Scene, Line, tuple[Claim, ...]]]) -> None:
    checked = 0
    for what, line, meant in written:
        statement = parse(line.text)
        assert statement is not None
        assert len(statement.sizes) == len(statement.claims)
        if len(line.findings) == 1 and len(meant) == 1 and statement.sizes[0] is not None:
            assert statement.sizes[0] == what.findings[line.findings[0]].size, line.text
            checked += 1
    assert checked > 300


def test_what_is_denied_or_normal_is_true_of_the_scene(written: list[tuple[Scene, Line, tuple[Claim, ...]]]) -> None:
    seen: set[object] = set()
    for what, line, meant in written:
        statement = parse(line.text)
        assert statement is not None
        assert bool(statement.denied) + bool(statement.normal) == (0 if meant else 1), line.text
        for kind, side in statement.denied:
            assert not [f for f in what.findings if f.kind == kind and side in ("", f.side)], line.text
            seen.add((kind, side != ""))
        match statement.normal:
            case ("lungs" | "summary", side):
                assert side == ""
                assert not what.findings
            case ("side", side):
                assert side in ("right", "left")
                assert not [f for f in what.findings if f.side in (side, "bilateral")]
            case ("heart", ""):
                assert what.enlarged is None
        if statement.normal:
            seen.add(statement.normal[0])
    assert seen == {*((kind, False) for kind in KINDS), *((kind, True) for kind in LATERAL), *grammar.NORMAL}


def test_no_sentence_has_two_meanings() -> None:
    meanings: dict[str, Statement] = {}
    for text, statement in readings():
        assert meanings.setdefault(text, statement) == statement, text
        assert parse(text) == statement
    assert len(meanings) > 8_000


def test_every_template_of_the_grammar_is_read() -> None:
    for kind in KINDS:
        own = [templates for table in (grammar.POSITIVE, grammar.UNCERTAIN, grammar.PAIR, grammar.DENIED_SIDE) for templates in [table.get(kind, ())]]
        shared = [grammar.DENIED, *([grammar.FREE, grammar.FREE_UNCERTAIN] if kind in LATERAL else [])]
        beside = [grammar.ADJACENT] if kind == "effusion" else []
        for template in (*(t for templates in (*own, *shared, *beside) for t in templates), grammar.SHORT[kind], grammar.SUMMARY[kind]):
            for last in (False, True):  # the first and the last word of every slot
                sizes = (grammar.SIZES if kind in LATERAL else grammar.DEGREES)[-last]
                noun, zones = grammar.NOUNS[kind][-last], (grammar.ZONE_WORDS["upper"][-last], grammar.ZONE_WORDS["lower"][-last])
                words = {"noun": noun, "a_noun": grammar.with_article(noun, kind), "nouns": grammar.PLURALS.get(kind, ("",))[-last]}
                text = template.format(**words, size=sizes[-last], side="left", side2="right", zone=zones[0], zone2=zones[1])
                statement = parse(text)
                assert statement is not None, text
                assert {k for k, *_ in (*statement.claims, *statement.denied)} - {"atelectasis"} | {kind} == {kind}, text
    for name, templates in grammar.NORMAL.items():
        for template in templates:
            assert parse(template.format(side="left")) == Statement(normal=(name, "left" if name == "side" else ""))


@pytest.mark.parametrize(
    ("text", "statement"),
    [
        ("There is a small nodule in the right upper lung zone.", Statement((("nodule", "right", "upper"),), (0,))),
        ("there is a small nodule in the right upper lung zone", Statement((("nodule", "right", "upper"),), (0,))),
        ("A sizeable mass-like opacity projects over the left basal lung.", Statement((("mass", "left", "lower"),), (2,))),
        ("a medium sized opacity in the left mid lung zone may represent a nodule .", Statement((("nodule", "left", "mid"),), (1,), uncertain=True)),
        ("An airspace opacity may be present.", Statement((("consolidation", "", ""),), (None,), uncertain=True)),
        ("There are bilateral effusions.", Statement((("effusion", "right", ""), ("effusion", "left", "")), (None, None))),
        (
            "large left effusion and underlying atelectasis .",
            Statement((("effusion", "left", ""), ("atelectasis", "left", "lower")), (2, None)),
        ),
        ("Small right-sided pneumothorax is present.", Statement((("pneumothorax", "right", ""),), (0,))),
        ("small rightsided pneumothorax is present", Statement((("pneumothorax", "right", ""),), (0,))),
        ("The cardiac silhouette shows marked enlargement.", Statement((("cardiomegaly", "", ""),), (2,))),
        ("There is no left nodule.", Statement(denied=(("nodule", "left"),))),
        ("No pulmonary edema is seen.", Statement(denied=(("edema", ""),))),
        ("Clear left lung.", Statement(normal=("side", "left"))),
        ("no acute findings .", Statement(normal=("summary", ""))),
    ],
)
def test_a_sentence_means_what_a_reader_takes_it_for(text: str, statement: Statement) -> None:
    assert parse(text) == statement


@pytest.mark.parametrize(
    "text",
    [
        "", " . ", "nodule", "there is a nodule nodule.", "there is a small small right effusion.", "there is an nodule.", "a effusion is present.",
        "the lungs are", "the lungs are clear the heart is not enlarged", "there is a small nodule in the bilateral upper lung zone.",
        "there are bilateral nodules.", "there is a mild right effusion.", "no no nodule is seen.", "small left upper zone cardiomegaly.",
        "the heart is enlarged.", "possible", "there is mild bilateral cardiomegaly.", "éé \x00",
    ],
)  # fmt: skip
def test_what_the_grammar_cannot_make_is_unknown(text: str) -> None:
    assert parse(text) is None


def test_a_text_falls_into_the_sentences_it_was_made_of() -> None:
    for index in range(200):
        report = grammar.write(scene.draw(3, "train", index, make_knobs(3)))
        lines = [line.text for line in report.lines]
        assert [s + "." for s in split(" ".join(lines))] == lines
        assert [parse(s) for s in split(clean_iu(" ".join(lines)))] == [parse(line) for line in lines]
    assert split(" . ") == split("") == []


def test_five_thousand_reports_take_less_than_a_second() -> None:
    texts = [" ".join(line.text for line in grammar.write(scene.draw(5, "train", index, make_knobs(2))).lines) for index in range(250)]
    parse("")  # the language is written out once
    start = time.perf_counter()
    for _ in range(20):
        for text in texts:
            for sentence in split(text):
                parse(sentence)
    assert time.perf_counter() - start < 1
