"""Whatever ends a run, it goes on as if nothing had been: SIGKILL at random moments, death at every call of a save, a disk that refuses, SIGINT."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from elvis import checkpoints
from elvis.checkpoints import directory
from elvis.errors import CheckpointError, ConfigError
from elvis.training import RunLog
from tests.test_pretrain import SMALL

FOLDER = Path(__file__).parents[1]
TIMING = ("studies_per_s", "stall")


# --------------------------------------------------------------------------------------------------------- SIGKILL


def killed(folder: Path, kills: int, steps: int, *words: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.kill_worker", str(folder), str(kills), "7", f"train.steps={steps}", "train.checkpoint_every=1", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=FOLDER, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-1500:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def same_bits(folder: Path) -> None:
    """The killed run ends in the bytes of the uninterrupted one: weights, trainer state, every logged loss."""
    whole, again = (checkpoints.newest(folder / name) for name in ("whole", "killed"))
    assert whole.name == again.name
    assert (whole / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    assert equal(checkpoints.load_state(whole), checkpoints.load_state(again))
    one, two = (
        [{k: v for k, v in json.loads(line).items() if k not in TIMING} for line in (folder / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "killed")
    )
    assert one == two


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(v, b[k]) for k, v in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def lost_nothing(lives: list[dict[str, Any]], every: int) -> None:
    for life in lives:
        assert life["good"] > life["before"]
        assert life["good"] >= life["logged"] - every, life


def test_five_kills_lose_one_step_each_at_most_and_change_no_bit(tmp_path: Path) -> None:
    lives = killed(tmp_path, 5, 16)
    assert len(lives) == 5
    assert sum(life["mid_save"] for life in lives) >= 1
    lost_nothing(lives, 1)
    same_bits(tmp_path)
    printed = [line.split(": ", 1)[1] for line in (tmp_path / "killed.log").read_text().splitlines() if line.startswith("checkpoint: ")]
    assert printed
    for path in printed:
        checkpoints.verify(Path(path))


@pytest.mark.slow
def test_fifty_kills_change_no_bit(tmp_path: Path) -> None:
    lives = killed(tmp_path, 50, 170)
    assert len(lives) == 50
    assert sum(life["mid_save"] for life in lives) >= 15
    lost_nothing(lives, 1)
    same_bits(tmp_path)


# -------------------------------------------------------------------------------------------------- death in a save

CALLS = {"fsync": (os, "fsync"), "rename": (os, "rename"), "rmtree": (shutil, "rmtree")}


def fill_with(text: str) -> Callable[[Path], None]:
    def fill(stage: Path) -> None:
        for name in directory.NEEDED:
            (stage / name).write_text(f"{name} {text}")
        (stage / "tokenizer").mkdir()
        (stage / "tokenizer" / "tokenizer.json").write_text(text)

    return fill


def content(path: Path) -> str:
    return (path / "tokenizer" / "tokenizer.json").read_text()


def dies_at(number: int, work: Callable[[], Any]) -> bool:
    """`work` in a fork that ends at its `number`-th fsync, rename or removal, before it is done; False where there are fewer."""
    if (pid := os.fork()) == 0:
        calls = [0]

        def guarded(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                calls[0] += 1
                if calls[0] == number:
                    os._exit(9)
                return real(*args, **kwargs)

            return call

        for module, name in CALLS.values():
            setattr(module, name, guarded(getattr(module, name)))
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) == 9


@pytest.mark.parametrize("name", ["best", "step_00000002"])
def test_death_at_any_call_of_a_save_leaves_the_old_or_the_new_one_and_nothing_that_stays(name: str, tmp_path: Path) -> None:
    for number in range(1, 40):
        run = tmp_path / str(number)
        folder = run / "checkpoints"
        checkpoints.write(folder / name, fill_with("old"))
        died = dies_at(number, lambda folder=folder: checkpoints.write(folder / name, fill_with("new")))  # type: ignore[misc]
        found = content(checkpoints.resolve(run))
        assert found in ("old", "new")
        assert content(checkpoints.resolve(folder / name)) == found
        with checkpoints.claim(run):  # what a trainer that goes on does first
            assert content(checkpoints.resolve(run)) == found
            checkpoints.write(folder / name, fill_with("next"))
        assert [path.name for path in folder.iterdir()] == [name]
        assert content(checkpoints.resolve(run)) == "next"
        if not died:
            assert found == "new"
            assert number > 10  # 4 files, the manifest, 2 folders, the parent, 2 renames ...
            return
    raise AssertionError("a save that never ends")


def test_everything_is_on_the_disk_before_the_name_and_the_name_before_anything_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    real = directory._fsync, os.rename, shutil.rmtree
    monkeypatch.setattr(directory, "_fsync", lambda path: (done.append(f"sync {path.name}"), real[0](path))[1])
    monkeypatch.setattr(os, "rename", lambda a, b: (done.append(f"rename {Path(b).name}"), real[1](a, b))[1])
    monkeypatch.setattr(shutil, "rmtree", lambda path, **options: (done.append(f"remove {Path(path).name}"), real[2](path, **options))[1])
    checkpoints.write(tmp_path / "here", fill_with("old"))
    done.clear()
    checkpoints.write(tmp_path / "here", fill_with("new"))
    last = max(i for i, what in enumerate(done) if what.startswith("sync") and what != f"sync {tmp_path.name}")
    renamed = done.index("rename here")
    assert {f"sync {name}" for name in (*directory.NEEDED, "tokenizer.json", "manifest.json", "tokenizer")} <= set(done[: last + 1])
    assert last < renamed < done.index(f"sync {tmp_path.name}") < len(done) - 1
    assert done[-1] == "remove .old-here"


# ------------------------------------------------------------------------------------------------ a disk that refuses


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("call", ["_fsync", "mkdtemp", "rename"])
def test_a_disk_that_refuses_leaves_what_stood_there_and_says_so(code: int, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = checkpoints.write(tmp_path / "here", fill_with("old"))

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr({"_fsync": directory, "mkdtemp": directory.tempfile, "rename": directory.os}[call], call, refuse)
        with pytest.raises(CheckpointError, match="untouched") as caught:
            checkpoints.write(target, fill_with("new"))
    assert os.strerror(code) in str(caught.value)
    assert "MB free" in str(caught.value)
    assert caught.value.exit_code == 4
    assert content(checkpoints.resolve(target)) == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_new_step_that_the_disk_refuses_names_the_step_that_is_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (2, 10):
        checkpoints.write(tmp_path / f"step_{step:08d}", fill_with("old"))

    def full(stage: Path) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:858] . unexpected pos 64 vs 0")  # as torch.save says it

    def each(stage: Path) -> None:
        raise shutil.Error([("here", "there", os.strerror(errno.ENOSPC))])  # as shutil.copytree says it

    for fill, said in ((full, "torch could not write a file to its end"), (each, os.strerror(errno.ENOSPC))):
        with pytest.raises(CheckpointError, match=rf"cannot write .*step_00000012: {said} \(.*\); step_00000010 is untouched"):
            checkpoints.write(tmp_path / "step_00000012", fill)
    with pytest.raises(RuntimeError, match="of another kind"):
        checkpoints.write(tmp_path / "step_00000012", lambda stage: (_ for _ in ()).throw(RuntimeError("of another kind")))


def test_a_file_that_may_not_grow_leaves_what_stood_there(tmp_path: Path) -> None:
    """The kernel's own refusal (RLIMIT_FSIZE), in a process of its own."""
    target = checkpoints.write(tmp_path / "here", fill_with("old"))

    def fill(stage: Path) -> None:
        fill_with("new")(stage)
        checkpoints.write_tensors(stage / "model.safetensors", {"x": torch.zeros(100_000)})

    if (pid := os.fork()) == 0:
        code = 0
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
            checkpoints.write(target, fill)
        except CheckpointError as error:
            code = error.exit_code
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 4
    assert content(checkpoints.resolve(target)) == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


# ---------------------------------------------------------------------------------------------------------- bad bytes


def test_every_flipped_bit_zeroed_page_and_cut_is_found(tmp_path: Path) -> None:
    target = checkpoints.write(tmp_path / "here", fill_with("x" * 5000))
    draw = torch.Generator().manual_seed(0)
    for name in ("model.safetensors", "manifest.json", "tokenizer/tokenizer.json"):
        file = target / name
        whole = file.read_bytes()
        for trial in range(100):
            at = int(torch.randint(0, len(whole), (1,), generator=draw))
            spoilt = bytearray(whole)
            if trial < 60:
                spoilt[at] ^= 1 << trial % 8
            elif trial < 80:
                del spoilt[at:]
            else:
                spoilt[at : at + 4096] = bytes(len(spoilt[at : at + 4096]))
            if bytes(spoilt) == whole:
                continue
            file.write_bytes(bytes(spoilt))
            if name == "manifest.json" and harmless(bytes(spoilt), whole):
                continue
            with pytest.raises(CheckpointError) as caught:
                checkpoints.verify(target)
            assert str(target) in str(caught.value)
        file.write_bytes(whole)
    checkpoints.verify(target)


def harmless(spoilt: bytes, whole: bytes) -> bool:
    """Whether the manifest says the same in spite of it: a blank between two words may be another."""
    try:
        return bool(json.loads(spoilt) == json.loads(whole))
    except ValueError:
        return False


def test_files_of_two_checkpoints_are_not_mixed(tmp_path: Path) -> None:
    a, b = (checkpoints.write(tmp_path / name, fill_with(name)) for name in "ab")
    shutil.copy(a / "model.safetensors", b / "model.safetensors")
    with pytest.raises(CheckpointError, match="differs"):
        checkpoints.verify(b)
    shutil.copy(a / "manifest.json", b / "manifest.json")
    with pytest.raises(CheckpointError, match="differs"):
        checkpoints.verify(b)


def test_a_file_that_the_manifest_does_not_know_is_refused(tmp_path: Path) -> None:
    target = checkpoints.write(tmp_path / "here", fill_with("x"))
    (target / "objectives.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds objectives\.json, which its manifest"):
        checkpoints.verify(target)


# --------------------------------------------------------------------------------------------------- two at one place


def test_two_trainers_in_one_folder_are_refused_and_a_dead_one_leaves_no_lock(tmp_path: Path) -> None:
    hold = "import sys, pathlib, elvis.checkpoints as c\nwith c.claim(pathlib.Path(sys.argv[1])): print('here', flush=True); sys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=FOLDER)
    try:
        assert other.stdout.readline() == "here\n"
        (tmp_path / "checkpoints" / ".stage-of-the-other").mkdir(parents=True)
        with pytest.raises(ConfigError, match=f"another trainer is at work in .*process {other.pid}") as caught, checkpoints.claim(tmp_path):
            raise AssertionError
        assert caught.value.exit_code == 2
        assert (tmp_path / "checkpoints" / ".stage-of-the-other").is_dir()
    finally:
        other.kill()
        other.communicate()
    with checkpoints.claim(tmp_path):
        assert not (tmp_path / "checkpoints" / ".stage-of-the-other").exists()
    with checkpoints.claim(tmp_path / "rank", active=False):
        assert not (tmp_path / "rank").exists()


# ------------------------------------------------------------------------------------------------------------ signals


@pytest.mark.slow
def test_sigint_saves_at_the_end_of_the_step_and_exits_130(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "elvis.pretrain", "--out", str(out), "--quiet", *SMALL, "train.steps=5000", "train.checkpoint_every=5000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not ((out / "log.jsonl").exists() and (out / "log.jsonl").stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    printed = Path(said.split("saved ")[1].split(";")[0])
    checkpoints.verify(printed)
    assert checkpoints.newest(out) == printed


# ---------------------------------------------------------------------------------------------------------------- log


def test_a_crash_while_the_log_is_cut_back_loses_no_row(tmp_path: Path) -> None:
    rows = "".join(f'{{"step": {step}}}\n' for step in range(1, 9))
    (tmp_path / "log.jsonl").write_text(rows)

    def resume() -> None:
        Path.replace = lambda *_: os._exit(9)  # type: ignore[assignment, method-assign, return-value]
        RunLog(tmp_path).resume(5)

    assert dies_at(10_000, resume)
    assert (tmp_path / "log.jsonl").read_text() == rows
