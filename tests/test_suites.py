"""python -m benchmarks.run: every shipped suite can be read, and a suite whose stages only count shows what the runner promises.

A small suite (SUITE) has the shape of the shipped ones; its stages are two modules written to a folder (TRAIN, JUDGE), whose numbers are known:
the judge draws values from (seed, weight decay), and a trial is as good as its learning rate is low. Below them, suites shortened, for real.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks import rows, run, suite
from elvis import config as configs
from elvis.data.phantoms.layouts import export
from elvis.errors import ConfigError, run_cli
from elvis.metrics import bootstrap
from tests.layouts import REAL
from tests.tiny import some_slow

ROOT = Path(__file__).parents[1]
PLACES = {
    "real": ["root=/data"],
    "ms_cxr": ["mimic=/m", "reports=/r", "ms_cxr=/g"],
    "rsna": ["mimic=/m", "reports=/r", "ms_cxr=/g", "rsna=/s"],
    "siim": ["mimic=/m", "reports=/r", "ms_cxr=/g", "siim=/s"],
    "ct_rate": ["ready=/ready"],
}
COMMON = '''
import csv, json, os, pathlib, sys, time

def told(argv):
    """--out, and the words."""
    return pathlib.Path(argv[argv.index("--out") + 1]), argv

def finish(out, results):
    origin = {"commit": "abc", "machine": "a box", "versions": {"torch": "2"}, "lists": {}}
    (out / "results.json").write_text(json.dumps([{"provenance": origin, **r} for r in results]))
'''
TRAIN = """
from fake_common import *

def main(argv):
    out, words = told(argv)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "calls.txt").open("a") as file:
        file.write(json.dumps(words) + "\\n")
    (out / "config.yaml").write_text("a: 1")
    once = os.environ.get("FAKE_ONCE", "")
    if once and once in str(out) and not (out / "slept").exists():
        (out / "slept").write_text(str(os.getpid()))
        time.sleep(120)
    if os.environ.get("FAKE_BREAK", "nothing") in str(out):
        print("line before\\nerror: the disk is full\\n  free some", flush=True)
        sys.exit(2)
    finish(out, [{"split": "test", "row": "model", "metrics": {"r@1": {"value": 0.5}}}])
"""
JUDGE = """
import numpy as np
from fake_common import *

def main(argv):
    out, words = told(argv)
    out.mkdir(parents=True, exist_ok=True)
    source = next(w for w in words if w.startswith("--from=")).removeprefix("--from=")
    trained = json.loads((pathlib.Path(source) / "calls.txt").read_text().splitlines()[0])
    last = lambda key: [w.split("=")[1] for w in trained if w.startswith(key + "=")][-1]
    seed, decay, lr = int(last("train.seed")), float(last("train.weight_decay")), float(last("train.lr"))
    maps = next(w for w in words if w.startswith("maps=")).removeprefix("maps=[").rstrip("]").split(",")
    cases = int(os.environ.get("FAKE_CASES", "12"))
    found, lines = [], []
    for n, name in enumerate(maps):
        row = "model" if len(maps) == 1 else f"model ({name})"
        values = np.random.default_rng([seed, int(100 * decay), n]).random(cases)
        found += [{"split": "val", "row": row, "metrics": {"good": {"value": 1 - 100 * lr + (n if decay < 0.05 else -n)}}}]
        found += [{"split": "test", "row": row, "metrics": {"hit": {"value": float(values.mean())}}}]
        for i, v in enumerate(values):
            lines.append(["test", row, f"SECRET-s{i}", f"SECRET-p{i // 2}", "A SECRET phrase", "ab"[i % 2], "focal" if i < 10 else "", v])
    found += [{"split": "test", "row": "blind", "metrics": {"hit": {"value": 0.25}}}]
    with (out / "per_case.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerows([["split", "row", "study", "patient", "phrase", "category", "tags", "hit"], *lines])
    finish(out, found)
"""
TRIALS = [["train.lr=3.0e-3"], ["train.lr=1.0e-3"], ["train.lr=4.0e-3"], ["train.lr=7.0e-3"]]
SUITE: dict[str, Any] = {
    "title": "A small suite",
    "about": "Nothing is trained.",
    "config": "elvis_phantom",
    "set": {"root": "???", "size": "64"},
    "words": ["data.size={size}", "train.lr=5.0e-3", "train.seed={seed}"],
    "seeds": 2,
    "reference": "base",
    "stages": {
        "pretrain": {"module": "fake_train", "words": ["--quiet", "--where={root}", "--first={runs}/base-0"]},
        "judge": {"module": "fake_judge", "words": ["evaluate", "--from={pretrain}", "maps=[{maps}]", "where={root}"], "row": "model ({map})"},
    },
    "map": "judge/val/good",
    "tune": {"by": "judge/val/good", "stages": ["pretrain", "judge"]},
    "priors": {"blind": "sees nothing"},
    "columns": {"hit": "judge/test/hit", "R@1": "pretrain/test/r@1/model"},
    "paired": {"hit": {"stage": "judge", "split": "test", "value": "hit", "tags": ["focal"]}},
    "arms": {
        "base": {"title": "the base", "words": ["train.weight_decay=0.1"], "trials": TRIALS[:2]},
        "local": {"title": "a local loss", "words": ["train.weight_decay=0.01"], "maps": ["cosine", "own"], "trials": TRIALS[2:]},
        "more": {"title": "and more", "like": "local", "words": ["train.weight_decay=0.02"], "maps": ["cosine", "own"]},
    },
    "questions": [{"title": "Does more help?", "arms": ["more"], "against": ["local", "base"]}],
}  # fmt: skip


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the modules, on the path of this process and of those it starts."""
    folder = tmp_path / "modules"
    folder.mkdir()
    for name, text in (("fake_common", COMMON), ("fake_train", TRAIN), ("fake_judge", JUDGE)):
        (folder / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{ROOT}")
    return folder


class Here:
    """A process that has run its line here, at once."""

    def __init__(self, line: Sequence[str], *, stdout: Any, **_: Any) -> None:
        assert list(line[:3]) == [sys.executable, "-m", "benchmarks.run"]
        self.returncode, said = 0, io.StringIO()
        try:
            with contextlib.redirect_stdout(said):
                run.main(line[3:])
        except SystemExit as error:
            self.returncode = int(error.code or 0)
        stdout.write(said.getvalue().encode())

    def __class_getitem__(cls, item: type) -> type[Here]:
        return cls

    def poll(self) -> int:
        return self.returncode

    def terminate(self) -> None: ...

    def wait(self) -> None: ...


@pytest.fixture
def inline(stages: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs are made in this process, one after another."""
    monkeypatch.setattr(run, "subprocess", SimpleNamespace(Popen=Here, STDOUT=None))
    monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda s: None))
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def here(inline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `inline`, and `fake_train` counts as pretraining."""
    monkeypatch.setattr(suite, "PRETRAIN", "fake_train")
    monkeypatch.setattr(rows, "budget", lambda folder, suite: ({"steps": 7, "images": 70, "parameters": 700}, "0123abcd"))


def changed(change: Callable[[dict[str, Any]], Any] = lambda s: None) -> dict[str, Any]:
    """SUITE, changed."""
    made = json.loads(json.dumps(SUITE))
    change(made)
    return made


def written(tmp_path: Path, content: dict[str, Any], name: str = "small") -> str:
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(content)), sort_keys=False))  # nothing in it twice: no alias
    return str(path)


def place(tmp_path: Path, name: str = "small") -> list[str]:
    return ["--out", str(tmp_path / "runs" / name), "--results", str(tmp_path / "results" / name)]


def calls(tmp_path: Path, run: str, stage: str = "pretrain") -> list[list[str]]:
    path = tmp_path / "runs" / "small" / run / stage / "calls.txt"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def kept(tmp_path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    lines = (tmp_path / "results" / "small" / "rows.jsonl").read_text().splitlines()
    return {(row["arm"], row["seed"]): row for row in map(json.loads, lines)}


def values(seed: int, decay: float, map: int, cases: int = 12) -> np.ndarray:
    """What JUDGE draws."""
    drawn: np.ndarray = np.random.default_rng([seed, int(100 * decay), map]).random(cases)
    return drawn


# ----------------------------------------------------------------------------------------------------- shipped suites


def parses(module: str, line: list[str]) -> None:
    """Whether a command reads its words: as far as can be said without its data."""
    from downstream.grounding import config as grounding
    from downstream.reportgen import config as reportgen
    from downstream.segmentation import config as segmentation

    words = [w for w in line if "=" in w and not w.startswith("-")]
    flags = dict(w.removeprefix("--").split("=", 1) for w in line if w.startswith("--") and "=" in w)
    if module == "elvis.pretrain":
        configs.load(line[line.index("--config") + 1], [w for w in words if w != flags.get("config")])
    elif module == "benchmarks.probe":
        configs.load(flags.get("config", "elvis_phantom"), words)
        assert set(flags) <= {"config", "checkpoint", "labels", "fractions", "test"}
    else:
        schema = {"downstream.grounding": grounding, "downstream.segmentation": segmentation, "downstream.reportgen": reportgen}[module]
        assert line[0] in ("train", "evaluate")
        schema.load(flags["config"], words)


@pytest.mark.parametrize("name", some_slow(suite.shipped(), {"phantom", "phantom_cpu", "rsna", "siim"}))
def test_a_shipped_suite_loads_and_every_line_of_it_is_read_by_its_command(name: str) -> None:
    chosen, folder = suite.load(name, PLACES.get(name, [])), Path("runs/x")
    lines = {(chosen.stages[stage].module, *chosen.line(arm, stage, 3, folder)) for arm in chosen.arms for stage in chosen.doing(arm)}
    lines |= {("elvis.pretrain", *chosen.line(arm, "pretrain", 3, folder, trial)) for arm in chosen.arms for trial in chosen.arms[arm].trials}
    for module, *words in sorted(lines):
        assert not [w for w in words if re.search(r"\{\w+\}|\?\?\?", w)], words
        parses(module, words)


@pytest.mark.parametrize("name", suite.shipped())
def test_a_shipped_suite_says_what_it_is_by_its_first_line_and_where_it_was_never_run(name: str) -> None:
    chosen = suite.load(name, PLACES.get(name, []))
    assert Path(chosen.source).read_text().startswith(f"# python -m benchmarks.run {name}")
    if name in ("ms_cxr", "rsna", "siim", "ct_rate"):
        assert "never run" in chosen.about
        assert not (run.RESULTS / name).exists()
    for arm in chosen.arms.values():  # a map can be chosen of several only where the suite says by what
        assert len(arm.maps) == 1 or chosen.map


def test_real_repeats_the_pretraining_of_phantom_cpu_to_the_letter() -> None:
    real, phantom = suite.load("real", PLACES["real"]), suite.load("phantom_cpu")
    assert real.reuse == "phantom_cpu"
    for arm in (name for name in real.arms if name != "scratch"):
        assert real.arms[arm].trials == phantom.arms[arm].trials
        for words in (*real.arms[arm].trials, ()):
            both = [s.fingerprint(arm, 1, words, ["pretrain", "grounding"]) for s in (real, phantom)]
            assert both[0] == both[1], arm


@pytest.mark.parametrize("name", ["rsna", "siim"])
def test_what_is_segmented_starts_from_the_pretraining_of_ms_cxr(name: str) -> None:
    ours, theirs = suite.load(name, PLACES[name]), suite.load("ms_cxr", PLACES["ms_cxr"])
    for arm in theirs.arms:
        assert ours.fingerprint(arm, 0, (), ["pretrain"]) == theirs.fingerprint(arm, 0, (), ["pretrain"])
    assert {"imagenet", "scratch"} <= set(ours.arms)


# ----------------------------------------------------------------------------------------------------- mistakes


def test_the_mistakes_of_a_suite_are_listed_at_once_with_the_nearest_names(here: None, tmp_path: Path) -> None:
    def spoil(s: dict[str, Any]) -> None:
        s["reference"] = "bas"
        s["arms"]["more"]["like"] = "locl"
        s["columns"]["hit"] = "juge/test/hit"
        s["paired"]["hit"]["stage"] = "jduge"

    with pytest.raises(ConfigError) as error:
        suite.load(written(tmp_path, changed(spoil)))
    for name, near in (("bas", "base"), ("locl", "local"), ("juge", "judge"), ("jduge", "judge")):
        assert re.search(rf"there is no '{name}'[^;]*{near}", str(error.value)), name
    assert "set.root is not given" in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s["arms"]["local"].update(like="more", trials=[]), "arms that are like themselves: local, more"),
        (lambda s: s["arms"]["base"].update(trials=[[]]), "every arm has as many trials, not base: 1, local: 2"),
        (lambda s: s["arms"]["base"].update(trials=[]), "every arm has as many trials, not base: 0, local: 2"),
        (lambda s: s["arms"]["more"].update(trials=[[], []]), "more is like local and cannot have trials of its own"),
        (lambda s: s["arms"]["base"].update(titel="x"), r"arms.base: unknown key 'titel'.*title"),
        (lambda s: s["arms"]["base"].pop("title"), "arms.base: no title"),
        (lambda s: s["arms"]["base"].update(words="train.lr=1"), "arms.base.words is no list"),
        (lambda s: s["arms"].update(new={"title": "x", "stages": ["judge"]}), "arms.new: no start, and no stage that pretrains"),
        (lambda s: s["questions"][0].update(pairs=True), "pairs of 1 and 2 arms"),
        (lambda s: s["questions"][0].update(columns=["hits"]), r"there is no 'hits'.*hit"),
        (lambda s: s["questions"][0].update(against=["locall"]), r"there is no 'locall'.*local"),
        (lambda s: s["columns"].update(hit="judge/hit"), "'judge/hit' is not stage/split/metric"),
        (lambda s: s["stages"]["judge"]["words"].append("{pretrian}"), r"there is no 'pretrian'.*pretrain"),
        (lambda s: s["arms"]["base"]["words"].append("{see}"), r"arms.base: there is no 'see'.*seed"),
        (lambda s: s["stages"]["judge"].update(module="fake_jugde"), "stages.judge: no module fake_jugde"),
        (lambda s: s["tune"].update(by="jude/val/good"), r"there is no 'jude'.*judge"),
        (lambda s: s["set"].update(judge="x"), "set.judge has the name of a stage"),
        (lambda s: s.update(reuse="smok"), r"reuse: there is no 'smok'.*smoke"),
        (lambda s: s.update(arms=["base"]), "arms is no mapping"),
        (lambda s: s.pop("about"), "no about"),
    ],
)
def test_a_mistake_of_a_suite_is_named(here: None, tmp_path: Path, change: Callable[[dict[str, Any]], Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        suite.load(written(tmp_path, changed(change)), ["root=/data"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["smok"], "no suite 'smok'"),
        (["smoke", "--arms", "glbal"], "no arm 'glbal'"),
        (["smoke", "root=x"], "sets no variable of this suite"),
        (["real"], "set.root is not given"),
        (["smoke", "--seeds", "0"], "--seeds 0"),
        (["smoke", "--jobs", "0"], "--jobs 0"),
        (["smoke", "--minutes", "-1"], "--minutes -1"),
        (["smoke", "--table"], "no run of 'smoke' is done"),
        (["smoke", "--sedes", "1"], "--sedes"),
    ],
)
def test_a_wrong_command_ends_with_2_and_says_what_is_wrong(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        run_cli(lambda: run.main([*words, *place(tmp_path)]))
    assert end.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


# ----------------------------------------------------------------------------------------------------- what a suite does


def test_trials_choose_by_the_tuned_metric_and_what_is_like_an_arm_inherits_its_choice(here: None, tmp_path: Path) -> None:
    run.main([written(tmp_path, SUITE), *place(tmp_path), "root=/data"])
    found = kept(tmp_path)
    assert {key for key in found if "@" in key[0]} == {("base@0", 1000), ("base@1", 1000), ("local@0", 1000), ("local@1", 1000)}
    assert set(found) - {key for key in found if "@" in key[0]} == {(arm, seed) for arm in SUITE["arms"] for seed in (0, 1)}
    assert found["base", 0]["words"] == ["train.lr=1.0e-3"]
    assert found["local", 1]["words"] == found["more", 0]["words"] == ["train.lr=4.0e-3"]
    (line,) = calls(tmp_path, "more-1")
    assert line[:2] == ["--quiet", "--where=/data"]
    assert (Path(line[2].removeprefix("--first=")) / "pretrain" / "results.json").is_file()  # {runs}: what another run has left
    order = ["data.size=64", "train.lr=5.0e-3", "train.seed=1", "train.lr=4.0e-3", "train.weight_decay=0.01", "train.weight_decay=0.02"]
    assert [w for w in line if w in order] == order  # what comes later wins
    assert "train.seed=1000" in calls(tmp_path, "base@0-1000")[0]
    assert set(found["base@0", 1000]["metrics"]) == {"by"}  # of a trial nothing else is kept
    assert (found["base", 0]["steps"], found["base", 0]["images"], found["base", 0]["parameters"]) == (7, 70, 700)


def test_the_map_of_an_arm_is_the_one_that_is_best_on_val(here: None, tmp_path: Path) -> None:
    def other(s: dict[str, Any]) -> None:
        s["arms"]["other"] = {**s["arms"]["local"], "title": "other", "words": ["train.weight_decay=0.2"]}

    run.main([written(tmp_path, changed(other)), *place(tmp_path), "root=/data"])
    found = kept(tmp_path)
    assert {arm: found[arm, 0]["map"] for arm in ("base", "local", "other")} == {"base": "cosine", "local": "own", "other": "cosine"}
    assert found["local", 0]["metrics"]["hit"] == pytest.approx(values(0, 0.01, 1).mean(), abs=1e-5)
    assert found["other", 0]["metrics"]["hit"] == pytest.approx(values(0, 0.2, 0).mean(), abs=1e-5)
    assert found["local", 0]["priors"] == {"blind": {"hit": 0.25}}


def test_means_deviations_and_paired_differences_are_those_of_a_hand_computation(here: None, tmp_path: Path) -> None:
    run.main([written(tmp_path, SUITE), *place(tmp_path), "root=/data"])
    page = (tmp_path / "results" / "small.md").read_text()
    both = {name: [values(seed, decay, map) for seed in (0, 1)] for name, decay, map in (("more", 0.02, 1), ("local", 0.01, 1), ("base", 0.1, 0))}
    for name, title in (("more", "and more"), ("local", "a local loss"), ("base", "the base")):
        means = [v.mean() for v in both[name]]
        assert f"| {title} | {np.mean(means):.3f} ± {np.std(means, ddof=1):.3f} | 0.500 ± 0.000 |" in page
    assert "| *sees nothing* | 0.250 | – |" in page
    patients, kinds = [f"p{i // 2}" for i in range(10)], ["ab"[i % 2] for i in range(10)]  # the last two are not focal
    for ours, other in (("more", "local"), ("more", "base"), ("local", "base")):
        a, b = (np.round([v[:10] for v in both[name]], 3) for name in (ours, other))
        each = [np.mean([(x - y)[np.array(kinds) == kind].mean() for kind in "ab"]) for x, y in zip(a, b, strict=True)]
        whole = bootstrap.paired_over_seeds(a, b, patients, categories=kinds)
        assert whole.value == pytest.approx(np.mean(each))
        signs = sum(value * np.mean(each) > 0 for value in each)
        shown = f"{np.mean(each):+.3f} [{whole.low:+.3f}, {whole.high:+.3f}] {signs}/2"
        title = " minus ".join(SUITE["arms"][name]["title"] for name in (ours, other))
        assert f"| {title} | {f'**{shown}**' if whole.low > 0 or whole.high < 0 else shown} |" in page
    written_page = (tmp_path / "runs" / "small" / "index.html").read_text()
    assert "Does more help?" in written_page
    assert (tmp_path / "results" / "small.png").is_file()


def test_a_finished_run_is_not_run_again_and_a_changed_one_is_refused_where_it_lies(here: None, tmp_path: Path) -> None:
    name = written(tmp_path, SUITE)
    run.main([name, *place(tmp_path), "root=/data"])
    first = (tmp_path / "results" / "small.md").read_text()
    run.main([name, *place(tmp_path), "root=/elsewhere"])  # where data lies is no part of what a run is
    assert len(calls(tmp_path, "base-0")) == 1
    assert (tmp_path / "results" / "small.md").read_text() == first
    out, results = place(tmp_path)[1], place(tmp_path)[3]
    run.main([name, "--out", str(tmp_path / "empty"), "--results", results, "root=/data"])  # on another machine: the rows are enough
    assert not list((tmp_path / "empty").glob("*-0"))
    run.main([name, "--table", "--out", out, "--results", results])  # without saying where data is
    assert (tmp_path / "results" / "small.md").read_text() == first

    name = written(tmp_path, changed(lambda s: s["arms"]["more"].update(words=["train.weight_decay=0.03"])))
    with pytest.raises(ConfigError, match="more-0 holds a run of another config"):
        run.main([name, *place(tmp_path), "root=/data"])
    run.main([name, "--out", str(tmp_path / "anew"), "--results", results, "root=/data"])
    assert sorted(path.name for path in (tmp_path / "anew").glob("*-?")) == ["more-0", "more-1"]  # nothing but what changed
    assert kept(tmp_path)["more", 0]["metrics"]["hit"] == pytest.approx(values(0, 0.03, 1).mean(), abs=1e-5)


def test_rows_of_an_earlier_version_of_the_suite_are_in_no_table(here: None, tmp_path: Path) -> None:
    run.main([written(tmp_path, SUITE), *place(tmp_path), "root=/data"])
    name = written(tmp_path, changed(lambda s: s["arms"]["more"].update(words=["train.weight_decay=0.03"])))
    run.main([name, "--table", *place(tmp_path), "root=/data"])
    page = (tmp_path / "results" / "small.md").read_text()
    assert "and more" not in page
    assert "a local loss" in page


def test_only_the_arms_and_seeds_asked_for_are_run_with_the_trials_they_need(here: None, tmp_path: Path) -> None:
    run.main([written(tmp_path, SUITE), "--arms", "more", "--seeds", "1", *place(tmp_path), "root=/data"])
    assert set(kept(tmp_path)) == {("local@0", 1000), ("local@1", 1000), ("more", 0)}
    once = changed(lambda s: s["arms"]["base"].update(seeds=1))
    run.main([written(tmp_path, once), *place(tmp_path), "root=/data"])
    assert {key for key in kept(tmp_path) if "@" not in key[0]} == {("more", 0), ("more", 1), ("local", 0), ("local", 1), ("base", 0)}
    more = written(tmp_path, changed(lambda s: [s["arms"][name].update(seeds=count) for name, count in (("base", 1), ("local", 3))]))
    run.main([more, "--seeds", "2", *place(tmp_path), "root=/data"])  # asked for fewer than an arm has
    assert ("local", 2) not in kept(tmp_path)
    run.main([more, *place(tmp_path), "root=/data"])
    assert {key for key in kept(tmp_path) if key[1] == 2} == {("local", 2)}


def test_cases_that_differ_from_those_of_earlier_rows_are_refused(here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = written(tmp_path, SUITE)
    run.main([name, "--arms", "base", "--seeds", "1", *place(tmp_path), "root=/data"])
    before = (tmp_path / "results" / "small" / "rows.jsonl").read_text()
    monkeypatch.setenv("FAKE_CASES", "8")
    with pytest.raises(ConfigError, match="'hit' was judged on other cases before"):
        run.main([name, "--arms", "base", *place(tmp_path), "root=/data"])
    assert (tmp_path / "results" / "small" / "rows.jsonl").read_text() == before


def test_what_may_be_committed_names_no_patient_study_or_phrase(here: None, tmp_path: Path) -> None:
    run.main([written(tmp_path, SUITE), *place(tmp_path), "root=/a/private/place"])
    for path in (tmp_path / "results").rglob("*"):
        if path.is_file() and path.suffix != ".png":
            assert "SECRET" not in path.read_text(), path
            assert "private" not in path.read_text(), path
    with (tmp_path / "results/small/cases/hit.csv").open(encoding="utf-8") as file:
        assert list(csv.reader(file))[:4] == [["patient", "category"], ["p0", "a"], ["p0", "b"], ["p1", "a"]]
    assert len((tmp_path / "results/small/cases/base-0.csv").read_text().splitlines()) == 11
    assert "SECRET" not in (tmp_path / "runs/small/index.html").read_text()


def test_a_case_counts_where_its_columns_have_the_values_asked_for_and_something_is_to_be_found(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    lines = ["fraction,patient,split,class,tp,fn,dice", "0.1,p,test,x,1,1,0.5", "1,p,test,x,1,1,0.75", "1,q,test,x,0,0,1.0", "1,q,val,x,1,0,0.25"]
    (tmp_path / "unet" / "per_case.csv").write_text("\n".join(lines))
    compared = suite.Compared("unet", "test", "dice", where={"fraction": "1"}, category="class", positive=True)
    chosen = SimpleNamespace(stages={"unet": suite.Stage("m")})
    keys, found = rows.cases(tmp_path, chosen, compared, "")  # type: ignore[arg-type, misc]
    assert (keys, found.tolist()) == ([("p", "x")], [0.75])


def test_a_row_is_found_without_the_number_of_its_labels(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    results = [
        {"row": row, "split": "test", "metrics": {"dice": {"value": v}}} for row, v in (("model, 1 % (16)", 0.1), ("model, 100 % (1,601)", 0.2))
    ]
    (tmp_path / "unet" / "results.json").write_text(json.dumps(results))
    chosen = SimpleNamespace(stages={"unet": suite.Stage("m")})
    found = [rows.metric(tmp_path, f"unet/test/dice/model, {share} %", chosen, "") for share in (1, 100)]  # type: ignore[arg-type]
    assert found == [0.1, 0.2]


@pytest.mark.slow
def test_a_stage_that_another_suite_has_done_is_taken_from_it(here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, SUITE)
    monkeypatch.setattr(suite, "HERE", tmp_path)
    run.main(["small", "--arms", "base,local", "--seeds", "1", *place(tmp_path), "root=/data"])

    def second(s: dict[str, Any]) -> None:
        s["reuse"] = "small"
        s["stages"]["again"] = {"module": "fake_judge", "words": ["evaluate", "--from={pretrain}", "maps=[{maps}]"], "row": "model ({map})"}
        s["columns"]["again"] = "again/test/hit"
        s["arms"]["local"]["words"] = ["train.weight_decay=0.03"]  # another run than that of `small`

    written(tmp_path, changed(second), "second")
    run.main(["second", "--arms", "base,local", "--seeds", "1", *place(tmp_path, "second"), "root=/data"])
    mine, theirs = tmp_path / "runs/second", tmp_path / "runs/small"
    for name in ("base@0-1000", "base@1-1000", "base-0"):
        assert (mine / name / "pretrain").resolve() == theirs / name / "pretrain"
        assert len(calls(tmp_path, name)) == 1
        assert set(json.loads((mine / name / "spent.json").read_text())["minutes"]) >= {"pretrain", "judge"}
    assert not (mine / "base-0" / "again").is_symlink()
    assert not (mine / "local-0" / "pretrain").is_symlink()
    found = [json.loads(line) for line in (tmp_path / "results/second/rows.jsonl").read_text().splitlines()]
    assert next(row for row in found if row["arm"] == "base")["metrics"].keys() == {"hit", "R@1", "again"}


# ----------------------------------------------------------------------------------------------------- real processes


def plain(tmp_path: Path) -> str:
    """A suite of two arms without pretraining by name, so that processes of their own need no model."""

    def simple(s: dict[str, Any]) -> None:
        for key in ("tune", "map", "priors"):
            s.pop(key)
        s["stages"]["pretrain"]["words"] = ["train", "train.seed={seed}", "train.lr=1.0e-3", "train.weight_decay=0.1", "arm={arm}"]
        s["arms"] = {name: {"title": name, "start": "x"} for name in ("base", "more")}
        s["questions"] = [{"title": "Does more help?", "arms": ["more"], "against": ["base"]}]
        s["set"], s["words"], s["seeds"] = {}, [], 1
        s["stages"]["judge"]["words"].pop()

    return written(tmp_path, changed(simple))


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.run", *words]


def numbers(tmp_path: Path, name: str = "small") -> str:
    """The page but for minutes."""
    text = (tmp_path / "results" / f"{name}.md").read_text()
    return re.sub(r" \d+\.\d \|", " |", text)


@pytest.mark.slow
def test_a_suite_that_was_killed_goes_on_and_ends_in_the_same_table(inline: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = plain(tmp_path)
    environment = {**os.environ, "FAKE_ONCE": "more-0"}
    marker = tmp_path / "runs/small/more-0/pretrain/slept"
    with subprocess.Popen(command(name, "--seeds", "1", *place(tmp_path)), cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 120
        while not (marker.is_file() and marker.read_text()) and time.monotonic() < until and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    assert process.returncode == 143
    with pytest.raises(ProcessLookupError):  # it left nobody behind
        os.kill(int(marker.read_text()), 0)
    assert set(kept(tmp_path)) == {("base", 0)}

    run.main([name, "--seeds", "1", *place(tmp_path)])
    assert "more minus base" in capsys.readouterr().out
    assert len(calls(tmp_path, "base-0")) == 1
    assert [line[-1] == "--resume" for line in calls(tmp_path, "more-0")] == [False, True]
    run.main([name, "--seeds", "1", *place(tmp_path, "whole")])
    assert numbers(tmp_path) == numbers(tmp_path, "whole")


@pytest.mark.slow
def test_minutes_end_a_suite_in_time_and_the_next_call_goes_on(stages: Path, tmp_path: Path) -> None:
    name = plain(tmp_path)
    line = command(name, "--seeds", "1", "--minutes", "0.5", *place(tmp_path))
    begun = time.monotonic()
    first = subprocess.run(line, cwd=ROOT, env={**os.environ, "FAKE_ONCE": "more-0"}, capture_output=True, text=True, timeout=120)
    assert first.returncode == 0, first.stderr
    assert time.monotonic() - begun < 60  # and not the two minutes that `more` sleeps
    assert "1 runs of the suite are left" in first.stdout + first.stderr
    assert ", 1 are left" in (tmp_path / "results/small.md").read_text()
    second = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert second.returncode == 0, second.stderr
    assert "left" not in (tmp_path / "results/small.md").read_text()
    assert set(kept(tmp_path)) == {("base", 0), ("more", 0)}


def test_a_run_that_fails_stops_no_other_and_ends_in_two_lines_with_the_end_of_its_log(
    inline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_BREAK", "base-")
    line = [plain(tmp_path), "--seeds", "2", *place(tmp_path)]
    with pytest.raises(SystemExit) as end:
        run_cli(lambda: run.main(line))
    assert end.value.code == 2
    said = capsys.readouterr().err
    said = said[said.index("error:") :].strip()
    assert len(said.splitlines()) == 2
    assert said.startswith("error: base-0 failed: ...")
    assert "the disk is full" in said.splitlines()[0]
    assert "base-0.log" in said.splitlines()[1]
    assert set(kept(tmp_path)) == {("more", 0), ("more", 1)}
    monkeypatch.delenv("FAKE_BREAK")
    assert run.main(line) == 0  # mended: it goes on
    assert len(kept(tmp_path)) == 4


# ----------------------------------------------------------------------------------------------------- shortened, for real


def listed(text: str) -> list[str]:
    return text.split()


SHORT = listed("""train.steps=2 train.checkpoint_every=2 train.batch_size=4 train.precision=32-true train.compile=false model.dim=16 model.hidden=16
    data.augment={} data.workers=0 evaluate.limit=8""")
CXR = listed("""data.size=64 data.max_tokens=64 data.augment_on=cpu data.max_bad_fraction=1 image.name=resnet10t image.pretrained=false""")
CT = listed("""data.size=[16,32,32] data.spacing=[] data.max_tokens=64 image.patch=8 image.temporal_patch=4 image.width=16 image.spatial_depth=1
    image.temporal_depth=1 image.heads=2 image.head_width=8 image.input_size=[16,32,32]""")
HEAD = listed("size=64 train.steps=2 train.evaluate_every=2 train.checkpoint_every=2 train.batch_size=4")
SAY = listed("""data.size=[16,32,32] train.steps=2 train.checkpoint_every=2 train.batch_size=4 train.precision=32-true vocabulary.size=60 batch_size=4
    decoder.width=16 decoder.layers=1 decoder.heads=2 decode.beams=1 decode.min_tokens=0 decode.max_report=20 resamples=20 features=''""")


def shortened(name: str, arm: str, folder: Path, words: Sequence[str], **more: Sequence[str]) -> str:
    """A shipped suite with one arm, and words that make its stages short."""
    raw = configs.read(suite.HERE / f"{name}.yaml")
    raw["arms"], raw["questions"], raw["reference"] = {arm: raw["arms"][arm]}, [], arm
    raw["words"] += words
    for stage, own in more.items():
        raw["stages"][stage]["words"] += own
    return written(folder, raw, f"{name}_short")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Phantoms as owners distribute their data, and a tiny BERT."""
    from tests.tiny_encoders import write_bert

    folder = tmp_path_factory.mktemp("owners")
    counts = {"mimic_cxr": (24, 4, 8), "ms_cxr": (6, 0, 4), "rsna": (60, 0, 0), "siim": (60, 0, 0), "ct_rate": (12, 4, 0)}
    for layout, (train, val, test) in counts.items():
        export(layout, folder / layout, counts={"train": train, "val": val, "test": test})
    shutil.copytree(folder / "ms_cxr" / "files", folder / "mimic_cxr" / "files", dirs_exist_ok=True)  # its images are of MIMIC-CXR-JPG
    said = ["the lungs are clear", "there is a nodule in the left upper lobe", "no acute process", "right pleural effusion is present"]
    bert = write_bert(folder / "bert", said, max_position_embeddings=64, num_hidden_layers=4)
    ready = ["prepare", "ct_rate", f"root={folder / 'ct_rate'}", f"out={folder / 'ready'}", "size=[16,32,32]", "spacing=[20,12,12]", "dtype=int16"]
    subprocess.run([sys.executable, "-m", "elvis.data", *ready], cwd=ROOT, check=True, capture_output=True)
    return {name: str(folder / name) for name in (*counts, "ready")} | {"bert": str(bert)}


def judged(line: Sequence[str], tmp_path: Path, name: str) -> dict[str, float]:
    """The columns of the only row of a suite that was run with one seed."""
    assert run.main([*line, "--seeds", "1", *place(tmp_path, name)]) == 0
    rows = [json.loads(row) for row in (tmp_path / "results" / name / "rows.jsonl").read_text().splitlines()]
    return next(row["metrics"] for row in rows if "@" not in row["arm"])


@pytest.fixture
def restored() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ms_cxr", "rsna", "siim"])
def test_a_suite_for_those_who_have_the_data_runs_on_phantoms_in_their_layouts(
    name: str, data: dict[str, str], tmp_path: Path, restored: None
) -> None:
    stages = {"ms_cxr": {}, "rsna": ("linear", "frozen", "finetune"), "siim": ("linear", "frozen", "finetune", "by_rows")}[name]
    words = [*SHORT, *CXR, f"text.checkpoint={data['bert']}", "freeze=['text.*embeddings']"]
    short = shortened(name, "elvis", tmp_path, words, **{stage: HEAD for stage in stages})
    given = [f"mimic={data['mimic_cxr']}", f"reports={data['mimic_cxr']}", f"ms_cxr={data['ms_cxr']}"]
    found = judged([short, *given, *([f"{name}={data[name]}"] if stages else [])], tmp_path, f"{name}_short")
    assert set(found) == set(suite.load(name, PLACES[name]).columns)


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["structure", "global"])
def test_the_suite_of_chest_ct_runs_on_computed_scans(arm: str, data: dict[str, str], tmp_path: Path, restored: None) -> None:
    words = [*SHORT, *CT, f"text.checkpoint={data['bert']}", *["objectives.structure_contrast.queue=2"] * (arm == "structure")]
    short = shortened("ct_rate", arm, tmp_path, words, **{"reports" if arm == "structure" else "reports_all": SAY})
    found = judged([short, f"ready={data['ready']}"], tmp_path, "ct_rate_short")
    assert {"structure": "F1, 110 tokens", "global": "F1, all tokens"}[arm] in found
    assert {"structure": "R@1 by structures", "global": "R@1"}[arm] in found


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="no real radiographs beside the checkout")
def test_the_suite_of_real_radiographs_runs_on_a_folder_of_them(tmp_path: Path, restored: None) -> None:
    few = listed("data.train=16 data.test=8 train.steps=2 train.checkpoint_every=2 train.batch_size=4")
    judge = listed("data.train=16 data.val=8 data.test=8 data.comp=8 data.swap=4 resamples=20")
    short = shortened("real", "phrase_image", tmp_path, few, grounding=judge, lungs=HEAD[1:4])
    found = judged([short, f"root={REAL}"], tmp_path, "real_short")
    assert set(found) == set(suite.load("real", PLACES["real"]).columns)
    ids = {path.stem for path in (REAL / "cxr").rglob("*.*") if len(path.stem) > 8}
    for path in (tmp_path / "results").rglob("*.csv"):
        assert not [name for name in ids if name in path.read_text()], path


@pytest.mark.slow
def test_smoke_runs_from_end_to_end(tmp_path: Path) -> None:
    line = command("smoke", "--seeds", "1", "--arms", "global,kl", *place(tmp_path, "smoke"))
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(row) for row in (tmp_path / "results/smoke/rows.jsonl").read_text().splitlines()]
    assert [row["arm"] for row in rows] == ["global", "global@0", "global@1", "phrase_image@0", "phrase_image@1", "kl"]
    chosen = suite.load("smoke")
    ours, base = (next(row for row in rows if row["arm"] == arm) for arm in ("kl", "global"))
    assert set(ours["metrics"]) == set(chosen.columns) - {"U-Net Dice 10 %"}
    assert (ours["steps"], ours["images"], ours["data"]) == (base["steps"], base["images"], base["data"]) == (40, 640, base["data"])
    assert set(ours["priors"]) == set(chosen.priors)
    assert (tmp_path / "runs/smoke/index.html").is_file()
    assert "+ phrase_image + intra_modal minus global" in done.stdout
    again = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert again.stdout == done.stdout[done.stdout.index("# Smoke") :]  # nothing was done, and the same is said
