"""The decoders of SO-ITC on tokens of structures: BERT with cross-attention, and a language model with LoRA behind its visual prefix."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from downstream.reportgen import decoders, model
from downstream.reportgen.config import Decode
from downstream.reportgen.decoders.base import MOST_CONTEXT
from downstream.reportgen.model import Generator
from tests.reportgen import tiny

LLAMA = {
    "architecture": {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    "targets": ["q_proj", "v_proj"], "rank": 2, "alpha": 4, "heads": 2, "prompt": "The lungs <image> are clear.",
}  # fmt: skip
NAMES = {"bert": {"dropout": 0.0}, "llm_lora": LLAMA}
LEFT = {"bert": 0.8, "llm_lora": 0.99}  # of the loss, at most; the language model's words are random, and fixed


def learned(it: Generator, steps: int = 25) -> list[float]:
    """Losses of a decoder that learns six reports."""
    shown = tiny.batch(it, tiny.scans(6))
    with torch.no_grad():
        memory = it.seen(shown)
    adam = torch.optim.Adam([p for p in it.decoder.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(steps):
        adam.zero_grad()
        (total, count) = it.decoder(memory, shown.extra["target"])["words"]
        (total / count).backward()
        adam.step()
        losses.append(float((total / count).detach()))
    return losses


@pytest.fixture(scope="module", params=NAMES)
def it(request: pytest.FixtureRequest) -> Generator:
    made = tiny.ct_generator(request.param, **NAMES[request.param])
    losses = learned(made)
    assert losses[-1] < LEFT[request.param] * losses[0]
    return made.eval()


def written(it: Generator, **how: Any) -> list[Any]:
    return it.write([s.images[0] for s in tiny.scans(3)], Decode(**how))


def words(it: Generator, report: Any) -> int:
    return len(it.vocabulary.encode(report.text))


def test_it_writes_within_its_limits(it: Generator) -> None:
    assert all(words(it, r) <= 40 for r in written(it))
    short = written(it, max_report=6)
    assert all(words(it, r) <= 6 and r.cut for r in short)
    long = written(it, min_tokens=30, max_report=34)
    assert all(25 <= sum(len(it.vocabulary.encode(s.text)) for s in r.sentences) <= 34 for r in long)  # what parts sentences counts, too


def test_beams_find_what_is_at_least_as_probable(it: Generator) -> None:
    def log_probability(reports: list[Any]) -> float:
        return sum(sum(torch.tensor(s.confidence).log().item() for s in r.sentences) / len(r.sentences) for r in reports)

    greedy, beams = written(it, max_report=12), written(it, beams=3, max_report=12)
    assert [r.text for r in beams] == [r.text for r in written(it, beams=3, max_report=12)]
    assert log_probability(beams) >= log_probability(greedy) - 0.5


def test_what_is_saved_and_loaded_writes_the_same(it: Generator, tmp_path: Path) -> None:
    model.save(tmp_path / "out", it, config_yaml="", metrics={})
    again = model.load(tmp_path / "out")
    assert (again.tokens, again.per_structure, again.head_reduction) == ("structures", 3, "max")
    assert again.recipe == it.recipe
    assert again.pretrained.structures is not None
    for old, new in zip(written(it, beams=2), written(again, beams=2), strict=True):
        assert [(s.text, s.confidence) for s in old.sentences] == [(s.text, s.confidence) for s in new.sentences]
        assert all(torch.equal(torch.tensor(a.map), torch.tensor(b.map)) for a, b in zip(old.sentences, new.sentences, strict=True))


def test_sentences_look_at_the_chosen_patches_alone(it: Generator) -> None:
    scan = tiny.scans(1)[0]
    with torch.no_grad():
        place = it.seen(tiny.batch(it, [scan])).place[0]
    chosen = set(place[place >= 0].tolist())
    assert len(chosen) < 64
    for said in it.write([scan.images[0]])[0].sentences:
        assert set(said.map.ravel().nonzero()[0].tolist()) <= chosen


def test_bert_is_as_it_was_asked_for() -> None:
    it = tiny.ct_generator("bert", width=8, layers=2, heads=4, hidden=20, limits={**tiny.LIMITS, "max_report": 50})
    config = it.decoder.lm.config
    assert (config.model_type, config.is_decoder, config.add_cross_attention, config.vocab_size) == ("bert", True, True, it.vocabulary.size)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size) == (8, 2, 4, 20)
    assert config.max_position_embeddings == 54
    assert it.decoder.look.place.shape == (40, 8)
    assert "architecture" not in it.recipe
    with torch.device("meta"):
        published = decoders.create({"name": "bert"}, **{**it.sizes, "tokens": 110, "tokens_width": 768, "vocab": 6342, "max_report": 380})
    assert published.lm.config.intermediate_size == 3072
    assert sum(p.numel() for p in published.lm.parameters()) > 1e8


def test_the_language_model_has_lora_on_its_targets_and_reads_the_tokens_in_its_prompt() -> None:
    it = tiny.ct_generator("llm_lora", **LLAMA)
    names = {name for name, p in it.decoder.lm.named_parameters() if p.requires_grad}
    assert {name.split(".")[-4] for name in names} == {"q_proj", "v_proj"}
    shown = tiny.batch(it, tiny.scans(2))
    memory = it.seen(shown)
    prompt = it.decoder.prompt(memory)
    before, after = it.decoder.around
    assert prompt.start.shape[1] == len(before) + 40 + len(after) + 1
    assert prompt.mask.all()
    fewer = replace(memory, mask=memory.mask.index_fill(1, torch.tensor([2]), False))
    assert (~it.decoder.prompt(fewer).mask).nonzero().tolist() == [[b, len(before) + 2] for b in range(2)]
    assert it.decoder.most_seen == 40 < 40 + MOST_CONTEXT
