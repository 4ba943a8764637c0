"""A checkpoint whose author means harm: he writes the manifest, too, so every hash is right. One message, exit code 4, nothing is run."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from elvis import checkpoints
from elvis.backbones import create_backbone
from elvis.checkpoints import border
from elvis.errors import CheckpointError, ConfigError
from elvis.registry import OBJECTIVES, TEXT_ENCODERS
from tests.fuzz import seal, tensors
from tests.test_checkpoints import pretrained

Change = Callable[[Path], object]


class Harmful:
    """A pickle that touches a file when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = {"name": "sentence_region", "width": 16, "positives": "distance"}
    return checkpoints.save(
        tmp_path_factory.mktemp("hostile") / "given", pretrained(), config_yaml="train: {}\n", metrics={"pointing": 0.5},
        provenance={"commit": "abc", "step": 3}, objectives={"lovt": (recipe, OBJECTIVES.create(**recipe))}, patients=np.arange(3), state={"step": 3},
    )  # fmt: skip


@pytest.fixture
def folder(given: Path, tmp_path: Path) -> Path:
    return shutil.copytree(given, tmp_path / "here")


def refused(load: Callable[[], object], *named: str) -> str:
    """It is a CheckpointError: one short message that names this, and the exit code 4."""
    with pytest.raises(CheckpointError) as caught:
        load()
    said = str(caught.value)
    assert caught.value.exit_code == 4
    assert len(said) < 400
    assert caught.value.fix
    assert all(c.isprintable() or c == "\n" for c in said)
    for name in named:
        assert name in said, said
    return said


def everything(folder: Path) -> None:
    checkpoints.load_whole(folder)
    checkpoints.load_backbone(folder)
    checkpoints.load_state(checkpoints.resolve(folder))


def rewritten(folder: Path, name: str, **values: Any) -> None:
    """Members of a JSON file replaced; ... takes one away. Sealed."""
    whole = {**json.loads((folder / name).read_text()), **values}
    (folder / name).write_text(json.dumps({key: value for key, value in whole.items() if value is not ...}))
    seal(folder)


def test_the_checkpoint_that_is_changed_here_is_a_good_one(folder: Path) -> None:
    seal(folder)
    everything(folder)


# -------------------------------------------------------------------------------------------------------------- pickles


@pytest.mark.parametrize("forced", ["", "1"])
@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("state/trainer.pt", lambda path: checkpoints.load_state(checkpoints.resolve(path))),
        ("model.safetensors", checkpoints.load_backbone),
        ("model.safetensors", checkpoints.load_pretrained),
        ("objectives.safetensors", checkpoints.load_whole),
        ("patients.npy", checkpoints.load_whole),
        ("tokenizer/tokenizer.json", checkpoints.load_pretrained),
        ("weights", lambda path: checkpoints.load_weights(pretrained().model, path / "weights")),
    ],
)
def test_a_pickle_in_a_checkpoint_is_not_run(name: str, load: Callable, forced: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", forced)  # makes torch.load run what it reads, unless it is told not to
    torch.save({"step": Harmful(folder.parent / "ran")}, folder / name)
    seal(folder)
    refused(lambda: load(folder), name.rpartition("/")[2] if "tokenizer" not in name else "tokenizer")
    assert not (folder.parent / "ran").exists()


def test_an_array_of_objects_is_not_unpickled(folder: Path) -> None:
    np.save(folder / "patients.npy", np.array([Harmful(folder.parent / "ran")], object), allow_pickle=True)
    seal(folder)
    refused(lambda: checkpoints.load_whole(folder), "patients.npy")
    assert not (folder.parent / "ran").exists()


@pytest.mark.parametrize("forced", ["", "1"])
def test_a_pickle_among_features_or_in_a_decoder_is_not_run(forced: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from downstream.reportgen import features
    from downstream.reportgen.model import load_decoder

    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", forced)
    (store := tmp_path / "store").mkdir()
    for name in features.FILES[:3]:
        np.save(store / name, np.array([Harmful(tmp_path / "ran")], object), allow_pickle=True)
    (store / "ids.json").write_text('[["a", "b"]]')
    (store / "about.json").write_text("{}")
    seal(store)
    refused(lambda: features.Store(store), "npy")
    torch.save({"weight": Harmful(tmp_path / "ran")}, tmp_path / "decoder.safetensors")
    refused(lambda: load_decoder(torch.nn.Linear(1, 1), tmp_path), "decoder.safetensors")
    assert not (tmp_path / "ran").exists()


def test_a_backbone_reads_no_file_that_its_options_name(tmp_path: Path) -> None:
    torch.save({"state_dict": Harmful(tmp_path / "ran")}, tmp_path / "weights.pth")
    for option in ({"checkpoint_path": str(tmp_path / "weights.pth")}, {"pretrained_cfg": {"file": str(tmp_path / "weights.pth")}}):
        with pytest.raises(ConfigError, match=next(iter(option))) as caught:
            create_backbone("cnn", model="resnet10t", arch=option)
        assert caught.value.exit_code == 2
    assert not (tmp_path / "ran").exists()


def test_a_folder_with_a_pickle_of_weights_gives_no_text_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.tiny_encoders import write_bert

    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    place = write_bert(tmp_path / "bert")
    (place / "model.safetensors").unlink()
    torch.save({"embeddings": Harmful(tmp_path / "ran")}, place / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="transformers cannot use"):
        TEXT_ENCODERS.create("hf", checkpoint=str(place))
    assert not (tmp_path / "ran").exists()


def test_attention_that_would_be_fetched_from_a_hub_is_refused_before_it_is_asked_for() -> None:
    """transformers takes `owner/name` for code on the hub, and runs it, where the package `kernels` is installed."""
    for key in ("attn_implementation", "_attn_implementation"):
        with pytest.raises(ConfigError, match="asks for the attention 'a/b'"):
            TEXT_ENCODERS.create("hf", config={**BERT, key: "a/b"})


# ---------------------------------------------------------------------------------------------------------- safetensors


def _header(text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + data


FLOATS = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HEADERS = {
    "a header of 2^40 bytes": struct.pack("<Q", 1 << 40) + b"{}",
    "a header that is longer than the file": struct.pack("<Q", 100) + b"{}",
    "no JSON": _header(b"{{{{"),
    "nested deep": _header(b'{"a":' + b"[" * 50_000),
    "offsets that overlap": tensors({"a": FLOATS, "b": {**FLOATS, "data_offsets": [4, 12]}}, bytes(12)),
    "offsets behind the end": tensors({"a": {**FLOATS, "data_offsets": [0, 1 << 40], "shape": [1 << 38]}}, bytes(8)),
    "a shape beyond 64 bits": tensors({"a": {**FLOATS, "shape": [1 << 62, 1 << 62]}}, bytes(8)),
    "a shape of more than its bytes": tensors({"a": {**FLOATS, "shape": [3]}}, bytes(8)),
    "a negative shape": tensors({"a": {**FLOATS, "shape": [-2]}}, bytes(8)),
    "an unknown type": tensors({"a": {**FLOATS, "dtype": "X99"}}, bytes(8)),
    "nothing": b"",
}


@pytest.mark.parametrize("content", HEADERS)
def test_a_broken_header_of_weights_is_refused(content: str, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(HEADERS[content])
    seal(folder)
    for load in (checkpoints.load_backbone, checkpoints.load_pretrained):
        refused(lambda load=load: load(folder), "model.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w | {"log_scale": w["log_scale"].long()}, "1 of another type ['log_scale']"),
        (lambda w: w | {"log_scale": torch.zeros(3)}, "1 of another shape ['log_scale']"),
        (lambda w: w | {"more": torch.zeros(3)}, "1 unexpected ['more']"),
        (lambda w: {k: v for k, v in w.items() if k != "log_scale"}, "1 missing ['log_scale']"),
        (lambda w: w | {"\x1b[2J" + "x" * 3000: torch.zeros(1)}, "1 unexpected"),
    ],
)
def test_weights_that_are_not_those_of_model_json_are_refused(change: Callable, said: str, folder: Path) -> None:
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    seal(folder)
    refused(lambda: checkpoints.load_pretrained(folder), said, str(folder))


def test_weights_in_half_precision_are_weights(folder: Path) -> None:
    half = {name: value.bfloat16() if value.is_floating_point() else value for name, value in load_file(folder / "model.safetensors").items()}
    save_file(half, folder / "model.safetensors")
    seal(folder)
    assert checkpoints.load_pretrained(folder).model.log_scale.dtype == torch.float32


# --------------------------------------------------------------------------------------------------------------- recipes

VIT = {"name": "vit", "model": "test_vit", "in_chans": 1, "input_size": [32, 32]}
TINY = {"name": "tiny", "vocab_size": 50, "width": 16, "depth": 1, "heads": 2, "max_length": 64}
BERT = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
RECIPES: dict[str, dict[str, Any]] = {
    "no image": {"image": ...},
    "an image that is none": {"image": [1, 2]},
    "a name that is a number": {"image": {**VIT, "name": 3}},
    "a name that is none": {"image": {**VIT, "name": "../vit"}},
    "an option that is none": {"image": {**VIT, "evil": 1}},
    "a model of timm's hub": {"image": {**VIT, "model": "hf-hub:a/b"}},
    "weights from elsewhere": {"image": {**VIT, "pretrained": True}},
    "weights of a file": {"image": {**VIT, "arch": {"checkpoint_path": "/x"}}},
    "weights of timm's config": {"image": {**VIT, "arch": {"pretrained_cfg": {"url": "http://localhost"}}}},
    "an option of timm's that is none": {"image": {**VIT, "arch": {"act_layer": "__import__"}}},
    "slices of slices of slices": {"image": json.loads('{"name": "slices", "encoder": ' * 30 + "{}" + "}" * 30)},
    "a side of 10^9": {"image": {**VIT, "input_size": [10**9, 10**9]}},
    "a side of 10^6": {"image": {**VIT, "input_size": [10**6, 10**6]}},
    "channels of 10^7": {"image": {**VIT, "in_chans": 10**7}},
    "blocks of timm, 10^6": {"image": {**VIT, "arch": {"depth": 10**6}}},
    "text of a hub": {"text": {"name": "hf", "checkpoint": "a/b"}},
    "text with a kernel of a hub": {"text": {"name": "hf", "config": {**BERT, "attn_implementation": "a/b"}}},
    "text that is none": {"text": {"name": "hf", "config": {"model_type": "clip"}}},
    "a width of 10^9": {"text": {**TINY, "width": 10**9}},
    "a width of 10^6": {"text": {**TINY, "width": 10**6}},
    "a depth of 10^6": {"text": {**TINY, "depth": 10**6}},
    "a depth that is negative": {"text": {**TINY, "depth": -1}},
    "a vocabulary of 10^12": {"text": {**TINY, "vocab_size": 10**12}},
    "no heads": {"text": {**TINY, "heads": 0}},
    "a number with a point": {"text": {**TINY, "width": 16.5}},
    "BERT of 10^7": {"text": {"name": "hf", "config": {**BERT, "hidden_size": 10**7}}},
    "a space of 10^9": {"model": {"dim": 10**9}},
    "a model that is a text": {"model": "dim"},
    "a projection that is none": {"model": {"dim": 16, "projection": "eval"}},
    "a scale below zero": {"model": {"dim": 16, "scale": -1}},
    "heads without a name": {"model": {"dim": 16, "hidden": 24, "heads": {"x": {"positions": 10**7, "query_width": 10**7}}}},
    "codes of 10^7": {"model": {"dim": 16, "heads": {"x": {"positions": 16}, "y": {"name": "codebook", "of": "x", "codes": 10**7}}}},
    "max_tokens that is a list": {"max_tokens": []},
    "max_tokens of 1": {"max_tokens": 1},
    "fill that is a text": {"fill": "no"},
    "a text of a megabyte": {"text": {**TINY, "name": "x" * 10**6}},
    "lists in lists": {"image": json.loads("[" * 900 + "]" * 900)},
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_that_no_model_has_is_refused_before_it_takes_memory(name: str, folder: Path) -> None:
    rewritten(folder, "model.json", **RECIPES[name])
    refused(lambda: checkpoints.load_pretrained(folder), str(folder))
    if "image" in RECIPES[name]:
        refused(lambda: checkpoints.load_backbone(folder), str(folder))


@pytest.mark.slow
def test_absurd_sizes_are_refused_within_a_gigabyte(given: Path, tmp_path: Path) -> None:
    """In a process that may have no more than that: a machine with much memory would forgive what this one must not."""
    code = (
        "import resource, sys, torch\nfrom pathlib import Path\nfrom elvis import checkpoints\nfrom elvis.errors import CheckpointError\n"
        "checkpoints.load_pretrained(sys.argv[1])\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)\n"
        "for path in sys.argv[2:]:\n    try:\n        checkpoints.load_pretrained(path)\n"
        "    except CheckpointError as error:\n        assert 'MemoryError' not in str(error) and 'allocate' not in str(error), error\n"
        "    else:\n        raise AssertionError(path)\n"
    )
    places = []
    for name in ("a width of 10^6", "a depth of 10^6", "a side of 10^6", "BERT of 10^7", "blocks of timm, 10^6", "codes of 10^7"):
        places.append(str(shutil.copytree(given, tmp_path / str(len(places)))))
        rewritten(Path(places[-1]), "model.json", **RECIPES[name])
    subprocess.run([sys.executable, "-c", code, str(given), *places], check=True, timeout=120)


def test_a_model_is_counted_while_it_is_made_in_shapes_alone(folder: Path) -> None:
    rewritten(folder, "model.json", text={**TINY, "depth": 9_000})
    refused(lambda: checkpoints.load_pretrained(folder), "far larger than its weights")
    rewritten(folder, "model.json", text={**TINY, "vocab_size": 10**7})
    refused(lambda: checkpoints.load_pretrained(folder), "of another shape")


def test_what_does_not_fit_its_weights_is_made_in_shapes_alone(tmp_path: Path) -> None:
    made = []

    def make() -> torch.nn.Module:
        module = torch.nn.Linear(2, 2)
        made.append(module.weight.device.type)
        return module

    refused(lambda: border.built(make, {}, {"weight": torch.eye(3), "bias": torch.ones(2)}, tmp_path / "model.json"), "of another shape ['weight']")
    assert made == ["meta"]
    border.built(make, {}, {"weight": torch.eye(2), "bias": torch.ones(2)}, tmp_path / "model.json")
    assert made == ["meta", "meta", "cpu"]


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"image": {"pretrained": True}}, "asks for other files: pretrained"),
        ({"text": {"checkpoint": "a/b"}}, "asks for other files: checkpoint"),
        ({"image": {"arch": [{"checkpoint_path": "/x"}]}}, "asks for other files: checkpoint_path"),
        ({"image": {"encoder": {"depth": 10_001}}}, "holds 10001, which is of no model"),
        ({"layers": [1, 10**6]}, "holds 1000000, which is of no model"),
        ({"width": -(10**9)}, "holds -1000000000, which is of no model"),
        ({"name": "x" * 10**6}, "which is of no model"),
        (json.loads("[" * 30 + "]" * 30), "nested deeper"),
    ],
)
def test_a_recipe_is_read_before_anything_is_made_of_it(recipe: Any, said: str, tmp_path: Path) -> None:
    made: list[int] = []
    refused(lambda: border.built(lambda: made.append(1) or torch.nn.Identity(), recipe, {}, tmp_path / "model.json"), said)
    assert made == []
    assert border.plausible({"pretrained": False, "checkpoint": "", "width": 4096, "layers": [3, 4], "scale": 1e9}, tmp_path) is None


def test_a_panic_of_another_language_is_a_failure_of_the_file_and_an_interrupt_is_none(tmp_path: Path) -> None:
    class PanicException(BaseException):
        """As the Rust of tokenizers raises it."""

    def raising(error: BaseException) -> None:
        with border.believed(tmp_path / "tokenizer.json"):
            raise error

    refused(lambda: raising(PanicException("index out of bounds")), "tokenizer.json", "index out of bounds")
    with pytest.raises(KeyboardInterrupt):
        raising(KeyboardInterrupt())


@pytest.mark.parametrize("name", ["model.json", "manifest.json", "provenance.json"])
def test_a_file_of_json_that_is_far_too_long_is_not_read(name: str, folder: Path) -> None:
    (folder / name).write_bytes((folder / name).read_bytes() + b" " * (17 << 20))
    if name != "manifest.json":
        seal(folder)
    refused(lambda: (checkpoints.load_backbone if name == "manifest.json" else checkpoints.load_whole)(folder), str(folder))


def test_a_module_that_cannot_be_made_in_shapes_alone_is_made_all_the_same(tmp_path: Path) -> None:
    def make() -> torch.nn.Module:
        module = torch.nn.Linear(2, 2)
        module.kept = module.weight.sum().item()  # not of a meta tensor
        return module

    weights = {"weight": torch.eye(2), "bias": torch.ones(2)}
    assert torch.equal(border.built(make, {}, weights, tmp_path / "model.json").weight, torch.eye(2))


# ------------------------------------------------------------------------------------------------------------ other files

PREPROCESS: dict[str, dict[str, Any]] = {
    "no size": {"size": ...},
    "a size of one": {"size": [32]},
    "a size of 10^9": {"size": [10**9, 10**9]},
    "a size below zero": {"size": [-32, 32]},
    "a size of texts": {"size": ["32", "32"]},
    "a fit that is none": {"fit": "stretch"},
    "a fit that is a list": {"fit": []},
    "no mean": {"mean": []},
    "a mean of too many": {"mean": [0.5] * 7, "std": [0.5] * 7},
    "a mean that is a text": {"mean": ["x"]},
    "a std of zero": {"std": [0.0]},
    "NaN": {"std": [float("nan")]},
    "no zoom": {"zoom": 0},
    "an option that is none": {"evil": 1},
    "of volumes": {"of": "volume", "size": [8, 32, 32], "zoom": ...},
}


@pytest.mark.parametrize("name", PREPROCESS)
def test_preprocessing_that_is_none_is_refused(name: str, folder: Path) -> None:
    rewritten(folder, "preprocess.json", **PREPROCESS[name])
    refused(lambda: checkpoints.load_pretrained(folder), str(folder))


TOKENIZER = b'{"version":"1.0","added_tokens":[],"model":{"type":"WordLevel","vocab":{"[PAD]":0,"[CLS]":2,"[SEP]":3,"a":%d},"unk_token":"[UNK]"}}'
CONTENTS = {
    "model.json": [b"", b"[]", b"null", b'"x"', b"{" * 100_000, b"\xff\xfe", b'{"a": ' + b"9" * 5000 + b"}"],
    "preprocess.json": [b"", b"[1]", b"{}", b"[" * 100_000],
    "provenance.json": [b"", b"[1]", b"3", b"\xff"],
    "objectives.json": [
        b"", b"[]", b'{"lovt": null}', b'{"lovt": {}}', b'{"lovt": {"name": "none"}}', b'{"lovt": {"name": "sentence_region", "evil": 1}}',
        b'{"lovt": {"name": "sentence_region", "width": 1000000000}}', b'{"lovt": {"name": 3}}', b'{"other": {"name": "phrase_image"}, "lovt": 1}',
        b'{"lovt": {"name": "structure_contrast", "width": 16, "structures": 10000, "queue": 10000000}}',
    ],
    "tokenizer/tokenizer.json": [b"", b"{}", b"[]", b"\xff" * 100, b"[" * 100_000, TOKENIZER % 4, TOKENIZER.replace(b"[UNK]", b"a") % 10**6],
    "structures.yaml": [b"\xff\xfe", b"- 1", b"structures: 3", b"a: &a [1]\nb: *a", b"!!python/object/apply:os.system ['true']", b"[" * 1000],
    "patients.npy": [
        b"", b"x", b"PK\x03\x04",
        b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,)}".ljust(117) + b"\n",
        b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1), }".ljust(117) + b"\n" + bytes(4),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("name", "content"), [(name, content) for name in CONTENTS for content in CONTENTS[name]], ids=lambda value: str(value)[:24])
def test_a_file_that_is_not_what_it_is_called_is_refused(name: str, content: bytes, folder: Path) -> None:
    (folder / name).write_bytes(content)
    seal(folder)
    refused(lambda: checkpoints.load_whole(folder), str(folder))


def test_measurements_that_are_none_are_refused_when_one_is_added(folder: Path) -> None:
    (folder / "metrics.json").write_text("[1, 2]")
    seal(folder)
    refused(lambda: checkpoints.annotate(folder, {"a": 1.0}, pretrained()), "metrics.json")


# ------------------------------------------------------------------------------------------------- names, links and pipes


NAMES = ["../secret", "{parent}/secret", "tokenizer/../../secret", "a\0b", "x" * 5000, "\ud800", "", ".", "/", "tokenizer", "./model.json", "\x1b[2J"]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:24])
def test_a_manifest_names_plain_files_inside(name: str, folder: Path) -> None:
    (folder.parent / "secret").write_text("x")
    name = name.format(parent=folder.parent)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"][name] = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"  # of "x"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    refused(lambda: checkpoints.load_pretrained(folder), "missing")


MANIFESTS = [
    b"", b"[]", b"3", b'{"format": 1}', b'{"format": 1, "sha256": []}', b'{"format": 1, "sha256": {"a": 3}}', b"\xff", b"[" * 100_000,
    b'{"format": {"a": 1}, "sha256": {}}',
]  # fmt: skip


@pytest.mark.parametrize("content", MANIFESTS, ids=lambda value: str(value)[:24])
def test_a_manifest_that_is_none_is_refused(content: bytes, folder: Path) -> None:
    (folder / "manifest.json").write_bytes(content)
    refused(lambda: checkpoints.load_pretrained(folder), str(folder))


def _out(folder: Path) -> None:
    """A file that is a link to one outside."""
    (folder / "model.json").rename(folder.parent / "model.json")
    (folder / "model.json").symlink_to(folder.parent / "model.json")


def _folder_out(folder: Path) -> None:
    """A folder that is a link to one outside, which the manifest does not speak of: what lies there would be read unseen."""
    (folder / "tokenizer").rename(folder.parent / "tokenizer")
    seal(folder)
    (folder / "tokenizer").symlink_to(folder.parent / "tokenizer")


def _circle(folder: Path) -> None:
    (folder / "model.json").unlink()
    (folder / "model.json").symlink_to("model.json")


def _pipe(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def _twice(folder: Path) -> None:
    (folder / "more.pt").write_text("x")


CHANGES = [_out, _folder_out, _circle, _pipe("model.json"), _pipe("manifest.json"), _pipe("state/trainer.pt"), _twice]


@pytest.mark.parametrize("change", CHANGES, ids=["link out", "folder out", "circle", "pipe", "pipe for a manifest", "pipe for a state", "not listed"])
def test_links_out_pipes_and_files_that_are_not_listed_are_refused(change: Change, folder: Path) -> None:
    """A pipe would make who reads it wait for ever."""
    change(folder)
    refused(lambda: everything(folder), str(folder))


def test_a_run_directory_of_hostile_checkpoints_has_none(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "run" / "checkpoints" / "step_00000001"
    shutil.copytree(folder, place)
    _pipe("model.json")(place)
    refused(lambda: checkpoints.load_pretrained(tmp_path / "run"), "no good checkpoint")
    assert "passing over step_00000001" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------------- tasks


def test_a_segmentation_head_of_somebody_else_is_read_with_the_same_care(folder: Path) -> None:
    from downstream.segmentation import model

    head = model.build(create_backbone("test_vit", in_chans=1, input_size=[32, 32]), "linear", ["lung"], {}, size=32, fit="pad")
    place = model.save(folder.parent / "head", head, config_yaml="", metrics={})
    model.load(place)
    for name, values in {
        "segmentation.json": {"thresholds": {"lung": "x"}},
        "preprocess.json": {"size": [10**9, 10**9]},
        "model.json": {"image": {**VIT, "arch": {"depth": 10**6}}},
    }.items():
        bad = shutil.copytree(place, folder.parent / f"bad {name}")
        rewritten(bad, name, **values)
        refused(lambda bad=bad: model.load(bad), str(bad))


def test_a_decoder_of_somebody_else_is_read_with_the_same_care(tmp_path: Path) -> None:
    from downstream.reportgen import model
    from tests.reportgen import tiny

    place = model.save(tmp_path / "given", tiny.generator(), config_yaml="", metrics={})
    model.load(place)
    about = json.loads((place / "decoder.json").read_text())
    wide, elsewhere = {"sizes": {**about["sizes"], "width": 10**9}}, {"recipe": {**about["recipe"], "checkpoint": "a/b"}}
    for number, values in enumerate([{"recipe": {"name": "none"}}, wide, {"recipe": 3}, elsewhere]):
        bad = shutil.copytree(place, tmp_path / str(number))
        rewritten(bad, "decoder.json", **values)
        refused(lambda bad=bad: model.load(bad), str(bad))
