"""Compiled and recomputed towers: the same results, gradients and running statistics, the same names, few graphs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elvis.backbones import create_backbone
from elvis.config import Train
from elvis.errors import ConfigError
from elvis.fabric import make_fabric
from elvis.model import VisionLanguageModel
from elvis.registry import TEXT_ENCODERS
from elvis.training import RunLog, compile_towers, compiled_graphs, fit, train_mode
from elvis.types import Batch
from tests.test_backbones import images, tensors
from tests.tiny import random_batch
from tests.tiny_encoders import bert_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),  # dynamo asks inputs that are no leaves for it
]
IMAGE: dict[str, dict[str, Any]] = {
    "cnn": {"model": "test_resnet", "stride": 8, "levels": [4]},
    "vit": {"model": "test_vit", "depth": 2, "levels": [0]},
    "hybrid": {"cnn": "test_resnet", "stride": 8, "width": 8, "layers": 1, "heads": 2, "hidden": 8, "dropout": 0.0},
    "ct_vit": {"patch": 4, "temporal_patch": 2, "width": 8, "spatial_depth": 1, "temporal_depth": 1, "heads": 1, "head_width": 8,
               "input_size": [4, 8, 8]},
}  # fmt: skip
CALM = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # compiled dropout draws other numbers
TEXT: dict[str, dict[str, Any]] = {
    "tiny": {"width": 16, "depth": 2, "heads": 2, "max_length": 24},
    "hf": {"config": bert_config(num_hidden_layers=1, **CALM)},
}


@pytest.fixture(autouse=True)
def _no_graph_of_another_test() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def texts(length: int, count: int = 3) -> tuple[Tensor, Tensor]:
    ids = torch.randint(5, 80, (count, length), generator=torch.Generator().manual_seed(length))
    return ids, torch.arange(length) < torch.tensor([length, *[length - 2] * (count - 1)])[:, None]


def model(image: str = "cnn", text: str = "tiny", **options: Any) -> VisionLanguageModel:
    torch.manual_seed(0)
    seeing = create_backbone(image, in_chans=1, **IMAGE[image], **options)
    return VisionLanguageModel(seeing, TEXT_ENCODERS.create(text, vocab_size=80, **TEXT[text], **options), dim=16, hidden=24)


def step(tower: nn.Module, run: Callable[[nn.Module], list[Tensor]]) -> tuple[list[Tensor], int]:
    """Outputs, gradients and buffers of one training step; how many numbers the forward pass kept for the backward pass."""
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        out = run(tower)
    sum((t.float() * torch.linspace(-1, 1, t.numel()).view_as(t)).sum() for t in out).backward()
    return [*out, *(p.grad for p in tower.parameters() if p.grad is not None), *tower.buffers()], sum(kept)


def see(tower: nn.Module) -> list[Tensor]:
    return tensors(tower(images(tower)))


def read(tower: nn.Module) -> list[Tensor]:
    return [tower(*texts(10))]


@pytest.mark.parametrize(
    ("image", "text", "checkpointing", "backend"),
    [
        ("vit", "hf", False, "eager"),
        *(
            pytest.param(*more, marks=pytest.mark.slow)
            for more in (("cnn", "tiny", True, "aot_eager"), ("hybrid", "tiny", False, "aot_eager"), ("ct_vit", "hf", True, "aot_eager"))
        ),
    ],
)
def test_compiled_towers_do_what_eager_ones_do(image: str, text: str, checkpointing: bool, backend: str) -> None:
    eager, compiled = model(image, text), model(image, text, checkpointing=checkpointing)
    names = list(compiled.state_dict()), [name for name, _ in compiled.named_parameters()]
    compile_towers(compiled, backend=backend)
    assert (list(compiled.state_dict()), [name for name, _ in compiled.named_parameters()]) == names
    before = compiled_graphs()
    for run, one, two in ((see, eager.image, compiled.image), (read, eager.text, compiled.text)):
        (expected, all_of_it), (found, kept) = step(one, run), step(two, run)
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert compiled_graphs() > before
        assert kept < 0.9 * all_of_it or not checkpointing
        before = compiled_graphs()


@pytest.mark.parametrize("image", ["cnn", "vit"])
def test_a_copy_of_a_compiled_model_is_eager_and_its_own(image: str) -> None:
    compiled = model(image, checkpointing=True)
    compile_towers(compiled, backend="eager")
    before, seen = compiled_graphs(), [t.detach() for t in see(compiled.image.eval())]
    assert compiled_graphs() > before
    before, copied = compiled_graphs(), copy.deepcopy(compiled)
    for parameter in copied.image.parameters():
        parameter.data.zero_()
    assert all(float(t.detach().abs().max()) == 0 for t in see(copied.image))
    assert compiled_graphs() == before
    assert all(torch.equal(a, b) for a, b in zip(seen, see(compiled.image), strict=True))
    copied.load_state_dict(compiled.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(seen, see(copied.image), strict=True))


@pytest.mark.slow
def test_many_lengths_and_a_smaller_last_batch_make_few_graphs() -> None:
    """One for the first length, one for all the others; the same without gradients."""
    compiled = model()
    compile_towers(compiled, backend="eager")
    before = compiled_graphs()
    for length in (8, 12, 16, 8):
        compiled.text(*texts(length))
    assert compiled_graphs() - before == 2
    compiled.eval()
    with torch.no_grad():
        for length, count in ((8, 3), (12, 3), (16, 2), (20, 2)):
            compiled.text(*texts(length, count))
    assert compiled_graphs() - before <= 5


@pytest.mark.slow
def test_a_frozen_part_is_compiled_in_eval_mode_and_under_autocast() -> None:
    pair = model(), model()
    for one in pair:
        one.image.requires_grad_(False)
        one.text.blocks[0].requires_grad_(False)
        one.text.token.requires_grad_(False)
        one.text.position.requires_grad_(False)
        train_mode(one)
    compile_towers(pair[1], backend="aot_eager")
    found = []
    for one in pair:
        with torch.autocast("cpu", torch.bfloat16):
            found.append([t for t in see(one.image)] + step(one.text, read)[0])
    assert len(found[0]) == len(found[1])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)
    assert not any(buffer.grad_fn for buffer in pair[1].image.buffers())
    assert all(torch.equal(a, b) for a, b in zip(pair[0].image.buffers(), pair[1].image.buffers(), strict=True))


@pytest.mark.parametrize("on", [False, True])
def test_train_compile_compiles_what_the_loop_trains_and_counts_graphs(on: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Task(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model()

        def forward(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
            tokens = self.model.text(batch.text_ids, batch.text_mask)
            return {"toy/term": (tokens.square().sum(), torch.tensor(float(len(batch))))}

    monkeypatch.setattr("elvis.training.compile_towers", lambda task: compile_towers(task, backend="eager"))
    train, log, task = Train(steps=2, log_every=1, accelerator="cpu", compile=on), RunLog(tmp_path), Task()
    before = compiled_graphs()
    stream = lambda start: (random_batch([2, 1], seed=n) for n in range(2))  # noqa: E731
    fit(make_fabric(train), task, stream, train=train, weights={"toy": 1.0}, log=log, save=lambda step, state: tmp_path, progress=False)
    assert (compiled_graphs() > before) == on
    assert [row.get("graphs", 0) > before for row in log.rows] == [on, on]


def test_what_names_nothing_to_compile_is_refused() -> None:
    with pytest.raises(ConfigError, match="no encoder here names what of it can be compiled"):
        compile_towers(nn.Linear(2, 2))


@pytest.mark.slow
def test_inductor_gives_what_eager_gives() -> None:
    eager, compiled = model("cnn", "hf"), model("cnn", "hf")
    compile_towers(compiled)
    for run, one, two in ((see, eager.image, compiled.image), (read, eager.text, compiled.text)):
        for a, b in zip(step(one, run)[0], step(two, run)[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
