"""Tokens, units and the store that holds them: sentences in, ids and groups out."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from elvis.data.reports import text_hash
from elvis.data.structures import Structures
from elvis.data.texts import Reports, text_tensors
from elvis.data.tokenizer import Tokenizer
from elvis.errors import ConfigError, DataError

TEXTS = ["There is a small left effusion.", "No pneumothorax.", "The heart is normal.", "A nodule of 1.5 cm lies in the left upper lobe."]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS * 3, 120)


# ---------------------------------------------------------------------------------------------------------- tokens


def test_a_report_is_cls_its_sentences_and_sep(tokenizer):
    tokens = tokenizer.encode(TEXTS[:2], 64)
    assert (tokens.ids[0], tokens.ids[-1]) == (tokenizer.cls_id, tokenizer.sep_id)
    assert tokenizer.backend.decode(tokens.ids) == "there is a small left effusion . no pneumothorax ."
    assert Counter(tokens.sentence) == {-1: 2, 0: 7, 1: 3}
    assert tokens.words == ("There", "is", "a", "small", "left", "effusion", "No", "pneumothorax")


def test_special_tokens_are_where_bert_has_them_and_padding_is_zero(tokenizer):
    assert [tokenizer.backend.token_to_id(t) for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [0, 1, 2, 3, 4]
    assert tokenizer.pad_id == 0


def test_pieces_of_a_word_share_its_index_and_punctuation_has_none():
    tokenizer = Tokenizer.train(["ab cd"], 9)  # letters only
    tokens = tokenizer.encode(["Ab, ___ cd."], 64)
    assert tokens.word == (-1, 0, 0, -1, -1, -1, -1, 1, 1, -1, -1)
    assert tokens.words == ("Ab", "cd")


def test_long_reports_are_cut_and_still_end_with_sep(tokenizer):
    whole = tokenizer.encode(TEXTS, 64)
    ends = [place for place in range(2, len(whole.ids)) if whole.sentence[place] != whole.sentence[place - 1]]  # in tokens, [CLS] counted
    for most in range(3, 24):
        tokens = tokenizer.encode(TEXTS, most)
        assert len(tokens.ids) == len(tokens.sentence) == len(tokens.word)
        assert len(tokens.ids) == max((end + 1 for end in ends if end < most), default=most), "whole sentences, or the beginning of the first"
        assert tokens.ids[:-1] == whole.ids[: len(tokens.ids) - 1]
        assert tokens.ids[-1] == tokenizer.sep_id
        assert len(tokens.words) == max(tokens.word) + 1


def test_training_depends_on_the_texts_only_not_on_order_or_process(tokenizer):
    code = f"from elvis.data.tokenizer import Tokenizer; print(Tokenizer.train({TEXTS * 3!r}, 120).backend.to_str())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == tokenizer.backend.to_str() == Tokenizer.train((TEXTS * 3)[::-1], 120).backend.to_str()


def test_training_joins_the_most_frequent_neighbours_first():
    tokenizer = Tokenizer.train(["abab abab abc"], 13)  # 5 special, a b ##a ##b ##c, then 3 merges
    vocabulary = sorted(tokenizer.backend.get_vocab(), key=tokenizer.backend.token_to_id)
    # pairs: (a ##b) 3, (##b ##a) 2, (##a ##b) 2, (##b ##c) 1; after ab: (ab ##a) 2 before (##a ##b) 2 by the alphabet
    assert vocabulary[5:] == ["##a", "##b", "##c", "a", "ab", "##ab", "abab"]


def test_a_vocabulary_is_no_larger_than_asked_and_frequent_words_are_whole():
    texts = [f"effusion nodule {chr(97 + n % 26)}{chr(97 + n // 26)}xyz" for n in range(300)]
    tokenizer = Tokenizer.train(texts, 70)
    assert tokenizer.vocab_size == 70
    assert len(tokenizer.encode(["effusion nodule"], 64).ids) == 4
    assert tokenizer.backend.token_to_id("[UNK]") not in tokenizer.encode(texts, 5000).ids


def test_a_tokenizer_comes_back_from_its_folder(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    again = Tokenizer.load(tmp_path / "tokenizer")
    assert again.encode(TEXTS, 64) == tokenizer.encode(TEXTS, 64)
    assert (again.vocab_size, again.pad_id) == (tokenizer.vocab_size, 0)
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_with_roberta_names_and_own_truncation_works(tokenizer):
    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece({"<pad>": 0, "<s>": 1, "</s>": 2, "x": 3, "<unk>": 4}, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.enable_truncation(2)
    assert Tokenizer(backend).encode(["x x x x"], 64).ids == (1, 3, 3, 3, 3, 2)
    with pytest.raises(ConfigError, match=r"no \[PAD\] or <pad>"):
        Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordPiece({"x": 0}, unk_token="x")))


# ----------------------------------------------------------------------------------------------------------- units


def test_units_hold_the_tokens_of_their_text(tokenizer):
    reports = [TEXTS[:3], TEXTS[1:2], []]
    ids, mask, units = text_tensors(reports, tokenizer, units=("report", "sentence", "word"), max_tokens=64)
    assert mask.sum(1).tolist() == [len(tokenizer.encode(report, 64).ids) for report in reports]
    assert (ids[~mask] == 0).all()
    special = (ids == tokenizer.cls_id) | (ids == tokenizer.sep_id)
    torch.testing.assert_close(units["report"].tokens[:, 0], mask & ~special)  # a report = all its tokens without the special ones
    torch.testing.assert_close(units["sentence"].tokens.sum(1) == 1, mask & ~special)
    assert units["sentence"].mask.tolist() == [[True, True, True], [True, False, False], [False, False, False]]
    assert units["report"].mask.tolist() == [[True], [True], [False]]
    assert units["word"].mask.sum(1).tolist() == [12, 2, 0]
    for kind, unit in units.items():
        assert not (unit.tokens & ~mask[:, None]).any(), kind
        assert (unit.tokens.any(-1) == unit.mask).all(), kind
    for row, report in enumerate(reports):
        for number, text in enumerate(report):
            assert tokenizer.backend.decode(ids[row][units["sentence"].tokens[row, number]].tolist()) == tokenizer.backend.decode(
                tokenizer.encode([text], 64).ids
            )


def test_equal_texts_have_equal_groups_whatever_their_punctuation(tokenizer):
    _, _, units = text_tensors([["No pneumothorax.", "Clear lungs."], ["no pneumothorax"]], tokenizer, units=("sentence", "word"), max_tokens=64)
    group = units["sentence"].group
    assert group[0, 0] == group[1, 0] == text_hash("No pneumothorax")
    assert group[0, 0] != group[0, 1]
    assert (units["word"].group[0, :2] == units["word"].group[1, :2]).all()


def test_sentence_u_of_the_study_is_unit_u_even_when_another_is_cut(tokenizer):
    _, _, units = text_tensors([["!?", TEXTS[0], TEXTS[1], TEXTS[2]]], tokenizer, units=("sentence",), max_tokens=12)
    groups = units["sentence"].group[0].tolist()
    assert groups == [text_hash(t) for t in ("!?", TEXTS[0], TEXTS[1])][: len(groups)]
    assert units["sentence"].mask[0].tolist()[1] is True


def test_units_are_limited_per_kind(tokenizer):
    def count(limit):
        _, _, units = text_tensors([TEXTS], tokenizer, units=("report", "sentence", "word"), max_tokens=64, max_units=limit)
        return {kind: unit.mask.shape[1] for kind, unit in units.items()}

    assert count(None) == {"report": 1, "sentence": 4, "word": 24}
    assert count(2) == {"report": 1, "sentence": 2, "word": 2}
    assert count({"word": 5}) == {"report": 1, "sentence": 4, "word": 5}


# ----------------------------------------------------------------------------------------------------------- store


def many_reports(count=60):
    """Reports of 0 to 6 sentences that repeat each other, with punctuation, cut words and one very long sentence."""
    draw = np.random.default_rng(0)
    pool = [*TEXTS, "!?", "___ seen by Dr. ___.", "naïve 1.5-cm nodule", " ".join(["effusion"] * 50)]
    return [[pool[n] for n in draw.integers(0, len(pool), draw.integers(0, 7))] for _ in range(count)]


@pytest.mark.parametrize("max_tokens", [4, 11, 40, 500])
def test_reports_encoded_at_once_are_those_encoded_one_by_one(tokenizer, max_tokens):
    reports = many_reports()
    store = Reports(reports, tokenizer, units=("report", "sentence", "word"), max_tokens=max_tokens)
    assert len(store) == len(reports)
    for number, report in enumerate(reports):
        one, text = tokenizer.encode(report, max_tokens), store[number]
        assert text.ids.tolist() == list(one.ids)
        assert store.lengths[number] == len(one.ids)
        groups = {
            "report": [text_hash(" ".join(report))] * (len(one.ids) > 2),
            "sentence": [text_hash(s) for s in report[: max(one.sentence) + 1]],
            "word": [text_hash(w) for w in one.words],
        }
        of_token = {"report": [min(s, 0) for s in one.sentence], "sentence": one.sentence, "word": one.word}
        for kind, (members, group) in text.units.items():
            assert group.tolist() == groups[kind], kind
            np.testing.assert_array_equal(members, np.array(of_token[kind]) == np.arange(len(group))[:, None])


def test_a_bert_like_tokenizer_of_bytes_gives_the_same_at_once():
    import tokenizers

    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {token: n for n, token in enumerate(["<s>", "<pad>", "</s>", *sorted(alphabet)])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = Tokenizer(backend)
    report = ["naïve nodule, 1.5 cm", "No effusion."]
    text, one = Reports([report], tokenizer, units=("word",), max_tokens=64)[0], tokenizer.encode(report, 64)
    assert text.ids.tolist() == list(one.ids)
    assert text.units["word"][1].tolist() == [text_hash(w) for w in one.words]


def test_equal_sentences_are_kept_once(tokenizer):
    once = Reports([TEXTS], tokenizer, units=("sentence",), max_tokens=64)
    often = Reports([TEXTS] * 100, tokenizer, units=("sentence",), max_tokens=64)
    assert len(often.sentences.ids) == len(once.sentences.ids)
    assert often[99].ids.tolist() == once[0].ids.tolist()


def test_a_token_takes_four_bytes_and_ten_with_its_word(tokenizer):
    reports = [[f"{a} {b} {c} effusion" for c in "abcdefgh"] for a in "abcdefgh" for b in "abcdefghij"]

    def size(*units):
        store = Reports(reports, tokenizer, units=units, max_tokens=128)
        held = [*vars(store).values(), *vars(store.sentences).values()]
        return sum(v.nbytes for v in held if isinstance(v, np.ndarray)), len(store.sentences.ids), len(store.sentences.group)

    for units, a_token in ((("report", "sentence"), 4), (("report", "sentence", "word"), 4 + 2 + 4)):
        total, tokens, sentences = size(*units)
        assert total < a_token * tokens + 40 * sentences + 20 * len(reports) + 2000


def test_an_empty_report_is_cls_and_sep(tokenizer):
    text = Reports([[]], tokenizer, units=("report", "sentence", "word"), max_tokens=64)[0]
    assert text.ids.tolist() == [tokenizer.cls_id, tokenizer.sep_id]
    assert {kind: len(group) for kind, (_, group) in text.units.items()} == {"report": 0, "sentence": 0, "word": 0}


# ------------------------------------------------------------------------------------------------------------- structures

LEXICON = """
missing: Nothing in the {name}.
structures:
  lung: {regions: [left lung]}
  heart: {}
  bone: {missing: No fracture.}
keywords:
  lung: ["lung{,s}", nodule]
  heart: [heart]
  bone: ["rib{,s}"]
"""
SPOKEN = ["The lungs are clear.", "Heart and lungs are large.", "Zxq.", "Seen again.", "Broken ribs."]


@pytest.fixture(scope="module")
def structures():
    return Structures(LEXICON)


@pytest.fixture(scope="module")
def wide():
    return Tokenizer.train([*SPOKEN, "Nothing in the heart.", "No fracture."] * 3, 120)


def words(tokenizer, *sentences):
    return [i for s in sentences for i in tokenizer.encode([s], 64).ids[1:-1]]


def told(text):
    """The tokens of each structure."""
    return [text.ids[members].tolist() for members in text.units["structure"][0]]


def test_a_structure_holds_the_sentences_about_it_and_one_may_be_about_two(wide, structures):
    report = [SPOKEN[0], SPOKEN[1], SPOKEN[2], SPOKEN[4]]
    text = Reports([report], wide, units=("sentence", "structure"), max_tokens=64, structures=structures)[0]
    lung, heart, bone = told(text)
    assert lung == words(wide, SPOKEN[0], SPOKEN[1])
    assert heart == words(wide, SPOKEN[1])
    assert bone == words(wide, SPOKEN[4])
    assert text.ids.tolist() == [wide.cls_id, *words(wide, *report), wide.sep_id]  # a sentence of none stays in the report
    assert text.units["structure"][1].tolist() == [text_hash(f"{SPOKEN[0]} {SPOKEN[1]}"), text_hash(SPOKEN[1]), text_hash(SPOKEN[4])]


def test_what_is_not_mentioned_gets_its_own_sentence_behind_the_report_that_is_in_no_other_unit(wide, structures):
    reports = [[SPOKEN[0]], [SPOKEN[4], SPOKEN[2]], []]
    options = {"units": ("report", "sentence", "word", "structure"), "max_tokens": 64}
    filled, plain = (Reports(reports, wide, structures=structures, fill=fill, **options) for fill in (True, False))
    unaware = Reports(reports, wide, **{**options, "units": options["units"][:3]})
    assert told(filled[0]) == [words(wide, SPOKEN[0]), words(wide, "Nothing in the heart."), words(wide, "No fracture.")]
    assert told(filled[1]) == [words(wide, "Nothing in the lung."), words(wide, "Nothing in the heart."), words(wide, SPOKEN[4])]
    assert told(filled[2]) == [[], [], []]  # nothing is made up where nothing was said
    assert told(plain[0]) == [words(wide, SPOKEN[0]), [], []]
    assert plain[0].units["structure"][1].tolist() == [text_hash(SPOKEN[0]), 0, 0]
    assert filled[0].units["structure"][1].tolist() == [text_hash(t) for t in (SPOKEN[0], "Nothing in the heart.", "No fracture.")]
    for index in range(3):
        assert plain[index].ids.tolist() == unaware[index].ids.tolist()
        length = len(unaware[index].ids) - 1
        assert filled[index].ids[:length].tolist() == unaware[index].ids[:length].tolist()
        assert filled.lengths[index] == len(filled[index].ids)
        for kind in options["units"][:3]:
            members, group = unaware[index].units[kind]
            assert filled[index].units[kind][1].tolist() == plain[index].units[kind][1].tolist() == group.tolist()
            np.testing.assert_array_equal(filled[index].units[kind][0][:, :length], members[:, :length])
            assert not filled[index].units[kind][0][:, length:].any()


def test_the_owner_of_a_report_may_say_what_a_sentence_is_about(wide, structures):
    reports, regions = [[SPOKEN[4], SPOKEN[2]], [SPOKEN[2]]], [["left lung", "heart"], ["aura"]]
    store = Reports(reports, wide, units=("structure",), max_tokens=64, structures=structures, regions=regions, fill=False)
    assert told(store[0]) == [words(wide, SPOKEN[4]), words(wide, SPOKEN[2]), []]
    assert told(store[1]) == [[], [], []]


def test_equal_texts_of_a_structure_have_equal_groups_in_all_reports(wide, structures):
    store = Reports([[SPOKEN[0], SPOKEN[4]], [SPOKEN[4].lower(), SPOKEN[1]]], wide, units=("structure",), max_tokens=64, structures=structures)
    one, two = (store[i].units["structure"][1].tolist() for i in (0, 1))
    assert [a == b for a, b in zip(one, two, strict=True)] == [False, False, True]


@pytest.mark.parametrize("most", range(3, 20))
def test_a_report_that_is_cut_loses_the_last_sentences_of_its_structures(wide, structures, most):
    options = {"units": ("sentence", "structure"), "structures": structures}
    whole, cut = (Reports([SPOKEN[:2]], wide, max_tokens=n, **options)[0] for n in (64, most))
    kept = len(cut.ids)
    assert kept == len(wide.encode(SPOKEN[:2], most).ids) or kept > len(wide.encode(SPOKEN[:2], 64).ids)
    np.testing.assert_array_equal(cut.units["structure"][0][:, : kept - 1], whole.units["structure"][0][:, : kept - 1])
    _, _, units = text_tensors([SPOKEN[:2]], wide, max_tokens=most, **options)
    assert units["structure"].mask[0].tolist() == [any(whole.units["structure"][0][s, : kept - 1]) for s in range(3)]


def test_structures_keep_their_places_in_a_batch_whatever_the_limit_of_units(wide, structures):
    _, mask, units = text_tensors(
        [[SPOKEN[0]], SPOKEN[:3], []], wide, units=("sentence", "structure"), max_tokens=64, max_units=1, structures=structures, fill=False
    )
    assert units["sentence"].mask.shape == (3, 1)
    assert units["structure"].mask.tolist() == [[True, False, False], [True, True, False], [False, False, False]]
    assert not (units["structure"].tokens & ~mask[:, None]).any()


def test_many_reports_hold_the_structures_that_each_holds_alone(wide, structures):
    draw = np.random.default_rng(1)
    reports = [[SPOKEN[n] for n in draw.integers(0, 5, draw.integers(0, 5))] for _ in range(30)]
    options = {"units": ("report", "structure"), "max_tokens": 30, "structures": structures}
    store = Reports(reports, wide, **options)
    for index, report in enumerate(reports):
        one = Reports([report], wide, **options)[0]
        assert store[index].ids.tolist() == one.ids.tolist()
        for kind in ("report", "structure"):
            assert all(np.array_equal(a, b) for a, b in zip(store[index].units[kind], one.units[kind], strict=True))
        about = structures.assign(report)
        for s, tokens in enumerate(told(one)):
            own = [sentence for sentence, of in zip(report, about, strict=True) if s in of]
            sentences = own or ([structures.missing(s)] if report else [])
            assert one.units["structure"][1][s] == (text_hash(" ".join(sentences)) if sentences else 0)
            assert tokens == words(wide, *sentences)[: len(tokens)]
