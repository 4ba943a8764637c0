"""The vocabularies of our decoders: what they know, what they write, and what they do with a broken file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from downstream.reportgen.metrics.nlg import words
from downstream.reportgen.vocabulary import BEGIN, END, PAD, SPECIAL, UNKNOWN, Vocabulary, readable
from elvis.data.studies import load
from elvis.errors import CheckpointError, ConfigError, ElvisError
from tests.reportgen.tiny import TEXTS

SPOKEN = (
    *TEXTS,
    "Chest x-ray, 1.5 cm nodule (left): stable; follow-up?",
    "the cardio-mediastinal silhouette is within normal limits .",  # as R2Gen's cleaning leaves it
    "no focal consolidation , effusion or pneumothorax .",
    "Patient's T12/L1 level, 50 % loss of height.",
)
KINDS = ("word", "wordpiece")


def known(kind: str, size: int = 500) -> Vocabulary:
    return Vocabulary.train(SPOKEN, kind=kind, size=size)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_encoded_reads_the_same_words_again(kind: str) -> None:
    vocabulary = known(kind)
    for text in SPOKEN:
        ids = vocabulary.encode(text)
        assert min(ids) > UNKNOWN
        assert vocabulary.unknown(ids) == 0
        assert words(vocabulary.decode(ids)) == words(text)  # so it scores as the text does


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(st.lists(st.text("ab1-/%'#.,:;!?() ", min_size=1, max_size=12).filter(str.strip), min_size=1, max_size=4))
@example(["1. 5 1.5 ,5 5, (5) 5 ) : 5"])
@example(["grade ##1"])
def test_any_text_of_letters_digits_and_marks_scores_as_it_is(kind: str, texts: list[str]) -> None:
    if kind == "wordpiece":
        texts = [text.replace("#", "a") for text in texts]  # "##" is how pieces are written
    vocabulary = Vocabulary.train(texts, kind=kind, size=10_000)
    for text in texts:
        assert words(vocabulary.decode(vocabulary.encode(text))) == words(text)


def test_a_decoded_sentence_is_written_as_people_write() -> None:
    vocabulary = known("word")
    assert vocabulary.decode(vocabulary.encode("the heart is normal in size .")) == "The heart is normal in size."
    assert readable("stable ( left ) : follow-up , 1.5 cm ?") == "Stable (left): follow-up, 1.5 cm?"
    assert readable("") == ""
    assert vocabulary.decode([]) == ""


def test_special_tokens_are_left_out_and_unknown_words_are_shown() -> None:
    vocabulary = known("word")
    heart = vocabulary.ids["heart"]
    assert vocabulary.decode([BEGIN, UNKNOWN, heart, END, PAD, PAD]) == "___ heart"


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_that_is_not_known_is_one_unknown_token(kind: str) -> None:
    vocabulary = known(kind)
    ids = vocabulary.encode("The heart is ωmega ωmega.")
    assert [i == UNKNOWN for i in ids].count(True) == vocabulary.unknown(ids) == 2
    assert words(vocabulary.decode(ids)) == ["the", "heart", "is", "___", "___", "."]


def test_the_most_frequent_words_are_known_ties_by_the_alphabet() -> None:
    texts = ["b b b a a c c d", "a e"]
    counts = Counter(word for text in texts for word in text.split())
    expected = sorted(counts, key=lambda word: (-counts[word], word))
    assert Vocabulary.train(texts).pieces == (*SPECIAL, *expected) == (*SPECIAL, "a", "b", "c", "d", "e")
    assert Vocabulary.train(texts, size=7).pieces == (*SPECIAL, "a", "b", "c")
    assert Vocabulary.train(texts, min_count=2).pieces == (*SPECIAL, "a", "b", "c")
    assert Vocabulary.train(texts, min_count=3).pieces == (*SPECIAL, "a", "b")
    assert Vocabulary.train(texts, size=2).pieces == SPECIAL
    assert Vocabulary.train(reversed(texts)).pieces == Vocabulary.train(texts).pieces


def test_with_word_pieces_no_word_of_the_training_text_is_unknown() -> None:
    """Also where the size is too small for anything but letters, and of words that a tokenizer would split."""
    texts = [text for _ in range(3) for text in SPOKEN]
    for size in (5, 60, 100, 400):
        vocabulary = Vocabulary.train(texts, kind="wordpiece", size=size)
        assert all(vocabulary.unknown(vocabulary.encode(text)) == 0 for text in texts)
        letters = [piece for piece in vocabulary.pieces if len(piece.removeprefix("##")) == 1]
        assert vocabulary.size <= max(size, len(SPECIAL) + len(letters))
    assert vocabulary.size > 150  # whole words by now


def test_word_pieces_take_the_longest_first() -> None:
    vocabulary = Vocabulary("wordpiece", [*SPECIAL, "a", "ab", "##c", "##cd", "##d", "##b"])
    assert [vocabulary.pieces[i] for i in vocabulary.encode("abcd acd abb")] == ["ab", "##cd", "a", "##cd", "ab", "##b"]
    assert vocabulary.encode("ax ab") == [UNKNOWN, vocabulary.ids["ab"]]


def test_a_vocabulary_of_word_pieces_fits_into_its_size() -> None:
    texts = [" ".join(f"w{n}{m}" for m in range(30)) for n in range(30)] * 3
    for size in (50, 100, 300):
        assert Vocabulary.train(texts, kind="wordpiece", size=size).size == size


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    vocabulary = Vocabulary.train([*SPOKEN, "naïve ω"], kind=kind, size=300)
    vocabulary.save(tmp_path / "deep" / "vocabulary")
    found = Vocabulary.load(tmp_path / "deep" / "vocabulary")
    assert (found.kind, found.pieces, found.size) == (vocabulary.kind, vocabulary.pieces, vocabulary.size)
    for text in SPOKEN:
        assert found.encode(text) == vocabulary.encode(text)


GOOD = {"kind": "word", "pieces": [*SPECIAL, "a"]}
BROKEN = {
    "no file": None,
    "not json": "{",
    "not text": "\udcff",
    "a list": json.dumps([1]),
    "a number": "5",
    "no kind": json.dumps({"pieces": GOOD["pieces"]}),
    "another kind": json.dumps({**GOOD, "kind": "letters"}),
    "a kind that is a list": json.dumps({**GOOD, "kind": ["word"]}),
    "no pieces": json.dumps({"kind": "word"}),
    "pieces that are a number": json.dumps({**GOOD, "pieces": 4}),
    "no special tokens": json.dumps({**GOOD, "pieces": ["a", "b", "c", "d"]}),
    "a piece twice": json.dumps({**GOOD, "pieces": [*SPECIAL, "a", "a"]}),
    "a piece that is a number": json.dumps({**GOOD, "pieces": [*SPECIAL, 7]}),
    "a piece that is a list": json.dumps({**GOOD, "pieces": [*SPECIAL, ["a"]]}),
}


@pytest.mark.parametrize("why", BROKEN)
def test_a_broken_file_is_one_clear_error(why: str, tmp_path: Path) -> None:
    if (content := BROKEN[why]) is not None:
        (tmp_path / "vocabulary.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match="holds no vocabulary") as caught:
        Vocabulary.load(tmp_path)
    assert isinstance(caught.value, ElvisError)
    assert caught.value.fix
    assert str(tmp_path) in caught.value.what


def test_another_kind_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="wordpiece"):
        Vocabulary("wordpiec", SPECIAL)


@pytest.mark.parametrize("kind", KINDS)
def test_phantom_reports_are_spoken_without_loss(kind: str) -> None:
    owner = load("phantom", train=20, val=0, test=0, comp=0, decor=0, swap=0, size=64)
    texts = [sentence.text for study in owner.studies for sentence in study.sentences]
    assert len(texts) > 40
    vocabulary = Vocabulary.train(texts, kind=kind, size=2000)
    assert all(words(vocabulary.decode(vocabulary.encode(text))) == words(text) for text in texts)
