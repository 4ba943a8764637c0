"""Studies to batches: what a step holds, whatever the workers; views, bad images, the way to the model's input."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from elvis.assembly import pretraining_module
from elvis.backbones import create_backbone
from elvis.data import batches as batching
from elvis.data.augment import NUMBERS, Augment
from elvis.data.batches import StudyDataset, collate, loader
from elvis.data.images import BadImage, Preprocess
from elvis.data.inputs import ToInput
from elvis.data.order import StepSampler, classes
from elvis.data.studies import stable_hash
from elvis.data.tokenizer import Tokenizer
from elvis.errors import DataError
from elvis.model import VisionLanguageModel
from elvis.registry import OBJECTIVES, TEXT_ENCODERS
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


# --------------------------------------------------------------------------------------------------------- dataset


def test_a_batch_has_the_shapes_it_promises(tokenizer):
    data = dataset(tokenizer, [study(n, images=1 + n) for n in range(3)], views="all", max_views=2)
    batch = collate([data[0, n] for n in range(3)], tokenizer.pad_id)
    assert batch.images.shape == (3, 2, 1, 16, 16)
    assert batch.images.dtype == torch.uint8
    assert batch.view_mask.tolist() == [[True, False], [True, True], [True, True]]
    assert batch.images[0, 1].abs().max() == 0
    assert batch.ids == ("s0", "s1", "s2")
    assert batch.study.tolist() == [stable_hash(id) for id in batch.ids]
    assert batch.extra["bad"] == ()


def test_a_batch_says_what_a_model_would_have_to_ask_its_device_for(tokenizer):
    data = dataset(tokenizer, [study(n, images=1 + n) for n in range(3)], views="all", max_views=2)
    batch = collate([data[0, n] for n in range(3)], tokenizer.pad_id)
    counts = batch.to("meta").extra["counts"]
    assert counts["views"] == 5
    assert counts["units"].keys() == {"report", "sentence"}
    for kind, (number, most) in counts["units"].items():
        lengths = [sum(row) for study in batch.units[kind].tokens.tolist() for row in study]
        assert number == sum(length > 0 for length in lengths)
        assert most == max(lengths)


def test_pixels_are_those_of_the_resized_image(tokenizer):
    item = dataset(tokenizer, [study(3)]).item(0)
    np.testing.assert_array_equal(item.images[0, 0], PREPROCESS.resize(pixels(30, 20, 30)))


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_the_models_input_is_the_normalised_image_once_per_channel(tokenizer, channels):
    data = dataset(tokenizer, [study(n, images=2) for n in range(3)], views="all", max_views=2)
    batch = collate([data[0, n] for n in range(3)], tokenizer.pad_id)
    ready = ToInput(PREPROCESS, channels)(batch)
    expected = ((batch.images.float() / 255 - 0.5) / 0.25).expand(3, 2, channels or 1, 16, 16)
    assert torch.equal(ready.images, expected)
    assert ready.text_ids is batch.text_ids
    one = torch.stack([PREPROCESS.tensor(image, channels) for image in batch.images[:, 0, 0].numpy()])
    assert torch.equal(ready.images[:, 0], one)


def test_a_colour_backbone_has_its_own_mean_per_channel(tokenizer):
    batch = collate([dataset(tokenizer, [study(0)])[0, 0]], tokenizer.pad_id)
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    ready = ToInput(Preprocess((16, 16), "pad", mean, std), 3)(batch).images[0, 0]
    for channel in range(3):
        torch.testing.assert_close(ready[channel], (batch.images[0, 0, 0].float() / 255 - mean[channel]) / std[channel])


def test_augmentation_on_the_device_leaves_the_pixels_and_sends_its_numbers(tokenizer):
    augment = Augment(shift=0.1, noise=0.1)
    studies = [study(n, images=1 + n) for n in range(2)]
    plain = dataset(tokenizer, studies, views="all", max_views=2)
    data = dataset(tokenizer, studies, views="all", max_views=2, augment=augment, augment_on="device")
    batch = collate([data[0, n] for n in range(2)], tokenizer.pad_id)
    assert torch.equal(batch.images, collate([plain[0, n] for n in range(2)], tokenizer.pad_id).images)
    assert batch.extra["augment"].shape == (2, 2, len(NUMBERS))
    assert batch.extra["noise"].shape == (2, 2)
    assert len(set(batch.extra["noise"][batch.view_mask].tolist())) == 3
    one, other = (ToInput(PREPROCESS, 1, augment)(batch.map(torch.clone)).images for _ in range(2))
    assert torch.equal(one, other)
    assert one.isfinite().all()  # padding too
    assert not torch.equal(one, ToInput(PREPROCESS, 1)(batch).images)
    alone = ToInput(PREPROCESS, 1, augment)(collate([data[0, 1]], tokenizer.pad_id)).images
    torch.testing.assert_close(alone[0], one[1])  # an image does not depend on those beside it


def test_text_is_padded_to_a_multiple_but_not_beyond_the_most(tokenizer):
    studies = [study(n) for n in range(4)]
    plain = dataset(tokenizer, studies)
    items = [plain[0, n] for n in range(4)]
    longest = max(len(item.text.ids) for item in items)
    alone = plain.collate(items)
    assert alone.text_ids.shape == (4, longest)
    for multiple, most in ((16, 64), (longest, 64), (50, 64), (7, longest), (100, longest + 1), (100, longest - 1)):
        wide = collate(items, tokenizer.pad_id, multiple, most)
        length = wide.text_ids.shape[1]
        assert length == next(n for n in range(longest, 200) if n % multiple == 0 or n >= most)
        assert torch.equal(wide.text_ids[:, :longest], alone.text_ids)
        assert (wide.text_ids[:, longest:] == tokenizer.pad_id).all()
        assert not wide.text_mask[:, longest:].any()
        for kind, units in wide.units.items():
            assert torch.equal(units.tokens[..., :longest], alone.units[kind].tokens)
            assert not units.tokens[..., longest:].any()
            assert torch.equal(units.group, alone.units[kind].group)
    assert dataset(tokenizer, studies, length_multiple=48).collate(items).text_ids.shape[1] == 48
    assert dataset(tokenizer, studies, length_multiple=100).collate(items).text_ids.shape[1] == 64  # max_tokens


@pytest.mark.parametrize("context", ["report", "sentence"])
def test_padding_changes_no_loss_and_no_gradient(tokenizer, context):
    studies = [study(n, texts=TEXTS[n:] + TEXTS[:n][: n % 2]) for n in range(3)]
    objectives = torch.nn.ModuleDict({name: OBJECTIVES.create(name) for name in ("global_contrastive", "phrase_image", "intra_modal", "word_region")})
    options = {"context": context, "dim": 8, "hidden": 8, "norm": "batch"}
    found = []
    for multiple in (1, 32):
        torch.manual_seed(0)
        data = dataset(tokenizer, studies, length_multiple=multiple)
        text = TEXT_ENCODERS.create("tiny", vocab_size=tokenizer.vocab_size, width=8, depth=1, heads=2, max_length=64)
        model = VisionLanguageModel(create_backbone("test_resnet", in_chans=1, stride=4), text, **options)
        module = pretraining_module(model.double(), objectives, lambda batch: replace(batch, images=batch.images.double() / 255))
        batch = data.collate([data[0, n] for n in range(3)])
        terms = module(batch)
        losses = [total / count.clamp_min(1e-12) for total, count in terms.values()]
        sum(losses).backward()
        found.append([*losses, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert batch.text_ids.shape[1] == 32
    assert all(value.isfinite().all() for value in found[0])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


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
            np.testing.assert_array_equal(first[epoch, n].images, again[epoch, 5 - n].images)
            np.testing.assert_array_equal(again[epoch, 5 - n].images, again[epoch, 5 - n].images)
    assert not np.array_equal(first[0, 0].images, first[1, 0].images)
    assert not np.array_equal(first[0, 0].images, dataset(tokenizer, studies, **(options | {"seed": 6}))[0, 0].images)


def test_a_random_view_visits_every_view_over_the_epochs(tokenizer):
    data = dataset(tokenizer, [study(0, images=3)], views="random")
    shown = [data[epoch, 0].images for epoch in range(30)]
    assert {image.shape for image in shown} == {(1, 1, 16, 16)}
    assert len({image.sum().item() for image in shown}) == 3


def test_the_frontal_view_is_the_first_ap_or_pa_or_else_the_first(tokenizer):
    views = [("LATERAL", "PA", "AP"), ("AP", "LATERAL"), ("LATERAL", "OTHER"), ()]
    studies = [study(n, images=3, views=views[n]) for n in range(4)]
    shown = dataset(tokenizer, studies, views="frontal")
    for n, number in enumerate((1, 0, 0, 0)):
        np.testing.assert_array_equal(shown.item(n).images, PREPROCESS.resize(pixels(10 * n + number, 20, 30))[None, None])


def test_the_cache_reads_an_image_once(tokenizer, tmp_path):
    path = write_image(tmp_path / "a.png")
    data = dataset(tokenizer, [replace(study(0), images=(path,))], cache=True)
    before = data[0, 0].images
    path.unlink()
    np.testing.assert_array_equal(data[1, 0].images, before)
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


# ---------------------------------------------------------------------------------------------------------- loader


def test_a_program_that_ends_with_batches_in_its_hands_does_end(tmp_path):
    """Workers do not heed SIGTERM, and Python waits for them."""
    (tmp_path / "program.py").write_text(
        "from elvis.data.batches import loader\nfrom elvis.data.order import StepSampler\n"
        "from tests.test_batches import TEXTS, Tokenizer, dataset, study\n"
        "studies = [study(n) for n in range(12)]\nsampler = StepSampler([s.id for s in studies], 2, steps=50)\n"
        "held = iter(loader(dataset(Tokenizer.train(TEXTS, 200), studies), sampler, workers=2))\nprint(len(next(held)))\n"
        "import builtins; builtins.held = held\n"
    )
    command = [sys.executable, str(tmp_path / "program.py")]
    folder = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr


class Deadly:
    """An image whose reading ends the process, or never ends."""

    def __init__(self, how: str) -> None:
        self.id = self.how = how

    def read(self) -> np.ndarray:
        if self.how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)
        raise AssertionError


@pytest.mark.parametrize(
    ("how", "said"), [("dies", "a data worker died reading s5"), ("hangs", "no batch for 1 s; the data workers are reading .*s5")]
)
def test_a_worker_that_dies_or_hangs_names_the_study_and_does_not_interrupt_the_trainer_elsewhere(tokenizer, how, said):
    studies = [study(n) if n != 5 else replace(study(5), images=(Deadly(how),)) for n in range(12)]
    data = dataset(tokenizer, studies)
    before = signal.getsignal(signal.SIGCHLD)

    def train() -> None:
        for _ in loader(data, StepSampler([s.id for s in studies], 3, steps=8), workers=2, timeout=1.0):
            assert signal.getsignal(signal.SIGCHLD) is before
            time.sleep(0.05)

    with pytest.raises(DataError, match=said) as error:
        train()
    assert error.value.exit_code == 2
    assert len(str(error.value)) < 400


def test_workers_that_were_stopped_while_they_hand_a_batch_over_are_given_up(tokenizer, monkeypatch):
    """Where torch takes a batch's memory over from the worker it has no timeout of its own."""
    monkeypatch.setattr(batching, "POLL", 0.5)
    studies = [study(n) for n in range(12)]
    made = loader(dataset(tokenizer, studies), StepSampler([s.id for s in studies], 3, steps=40), workers=2, timeout=1.0)

    def train() -> None:
        for number, _ in enumerate(made):
            if number == 0:
                seen = None
                while seen != (seen := made.dataset.reading.tolist()):
                    time.sleep(1.0)  # until batches lie ready, and nothing more is read
                for pid, _ in made.dataset.reading.tolist():
                    os.kill(pid, signal.SIGSTOP)

    rescue = threading.Timer(12, made._end_workers)  # of a loader that would wait without end
    rescue.start()
    with pytest.raises(DataError, match="no batch for 1 s; the data workers are reading s"):
        train()
    assert rescue.is_alive()
    rescue.cancel()


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")  # more than this machine may have cores
@pytest.mark.parametrize("on", ["cpu", "device"])
def test_workers_change_nothing(tokenizer, on):
    studies = [study(n, images=2, bad=n == 4, labels={"nodule": int(n < 3)}) for n in range(10)]

    def batches(workers, start=0):
        data = dataset(tokenizer, studies, views="random", augment=Augment(shift=0.1, noise=0.1), augment_on=on, seed=3)
        order = {"classes": classes(studies, "nodule"), "lengths": data.reports.lengths, "window": 2}
        sampler = StepSampler([s.id for s in studies], 4, seed=3, start_step=start, steps=6, **order)
        return list(loader(data, sampler, workers=workers))

    torch.manual_seed(0)
    state = torch.get_rng_state()
    alone, resumed, *others = batches(0), batches(2, start=3), batches(1), batches(2), batches(4)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is not touched
    assert len(alone) == 6
    for a, b in zip(alone[3:] + 3 * alone, sum(others, resumed), strict=True):
        assert (a.ids, a.extra["bad"]) == (b.ids, b.extra["bad"])
        for name in ("images", "view_mask", "text_ids", "text_mask", "study"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
        for kind in a.units:
            assert torch.equal(a.units[kind].tokens, b.units[kind].tokens)
        for name in ("augment", "noise"):
            assert name not in a.extra if on == "cpu" else torch.equal(a.extra[name], b.extra[name])
    assert any(batch.extra["bad"] for batch in alone)


def test_workers_say_nothing_about_forks_and_need_no_tokenizer(tokenizer, capfd):
    data = dataset(tokenizer, [study(n) for n in range(4)])
    batches = list(loader(data, StepSampler([s.id for s in data.studies], 2, steps=2), workers=2))
    assert len(batches) == 2
    assert capfd.readouterr().err == ""


def test_a_run_balances_groups_and_augments_on_its_device_as_its_config_says():
    from elvis import assembly, config

    options = [
        "data.size=64", "data.train=48", "data.val=0", "data.test=0", "data.comp=0", "data.swap=0", "text.width=16", "model.dim=8", "model.hidden=8",
        "train.batch_size=8", "train.steps=8", "data.augment_on=device", "data.length_window=3", "data.balance=nodule", "train.accelerator=cpu",
        "image.arch={channels: [8, 8, 8, 8], stem_width: 8}",
    ]  # fmt: skip
    run = assembly.assemble(config.load("elvis_phantom", options))
    assert any("come equally often" in note for note in run.notes)
    fabric = SimpleNamespace(device=torch.device("cpu"), global_rank=0, world_size=1)
    nodule = {s.id for s in run.studies if s.labels["nodule"]}
    batches = list(assembly.loader_for(run, fabric, 0))
    assert [sum(id in nodule for id in batch.ids) for batch in batches] == [4] * 8
    assert [batch.ids for batch in assembly.loader_for(run, fabric, 5)] == [batch.ids for batch in batches[5:]]
    assert batches[0].images.dtype == torch.uint8
    terms = run.module(batches[0])
    assert all(torch.isfinite(total) for total, _ in terms.values())
    assembly.settled(run, fabric, 2)
    with pytest.raises(DataError, match="no training study has nodul"):
        assembly.assemble(config.load("elvis_phantom", [*options, "data.balance=nodul"]))
