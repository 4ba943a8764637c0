import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from elvis.data.augment import Augment
from elvis.data.batches import StepSampler, StudyDataset, Tokenizer, collate, epoch_order, loader, text_tensors
from elvis.data.images import BadImage, Preprocess
from elvis.data.reports import text_hash
from elvis.data.studies import stable_hash
from elvis.errors import ConfigError, DataError
from elvis.types import Sentence, Study
from tests.layouts import pixels, write_image

TEXTS = ["There is a small left effusion.", "No pneumothorax.", "The heart is normal.", "A nodule of 1.5 cm lies in the left upper lobe."]
PREPROCESS = Preprocess((16, 16), "pad", mean=(0.5,), std=(0.25,))


@dataclass(frozen=True)
class Noise:
    """An image computed from a seed; a negative seed cannot be read."""

    id: str
    seed: int

    def read(self) -> np.ndarray:
        if self.seed < 0:
            raise BadImage("truncated", self.id)
        return pixels(self.seed, 20, 30)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS * 3, 120)


def study(number, *, bad=False, images=1, texts=None, **values):
    texts = texts if texts is not None else [TEXTS[number % 4], TEXTS[(number + 1) % 4]][: 1 + number % 2]
    sources = tuple(Noise(f"{number}-{view}", -1 if bad else 10 * number + view) for view in range(images))
    return Study(f"s{number}", f"p{number}", "train", sources, sentences=tuple(Sentence(t) for t in texts), **values)


def dataset(tokenizer, studies, **options):
    return StudyDataset(studies, tokenizer, PREPROCESS, units=("report", "sentence", "word"), max_tokens=64, **options)


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
    code = f"from elvis.data.batches import Tokenizer; print(Tokenizer.train({TEXTS * 3!r}, 120).backend.to_str())"
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


# --------------------------------------------------------------------------------------------------------- dataset


def test_a_batch_has_the_shapes_it_promises(tokenizer):
    data = dataset(tokenizer, [study(n, images=1 + n) for n in range(3)], views="all", max_views=2, channels=3)
    batch = collate([data[0, n] for n in range(3)], tokenizer.pad_id)
    assert batch.images.shape == (3, 2, 3, 16, 16)
    assert batch.images.dtype == torch.float32
    assert batch.view_mask.tolist() == [[True, False], [True, True], [True, True]]
    assert batch.images[0, 1].abs().max() == 0
    assert batch.ids == ("s0", "s1", "s2")
    assert batch.study.tolist() == [stable_hash(id) for id in batch.ids]
    assert batch.extra["bad"] == ()


def test_pixels_are_those_of_the_resized_image(tokenizer):
    item = dataset(tokenizer, [study(3)]).item(0)
    expected = (torch.tensor(PREPROCESS.resize(pixels(30, 20, 30))).float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(item.images[0, 0], expected)


def test_studies_of_one_group_share_their_number(tokenizer):
    data = dataset(tokenizer, [study(0, group="course"), study(1, group="course"), study(2)])
    numbers = [data.item(n).study for n in range(3)]
    assert numbers[0] == numbers[1] != numbers[2]


def test_an_item_is_a_pure_function_of_seed_epoch_and_id(tokenizer):
    studies = [study(n, images=3) for n in range(6)]
    options = {"views": "random", "augment": Augment(rotate=10, brightness=0.3, noise=0.1), "seed": 5}
    first = dataset(tokenizer, studies, **options)
    np.random.default_rng(0), torch.manual_seed(1), np.random.seed(2)
    again = dataset(tokenizer, studies[::-1], cache=True, **options)
    for epoch in (0, 1):
        for n in range(6):
            torch.testing.assert_close(first[epoch, n].images, again[epoch, 5 - n].images, rtol=0, atol=0)
            torch.testing.assert_close(again[epoch, 5 - n].images, again[epoch, 5 - n].images, rtol=0, atol=0)
    assert not torch.equal(first[0, 0].images, first[1, 0].images)
    assert not torch.equal(first[0, 0].images, dataset(tokenizer, studies, **(options | {"seed": 6}))[0, 0].images)


def test_a_random_view_visits_every_view_over_the_epochs(tokenizer):
    data = dataset(tokenizer, [study(0, images=3)], views="random")
    shown = [data[epoch, 0].images for epoch in range(30)]
    assert {image.shape for image in shown} == {(1, 1, 16, 16)}
    assert len({image.sum().item() for image in shown}) == 3


def test_the_cache_reads_an_image_once(tokenizer, tmp_path):
    path = write_image(tmp_path / "a.png")
    data = dataset(tokenizer, [replace(study(0), images=(path,))], cache=True)
    before = data[0, 0].images
    path.unlink()
    torch.testing.assert_close(data[1, 0].images, before, rtol=0, atol=0)
    with pytest.raises(BadImage, match="missing"):
        dataset(tokenizer, data.studies).item(0)


# ------------------------------------------------------------------------------------------------------ bad images


def test_a_bad_image_is_replaced_by_another_study_and_named(tokenizer):
    studies = [study(n, bad=n in (2, 5)) for n in range(8)]
    data = dataset(tokenizer, studies)
    items = [data[0, n] for n in range(8)]
    batch = collate(items, tokenizer.pad_id)
    assert len(batch) == 8
    assert [items[n].id for n in (0, 1, 3, 4, 6, 7)] == ["s0", "s1", "s3", "s4", "s6", "s7"]
    good = {"s0", "s1", "s3", "s4", "s6", "s7"}
    assert {items[2].id, items[5].id} <= good
    assert {entry[0] for entry in batch.extra["bad"]} == {"s2", "s5"}
    assert {entry[1] for entry in batch.extra["bad"]} == {"truncated"}


def test_the_substitute_is_the_same_for_any_table_order_and_varies_with_the_epoch(tokenizer):
    studies = [study(n, bad=n == 2) for n in range(8)]
    data, turned = dataset(tokenizer, studies), dataset(tokenizer, studies[::-1])
    chosen = [data[epoch, 2].id for epoch in range(12)]
    assert chosen == [turned[epoch, 5].id for epoch in range(12)]
    assert len(set(chosen)) > 2


def test_no_readable_substitute_ends_the_run_with_the_ids(tokenizer):
    data = dataset(tokenizer, [study(n, bad=True) for n in range(4)])
    sampler = StepSampler([s.id for s in data.studies], 2, steps=3)
    with pytest.raises(DataError, match=r"4 studies in a row cannot be read: s\d \(truncated\)"):
        next(iter(loader(data, sampler)))


def test_workers_hand_over_the_message_unchanged(tokenizer):
    data = dataset(tokenizer, [study(n, bad=True) for n in range(4)])
    sampler = StepSampler([s.id for s in data.studies], 2, steps=3)
    with pytest.raises(DataError) as error:
        next(iter(loader(data, sampler, workers=1)))
    assert str(error.value).startswith("4 studies in a row")


def test_any_other_failure_names_the_study(tokenizer):
    class Broken:
        id = "x"

        def read(self):
            raise KeyError("knob")

    with pytest.raises(RuntimeError, match="study s3: KeyError: 'knob'"):
        dataset(tokenizer, [replace(study(3), images=(Broken(),))])[0, 0]


# ----------------------------------------------------------------------------------------------------------- order

IDS = [f"s{n}" for n in range(23)]


def steps(**options):
    sampler = StepSampler(options.pop("ids", IDS), options.pop("batch_size", 4), **{"seed": 1, "steps": 17} | options)
    return [[(epoch, sampler.ids[index]) for epoch, index in step] for step in sampler]


def test_an_epoch_shows_every_study_at_most_once_and_drops_what_does_not_fill_a_step():
    whole = steps()
    assert len(whole) == 17
    assert all(len(step) == 4 for step in whole)
    for epoch in range(3):
        seen = [id for step in whole for e, id in step if e == epoch]
        assert len(seen) == len(set(seen)) == 20


def test_epochs_and_seeds_have_orders_of_their_own():
    assert len({tuple(epoch_order(IDS, seed, epoch)) for seed in (0, 1) for epoch in range(5)}) == 10
    assert sorted(epoch_order(IDS, 0, 0)) == list(range(23))


def test_the_order_does_not_depend_on_the_order_of_the_table():
    assert steps(ids=IDS[::-1]) == steps()


def test_starting_later_continues_the_same_order():
    for start in (1, 5, 6, 16):
        assert steps(start_step=start) == steps()[start:]


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_step_of_one_process(world):
    ranks = [steps(batch_size=4 // world, rank=rank, world=world) for rank in range(world)]
    assert [[pair for part in parts for pair in part] for parts in zip(*ranks, strict=True)] == steps()


def test_fewer_studies_than_a_step_takes_is_an_error():
    with pytest.raises(DataError, match="23 studies to train on, fewer than one batch of 24"):
        StepSampler(IDS, 12, world=2, steps=1)


# ---------------------------------------------------------------------------------------------------------- loader


def test_workers_change_nothing(tokenizer):
    studies = [study(n, images=2, bad=n == 4) for n in range(10)]

    def batches(workers, start=0):
        data = dataset(tokenizer, studies, views="random", augment=Augment(shift=0.1, noise=0.1), seed=3)
        sampler = StepSampler([s.id for s in studies], 4, seed=3, start_step=start, steps=6)
        return list(loader(data, sampler, workers=workers))

    torch.manual_seed(0)
    state = torch.get_rng_state()
    alone, together, resumed = batches(0), batches(2), batches(2, start=3)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is not touched
    assert len(alone) == len(together) == 6
    for a, b in zip(alone + alone[3:], together + resumed, strict=True):
        assert (a.ids, a.extra) == (b.ids, b.extra)
        for name in ("images", "view_mask", "text_ids", "text_mask", "study"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
        for kind in a.units:
            assert torch.equal(a.units[kind].tokens, b.units[kind].tokens)
    assert any(batch.extra["bad"] for batch in alone)


# ---------------------------------------------------------------------------------------------------- augmentation

KNOBS = {
    "scale": 0.1,
    "shift": 0.1,
    "rotate": 8.0,
    "crop_scale": 0.7,
    "brightness": 0.2,
    "contrast": 0.3,
    "gamma": 0.3,
    "blur": 1.5,
    "noise": 0.05,
}
IMAGE = pixels(2)


@pytest.mark.parametrize("knob", KNOBS)
def test_each_augmentation_is_a_function_of_image_and_seed(knob):
    augment = Augment(**{knob: KNOBS[knob]})
    first = augment(IMAGE, 7)
    assert (first.shape, first.dtype) == (IMAGE.shape, np.uint8)
    augment(pixels(1), 99)  # another image between
    np.testing.assert_array_equal(augment(IMAGE, 7), first)
    np.testing.assert_array_equal(Augment(**{knob: KNOBS[knob]})(IMAGE, 7), first)
    assert len({augment(IMAGE, seed).tobytes() for seed in range(8)}) > 4


def test_no_augmentation_is_the_image_itself():
    np.testing.assert_array_equal(Augment()(IMAGE, 1), IMAGE)


def test_augmentation_never_mirrors():
    marker = np.zeros((64, 64), np.uint8)
    marker[20:44, 4:20] = 255  # on the patient's right
    augment = Augment(scale=0.1, shift=0.05, rotate=5)
    for seed in range(60):
        image = augment(marker, seed).astype(float)
        assert image[:, :32].sum() > 10 * image[:, 32:].sum()


def test_augmentation_leaves_global_generators_alone():
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    Augment(**KNOBS)(IMAGE, 5)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_the_draws_of_two_augmentations_are_independent():
    """albumentations' own set_random_seed would give every step the same numbers: the contrast would tell the gamma."""
    image = np.tile(np.array([64, 128], np.uint8), (8, 4))
    low, high = np.array([Augment(contrast=0.3, gamma=0.3)(image, seed)[0, :2] for seed in range(80)]).T / 255.0
    gamma = np.log2(high / low)  # ((2 c x) ** g) / ((c x) ** g) = 2 ** g
    contrast = low ** (1 / gamma) * 255 / 64
    assert (gamma.std() > 0.1, contrast.std() > 0.1) == (True, True)
    assert abs(np.corrcoef(contrast, gamma)[0, 1]) < 0.35
