"""Tokens, units and the store that holds them: sentences in, ids and groups out."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from elvis.data.reports import text_hash
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
    for most in range(3, 12):
        tokens = tokenizer.encode(TEXTS, most)
        assert len(tokens.ids) == len(tokens.sentence) == len(tokens.word) == most
        assert tokens.ids[:-1] == whole.ids[: most - 1]
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
