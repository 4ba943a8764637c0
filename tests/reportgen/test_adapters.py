"""Adapters on tiny random checkpoints of the owners' layout: the same numbers as transformers put together by hand, and never the network."""

from __future__ import annotations

import json
import math
import socket
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from downstream.reportgen.metrics import ctrate18
from downstream.reportgen.metrics.adapters import ADAPTERS, OBSERVATIONS, BertScore, CheXbert, CtClassifier, CxrBert, RadGraph
from downstream.reportgen.metrics.chexpert14 import CLASSES
from downstream.reportgen.metrics.clinical import CTRATE18, compare
from elvis.errors import ConfigError
from tests.tiny_encoders import write_bert

WORDS = [
    "no",
    "left",
    "small",
    "pleural",
    "effusion",
    "##s",
    "the",
    "heart",
    "is",
    "enlarged",
    "lungs",
    "are",
    "clear",
    "lobe",
    ".",
    ",",
    "right",
    "up",
    "##per",
]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
TEXTS = ["No pleural effusions.", "The heart is enlarged,\n  small  left effusion", "", "Lungs are clear. " * 40, "zzz"]
PAIRS = (
    ["no pleural effusion", "the heart is enlarged", "", "lungs are clear"],
    ["small left pleural effusion", "the heart is enlarged", "lungs", ""],
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("an adapter asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def bert(width: int = 128, pooler: bool = True) -> nn.Module:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": width // 64, "intermediate_size": 32}
    model = BertModel(BertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=40, **sizes), add_pooling_layer=pooler).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)  # or all texts look alike
    return model


def write_vocabulary(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def write_encoder(folder: Path) -> Path:
    """A folder as transformers saves an encoder with a tokenizer that puts CLS and SEP around a text."""
    from transformers import BertTokenizer

    BertTokenizer(str(write_vocabulary(folder) / "vocab.txt"), model_max_length=40).save_pretrained(folder)
    bert(64).save_pretrained(folder)
    return folder


def by_hand(model: nn.Module, folder: Path, texts: list[str], longest: int = 40) -> torch.Tensor:
    """CLS of each text alone, by the tokenizer of transformers."""
    from transformers import BertTokenizer

    tokenizer, out = BertTokenizer(str(folder / "vocab.txt"), do_lower_case=True), []
    for text in texts:
        ids = tokenizer.encode(" ".join(text.split()))
        ids = ids if len(ids) <= longest else [*ids[: longest - 1], tokenizer.sep_token_id]
        with torch.no_grad():
            out.append(model(torch.tensor([ids])).last_hidden_state[0, 0])
    return torch.stack(out)


# ---------------------------------------------------------------------------------------------------------- CheXbert


def write_chexbert(folder: Path, *, prefix: str = "module.", wrap: bool = True, **changes: Any) -> tuple[nn.Module, list[nn.Linear]]:
    """chexbert.pth and vocab.txt as their owners lay them out."""
    write_vocabulary(folder)
    encoder = bert()
    heads = [nn.Linear(128, 4) for _ in range(13)] + [nn.Linear(128, 2)]
    state = {f"{prefix}bert.{k}": v for k, v in encoder.state_dict().items()}
    state |= {f"{prefix}linear_heads.{i}.{k}": v for i, head in enumerate(heads) for k, v in head.state_dict().items()}
    state[f"{prefix}bert.embeddings.position_ids"] = torch.arange(40)[None]  # older transformers saved it
    state.update(changes)
    state = {k: v for k, v in state.items() if v is not None}
    torch.save({"epoch": 3, "model_state_dict": state, "optimizer_state_dict": {}} if wrap else state, folder / "chexbert.pth")
    return encoder, heads


@pytest.mark.parametrize("layout", [{}, {"prefix": ""}, {"prefix": "", "wrap": False}])
def test_chexbert_gives_the_class_of_the_highest_logit_of_each_head(tmp_path: Path, layout: dict[str, Any]) -> None:
    encoder, heads = write_chexbert(tmp_path, **layout)
    found = CheXbert(tmp_path / "chexbert.pth")(TEXTS)
    states = by_hand(encoder, tmp_path, TEXTS)
    meant = {0: None, 1: 1, 2: 0, 3: -1}
    for text, state in zip(found, states, strict=True):
        expected = {name: meant[int((head.weight @ state + head.bias).argmax())] for name, head in zip(OBSERVATIONS, heads, strict=True)}
        assert text == {name: value for name, value in expected.items() if value is not None}
    assert len({tuple(sorted(text.items())) for text in found}) > 1
    assert {value for text in found for value in text.values()} == {1, 0, -1}


def test_chexbert_names_its_observations_as_the_rule_labeler_does(tmp_path: Path) -> None:
    write_chexbert(tmp_path / "vocabulary")
    (tmp_path / "vocabulary" / "chexbert.pth").rename(tmp_path / "chexbert.pth")
    labeler = CheXbert(tmp_path, tmp_path / "vocabulary")
    assert set(OBSERVATIONS) == set(CLASSES)
    assert [labeler.label(text) for text in TEXTS] == labeler(TEXTS)
    assert labeler([]) == []


def test_the_labels_of_a_text_do_not_depend_on_its_batch(tmp_path: Path) -> None:
    write_chexbert(tmp_path)
    labeler = CheXbert(tmp_path)
    many = TEXTS * 15
    assert labeler(many) == labeler(TEXTS) * 15
    assert torch.allclose(labeler.embed(many)[:5], torch.cat([labeler.embed([text]) for text in TEXTS]), atol=1e-5)


def test_semb_score_is_the_mean_cosine_of_cls(tmp_path: Path) -> None:
    encoder, _ = write_chexbert(tmp_path)
    labeler, others = CheXbert(tmp_path), TEXTS[::-1]
    ours, theirs = (by_hand(encoder, tmp_path, texts).numpy().astype(float) for texts in (TEXTS, others))
    cosines = [a @ b / math.sqrt((a @ a) * (b @ b)) for a, b in zip(ours, theirs, strict=True)]
    assert labeler.similarity(TEXTS, others)["semb_score"].value == pytest.approx(np.mean(cosines), abs=1e-5)
    assert labeler.similarity(TEXTS, TEXTS)["semb_score"].value == pytest.approx(1, abs=1e-6)
    with pytest.raises(ConfigError, match="5 generated reports, 1 references"):
        labeler.similarity(TEXTS, TEXTS[:1])


def test_a_cased_vocabulary_is_read_as_its_config_says(tmp_path: Path) -> None:
    write_chexbert(tmp_path)
    write_vocabulary(tmp_path, do_lower_case=False)
    cased = CheXbert(tmp_path)
    assert not torch.allclose(cased.embed(["Heart"]), cased.embed(["heart"]))
    write_vocabulary(tmp_path, do_lower_case=True)
    assert torch.equal(CheXbert(tmp_path).embed(["Heart"]), cased.embed(["heart"]))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"module.linear_heads.13.weight": torch.zeros(4, 128)}, "14 heads"),
        ({"module.linear_heads.3.weight": None}, "14 heads"),
        ({"module.bert.encoder.layer.1.output.dense.weight": None}, "weights of a BERT"),
        ({"module.bert.embeddings.word_embeddings.weight": None}, "weights of a BERT"),
        ({"module.bert.embeddings.word_embeddings.weight": torch.zeros(7, 128)}, "has 24 entries, the weights 7"),
    ],
)
def test_weights_that_are_no_chexbert_are_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    write_chexbert(tmp_path, **changes)
    with pytest.raises(ConfigError, match=says):
        CheXbert(tmp_path)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    write_vocabulary(tmp_path)
    torch.save({"model_state_dict": Path("x")}, tmp_path / "chexbert.pth")
    with pytest.raises(ConfigError, match="no file of weights"):
        CheXbert(tmp_path)
    (tmp_path / "chexbert.pth").write_bytes(b"<html>")
    with pytest.raises(ConfigError, match="no file of weights"):
        CheXbert(tmp_path)


# ---------------------------------------------------------------------------------------------------------- CXR-BERT


def write_cxrbert(folder: Path, binary: bool) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A folder as microsoft/BiomedVLP-CXR-BERT-specialized: an own model type, its code beside it, a projection of CLS."""
    from safetensors.torch import save_file

    write_vocabulary(folder, do_lower_case=True, tokenizer_class="CXRBertTokenizer", auto_map={"AutoTokenizer": ["code.CXRBertTokenizer", None]})
    encoder, head = bert(pooler=False), "cls_projection_head."
    shapes = {"dense_to_hidden": (16, 128), "dense_to_output": (16, 16)}
    state = {f"{head}{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    state |= {f"{head}{name}.bias": torch.randn(16) for name in (*shapes, "LayerNorm")} | {f"{head}LayerNorm.weight": torch.rand(16)}
    whole = {f"bert.{k}": v for k, v in encoder.state_dict().items()} | state | {"cls.predictions.bias": torch.zeros(len(VOCABULARY))}
    torch.save(whole, folder / "pytorch_model.bin") if binary else save_file(whole, folder / "model.safetensors")
    told = {"model_type": "cxr-bert", "num_attention_heads": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "projection_size": 16}
    (folder / "config.json").write_text(json.dumps({**told, "auto_map": {"AutoModel": "code.CXRBertModel"}}))
    (folder / "code.py").write_text("raise AssertionError('code of a checkpoint was run')")
    return encoder, {k.removeprefix(head): v for k, v in state.items()}


@pytest.mark.parametrize("binary", [False, True])
def test_cxr_bert_projects_cls_as_its_formula_says(tmp_path: Path, binary: bool) -> None:
    encoder, head = write_cxrbert(tmp_path, binary)
    metric, others = CxrBert(tmp_path), TEXTS[1:] + TEXTS[:1]
    h = by_hand(encoder, tmp_path, TEXTS).double() @ head["dense_to_hidden.weight"].T.double() + head["dense_to_hidden.bias"]
    g = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
    n = (g - g.mean(-1, keepdim=True)) / torch.sqrt(g.var(-1, correction=0, keepdim=True) + 1e-12)
    out = (n * head["LayerNorm.weight"] + head["LayerNorm.bias"]) @ head["dense_to_output.weight"].T.double() + head["dense_to_output.bias"]
    assert torch.allclose(metric.embed(TEXTS).double(), out, atol=1e-4)
    out = out / out.norm(dim=-1, keepdim=True)
    expected = float((out * out.roll(-1, 0)).sum(-1).mean())
    assert metric(TEXTS, others)["cxr_bert_cosine"].value == pytest.approx(expected, abs=1e-5)
    assert metric(TEXTS, TEXTS)["cxr_bert_cosine"].value == pytest.approx(1, abs=1e-6)


def test_any_other_encoder_gives_its_first_state(tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    write_encoder(tmp_path)
    metric, texts = CxrBert(tmp_path), ["no pleural effusion", "the heart is enlarged"]
    model, tokenizer = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False).eval(), AutoTokenizer.from_pretrained(tmp_path)
    with torch.no_grad():
        first = [model(input_ids=torch.tensor([tokenizer.encode(text)])).last_hidden_state[0, 0] for text in texts]
    assert torch.allclose(metric.embed(texts), torch.stack(first), atol=1e-5)
    expected = float(torch.cosine_similarity(first[0], first[1], dim=0))
    assert metric(texts, texts[::-1])["cxr_bert_cosine"].value == pytest.approx(expected, abs=1e-5)


def test_an_encoder_without_cls_is_no_encoder_of_whole_texts_but_has_a_bertscore(tmp_path: Path) -> None:
    write_bert(tmp_path)
    with pytest.raises(ConfigError, match="no CLS"):
        CxrBert(tmp_path)
    assert BertScore(tmp_path)(["", "lungs are clear"], ["", "lungs are clear"])["bertscore_f1"].parts[:, 0] == pytest.approx([0, 1], abs=1e-5)
    assert BertScore(tmp_path)([""], [""])["bertscore_f1"].value == 0


# --------------------------------------------------------------------------------------------------------- BERTScore


def scores_by_hand(folder: Path, hypothesis: str, reference: str, layer: int) -> tuple[float, float, float]:
    """Word by word, in plain Python, on hidden states of transformers."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval(), AutoTokenizer.from_pretrained(folder)
    states = []
    for text in (hypothesis, reference):
        with torch.no_grad():
            out = model(input_ids=torch.tensor([tokenizer.encode(text)]), output_hidden_states=True)
        states.append(out.hidden_states[layer][0].double().numpy())
    cosine = lambda a, b: float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))  # noqa: E731
    if min(map(len, states)) <= 2:
        return 0.0, 0.0, 0.0
    ours, theirs = states
    precision = [max(cosine(word, other) for other in theirs) for word in ours[1:-1]]
    recall = [max(cosine(word, other) for other in ours) for word in theirs[1:-1]]
    p, r = sum(precision) / len(precision), sum(recall) / len(recall)
    return p, r, 2 * p * r / (p + r)


@pytest.mark.parametrize("layer", [0, 1, None])
def test_bertscore_is_greedy_matching_word_by_word(tmp_path: Path, layer: int | None) -> None:
    write_encoder(tmp_path)
    found = BertScore(tmp_path, layer)(*PAIRS)
    expected = [scores_by_hand(tmp_path, *pair, 2 if layer is None else layer) for pair in zip(*PAIRS, strict=True)]
    for i, name in enumerate(("precision", "recall", "f1")):
        values = found[f"bertscore_{name}"].parts[:, 0]
        assert values == pytest.approx([row[i] for row in expected], abs=1e-5)
    assert found["bertscore_f1"].parts[:, 0].tolist()[1:] == pytest.approx([1, 0, 0], abs=1e-5)


def test_a_baseline_rescales_precision_recall_and_f(tmp_path: Path) -> None:
    write_encoder(tmp_path)
    table = tmp_path / "baseline.tsv"
    table.write_text("LAYER,P,R,F\n0,0.1,0.2,0.3\n1,0.4,0.5,0.6\n2,0.7,0.8,0.9\n")
    plain, scaled = BertScore(tmp_path, 1)(*PAIRS), BertScore(tmp_path, 1, table)(*PAIRS)
    for name, b in (("precision", 0.4), ("recall", 0.5), ("f1", 0.6)):
        before, after = (found[f"bertscore_{name}"].parts[:, 0] for found in (plain, scaled))
        assert after == pytest.approx((before - b) / (1 - b))


def test_bertscore_agrees_with_the_package_of_its_authors(tmp_path: Path) -> None:
    package = pytest.importorskip("bert_score")
    write_encoder(tmp_path)
    ours = BertScore(tmp_path, 1)(*PAIRS)
    for i, (hypothesis, reference) in enumerate(zip(*PAIRS, strict=True)):
        if hypothesis and reference:
            theirs = package.score([hypothesis], [reference], model_type=str(tmp_path), num_layers=1)
            assert [float(ours[f"bertscore_{name}"].parts[i, 0]) for name in ("precision", "recall", "f1")] == pytest.approx(
                [float(value) for value in theirs], abs=1e-5
            )


def test_a_byte_level_tokenizer_sees_the_first_word_as_any_other(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(["heart is large the heart is large"] * 5, trainers.BpeTrainer(vocab_size=60, special_tokens=special))
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 30}
    RobertaModel(RobertaConfig(vocab_size=60, pad_token_id=1, **sizes), add_pooling_layer=False).save_pretrained(tmp_path)
    found = BertScore(tmp_path, 0)
    inner = tokenizer.encode("the heart", add_special_tokens=False).ids[-1]
    assert inner not in tokenizer.encode("heart").ids
    assert read(found, "heart") == [0, inner, 2]
    assert found(["heart is large", ""], ["heart is large", "the heart"])["bertscore_f1"].parts[:, 0] == pytest.approx([1, 0], abs=1e-5)


def read(metric: BertScore, text: str) -> list[int]:
    """The tokens that reach the encoder."""
    seen: list[list[int]] = []
    hook = metric.encoder.register_forward_pre_hook(lambda module, args, given: seen.extend(given["input_ids"].tolist()), with_kwargs=True)
    metric([text], [text])
    hook.remove()
    return seen[0]


def test_a_layer_that_is_not_there_is_refused(tmp_path: Path) -> None:
    write_encoder(tmp_path)
    with pytest.raises(ConfigError, match="choose 0 to 2"):
        BertScore(tmp_path, 3)
    (tmp_path / "b.tsv").write_text("LAYER,P,R,F\n0,0.1,0.2,0.3\n")
    with pytest.raises(ConfigError, match="no baseline P, R, F of layer 1"):
        BertScore(tmp_path, 1, tmp_path / "b.tsv")


# ----------------------------------------------------------------------------------------------------- CT classifier


def write_classifier(folder: Path, names: list[str] | None = None, outputs: int = 18) -> nn.Module:
    """A folder as transformers saves a classifier of texts."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    BertTokenizer(str(write_vocabulary(folder) / "vocab.txt"), model_max_length=40).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 40}
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(VOCABULARY), num_labels=outputs, **sizes)
    if names:
        config.id2label, config.label2id = dict(enumerate(names)), {name: place for place, name in enumerate(names)}
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


def classes_by_hand(model: nn.Module, folder: Path, texts: list[str], names: tuple[str, ...], threshold: float) -> list[dict[str, int]]:
    from transformers import AutoTokenizer

    tokenizer, found = AutoTokenizer.from_pretrained(folder), []
    for text in texts:
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer.encode(text, truncation=True, max_length=40)])).logits[0].tolist()
        found.append({name: 1 for name, logit in zip(names, logits, strict=True) if 1 / (1 + math.exp(-logit)) >= threshold})
    return found


@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_a_ct_classifier_says_yes_where_the_sigmoid_reaches_the_threshold(tmp_path: Path, threshold: float) -> None:
    model = write_classifier(tmp_path)
    labeler = CtClassifier(tmp_path, threshold)
    expected = classes_by_hand(model, tmp_path, TEXTS, ctrate18.CLASSES, threshold)
    assert labeler(TEXTS) == expected
    assert labeler(TEXTS * 10) == expected * 10
    assert [labeler.label(text) for text in TEXTS] == expected
    assert len({tuple(labels) for labels in expected}) > 1
    assert labeler([]) == []


def test_a_ct_classifier_has_the_names_of_its_config_where_they_are_those_of_ct_rate(tmp_path: Path) -> None:
    other = ctrate18.CLASSES[::-1]
    model = write_classifier(tmp_path, [name.upper().replace(" ", "_") for name in other])
    assert CtClassifier(tmp_path)(TEXTS) == classes_by_hand(model, tmp_path, TEXTS, other, 0.5)
    write_classifier(tmp_path, ["Emphysema", *other[1:]])  # one name twice: they are not to be trusted
    assert CtClassifier(tmp_path).names == ctrate18.CLASSES


def test_the_scores_by_a_ct_classifier_are_those_of_its_labels(tmp_path: Path) -> None:
    model = write_classifier(tmp_path)
    said, true = TEXTS[:4], TEXTS[1:]
    tables = []
    for texts in (said, true):
        labels = classes_by_hand(model, tmp_path, texts, ctrate18.CLASSES, 0.5)
        tables.append(np.array([[row.get(name, 0) for name in ctrate18.CLASSES] for row in labels], np.int8))
    found, expected = ADAPTERS["ct_classifier"](str(tmp_path))(said, true), compare(*tables, CTRATE18)
    assert {name.replace("ct_classifier", "ctrate18") for name in found} == expected.keys()
    for name, sums in expected.items():
        assert found[name.replace("ctrate18", "ct_classifier")].value == pytest.approx(sums.value, nan_ok=True)
    assert 0 < found["ct_classifier_f1_micro_zeros"].value < 1


def test_the_classifier_of_ct_clip_is_a_roberta_with_other_names(tmp_path: Path) -> None:
    from transformers import RobertaConfig, RobertaForSequenceClassification, RobertaModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 30}
    config = RobertaConfig(vocab_size=60, num_labels=18, **sizes)
    encoder, linear = RobertaModel(config).eval(), nn.Linear(16, 18)
    state = {f"model.{k}": v for k, v in encoder.state_dict().items()} | {f"classifier.{k}": v for k, v in linear.state_dict().items()}
    new = {}
    for name, tensor in state.items():
        name = name.replace("classifier.", "classifier.out_proj.").replace("model.pooler.dense.", "classifier.dense.").replace("model.", "roberta.")
        new[name] = tensor
    renamed = RobertaForSequenceClassification(config).eval()
    renamed.load_state_dict(new)
    ids = torch.tensor([[0, 7, 9, 11, 2]])
    with torch.no_grad():
        assert torch.allclose(renamed(ids).logits, linear(encoder(ids).pooler_output), atol=1e-6)


def test_what_is_no_ct_classifier_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_classifier(tmp_path / "five", outputs=5)
    with pytest.raises(ConfigError, match="has 5 outputs, not 18"):
        CtClassifier(tmp_path / "five")
    write_classifier(tmp_path / "good")
    with pytest.raises(ConfigError, match="a threshold of 1 is no probability"):
        CtClassifier(tmp_path / "good", 1.0)
    bert(64).save_pretrained(tmp_path / "good")  # an encoder without its head
    config = json.loads((tmp_path / "good" / "config.json").read_text())
    (tmp_path / "good" / "config.json").write_text(json.dumps({**config, "id2label": {str(i): f"LABEL_{i}" for i in range(18)}}))
    capfd.readouterr()
    with pytest.raises(ConfigError, match=r"has no weights classifier\.bias, classifier\.weight"):
        CtClassifier(tmp_path / "good")
    assert capfd.readouterr() == ("", "")  # one error, not transformers' report, too
    (tmp_path / "good" / "model.safetensors").write_bytes(b"<html>")
    with pytest.raises(ConfigError, match="holds no classifier"):
        CtClassifier(tmp_path / "good")
    (tmp_path / "good" / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="holds no classifier"):
        CtClassifier(tmp_path / "good")


# ---------------------------------------------------------------------------------------------------------- RadGraph


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The package `radgraph` as far as it is called; what it was given."""
    given: dict[str, Any] = {}

    class F1RadGraph:
        def __init__(self, reward_level: str, model_type: str | None = None, **options: Any) -> None:
            from huggingface_hub import constants

            print("Using device: cpu")
            given.update(level=reward_level, model=model_type, offline=constants.HF_HUB_OFFLINE, **options)
            if options.get("tokenizer_cache_dir") == "broken":
                raise OSError("no tokenizer\nin the cache")

        def __call__(self, refs: list[str], hyps: list[str]) -> Any:
            given["texts"] = (hyps, refs)
            levels = [[float(len(h.split()) / 10 ** (k + 1)) for h in hyps] for k in range(3)]
            return tuple(map(np.mean, levels)), tuple(levels), [], []

    module = types.ModuleType("radgraph")
    module.F1RadGraph = F1RadGraph  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "radgraph", module)
    return given


def model_folder(tmp_path: Path, name: str = "radgraph-xl") -> Path:
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text("{}")
    return tmp_path / name


def test_radgraph_is_given_the_local_model_and_never_an_empty_text(
    tmp_path: Path, stand_in: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    setting = constants.HF_HUB_OFFLINE
    metric = RadGraph(model_folder(tmp_path), tokenizer=tmp_path / "cache")
    options = {"model_cache_dir": str(tmp_path), "tokenizer_cache_dir": str(tmp_path / "cache"), "cuda": -1}
    assert stand_in == {"level": "all", "model": "radgraph-xl", "offline": True, **options}
    assert setting == constants.HF_HUB_OFFLINE
    found = metric(["a b", " ", "c", "d"], ["x", "y", "", "z"])
    assert stand_in["texts"] == (["a b", "d"], ["x", "z"])
    for k, level in enumerate(("simple", "partial", "complete")):
        assert found[f"radgraph_{level}"].parts[:, 0] == pytest.approx(np.array([2, 0, 0, 1]) / 10 ** (k + 1))
        assert found[f"radgraph_{level}"].value == pytest.approx(3 / 4 / 10 ** (k + 1))
    assert metric([""], [""])["radgraph_simple"].value == 0
    assert capsys.readouterr().out == ""


def test_what_radgraph_refuses_is_one_error_of_ours(tmp_path: Path, stand_in: dict[str, Any]) -> None:
    folder = model_folder(tmp_path)
    with pytest.raises(ConfigError, match="no tokenizer in the cache"):
        RadGraph(folder, tokenizer="broken")
    folder.rename(tmp_path / "model")
    with pytest.raises(ConfigError, match="rename it to one of radgraph, radgraph-xl"):
        RadGraph(tmp_path / "model")


def test_without_the_package_radgraph_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "radgraph", None)
    with pytest.raises(ConfigError, match="pip install radgraph"):
        RadGraph(model_folder(tmp_path))


def test_the_real_package_takes_the_arguments_that_it_is_given() -> None:
    import inspect

    package = pytest.importorskip("radgraph")
    assert {"model_type", "model_cache_dir", "tokenizer_cache_dir", "cuda"} <= set(inspect.signature(package.RadGraph.__init__).parameters)
    assert {"reward_level", "model_type"} <= set(inspect.signature(package.F1RadGraph.__init__).parameters)


# ------------------------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize(
    ("metric", "owner"),
    [
        (CheXbert, "stanfordmlgroup/CheXbert"),
        (RadGraph, "StanfordAIMI/RRG_scorers"),
        (BertScore, "distilroberta-base"),
        (CxrBert, "microsoft/BiomedVLP-CXR-BERT-specialized"),
        (CtClassifier, "CT-RATE's 18 labels"),
    ],
)
@pytest.mark.parametrize("path", ["nowhere", "here", "microsoft/BiomedVLP-CXR-BERT-specialized"])
def test_a_path_that_holds_no_model_says_which_is_needed_and_where_its_owner_gives_it(metric: type, owner: str, path: str, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    given = tmp_path / path if path == "here" else path
    with pytest.raises(ConfigError, match=owner) as told:
        metric(given)
    assert str(given) in str(told.value)
    assert len(str(told.value).splitlines()) == 2


def test_a_missing_vocabulary_or_baseline_is_named(tmp_path: Path) -> None:
    write_chexbert(tmp_path)
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(ConfigError, match=r"vocab.txt has no \[UNK\]"):
        CheXbert(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(ConfigError, match="google-bert/bert-base-uncased"):
        CheXbert(tmp_path)
    write_encoder(tmp_path / "encoder")
    with pytest.raises(ConfigError, match="Tiiiger/bert_score"):
        BertScore(tmp_path / "encoder", baseline=tmp_path / "none.tsv")
