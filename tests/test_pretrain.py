"""python -m elvis.pretrain as a user meets it: what a run leaves behind, resuming, wrong input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import elvis
from elvis import checkpoints, pretrain
from elvis.data.structures import Structures
from elvis.errors import ElvisError

SMALL = [
    "data.size=64", "data.train=24", "data.val=6", "data.test=8", "data.comp=6", "data.decor=0", "data.swap=6", "data.max_tokens=96", "model.dim=16",
    "model.hidden=32",
    "text.width=32", "text.depth=1", "train.batch_size=6", "train.steps=6", "train.checkpoint_every=3", "train.log_every=1", "evaluate.overlays=2",
    "image.arch={channels: [8, 16, 32, 64], stem_width: 8}",
]  # fmt: skip


def run(out: Path, *extra: str) -> int:
    return pretrain.main(["--out", str(out), "--quiet", *SMALL, *extra])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    assert run(out, "train.evaluate_every=3") == 0
    return out


def test_a_run_leaves_all_it_promises(finished: Path) -> None:
    for name in (
        "config.yaml",
        "results.json",
        "table.md",
        "index.html",
        "log.jsonl",
        "metrics.csv",
        "checkpoints/best",
        "checkpoints/step_00000006",
    ):
        assert (finished / name).exists(), name
    rows = {(r["row"], r["split"]): r["metrics"] for r in json.loads((finished / "results.json").read_text())}
    for row in ("model", "mean_box", "text_prior", "oracle"):
        assert {"pointing", "miou", "cnr"} <= set(rows[row, "test"]), row
    assert {"r@1", "r@5", "image_corr", "report_corr", "image_rank_after"} <= set(rows["model", "test"])
    assert "swap" in rows["model", "swap"]
    assert "image_corr" in rows["model, step 0", "test"]
    page = (finished / "index.html").read_text()
    assert 'src="http' not in page
    assert "data:image/png;base64" in page


def test_the_log_names_every_term_and_the_loss_is_their_weighted_sum(finished: Path) -> None:
    last = json.loads((finished / "log.jsonl").read_text().splitlines()[-1])
    terms = [k for k in last if "/" in k]
    assert {t.split("/")[0] for t in terms} == {"global_contrastive", "phrase_image", "intra_modal"}
    assert last["loss"] == pytest.approx(sum(last[t] for t in terms), rel=1e-5)
    assert last["step"] == 6


def test_a_run_that_accumulates_says_how_many_negatives_it_really_has(tmp_path: Path) -> None:
    assert run(tmp_path / "run", "train.accumulate=2", "train.steps=1") == 0
    assert "told apart from 5 others" in (page := (tmp_path / "run/index.html").read_text())
    assert "accumulating 2 micro-batches adds none" in page


def test_the_checkpoint_of_a_run_opens(finished: Path) -> None:
    model = elvis.load_pretrained(finished)
    spec = elvis.load_backbone(finished).spec
    assert spec.in_channels == 1
    assert model.tokenizer.vocab_size > 10
    facts = json.loads((checkpoints.resolve(finished) / "provenance.json").read_text())
    assert facts["data"] == "phantom"


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_mid_epoch_ends_in_the_same_bits(finished: Path, tmp_path: Path, workers: int) -> None:
    again = tmp_path / "again"
    shutil.copytree(finished, again)
    shutil.rmtree(again / "checkpoints" / "step_00000006")
    (again / "results.json").unlink()
    assert pretrain.main(["--out", str(again), "--quiet", "--resume", "evaluate.limit=2", f"data.workers={workers}"]) == 0
    name = "checkpoints/step_00000006/model.safetensors"
    one, two = load_file(finished / name), load_file(again / name)
    assert all((one[k] == two[k]).all() for k in one)
    assert [json.loads(line)["step"] for line in (again / "log.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_sigterm_saves_and_exits_143(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "elvis.pretrain", "--out", str(out), "--quiet", *SMALL, "train.steps=5000", "train.checkpoint_every=5000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    log = out / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    (saved,) = (out / "checkpoints").glob("step_*")
    checkpoints.verify(saved)
    assert checkpoints.load_state(saved)["step"] == int(saved.name.removeprefix("step_"))


def test_a_run_directory_is_not_overwritten(finished: Path) -> None:
    with pytest.raises(ElvisError, match="--resume") as caught:
        run(finished)
    assert caught.value.exit_code == 2


def test_resume_refuses_another_model(finished: Path) -> None:
    with pytest.raises(ElvisError, match="another model") as caught:
        pretrain.main(["--out", str(finished), "--resume", "model.dim=32"])
    assert caught.value.exit_code == 2


def test_resume_refuses_another_data_order(finished: Path) -> None:
    for change in ("train.seed=5", "train.batch_size=3", "data.train=30"):
        with pytest.raises(ElvisError, match=change.split(".")[0]):
            pretrain.main(["--out", str(finished), "--resume", change])


def test_a_run_that_failed_before_its_first_step_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "start.json").write_text('{"image_corr": {"value": 7.0, "low": null, "high": null}}')
    (out / "bad_studies.jsonl").write_text('{"id": "x", "reason": "missing"}\n')
    assert run(out, "train.steps=1") == 0
    assert json.loads((out / "start.json").read_text())["image_corr"]["value"] <= 1
    assert not (out / "bad_studies.jsonl").exists()


def test_no_path_of_this_machine_travels_in_a_checkpoint_or_a_page() -> None:
    from elvis import config as configs

    config = configs.load("real_smoke", [f"data.root={Path.home()}"])
    assert str(Path.home()) in config.to_yaml()
    assert str(Path.home()) not in pretrain.shareable(config)
    assert "resnet10t" in pretrain.shareable(config)


def test_an_out_that_cannot_be_written_is_a_short_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ElvisError, match="cannot write"):
        run(tmp_path / "file" / "run")


def test_resume_without_a_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(ElvisError, match="nothing to resume"):
        pretrain.main(["--out", str(tmp_path / "none"), "--resume"])


@pytest.mark.parametrize(
    ("overrides", "clue"),
    [
        (["train.batch_size=500"], "batch"),
        (["objectives.word_region.weight=1"], "add word to data.units"),
        (["objectives.phrase_image=null", "objectives.intra_modal=null"], "local_heads"),
        (["freeze=['nothing_of_this_name']"], "matches no parameter"),
        (["data.max_tokens=4000", "text.context=report"], "data.max_tokens"),
        (["text.name=hf", "text.checkpoint=/no/such/folder"], "/no/such/folder"),
        (["data.knobs.contrst=1"], "contrast"),
        (["image.stride=5"], "stride"),
        (["data.augment.scal=1"], "did you mean 'scale'"),
        (["data.knobs=abc"], "data"),
        (["objectives.intra_modal.tau_student=abc"], "must be float"),
        (["objectives.intra_modal.sides=image"], "sides"),
        (["objectives.keys={kind: phrase_image}"], "labelled 'keys'"),
        (["objectives.a/b={kind: phrase_image}"], "not a plain word"),
        (["objectives.x={kind: null}"], "word"),
        (["text.name=null"], "word"),
        (["text.width=abc"], "must be int"),
        (["image.name=null"], "image.name"),
        (["image.arch=abc"], "arch"),
        (["train.betas=[1]"], "train.betas"),
        (["train.devices=abc"], "train.devices"),
        (["train.devices=99999", "train.accelerator=cpu"], "train.devices=99999, this machine takes"),
        (["train.accelerator=tpu"], "train.accelerator"),
        (["train.clip=-1"], "train.clip"),
        (["model.scale=0"], "model.scale"),
        (["data.workers=-1"], "data.workers"),
        (["freeze=image"], "list of words"),
        (["imports=[no_such_module]"], "no_such_module"),
        (["data.units=[word]"], "add sentence to data.units"),
        (["data.name=manifest"], "root"),
        (["data.name=manifest", "data.root=/no/such/folder"], "/no/such/folder"),
    ],
)
def test_what_cannot_run_is_one_short_message_before_anything_is_written(tmp_path: Path, overrides: list[str], clue: str) -> None:
    with pytest.raises(ElvisError) as caught:
        run(tmp_path / "run", *overrides)
    assert clue in str(caught.value)
    assert len(str(caught.value)) < 400
    assert caught.value.exit_code == 2
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_dry_run_shows_shapes_and_counts_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert pretrain.main(["--out", str(tmp_path / "run"), "--dry-run", *SMALL]) == 0
    printed = capsys.readouterr().out
    assert "images (6, 1, 1, 64, 64)" in printed
    assert "parameters" in printed
    assert not (tmp_path / "run").exists()


def test_print_config_prints_what_loads_again(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert pretrain.main(["--print-config", *SMALL]) == 0
    (tmp_path / "c.yaml").write_text(capsys.readouterr().out)
    assert pretrain.main(["--print-config", "--config", str(tmp_path / "c.yaml")]) == 0


@pytest.mark.slow
def test_two_devices_train_validate_save_and_stop_together(tmp_path: Path) -> None:
    """The real launch: validation every step (its choice must be one for both), then SIGTERM to the main process alone."""
    out = tmp_path / "run"
    more = ["train.devices=2", "train.accelerator=cpu", "train.steps=2000", "train.checkpoint_every=2000", "train.evaluate_every=2", "data.workers=1"]
    command = [sys.executable, "-m", "elvis.pretrain", "--out", str(out), "--quiet", *SMALL, *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    log = out / "log.jsonl"
    deadline = time.monotonic() + 240
    while not (log.exists() and log.read_text().count("\n") >= 5) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143, output[-3000:]
    assert "go on with --resume" in output
    (saved,) = (out / "checkpoints").glob("step_*")
    checkpoints.verify(saved)
    checkpoints.verify(out / "checkpoints" / "best")


@pytest.mark.slow
def test_sigterm_to_the_whole_group_saves_with_workers_too(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "elvis.pretrain", "--out", str(out), "--quiet", *SMALL, "train.steps=5000", "data.workers=2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    log = out / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output[-2000:]


@pytest.mark.slow
def test_a_diverging_run_stops_with_the_numerics_code(tmp_path: Path) -> None:
    with pytest.raises(ElvisError) as caught:
        run(tmp_path / "run", "train.lr=1e30", "train.clip=0")
    assert caught.value.exit_code == 3


# ---------------------------------------------------------------------------------------------------------- structures

VOLUMES = [
    "data.size=[16,32,32]", "data.train=12", "data.val=0", "data.test=4", "model.dim=16", "text.width=16", "image.channels=[4,8,16]",
    "image.layers=[1,1,1]", "train.steps=4", "train.batch_size=4", "train.checkpoint_every=2", "train.log_every=1", "train.accelerator=cpu",
    "evaluate.overlays=0", "objectives.structure_contrast={queue: 4, rescore: 2}", "objectives.intra_modal={weight: 1.0, sides: [image]}",
]  # fmt: skip


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SO-ITC on phantom CT with a queue, and ELVIS' intra_modal on volumes by one line."""
    out = tmp_path_factory.mktemp("runs") / "volumes"
    assert pretrain.main(["--config", "structure_ct_phantom", "--out", str(out), "--quiet", *VOLUMES]) == 0
    return out


def test_structures_of_volumes_are_trained_with_intra_modal_beside_them(volumes: Path) -> None:
    rows = [json.loads(line) for line in (volumes / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["structure_contrast/image_to_text"] > 0 and row["intra_modal/image"] > 0 for row in rows)
    (found,) = (r["metrics"] for r in json.loads((volumes / "results.json").read_text()) if r["row"] == "model")
    assert {"structure_r@1", "mass", "mass_chance", "mass[lung]", "image_corr"} <= set(found)
    assert "r@1" not in found  # nothing trained the pooled features
    model = elvis.load_pretrained(volumes)
    assert model.structures == Structures.load("ct")
    assert len(model.model.heads[model.model.learned_query].learned) == 10
    assert elvis.load_backbone(volumes).spec.ndim == 3


def test_resuming_with_a_queue_ends_in_the_same_bits(volumes: Path, tmp_path: Path) -> None:
    again, last = tmp_path / "again", "checkpoints/step_00000004"
    shutil.copytree(volumes, again)
    shutil.rmtree(again / last)
    (again / "results.json").unlink()
    assert pretrain.main(["--out", str(again), "--quiet", "--resume"]) == 0
    one, two = (load_file(run / last / "model.safetensors") for run in (volumes, again))
    assert all(torch.equal(one[k], two[k]) for k in one)
    one, two = (checkpoints.load_state(run / last)["objectives"] for run in (volumes, again))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert one["structure_contrast.filled"].any(1).all()
    assert int(one["structure_contrast.steps"]) == 4


@pytest.mark.slow
def test_the_same_objective_trains_on_radiographs(tmp_path: Path) -> None:
    queries = len(Structures.load("cxr").names)
    more = [
        "data.units=[report, sentence, structure]", "data.structures=cxr", "text.context=structure", "train.steps=2", "data.max_tokens=192",
        f"heads.structure={{name: region_query, queries: {queries}, blocks: 1, heads: 2}}", "evaluate.limit=4", "evaluate.overlays=0",
        f"objectives={{global_contrastive: null, phrase_image: null, structure_contrast: {{structures: {queries}, queue: 8}}}}",
    ]  # fmt: skip
    assert run(tmp_path / "run", *more) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["structure_contrast/image_to_text"] > 0 for row in rows)
    assert elvis.load_pretrained(tmp_path / "run").structures == Structures.load("cxr")
    found = {r["split"]: r["metrics"] for r in json.loads((tmp_path / "run" / "results.json").read_text()) if r["row"] == "model"}
    assert "structure_r@1" in found["test"]
