"""The shipped configs of reports: each is built at its full size (on the meta device), the published ones with the sizes of the paper."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from downstream.reportgen import config as schemas
from downstream.reportgen import decoders, model
from downstream.reportgen import train as training
from downstream.reportgen.vocabulary import Vocabulary
from elvis import assembly
from elvis import config as configs
from elvis.data.tokenizer import Tokenizer
from elvis.pretrained import Pretrained
from elvis.types import Batch
from tests.reportgen import tiny

NAMES = configs.shipped("reportgen")
WORDS = [f"word{n} is here." for n in range(6400)]


LLAMA = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT_BASE = {"model_type": "bert", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 512}


def overrides(name: str) -> list[str]:
    own = [] if name.endswith("phantom") else ["data.root=."]
    return [*own, "decoder.checkpoint=DIR"] if name == "structure_ct_llm" else own


def built(name: str) -> tuple[schemas.Reportgen, configs.Config, Pretrained, Vocabulary, torch.nn.Module]:
    """Everything of a config at its full size; weights are not made on the meta device."""
    chosen = schemas.load(name, overrides(name))
    whole = schemas.pretraining(chosen)
    whole.image.pop("pretrained", None)
    if whole.text["name"] == "hf":  # the hub's tower is not here
        whole.text["config"] = BERT_BASE
        whole.text.pop("checkpoint")
    if name == "structure_ct_llm":
        chosen.decoder |= {"checkpoint": "", "architecture": LLAMA}
    tokenizer = Tokenizer.train(["the lungs are clear"], 100)
    net = assembly.create_model(whole, tokenizer)
    visual = Pretrained(net, tokenizer, assembly.create_preprocess(whole, net))
    v = chosen.vocabulary
    vocabulary = Vocabulary.train(WORDS, kind=v.kind, size=v.size)
    section, _ = configs.data_section(whole)
    limits = {key: getattr(chosen.decode, key) for key in ("max_tokens", "max_sentences", "max_report")}
    sizes = model.sizes_of(training.sight(chosen, visual, section), vocabulary, limits, context=bool(chosen.context))
    return chosen, whole, visual, vocabulary, decoders.create(chosen.decoder, vocabulary, **sizes)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_config_builds_at_full_size(name: str) -> None:
    with torch.device("meta"):
        chosen, whole, visual, _, decoder = built(name)
        objectives, weights = assembly.create_objectives(whole)
    volumes = visual.model.image.spec.ndim == 3
    visual.model.wire(assembly.needs_of(objectives), configs.data_section(whole)[0].units)
    assert set(weights) == {"structure_contrast" if volumes else "sentence_topic"}
    assert sum(p.numel() for p in decoder.parameters()) > 5e5
    assert chosen.decode.max_report <= (380 if volumes else 100)


def test_the_published_ct_preset_looks_at_110_of_4096_tokens() -> None:
    with torch.device("meta"):
        chosen, whole, visual, vocabulary, decoder = built("structure_ct")
    net = visual.model
    assert visual.preprocess.size == (240, 480, 480)
    assert math.prod(net.image.spec.grid(visual.preprocess.size)) == 4096
    assert (chosen.per_structure, chosen.decode.beams, vocabulary.size) == (10, 3, 6342)
    assert decoder.look.place.shape[0] == 110
    assert (len(net.heads["structure"].learned), len(net.heads["structure"].blocks)) == (10, 2)
    assert (decoder.lm.config.num_hidden_layers, decoder.lm.config.hidden_size) == (12, 768)
    assert (whole.objectives["structure_contrast"]["alpha"], whole.objectives["structure_contrast"]["queue"]) == (0.5, 1000)


@pytest.mark.parametrize("name", ["mgrrg_mimic", "mgrrg_iu"])
def test_the_published_presets_have_the_sizes_of_the_paper(name: str) -> None:
    with torch.device("meta"):
        chosen, whole, visual, vocabulary, decoder = built(name)
    net = visual.model
    assert visual.preprocess.size == (224, 224)
    assert net.image.recipe["cnn"] == "resnet101"
    assert (net.heads["topic"].positions, net.heads["codes"].vectors.shape) == (49, (1023, 49))
    assert net.image.spec.width == net.dim == 512
    assert (len(decoder.words.transformer.h), len(decoder.topics.transformer.h)) == (6, 6)
    assert decoder.words.config.n_head == 8
    assert decoder.topic_in.weight.shape == (512, 49)
    assert vocabulary.size == {"mgrrg_mimic": 5500, "mgrrg_iu": 1500}[name]
    assert (chosen.train.batch_size, chosen.train.lr, chosen.visual, chosen.pretrain) == (32, 3e-5, "joint", False)
    assert whole.objectives["sentence_topic"]["weight"] == 1.0
    assert whole.model.views == "mean"


def test_the_baseline_has_as_many_parameters() -> None:
    with torch.device("meta"):
        counts = [sum(p.numel() for p in built(name)[-1].parameters()) for name in ("mgrrg_phantom", "baseline_phantom")]
    assert abs(counts[0] - counts[1]) < 0.05 * counts[0]


@pytest.mark.slow
def test_the_published_preset_takes_a_step() -> None:
    torch.manual_seed(0)
    chosen, whole, visual, vocabulary, decoder = built("mgrrg_mimic")
    objectives, weights = assembly.create_objectives(whole)
    training.prepare(visual.model, objectives, ["report", "sentence"], chosen.visual, chosen.tokens)
    it = tiny.spoken(model.Sight(visual), decoder, vocabulary, chosen.decoder, {"max_tokens": 50, "max_sentences": 30, "max_report": 100})
    texts = [["word1 is here.", "word2 is here."], ["word3 is here.", "word1 is here.", "word4 is here."]]
    listed = [tiny.study(f"s{n}", some, seed=n) for n, some in enumerate(texts)]
    batch: Batch = tiny.raw_batch(it, listed)
    task = training.Task(it, objectives, it.to_input, mode="joint").train()
    before = {n: p.detach().clone() for n, p in task.named_parameters()}
    terms = task(batch)
    loss = sum({"decoder": 1.0, **weights}[name.partition("/")[0]] * total / count.clamp_min(1) for name, (total, count) in terms.items())
    loss.backward()
    assert torch.isfinite(loss)
    assert set(terms) >= {
        "decoder/words",
        "decoder/topics",
        "sentence_topic/sentence_to_image",
        "sentence_topic/repulsion",
        "sentence_topic/codebook",
    }
    torch.optim.SGD([p for p in task.parameters() if p.grad is not None], 1e-3).step()
    moved = {n.partition(".")[0] + "." + n.split(".")[1] for n, p in task.named_parameters() if not torch.equal(p.detach(), before[n])}
    assert moved >= {"model.image", "model.text", "model.heads", "decoder.words", "decoder.topics"}


def test_every_readme_command_of_reports_is_a_valid_config(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text() + (Path(__file__).parents[2] / "docs" / "reportgen.md").read_text()
    commands = [
        line.removeprefix("$ ").partition("#")[0].split() for line in text.splitlines() if line.startswith("$ python -m downstream.reportgen")
    ]
    assert len(commands) >= 8
    for words in commands:
        given = [w for w in words[4:] if "=" in w and not w.startswith("-") and not w.startswith("data.root")]
        name = words[words.index("--config") + 1] if "--config" in words else "mgrrg_phantom"
        schemas.load(name.rstrip(";"), [*overrides(name), *(w.rstrip(";") for w in given)])
