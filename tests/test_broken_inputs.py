"""What people get wrong, over every command: each ends in one short message that names the thing and says what to do, with its exit code.

Every line runs as typed, through `elvis.errors.run_cli`, and the test looks at the whole of what the user sees: no traceback, 400 characters at
most, two lines (what is wrong, what to do), exit code 2 (config, data), 3 (numerics) or 4 (checkpoint). What was there before is as it was, and
what is left behind is no half of a run. {run} {volumes} {head} {reports} are good checkpoints, {bad} a folder of broken things (see `made`).
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import elvis
from downstream.grounding import __main__ as grounding
from downstream.reportgen import __main__ as reportgen
from downstream.reportgen import model as generators
from downstream.segmentation import __main__ as segmentation
from downstream.segmentation import model as heads
from elvis import checkpoints, pretrain
from elvis.data import __main__ as data
from elvis.data.datasets.phantom import phantom
from elvis.data.phantoms import files, layouts
from elvis.data.phantoms.export import export
from elvis.errors import Words, run_cli
from tests.layouts import pixels
from tests.reportgen.test_command import SHORT as PLAIN
from tests.reportgen.test_command import TINY
from tests.reportgen.tiny import generator
from tests.segmentation.test_command import PROBE
from tests.test_pretrain import SMALL, VOLUMES

MAINS: dict[str, Callable[[list[str]], int]] = {
    "pretrain": pretrain.main, "data": data.main, "segmentation": segmentation.main, "grounding": grounding.main, "reportgen": reportgen.main,
}  # fmt: skip
FEW = ["data.train=8", "data.val=0", "data.test=4", "data.comp=0", "data.decor=0", "data.swap=0", "workers=0"]
SHORT = {"+small": SMALL, "+probe": PROBE, "+tiny": TINY, "+few": FEW, "+plain": PLAIN}  # words that stand for many
LEFT = {"config.yaml", ".lock", "start.json", "bad_studies.jsonl"}  # what one may leave that ends at its first step: nobody takes it for a run


def recipe(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "manifest.jsonl").read_text().splitlines()]


def changed(good: Path, root: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """A copy of a dataset whose every row is changed."""
    shutil.copytree(good, root)
    (root / "manifest.jsonl").write_text("".join(json.dumps(change(row)) + "\n" for row in recipe(good)))


def break_everything(bad: Path, good: Path, run: Path) -> None:
    """The broken things: configs, datasets, tables, files of reports, checkpoints."""
    report = {"section_findings": "", "section_impression": "", "model_prediction": "Clear."}
    for name, text in {
        "indent.yaml": "train:\n  steps: 5\n lr: 3\n", "list.yaml": "- a\n- b\n", "empty.yaml": "", "keys.yaml": "model: {dimm: 16}\n",
        "twice.yaml": "train: {steps: 5}\ntrain: {lr: 1}\n", "file": "x", "reports.json": "[{]", "others.json": json.dumps({"s1": report}),
        "lists.csv": "study,fold\na,train\n", "cases.csv": "study;text\n", "foreign.pth": "x", "m.ckpt": "x",
    }.items():  # fmt: skip
        (bad / name).write_text(text)
    (bad / "bytes.yaml").write_bytes(bytes(range(128, 256)))
    for name in ("empty", "images", "hf"):
        (bad / name).mkdir()
    (bad / "images/a.png").write_bytes(b"\x89PNG\r\n\x1a\nno image")
    save_file({"a": torch.zeros(2)}, bad / "hf/model.safetensors")
    last = checkpoints.newest(run)
    assert last is not None
    for name in ("cut", "edited", "gone"):
        shutil.copytree(last, bad / name)
    weights = bad / "cut/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (bad / "edited/model.json").write_text((bad / "edited/model.json").read_text().replace("16", "32", 1))
    (bad / "gone/preprocess.json").unlink()
    shutil.copytree(run, bad / "damaged")
    for weights in (bad / "damaged/checkpoints").glob("*/model.safetensors"):
        weights.write_bytes(b"")
    shutil.copytree(run, bad / "stateless")
    for state in (bad / "stateless/checkpoints").glob("step_*/state"):
        shutil.rmtree(state)
    changed(good, bad / "no_column", lambda row: {k: v for k, v in row.items() if k != "image"})
    changed(good, bad / "no_text", lambda row: {**row, "text": ""})
    changed(good, bad / "no_train", lambda row: {**row, "split": "test"})
    changed(good, bad / "odd_split", lambda row: {**row, "split": "trian"})
    changed(good, bad / "leak", lambda row: {**row, "patient": "p1"})
    changed(good, bad / "climbs", lambda row: {**row, "image": "../../etc/passwd"})
    changed(good, bad / "no_images", lambda row: row)
    shutil.rmtree(bad / "no_images/images")
    changed(good, bad / "unreadable", lambda row: row)
    for image in (bad / "unreadable/images").glob("*"):
        image.write_bytes(b"no image")
    changed(good, bad / "other_boxes", lambda row: row)
    (bad / "other_boxes/boxes.json").write_text('{"images": [], "annotations": [{"image_id": "of another set"}]}')
    changed(good, bad / "cut_table", lambda row: row)
    table = bad / "cut_table/manifest.jsonl"
    table.write_text(table.read_text()[:-20])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """One tiny trained run, an untrained model of each other kind, data, and broken copies of all of it; nobody changes them."""
    root = tmp_path_factory.mktemp("made")
    few = ["train.steps=1", "train.checkpoint_every=1", "train.batch_size=4", "evaluate.limit=1", "evaluate.overlays=0"]
    with contextlib.redirect_stdout(None):
        assert pretrain.main(["--out", str(root / "run"), "--quiet", *SMALL, "data.train=8", "data.val=0", "data.test=2", *few]) == 0
        assert pretrain.main(["--config", "structure_ct_phantom", "--out", str(root / "volumes"), "--quiet", *VOLUMES, *few, "data.test=2"]) == 0
    head = heads.build(elvis.load_backbone(root / "run"), "linear", ["nodule", "effusion"], {}, size=64, fit="pad")
    heads.save(root / "head", head, config_yaml="", metrics={})
    generators.save(root / "reports", generator(), config_yaml="", metrics={})
    export(phantom(train=6, val=2, test=2, comp=0, decor=0, swap=0, size=64, masks=True).studies, root / "good")
    layouts.export("mimic_cxr", root / "mimic", counts={"train": 2, "val": 1, "test": 1}, height=64, width=64)
    (root / "image").mkdir()
    files.write_image(root / "image/a.png", pixels(0))
    (root / "bad").mkdir()
    break_everything(root / "bad", root / "good", root / "run")
    return {name: root / name for name in ("run", "volumes", "head", "reports", "good", "mimic", "image", "bad")}


LINES: list[tuple[str, int, str]] = [  # what is typed, exit code, what the message names (several things: with a space between)
    # the command line itself
    ("pretrain --reusme", 2, "--reusme --resume"),
    ("pretrain --train.steps=3", 2, "train.steps=VALUE dashes"),
    ("pretrain --out", 2, "--out"),
    ("pretrain --out ''", 2, "--out empty"),
    ("pretrain elvis_phantom", 2, "elvis_phantom key=value"),
    ("pretrain 'train.steps: 3'", 2, "train.steps key=value"),
    ("data", 2, "doctor prepare"),
    ("data docter phantom", 2, "docter doctor"),
    ("data doctor phantom agianst=x", 2, "agianst 'against'"),
    ("data doctor mimic_cxr root={mimic} one_per_study=frist", 2, "frist 'first'"),
    ("data prepare phantom fit=padd", 2, "padd 'pad'"),
    ("pretrain --reusm --json", 2, "--reusm '--resume'"),
    ("pretrain --help-config trian", 2, "trian 'train'"),
    ("segmentation trian", 2, "trian 'train'"),
    ("segmentation train --jobs two", 2, "--jobs two"),
    ("grounding show --checkpoint ''", 2, "--checkpoint empty"),
    ("reportgen", 2, "train generate"),
    # the config
    ("pretrain --config elvis_phantm", 2, "elvis_phantm 'elvis_phantom'"),
    ("pretrain --config nowhere.yaml", 2, "nowhere.yaml YAML"),
    ("pretrain --config {bad}/indent.yaml", 2, "indent.yaml line"),
    ("pretrain --config {bad}/bytes.yaml", 2, "bytes.yaml"),
    ("pretrain --config {bad}/list.yaml", 2, "list.yaml mapping"),
    ("pretrain --config {bad}/empty.yaml", 2, "empty.yaml objective"),
    ("pretrain --config {bad}/twice.yaml", 2, "twice.yaml train"),
    ("pretrain --config {bad}/keys.yaml", 2, "keys.yaml model.dimm 'dim'"),
    ("pretrain --config {segmentation}", 2, "lungs.yaml classes command"),
    ("segmentation train --config {run}/config.yaml", 2, "config.yaml objectives command"),
    ("pretrain +small trian.steps=3", 2, "trian 'train'"),
    ("pretrain +small steps=3", 2, "steps 'train.steps'"),
    ("pretrain +small train.steps=ten", 2, "train.steps ten number"),
    ("pretrain +small train.steps=", 2, "train.steps empty"),
    ("pretrain +small train.steps=3 train.steps=4x", 2, "train.steps 4x"),
    ("pretrain +small train.betas=0.9", 2, "train.betas list"),
    ("pretrain +small train.lr=nan", 2, "train.lr nan"),
    ("pretrain +small train.warmup=5", 2, "train.warmup share"),
    ("pretrain +small data.max_bad_fraction=2", 2, "data.max_bad_fraction share"),
    ("pretrain +small train.precision=fp16", 2, "train.precision bf16-mixed"),
    ("pretrain +small train.accelerator=gpu", 2, "train.accelerator gpu"),
    ("pretrain +small train.devices=99999 train.accelerator=cpu", 2, "train.devices"),
    ("pretrain +small image=resnet50", 2, "image mapping"),
    ("pretrain +small image.name=resnet5O", 2, "resnet5O 'resnet50'"),
    ("pretrain +small image.name=ct_vit", 2, "ct_vit volumes phantom images"),
    ("pretrain +small image.weights=w.pth", 2, "w.pth weights file"),
    ("pretrain +small image.in_chans=0", 2, "in_chans channels"),
    ("pretrain +small text.name=bert", 2, "bert hf"),
    ("pretrain +small text.width=33", 2, "width heads"),
    ("pretrain +small objectives.intramodal.weight=1", 2, "intramodal 'intra_modal'"),
    ("pretrain +small objectives.intra_modal.weight=-1", 2, "objectives.intra_modal.weight negative"),
    ("pretrain +small data.units=[sentense]", 2, "sentense 'sentence'"),
    ("pretrain +small data.train=0", 2, "train split"),
    ("pretrain +small train.batch_size=500", 2, "500 train.batch_size"),
    # where it writes, what it goes on with
    ("pretrain +small --out {bad}/file", 2, "file folder"),
    ("pretrain +small --out {bad}/file/run", 2, "file folder"),
    ("pretrain +small --out /proc/nowhere/run", 2, "/proc/nowhere --out"),
    ("pretrain --out {run}", 2, "run --resume"),
    ("pretrain --resume --out {bad}/empty", 2, "empty --resume"),
    ("pretrain --resume --out {run} model.dim=8", 2, "model run"),
    ("pretrain --resume --out {bad}/damaged", 4, "damaged copy"),
    ("pretrain --resume --out {bad}/stateless", 4, "stateless"),
    # data for pretraining
    ("pretrain +small data.name=mimic", 2, "mimic 'mimic_cxr'"),
    ("pretrain +small data.name=mimic_cxr", 2, "mimic_cxr root"),
    ("pretrain +small data.name=manifest data.root=nowhere", 2, "nowhere data.root"),
    ("pretrain +small data.name=manifest data.root={bad}/empty", 2, "empty data.table"),
    ("pretrain +small data.name=manifest data.root={good}/images", 2, "images data.root"),
    ("pretrain +small data.name=manifest data.root={bad}/no_column", 2, "manifest.jsonl image data.image"),
    ("pretrain +small data.name=manifest data.root={bad}/no_text", 2, "text data.text"),
    ("pretrain +small data.name=manifest data.root={bad}/no_train", 2, "train split"),
    ("pretrain +small data.name=manifest data.root={bad}/odd_split", 2, "trian train"),
    ("pretrain +small data.name=manifest data.root={bad}/leak", 2, "p1 data.on_leak"),
    ("pretrain +small data.name=manifest data.root={bad}/climbs", 2, "passwd row data.root"),
    ("pretrain +small data.name=manifest data.root={bad}/no_images", 2, "phantom-0-train-000000.png data.root"),
    ("pretrain +small data.name=manifest data.root={bad}/unreadable", 2, "phantom-0-train files"),
    ("pretrain +small data.name=manifest data.root={bad}/other_boxes", 2, "boxes.json image"),
    ("pretrain +small data.name=manifest data.root={bad}/cut_table", 2, "manifest.jsonl line JSON"),
    ("pretrain +small data.name=manifest data.root={good} data.text=findings", 2, "findings data.text"),
    # the datasets' command
    ("data doctor", 2, "dataset mimic_cxr"),
    ("data doctor mimic_cxr /data/mimic", 2, "/data/mimic root=DIR"),
    ("data doctor mimic_cxr rot=x", 2, "rot 'root'"),
    ("data doctor mimic_cxr root=nowhere", 2, "nowhere data.root"),
    ("data doctor mimic_cxr root={mimic}/files", 2, "files data.root"),
    ("data doctor chexpert root={mimic}", 2, "train.csv mimic"),
    ("data doctor phantom against=mimic:x", 2, "mimic 'mimic_cxr'"),
    ("data prepare", 2, "dataset phantom"),
    ("data prepare phantom fit=stretch", 2, "fit=stretch pad"),
    ("data prepare phantom train=2 out={bad}/file", 2, "file out="),
    ("data show phantom split=tset", 2, "tset 'test'"),
    ("data show phantom count=1 out={bad}/file/x.png", 2, "file path"),
    ("data export --layout mimic --out new", 2, "mimic 'mimic_cxr'"),
    ("data export --layout mimic_cxr --out new height=0", 2, "height=0 pixels"),
    ("data export --layout mimic_cxr --out {bad}", 2, "bad folder"),
    ("data purge all", 2, "yes=true"),
    # segmentation
    ("segmentation train +probe --backbone resnet5O", 2, "resnet5O 'resnet50'"),
    ("segmentation train +probe --backbone ./nowhere", 2, "nowhere checkpoint"),
    ("segmentation train +probe --backbone {bad}/cut", 4, "model.safetensors copy"),
    ("segmentation train +probe --backbone {volumes}", 2, "3D 2D"),
    ("segmentation train +probe --backbone a={run} --backbone a={run}", 2, "'a' apart"),
    ("segmentation train +probe head=unte", 2, "unte 'unet'"),
    ("segmentation train +probe fraction=0", 2, "fraction share"),
    ("segmentation train +probe fraction=200", 2, "200 12"),
    ("segmentation train +probe split=./nowhere.csv", 2, "nowhere.csv split"),
    ("segmentation train +probe split={bad}/lists.csv", 2, "lists.csv split"),
    ("segmentation train +probe 'classes={{nodul: nodul}}'", 2, "nodul 'nodule'"),
    ("segmentation train +probe --out {bad}/file", 2, "file folder"),
    ("segmentation train +probe --out {run}", 2, "run --out"),
    ("segmentation train --config lungs data.root={good}", 2, "masks.csv data.masks"),
    ("segmentation evaluate +probe --model {run}", 4, "segmentation train"),
    ("segmentation evaluate +probe --model {head} --out {bad}/file", 2, "file folder"),
    ("segmentation predict --model {head} --images {bad}/empty --out new", 2, "empty JPEG"),
    ("segmentation predict --model {head} --images {image} --out {bad}/file", 2, "file folder"),
    # grounding
    ("grounding evaluate", 2, "checkpoint"),
    ("grounding evaluate +few --checkpoint nowhere", 4, "nowhere run"),
    ("grounding evaluate +few --checkpoint {bad}/m.ckpt", 4, "m.ckpt directory"),
    ("grounding evaluate +few --checkpoint {head}", 4, "head elvis.pretrain"),
    ("grounding evaluate +few --checkpoint {bad}/damaged", 4, "damaged copy"),
    ("grounding evaluate +few --checkpoint a={run} --checkpoint a={run}", 2, "'a' NAME=DIR"),
    ("grounding evaluate +few --checkpoint oracle={run}", 2, "oracle NAME=DIR"),
    ("grounding evaluate +few --checkpoint {run} --checkpoint {volumes}", 2, "volumes two"),
    ("grounding evaluate +few --checkpoint {run} preset=biovli", 2, "biovli 'biovil'"),
    ("grounding evaluate +few --checkpoint {run} maps=[cosin]", 2, "cosin 'cosine'"),
    ("grounding evaluate +few --checkpoint {run} splits=[tset]", 2, "tset 'test'"),
    ("grounding evaluate +few --checkpoint {run} data.name=phantm", 2, "phantm 'phantom'"),
    ("grounding evaluate +few --checkpoint {run} cases={bad}/cases.csv splits=[test]", 2, "study;text ids"),
    ("grounding evaluate +few --checkpoint {run} --out {bad}/file", 2, "file folder"),
    ("grounding evaluate --config ms_cxr --checkpoint {run} data.root={mimic}", 2, "MS_CXR data.root"),
    ("grounding show --checkpoint {volumes} --image nowhere.nii.gz --phrase x", 2, "nowhere.nii.gz NIfTI"),
    ("grounding show --checkpoint {run} --out x.jpg", 2, "x.jpg .png"),
    # reports
    ("reportgen train +tiny decoder.name=transformr", 2, "transformr 'transformer'"),
    ("reportgen train +tiny decoder.width=17", 2, "decoder.width decoder.heads"),
    ("reportgen train +tiny train.batch_size=500", 2, "500 train.batch_size"),
    ("reportgen train +plain --checkpoint {run} 'decoder={{name: llm_lora}}'", 2, "llm_lora checkpoint"),
    ("reportgen train +tiny select=bleu4", 2, "bleu4 'bleu_4'"),
    ("reportgen train +tiny 'metrics={{chexbert: {{path: nowhere}}}}'", 2, "nowhere CheXbert"),
    ("reportgen train +tiny --checkpoint nowhere", 4, "nowhere elvis.pretrain"),
    ("reportgen train +tiny --checkpoint {volumes}", 2, "volumes images"),
    ("reportgen train +tiny --resume", 2, "resume --out"),
    ("reportgen tune +tiny --checkpoint {run}", 4, "run reportgen"),
    ("reportgen tune +tiny --checkpoint {reports} 'tune.rewards={{blue: 1}}'", 2, "blue 'bleu'"),
    ("reportgen generate --checkpoint {head} --images {image}", 4, "head elvis.pretrain"),
    ("reportgen generate --checkpoint {reports} --images {bad}/images", 2, "images JPEG"),
    ("reportgen generate --checkpoint {reports} --images {image} --out {bad}/file", 2, "file folder"),
    ("reportgen generate --checkpoint {reports} --images {image} --entries {bad}/file", 2, "file ReXRank"),
    ("reportgen generate --checkpoint {reports} --images {image} decode.topics_off=[flying]", 2, "flying topics.json"),
    ("reportgen evaluate", 2, "--checkpoint --generated"),
    ("reportgen evaluate +tiny --generated nowhere.json", 2, "nowhere.json reports"),
    ("reportgen evaluate +tiny --generated {bad}/reports.json", 2, "reports.json JSON"),
    ("reportgen evaluate +tiny --generated {bad}/others.json", 2, "others.json phantom-0-test"),
]  # fmt: skip

CALLS: list[tuple[str, Callable[[Mapping[str, Path]], Any], int, str]] = [
    ("a checkpoint that is not there", lambda m: elvis.load_backbone("nowhere"), 4, "nowhere directory"),
    ("weights of others", lambda m: elvis.load_pretrained(m["bad"] / "foreign.pth"), 4, "foreign.pth directory"),
    ("a folder of the hub", lambda m: elvis.load_backbone(m["bad"] / "hf"), 4, "hf manifest.json run"),
    ("a cut one", lambda m: elvis.load_pretrained(m["bad"] / "cut"), 4, "model.safetensors sha256 copy"),
    ("an edited one", lambda m: elvis.load_backbone(m["bad"] / "edited"), 4, "model.json sha256 copy"),
    ("one that lacks a file", lambda m: elvis.load_pretrained(m["bad"] / "gone"), 4, "preprocess.json copy"),
    ("a run whose every checkpoint is damaged", lambda m: elvis.load_backbone(m["bad"] / "damaged"), 4, "damaged copy"),
    ("a head, where text is asked", lambda m: elvis.load_pretrained(m["head"]), 4, "head load_backbone"),
    ("a head, projected", lambda m: elvis.load_backbone(m["head"], projected=True), 4, "projection"),
    ("a backbone's name", lambda m: elvis.create_backbone("resnet5O"), 2, "resnet5O 'resnet50'"),
    ("a backbone's option", lambda m: elvis.create_backbone("resnet50", in_chan=1), 2, "in_chan 'in_chans'"),
    ("no channel", lambda m: elvis.create_backbone("resnet18", in_chans=0), 2, "in_chans channels"),
    ("a colour image", lambda m: elvis.load_backbone(m["run"])(torch.zeros(1, 3, 64, 64)), 2, "3 in_chans"),
    ("a size between", lambda m: elvis.load_backbone(m["run"])(torch.zeros(1, 1, 50, 64)), 2, "50 64"),
    ("an image that is not there", lambda m: elvis.load_pretrained(m["run"]).similarity(["nowhere.png"], ["x"]), 2, "nowhere.png file"),
    ("a phrase that is none", lambda m: elvis.load_pretrained(m["run"]).similarity([m["image"] / "a.png"], [3]), 2, "phrases similarity"),
    ("floats for an image", lambda m: elvis.load_pretrained(m["run"]).similarity([np.zeros((64, 64))], ["x"]), 2, "float64 uint8"),
]


def typed(line: str, made: Mapping[str, Path]) -> tuple[str, list[str]]:
    """(command, its words)."""
    lungs = Path(elvis.config.folder()) / "segmentation/lungs.yaml"
    tool, *words = shlex.split(line.format(**made, segmentation=lungs))
    return tool, [word for each in words for word in SHORT.get(each, [each])]


def ended(main: Callable[[], Any], capsys: pytest.CaptureFixture[str]) -> tuple[Any, str]:
    """(exit code, what stands on stderr after all progress)."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run_cli(lambda: main() and 0)
    return end.value.code, capsys.readouterr().err


def assert_short(said: str, names: str) -> None:
    """One message: what is wrong and where, then what to do; it holds every one of the names."""
    assert "Traceback" not in said
    message = said[said.index("error: ") :]
    assert len(message) <= 400, message
    what, fix, end = message.split("\n")
    assert end == ""
    assert len(what) > 12, message
    assert len(fix) > 8, message
    assert not re.search(r"<class|\bobject at 0x|Errno|NoneType", message), message
    for name in names.split():
        assert name in message, message


def standing(line: str, made: Mapping[str, Path]) -> dict[Path, tuple[int, int]]:
    """Every file of what a line names; `.lock` only says who was there last."""
    roots = [Path(f"{made[name]}{more}") for name, more in re.findall(r"{(\w+)}([\w./]*)", line) if name in made]
    found = (path for root in roots for path in (root, *root.rglob("*")) if path.is_file() and path.name != ".lock")
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Since a command without --out writes beside itself."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("line", "code", "names"), LINES, ids=[line for line, _, _ in LINES])
def test_a_wrong_line_ends_in_one_short_message_and_leaves_nothing_half_done(
    line: str, code: int, names: str, made: Mapping[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = standing(line, made)
    tool, words = typed(line, made)
    found, said = ended(lambda: MAINS[tool](words), capsys)
    assert_short(said, names)
    assert found == code, said
    assert {path.name for path in tmp_path.rglob("*") if not path.is_dir()} <= (LEFT if "unreadable" in line else set())
    assert standing(line, made) == before


@pytest.mark.parametrize(("call", "code", "names"), [case[1:] for case in CALLS], ids=[case[0] for case in CALLS])
def test_a_wrong_call_from_python_says_the_same(
    call: Callable[[Mapping[str, Path]], Any], code: int, names: str, made: Mapping[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found, said = ended(lambda: call(made), capsys)
    assert_short(said, names)
    assert found == code


def test_the_table_is_as_long_as_was_promised_and_every_command_is_in_it() -> None:
    assert len(LINES) + len(CALLS) >= 60
    assert {tuple(line.split()[:2]) for line, _, _ in LINES} >= {
        *(("data", c) for c in data.COMMANDS), *(("segmentation", c) for c in ("train", "evaluate", "predict")),
        *(("grounding", c) for c in ("evaluate", "show")), *(("reportgen", c) for c in ("train", "tune", "generate", "evaluate")),
    }  # fmt: skip


def test_a_run_that_diverges_ends_with_the_code_of_numerics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL, "train.lr=1e30", "train.clip=0", "train.steps=12", "data.val=0", "data.test=0", "data.comp=0", "data.swap=0"]
    found, said = ended(lambda: pretrain.main(["--quiet", "--out", str(tmp_path / "run"), *words]), capsys)
    assert_short(said, "step train.lr phantom-0-train")
    assert found == 3


def test_images_none_of_which_can_be_read_are_an_exit_code_and_what_to_give(made: Mapping[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", "--model", str(made["head"]), "--images", str(made["bad"] / "images"), "--out", "new", "--quiet"]
    with pytest.raises(SystemExit) as end:
        run_cli(lambda: segmentation.main(words))
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert said.startswith("1 files cannot be read, first a.png (")
    assert said.splitlines()[1] == "give a folder of JPEG, PNG or DICOM files that are whole"


def test_what_the_system_refuses_has_a_remedy_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device", "x" * 900)

    for main, names in ((lambda: (tmp_path / "no/where").write_text("x"), "where path"), (full, "space elsewhere")):
        found, said = ended(main, capsys)
        assert_short(said, names)
        assert found == 2


def test_the_words_of_a_command_are_read_as_before() -> None:
    parser = Words(prog="x")
    parser.add_argument("command", choices=("a", "b"))
    parser.add_argument("--out", default="")
    parser.add_argument("--more", action="append")
    found = parser.parse_intermixed_args(["a", "--out", "y", "--more", "1", "--more", "2"])
    assert (found.command, found.out, found.more) == ("a", "y", ["1", "2"])
