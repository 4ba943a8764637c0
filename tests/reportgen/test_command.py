"""The command as a user types it: what every command writes, what it refuses and how, and what must not be lost or shown."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from downstream.reportgen import output
from downstream.reportgen.__main__ import main
from downstream.reportgen.model import load
from elvis import checkpoints
from elvis.data.phantoms import files
from elvis.errors import CheckpointError, ConfigError, DataError, ElvisError, run_cli
from elvis.results import read
from tests.layouts import pixels
from tests.tiny import some_slow

SIZES = [  # a model of a few thousand parameters, 4 x 4 image tokens, 8 topics
    "data.size=64", "pretraining.image.arch={channels: [8, 16, 32, 32], stem_width: 8}", "pretraining.text.width=16",
    "pretraining.model={dim: 16, hidden: 24}", "pretraining.heads.topic.positions=16", "pretraining.heads.codes.codes=9",
    "decoder.width=16", "decoder.heads=2", "decoder.layers=1", "decode.max_tokens=12", "decode.max_sentences=4",
]  # fmt: skip
SHORT = [
    "data.train=48", "data.val=8", "data.test=8", "train.steps=2", "train.batch_size=8", "train.checkpoint_every=1", "train.evaluate_every=2",
    "train.accelerator=cpu", "train.devices=1", "tune.train.accelerator=cpu", "tune.train.devices=1", "tune.held_out=8", "tune.train.steps=2",
    "tune.train.batch_size=8", "tune.train.checkpoint_every=1", "resamples=20", "page.cases=4",
]  # fmt: skip
FIRST = ["steps=2", "batch_size=8", "checkpoint_every=2", "accelerator=cpu", "devices=1"]
PRETRAINING = [f"pretraining.train.{word}" for word in FIRST]
TINY = [*SIZES, *SHORT, *PRETRAINING, "decoder.topic_layers=1"]
PLAIN = ["--config", "baseline_phantom", *SIZES, *SHORT, *PRETRAINING]
PRIORS = ["oracle_topic", "mode_report", "nearest_neighbour", "reference"]


def run(command: str, *words: str | Path) -> int:
    return main([command, *map(str, words), "--quiet"])


def numbers(out: Path) -> dict[tuple[str, str], dict[str, tuple[Any, ...]]]:
    """(row, split) -> every metric of a results.json."""
    found = json.loads((out / "results.json").read_text())
    return {(r["row"], r["split"]): {name: tuple(m.values()) for name, m in r["metrics"].items()} for r in found}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def weights(out: Path, step: str = "step_00000002") -> dict[str, bytes]:
    return {name: (out / "checkpoints" / step / name).read_bytes() for name in ("model.safetensors", "decoder.safetensors")}


def weights_of_model(out: Path, step: str = "step_00000002") -> bytes:
    return (out / "checkpoints" / step / "model.safetensors").read_bytes()


def folder_of_images(folder: Path, count: int = 2, broken: int = 0) -> Path:
    folder.mkdir()
    for number in range(count):
        files.write_image(folder / f"{number}.png", pixels(number))
    for number in range(broken):
        (folder / f"broken{number}.png").write_bytes(b"\x89PNG\r\n\x1a\nno image")
    return folder


def refused(*words: str | Path, says: str, fix: str = "", kind: type[ElvisError] = ConfigError) -> None:
    """The command ends with one error of this kind: what is wrong, and what to do."""
    with pytest.raises(kind, match=says) as error:
        run(*map(str, words))
    assert error.value.fix, "nothing is said that helps"
    assert len(str(error.value)) <= 400
    assert fix in error.value.fix, error.value.fix


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pretrained, trained, judged; nobody changes it."""
    out = tmp_path_factory.mktemp("trained") / "run"
    assert run("train", *TINY, "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def spoken(trained: Path) -> Any:
    """Its generator."""
    return load(trained)


# ------------------------------------------------------------------------------------------------- what it writes


def test_a_run_from_nothing_pretrains_trains_writes_and_judges(trained: Path) -> None:
    assert {p.name for p in trained.iterdir()} == {
        "config.yaml", "pretraining", "checkpoints", "log.jsonl", "metrics.csv", "reports", "results.json", "table.md", "index.html",
        "page.json", "reports.html", "figures", ".lock",
    }  # fmt: skip
    assert {p.name for p in (trained / "reports").iterdir()} == {"test.json", "test.txt", "test.oracle_topic.json", "test.oracle_topic.txt"}
    assert (trained / "pretraining/results.json").is_file()
    assert [row["step"] for row in map(json.loads, (trained / "log.jsonl").read_text().splitlines())][-1] == 2
    found = read(trained / "results.json")
    assert [r.row for r in found if " - " not in r.row] == ["topic_sentence", *PRIORS]
    assert [r.row for r in found if " - " in r.row] == [f"topic_sentence - {row}" for row in ("mode_report", "nearest_neighbour", "oracle_topic")]
    for result in found:
        assert (result.task, result.dataset, result.split, result.config["images"]) == ("reportgen", "phantom", "test", 8)
        assert result.provenance["decoder"] == "topic_sentence"
        assert {"location_f1", "bleu_4", "cider_d", "chexpert14_f1_micro_zeros"} <= result.metrics.keys()
    by_row = {r.row: r for r in found}
    assert by_row["reference"].metrics["location_f1"].value == 1.0
    assert by_row["mode_report"].metrics["identical_rate"].value == 1.0
    table = (trained / "table.md").read_text()
    assert all(row in table for row in ("mode_report", "nearest_neighbour", "oracle_topic"))
    page = (trained / "reports.html").read_text()
    assert "phantom-0-test-0" in page
    assert "nearest_neighbour" in page


def test_differences_are_those_of_the_rows(trained: Path) -> None:
    found = {r.row: r.metrics for r in read(trained / "results.json")}
    for other in ("mode_report", "nearest_neighbour", "oracle_topic"):
        for name, gap in found[f"topic_sentence - {other}"].items():
            assert gap.value == pytest.approx(found["topic_sentence"][name].value - found[other][name].value, nan_ok=True)


def test_every_sentence_comes_with_what_it_rests_on(trained: Path) -> None:
    reports = output.from_json((trained / "reports/test.json").read_text())
    assert [r.id for r in reports] == [f"phantom-0-test-{n:06}" for n in range(8)]
    said = [s for r in reports for s in r.sentences]
    assert said
    for sentence in said:
        assert sentence.map.shape == (4, 4)
        assert sentence.map.sum() == pytest.approx(1, abs=0.01)
        assert 0 < sentence.topic < 9
        assert 0 <= sentence.confidence <= 1
        x1, y1, x2, y2 = sentence.box
        assert 0 <= x1 < x2 <= 64
        assert 0 <= y1 < y2 <= 64
    text = (trained / "reports/test.txt").read_text()
    assert all(r.id in text and r.text in text for r in reports)


def test_what_is_of_phantoms_may_be_shown_and_no_place_of_this_machine_travels(trained: Path) -> None:
    assert {mode(path) for path in [*(trained / "reports").iterdir(), trained / "index.html", trained / "reports.html"]} == {0o644}
    named = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file() and str(trained.parent).encode() in path.read_bytes()}
    assert named <= {"config.yaml", "index.html", "page.json", "pretraining/index.html", "pretraining/page.json"}  # the pages' commands to go on with


# ------------------------------------------------------------------------------------------------------ train, resume


@pytest.mark.slow
def test_a_plain_pretraining_checkpoint_serves_and_the_run_is_bit_for_bit_the_one_from_nothing(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("train", *TINY, "--checkpoint", f"mine={trained / 'pretraining'}", "--out", out) == 0
    assert not (out / "pretraining").exists()
    assert weights(out) == weights(trained)
    ours, theirs = numbers(out), numbers(trained)
    assert ours["mine", "test"] == theirs["topic_sentence", "test"]
    assert ours["mode_report", "test"] == theirs["mode_report", "test"]


@pytest.mark.slow
def test_a_run_that_was_cut_goes_on_to_the_same_weights_and_a_finished_pretraining_is_not_done_again(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(trained, out)
    before = numbers(out)
    for name in ("results.json", "table.md", "index.html", "reports.html", "reports", "checkpoints/step_00000002", "checkpoints/best"):
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    first = contents(out / "pretraining")
    assert run("train", *TINY, "--out", out, "--resume") == 0
    assert contents(out / "pretraining") == first
    assert weights(out) == weights(trained)
    assert weights(out, "best") == weights(trained, "best")
    assert numbers(out) == before


def test_a_best_that_is_damaged_is_chosen_anew_by_a_run_that_goes_on(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(trained, out)
    (out / "results.json").unlink()
    shutil.rmtree(out / "checkpoints/step_00000002")
    (out / "checkpoints/best/decoder.safetensors").write_bytes(b"damaged")
    assert run("train", *TINY, "--out", out, "--resume") == 0
    assert weights(out) == weights(trained)
    checkpoints.verify(out / "checkpoints/best")


@pytest.mark.slow
def test_a_pretraining_that_was_cut_is_gone_on_with(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [*TINY, "pretraining.train.checkpoint_every=1"]
    (out / "pretraining").mkdir(parents=True)
    assert run("train", *words, "--out", tmp_path / "whole") == 0
    shutil.copytree(tmp_path / "whole/pretraining", out / "pretraining", dirs_exist_ok=True)
    shutil.copy(tmp_path / "whole/config.yaml", out)
    for name in ("results.json", "checkpoints/step_00000002"):
        path = out / "pretraining" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert run("train", *words, "--out", out, "--resume") == 0
    assert weights_of_model(out / "pretraining") == weights_of_model(tmp_path / "whole/pretraining")
    assert weights(out) == weights(tmp_path / "whole")


def test_a_run_is_entered_again_only_when_asked_and_only_as_it_began(trained: Path, tmp_path: Path) -> None:
    before = contents(trained)
    refused("train", *TINY, "--out", trained, says="holds a run already", fix="--resume")
    refused("train", *TINY, "--out", trained, "--resume", "train.lr=0.5", "seed=3", says="--resume with another seed, train.lr than the run")
    refused("train", *TINY, "--out", trained, "--resume", "--checkpoint", trained / "pretraining", says="--resume with another checkpoint")
    refused("train", *TINY, "--out", tmp_path / "none", "--resume", says="nothing to resume")
    assert contents(trained) == before
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_run_that_has_come_to_its_end_is_only_judged_again(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(trained, out)
    assert run("train", *TINY, "--out", out, "--resume", "splits=[val,test]", "limit=4") == 0
    assert weights(out) == weights(trained)
    assert {(r.row, r.split, r.config["images"]) for r in read(out / "results.json") if r.row == "topic_sentence"} == {
        ("topic_sentence", "val", 4),
        ("topic_sentence", "test", 4),
    }


def test_print_config_and_dry_run_write_nothing(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("train", *TINY, "--print-config", "decode.beams=3") == 0
    assert "beams: 3" in capsys.readouterr().out
    assert run("train", *TINY, "--dry-run") == 0
    told = capsys.readouterr().out
    assert "image tokens 16, codes 9" in told
    assert "train 48, val 8, test 8" in told
    assert run("train", *TINY, "--dry-run", "--checkpoint", trained / "pretraining") == 0
    assert "decoder" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_plain_decoder_trains_on_the_same_visual_side(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("train", *PLAIN, "visual=frozen", "--checkpoint", trained / "pretraining", "--out", out, "page.cases=0") == 0
    assert not (out / "reports.html").exists()
    assert [r.row for r in read(out / "results.json") if " - " not in r.row] == ["transformer", "mode_report", "nearest_neighbour", "reference"]
    pretrained = (trained / "pretraining/checkpoints/step_00000002/model.safetensors").read_bytes()
    assert weights(out)["model.safetensors"] == pretrained  # frozen
    reports = output.from_json((out / "reports/test.json").read_text())
    assert all(s.topic is None for r in reports for s in r.sentences)


# ------------------------------------------------------------------------------------------------------------ generate


def generate(trained: Path, out: Path, *words: str | Path) -> tuple[Any, ...]:
    assert run("generate", "--checkpoint", trained, *TINY, *words, "--out", out) == 0
    return output.from_json((out / "reports/test.json").read_text())


def test_generate_writes_the_reports_that_training_wrote(trained: Path, tmp_path: Path, capsys: Any) -> None:
    generate(trained, tmp_path / "out")
    for name in ("test.json", "test.txt"):
        assert (tmp_path / "out/reports" / name).read_bytes() == (trained / "reports" / name).read_bytes()
    told = capsys.readouterr().out
    assert "test: 8 reports in" in told
    assert "reached their limit" in told
    assert "phantom-0-test-000003" in (tmp_path / "out/test.html").read_text()


@pytest.mark.slow
def test_how_a_report_is_searched_for_changes_it_and_a_seed_makes_it_the_same_again(trained: Path, tmp_path: Path) -> None:
    greedy = generate(trained, tmp_path / "greedy")
    texts = {"greedy": [r.text for r in greedy]}
    ways = {"beams": ["decode.beams=3"], "drawn": ["decode.sample=true"], "again": ["decode.sample=true"], "other": ["decode.sample=true", "seed=1"]}
    for name, words in ways.items():
        texts[name] = [r.text for r in generate(trained, tmp_path / name, *words)]
    assert texts["drawn"] == texts["again"]
    assert len({tuple(texts[name]) for name in ("greedy", "drawn", "other")}) == 3
    assert texts["beams"] != texts["drawn"]


def test_topics_are_switched_on_and_off(trained: Path, spoken: Any, tmp_path: Path) -> None:
    said = {s.topic for r in generate(trained, tmp_path / "plain") for s in r.sentences}
    gone = sorted(said)[0]
    wanted = max(set(range(1, 9)) - said)
    reports = generate(trained, tmp_path / "off", f"decode.topics_off=[{gone}]", f"decode.topics_on=[{wanted}]")
    assert all(gone not in {s.topic for s in r.sentences} for r in reports)
    assert all(wanted in {s.topic for s in r.sentences} for r in reports)
    code, about = max(spoken.topics.items(), key=lambda item: item[1]["count"])
    word = about["sentences"][0][0].strip(".").split()[-1].upper()
    named = [c for c, a in spoken.topics.items() if word.lower() in a["sentences"][0][0].lower()]
    by_word = generate(trained, tmp_path / "word", f"decode.topics_off=[{word}]")
    assert code in named
    assert all(s.topic not in named for r in by_word for s in r.sentences)


def test_phrases_are_banned_and_forced(trained: Path, tmp_path: Path) -> None:
    plain = generate(trained, tmp_path / "plain")
    word = plain[0].sentences[0].text.split()[0].strip(".").lower()
    assert any(word in r.text.lower().split() for r in plain)
    reports = generate(trained, tmp_path / "out", f"decode.ban=[{word}]", "decode.force=[the left lung]")
    assert all(word not in r.text.lower().replace(".", " ").split() for r in reports)
    assert all("the left lung" in r.sentences[0].text.lower() for r in reports)


def test_sentences_below_the_threshold_are_marked_counted_and_left_out_of_the_text(trained: Path, tmp_path: Path, capsys: Any) -> None:
    reports = generate(trained, tmp_path / "out", "decode.threshold=0.99")
    told = capsys.readouterr().out
    count = sum(len(r.sentences) for r in reports)
    assert count
    assert all(not s.kept and r.text == "" for r in reports for s in r.sentences)
    assert f"{count} sentences abstained from" in told
    assert "left out: the model was not sure enough" in (tmp_path / "out/reports/test.txt").read_text()


@pytest.mark.slow
def test_a_limit_that_is_reached_is_said_in_every_output(trained: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["--checkpoint", trained, *TINY, "decode.max_sentences=1", "decode.max_tokens=3", "decode.threshold=0.5", "--out", tmp_path / "out"]
    assert run("evaluate", *words) == 0
    reports = output.from_json((tmp_path / "out/reports/test.json").read_text())
    cut, sentences = sum(r.cut for r in reports), sum(s.cut for r in reports for s in r.sentences)
    assert cut
    assert sentences
    page, text = (tmp_path / "out/index.html").read_text(), (tmp_path / "out/reports/test.txt").read_text()
    shown = (tmp_path / "out/reports.html").read_text()
    for where in (page, shown):
        assert f"test: {cut} of 8 reports reached the limit" in where
        assert f"test: {sentences} of 8 sentences reached the limit" in where
        assert "test: 8 of 8 sentences are left out: the model was not sure enough" in where
    assert text.count("(cut: the report reached its limit before its end)") == cut
    row = read(tmp_path / "out/results.json")[0]
    assert (row.config["cut"], row.config["cut_sentences"], row.config["sentences"], row.config["abstained"]) == (cut, sentences, 8, 8)
    capsys.readouterr()
    assert run("generate", *words[:-1], tmp_path / "g") == 0
    assert f"({cut} reports and {sentences} sentences reached their limit; 8 sentences abstained from)" in capsys.readouterr().out


def test_a_folder_of_images_gets_reports_for_its_owner_alone_and_broken_ones_are_counted(trained: Path, tmp_path: Path, capsys: Any) -> None:
    root = folder_of_images(tmp_path / "images", 3, broken=4)
    out = tmp_path / "out"
    assert run("generate", "--checkpoint", trained, *TINY, "--images", root, "--out", out) == 0
    told = capsys.readouterr().out
    assert "images: 3 reports" in told
    assert "4 cannot be read: broken0.png (" in told
    assert [r.id for r in output.from_json((out / "reports/images.json").read_text())] == ["0.png", "1.png", "2.png"]
    assert {mode(path) for path in [*(out / "reports").iterdir(), out / "images.html"]} == {0o600}
    assert run("generate", "--checkpoint", trained, *TINY, "--images", root / "1.png", "--out", tmp_path / "one") == 0
    (one,) = output.from_json((tmp_path / "one/reports/images.json").read_text())
    assert one.id == "1.png"
    assert one.text


@pytest.mark.slow
def test_a_rexrank_submission_holds_every_study_of_its_test_set(trained: Path, tmp_path: Path) -> None:
    entries = {f"phantom-0-test-{n:06}": {"section_findings": "Clear.", "section_impression": "None.", "split": "test"} for n in range(8)}
    (tmp_path / "entries.json").write_text(json.dumps(entries))
    reports = generate(trained, tmp_path / "out", "--entries", tmp_path / "entries.json")
    path = tmp_path / "out/reports/test.rexrank.json"
    found = json.loads(path.read_text())
    assert found == {r.id: {**entries[r.id], "model_prediction": r.text} for r in reports}
    (tmp_path / "more.json").write_text(json.dumps({**entries, "another": entries["phantom-0-test-000000"]}))
    words = ["generate", "--checkpoint", trained, *TINY, "--out", tmp_path / "x", "--entries"]
    refused(*words, tmp_path / "more.json", says="no report of 1 studies, such as 'another'", kind=DataError)
    refused(*words, tmp_path / "absent.json", says="cannot read .*absent.json", kind=DataError)
    refused(*words, trained / "table.md", says="cannot read .*table.md", kind=DataError)


# ------------------------------------------------------------------------------------------------------------ evaluate


def test_evaluate_gives_the_numbers_of_training_and_leaves_the_weights(trained: Path, tmp_path: Path, capsys: Any) -> None:
    assert run("evaluate", "--checkpoint", trained, *TINY, "--out", tmp_path / "out", "--sanity") == 0
    assert numbers(tmp_path / "out") == numbers(trained)
    assert not (tmp_path / "out/checkpoints").exists()
    told = capsys.readouterr().out
    assert "negation" in told
    sanity = (tmp_path / "out/sanity.md").read_text()
    assert all(metric in sanity for metric in ("bleu_4", "location_f1", "chexpert14_f1_micro_zeros"))


def test_reports_of_a_file_get_the_numbers_they_had_and_what_is_missing_or_strange_is_said(trained: Path, tmp_path: Path, capsys: Any) -> None:
    assert run("evaluate", "--generated", trained / "reports/test.json", *TINY, "--out", tmp_path / "out") == 0
    ours, theirs = numbers(tmp_path / "out"), numbers(trained)
    assert ours["test", "test"] == theirs["topic_sentence", "test"]
    assert ours["mode_report", "test"] == theirs["mode_report", "test"]
    assert ("nearest_neighbour", "test") not in ours  # there is no model to say what is near
    reports = output.from_json((trained / "reports/test.json").read_text())
    some = [dataclasses.replace(reports[0], id="someone else"), *reports[1:]]
    output.save(tmp_path / "mine.json", output.to_json(some))
    capsys.readouterr()
    assert run("evaluate", "--generated", tmp_path / "mine.json", *TINY, "--out", tmp_path / "some") == 0
    told = capsys.readouterr().out
    assert "RED: test: 1 studies have no report in mine.json" in told
    assert "RED: 1 reports in mine.json are of no study that is judged, such as someone else" in told
    assert read(tmp_path / "some/results.json")[0].config["images"] == 7


def test_a_rexrank_submission_is_judged_by_its_predictions(trained: Path, tmp_path: Path) -> None:
    reports = output.from_json((trained / "reports/test.json").read_text())
    told = {r.id: {"section_findings": "x", "section_impression": None, "model_prediction": r.text} for r in reports}
    (tmp_path / "submission.json").write_text(json.dumps(told))
    assert run("evaluate", "--generated", tmp_path / "submission.json", *TINY, "--out", tmp_path / "out") == 0
    ours, theirs = numbers(tmp_path / "out")["submission", "test"], numbers(trained)["topic_sentence", "test"]
    for name in ("location_f1", "rouge_l", "length", "cider_d", "identical_rate"):
        assert ours[name] == theirs[name]


def test_no_run_is_written_over_by_the_numbers_of_another(trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    (other / "checkpoints/best").rename(tmp_path / "aside")
    before = contents(other)
    for words in (
        ["evaluate", "--checkpoint", trained],
        ["generate", "--checkpoint", trained],
        ["evaluate", "--generated", trained / "reports/test.json"],
    ):
        refused(*words, *TINY, "--out", other, says="holds the run of another generator", fix="--out")
    assert contents(other) == before


# ---------------------------------------------------------------------------------------------------------------- tune


TUNED = {
    "words": ["tune.part=words", "tune.method=scst"],
    "topics": ["tune.part=topics", "tune.level=topic", "tune.method=rloo", "tune.samples=2", "tune.rewards={bleu: null, cider_d: 1.0}"],
    "grouped": ["tune.method=grpo", "tune.samples=3", "tune.level=report", "tune.kl=0.1", "tune.nll=0.1", "tune.rewards.phantom=1.0"],
}


@pytest.mark.parametrize("name", some_slow(TUNED, ["words", "grouped"]))
def test_tune_moves_its_part_alone_and_says_the_reward_before_and_after(name: str, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("tune", "--checkpoint", trained, *TINY, *TUNED[name], "tune.train.lr=0.01", "page.cases=0", "--out", out) == 0
    found = read(out / "results.json")
    rows = [r.row for r in found]
    assert rows[:3] == ["before tuning", "after tuning", "after - before"]
    assert rows[3] == "topic_sentence, tuned"
    assert {*PRIORS, "start", "topic_sentence, tuned - start"} <= set(rows)
    before, after, gap = (r.metrics["reward reward"].value for r in found[:3])
    assert gap == pytest.approx(after - before)
    by_row = numbers(out)
    assert by_row["start", "test"]["rouge_l"] == numbers(trained)["topic_sentence", "test"]["rouge_l"]
    ours, theirs = load(out), load(trained)
    moved = {n.partition(".")[0] for n, p in ours.decoder.named_parameters() if not torch.equal(p, theirs.decoder.state_dict()[n])}
    assert moved == ({"topics"} if name == "topics" else {"words", "topic_in"})
    for key, value in theirs.pretrained.model.state_dict().items():
        assert torch.equal(value, ours.pretrained.model.state_dict()[key])


@pytest.mark.slow
def test_tuning_that_was_cut_goes_on_to_the_same_weights(trained: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    words = ["tune", "--checkpoint", trained, *TINY, "page.cases=0"]
    assert run(*words, "--out", whole) == 0
    shutil.copytree(whole, cut)
    for path in (cut / "results.json", cut / "table.md", cut / "index.html"):
        path.unlink()
    shutil.rmtree(cut / "checkpoints/step_00000002")
    assert run(*words, "--out", cut, "--resume") == 0
    assert weights(cut) == weights(whole)
    assert numbers(cut) == numbers(whole)
    refused(*words, "--out", cut, says="holds a run already", fix="--resume")
    refused(*words, "--out", cut, "--resume", "tune.kl=0.5", says="--resume with another tune.kl")


# ---------------------------------------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--config", "mgrrg_fantom"], "mgrrg_phantom"),
        (["decoder.name=topic_sentense"], "did you mean 'topic_sentence'"),
        (["decoder.layer=2"], "did you mean 'layers'"),
        (["tune.method=sctt"], "did you mean 'scst'"),
        (["tune.rewards.blue=1"], "did you mean 'bleu'"),
        (["tune.rewards.bleu=much"], "tune.rewards.bleu must be a weight"),
        (["metrics={chexbrt: {path: x}}"], "did you mean 'chexbert'"),
        (["metrics={chexbert: {}}"], "metrics.chexbert needs 'path'"),
        (["metrics={chexbert: {path: x, devise: cpu}}"], "did you mean 'device'"),
        (["decode.beam=3"], "did you mean 'beams'"),
        (["visual=frzen"], "did you mean 'frozen'"),
        (["sections=[finding]"], "did you mean 'findings'"),
        (["decode.topics_on=effusion"], "must be a list of codes or words"),
        (["decode.threshold=2"], "is a probability"),
        (["decode.beams=2", "decode.sample=true"], "choose one"),
        (["decode.min_tokens=60"], "more than decode.max_tokens"),
        (["tune.method=rloo"], "give 2 or more"),
        (["tune.part=topics"], "topics are rewarded at level topic"),
        (["splits=[]"], "splits is an empty list"),
        (["trian.steps=3"], "did you mean 'train'"),
    ],
)
def test_a_mistake_in_the_config_is_named_with_what_was_meant(words: Sequence[str], says: str, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        run_cli(lambda: run("train", *words, "--out", tmp_path / "out"))
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert told.startswith("error: ")
    assert says in told
    assert len(told.strip().splitlines()) <= 2
    assert not (tmp_path / "out").exists()


def test_several_mistakes_are_listed_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        run("train", "visual=frzen", "decode.beams=0", "tune.kl=-1", "train.steps=0", "--out", tmp_path / "out")
    assert all(word in error.value.what for word in ("visual", "decode.beams must be positive", "tune.kl must not be negative", "train.steps"))


def test_an_unknown_metric_to_select_by_is_refused_before_anything_is_trained(trained: Path, tmp_path: Path) -> None:
    words = ["train", *TINY, "--checkpoint", trained / "pretraining", "--out", tmp_path / "out"]
    refused(*words, "select=location_f2", says="no metric 'location_f2'.*did you mean 'location_f1'", fix="bleu_4")
    refused(*words, "splits=[tset]", says="no study of split 'tset'", fix="splits with reports: ")
    assert not (tmp_path / "out").exists()


def test_options_of_another_command_are_refused(trained: Path) -> None:
    refused("train", "--images", "x", says="--images is for generate, not train")
    refused("train", "--generated", "x", says="--generated is for evaluate, not train")
    refused("evaluate", "--entries", "x", says="--entries is for generate, not evaluate")
    refused("generate", "--checkpoint", trained, "--resume", says="--resume is for train and tune, not generate")
    refused("tune", "--checkpoint", trained, "--dry-run", says="--dry-run is for train, not tune")
    refused("tune", says="tune needs a trained generator", fix="--checkpoint")
    refused("generate", says="generate needs a trained generator", fix="--checkpoint")
    refused("evaluate", says="evaluate takes a generator or reports", fix="--generated")
    refused("evaluate", "--checkpoint", trained, "--generated", "x", says="evaluate takes a generator or reports")


def test_a_row_that_would_take_the_place_of_a_prior_is_refused(trained: Path, tmp_path: Path) -> None:
    """Else a model called `reference` had the scores of the references."""
    refused("evaluate", *TINY, "--checkpoint", f"reference={trained}", says="'reference' is the name of another row", fix="choose a name")
    shutil.copy(trained / "reports/test.json", tmp_path / "mode_report.json")
    words = ["evaluate", *TINY, "--generated", tmp_path / "mode_report.json", "--out", tmp_path / "out"]
    refused(*words, says="'mode_report' is the name of another row")


def test_a_checkpoint_that_writes_no_reports_is_refused_with_what_to_give(trained: Path, tmp_path: Path) -> None:
    for command in ("generate", "evaluate", "tune"):
        words = [command, *TINY, "--out", tmp_path / "out", "--checkpoint"]
        refused(*words, trained / "pretraining", says="holds no report decoder", fix="downstream.reportgen train", kind=CheckpointError)
        refused(*words, tmp_path / "nothing", says="no folder", fix="downstream.reportgen train", kind=CheckpointError)
        refused(*words, trained / "reports", says="not a checkpoint", kind=CheckpointError)
    assert not (tmp_path / "out").exists()


def test_topics_need_a_visual_side_with_codes_and_as_many_positions_as_tokens(tmp_path: Path) -> None:
    words = ["train", *TINY, "pretrain=false", "--out", tmp_path / "out"]
    none = ["pretraining.heads=null", "pretraining.model.local_heads=false"]
    none += ["pretraining.objectives={sentence_topic: null, global_contrastive: {weight: 1.0}}"]
    refused(*words, *none, says="has no codebook", fix="another decoder")
    assert not (tmp_path / "out").exists()
    refused(*words, "pretraining.heads.topic.positions=9", says="16", fix="positions")


def forged(trained: Path, folder: Path, **files: Any) -> Path:
    """A copy of a checkpoint whose files were changed by somebody who mended the checksums, too."""
    shutil.copytree(trained / "checkpoints/best", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, change in files.items():
        path = folder / name.replace("__", "/").replace("_json", ".json")
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))
        manifest["sha256"][path.relative_to(folder).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("name", ["decoder.safetensors", "decoder.json", "vocabulary/vocabulary.json", "topics.json"])
def test_a_damaged_file_of_a_checkpoint_is_named(name: str, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(trained / "checkpoints/best", folder)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-3])
    words = ["generate", *TINY, "--checkpoint", folder, "--out", tmp_path / "out"]
    refused(*words, says=f"{name} differs", fix="copy the directory again", kind=CheckpointError)
    (folder / name).unlink()
    refused(*words, says=name, kind=CheckpointError)


def test_a_vocabulary_or_a_decoder_of_another_size_is_refused(trained: Path, tmp_path: Path) -> None:
    """A checkpoint whose tokenizer differs."""
    words = ["generate", *TINY, "--out", tmp_path / "out", "--checkpoint"]
    shorter = forged(trained, tmp_path / "a", vocabulary__vocabulary_json=lambda v: v["pieces"].pop())
    refused(*words, shorter, says=r"the vocabulary has \d+ pieces, the decoder was trained with \d+", kind=CheckpointError)
    wider = forged(trained, tmp_path / "b", decoder_json=lambda v: v["recipe"].update(width=32))
    refused(*words, wider, says="weights do not fit the decoder", kind=CheckpointError)
    other = forged(trained, tmp_path / "c", decoder_json=lambda v: v["recipe"].update(name="topic_sentense"))
    refused(*words, other, says="topic_sentense", kind=ElvisError)


def test_sections_and_context_are_those_the_generator_was_trained_with(trained: Path, tmp_path: Path) -> None:
    words = ["evaluate", *TINY, "--checkpoint", trained, "--out", tmp_path / "out"]
    refused(*words, "sections=[findings,impression]", says="the generator writes findings, the config has", fix="set sections=[findings]")
    refused(*words, "context=indication", says="the config has context 'indication'", fix="set context=")
    assert not (tmp_path / "out").exists()


def test_what_a_user_wishes_and_cannot_have_is_refused_before_anything_is_read(trained: Path, tmp_path: Path) -> None:
    words = ["generate", *TINY, "--checkpoint", trained, "--images", tmp_path / "absent", "--out", tmp_path / "out"]
    refused(*words, "decode.ban=[xylophone]", says="decode.ban: 'xylophone' holds a word that the vocabulary lacks")
    refused(*words, "decode.force=[the xylophone]", says="decode.force: 'the xylophone' holds a word that the vocabulary lacks")
    refused(*words, "decode.topics_off=[99]", says="there is no code 99", fix="topics.json")
    refused(*words, "decode.topics_on=[xylophone]", says="no topic's most frequent sentence holds 'xylophone'", fix="topics.json")
    refused(*words, "decode.topics_on=[3]", "decode.topics_off=[3]", says="topic 3 is switched on and off", fix="mend")
    assert not (tmp_path / "out").exists()


def test_a_phrase_that_is_banned_and_forced_is_refused(trained: Path, tmp_path: Path) -> None:
    words = ["generate", *TINY, "--checkpoint", trained, "--out", tmp_path / "out", "decode.ban=[the]", "decode.force=[the left lung]"]
    refused(*words, says="banned|forced")
    assert not (tmp_path / "out").exists()


def test_what_would_fail_in_the_end_fails_before_anything_is_trained(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for words in (["train", "--checkpoint", trained / "pretraining"], ["tune", "--checkpoint", trained]):
        words = [words[0], *TINY, *words[1:], "--out", out]
        refused(*words, f"metrics={{chexbert: {{path: {tmp_path / 'absent'}}}}}", says="absent", kind=ElvisError)
        refused(*words, "decode.ban=[xylophone]", says="a word that the vocabulary lacks")
        refused(*words, "decode.topics_off=[xylophone]", says="xylophone")
        refused(*words, "decode.topics_off=[99]", says="there is no code 99")
        refused(*words, "splits=[train]", says="was trained on")
    assert not (out / "checkpoints").exists()


def test_a_folder_without_images_or_with_broken_ones_alone_is_an_error(trained: Path, tmp_path: Path) -> None:
    words = ["generate", *TINY, "--checkpoint", trained, "--out", tmp_path / "out", "--images"]
    (tmp_path / "empty").mkdir()
    refused(*words, tmp_path / "empty", says="no image under", fix="JPEG, PNG or DICOM", kind=DataError)
    refused(*words, tmp_path / "absent", says="no folder", kind=DataError)
    broken = folder_of_images(tmp_path / "broken", 0, broken=2)
    refused(*words, broken, says="no image under", kind=DataError)


def test_a_metric_of_an_absent_path_is_an_error_of_one_line_and_never_a_download(trained: Path, tmp_path: Path) -> None:
    words = ["evaluate", *TINY, "--generated", trained / "reports/test.json", "--out", tmp_path / "out"]
    refused(*words, f"metrics={{chexbert: {{path: {tmp_path / 'absent'}}}}}", says="absent", kind=ElvisError)
    assert not (tmp_path / "out/results.json").exists()


def test_files_of_reports_that_cannot_be_judged_are_refused(trained: Path, tmp_path: Path) -> None:
    words = ["evaluate", *TINY, "--out", tmp_path / "out", "--generated"]
    text = (trained / "reports/test.json").read_text()
    refused(*words, tmp_path / "absent.json", says="cannot read", kind=DataError)
    refused(*words, trained / "table.md", says="is not JSON", kind=DataError)
    refused(*words, trained / "results.json", says="no ReXrank file", kind=DataError)
    (tmp_path / "lacks.json").write_text(text.replace('"confidence"', '"sureness"'))
    refused(*words, tmp_path / "lacks.json", says="not complete", kind=DataError)
    (tmp_path / "others.json").write_text(text.replace("phantom-0", "phantom-7"))
    refused(*words, tmp_path / "others.json", says="no report in others.json is of a study of split 'test'", fix="phantom-0-test", kind=DataError)
    reports = output.from_json(text)
    output.save(tmp_path / "twice.json", output.to_json([*reports, reports[0]]))
    refused(*words, tmp_path / "twice.json", says="second reports", kind=DataError)
    assert not (tmp_path / "out").exists()


def test_nobody_is_judged_on_patients_it_was_trained_on_unless_forced_and_then_the_page_says_so(trained: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["evaluate", *TINY, "--checkpoint", trained, "splits=[train]", "limit=4", "--out", tmp_path / "out"]
    refused(*words, says=r"was trained on \d+ of the patients of split 'train'", fix="force=true")
    assert not (tmp_path / "out").exists()
    again = ["train", *TINY, "--checkpoint", trained / "pretraining", "splits=[train]", "--out", tmp_path / "out"]
    refused(*again, says=r"pretraining was trained on \d+ of the patients of split 'train'", fix="force=true")
    assert not (tmp_path / "out").exists()
    assert run(*words, "force=true") == 0
    assert "RED: LEAK: topic_sentence was trained on" in capsys.readouterr().out
    assert "LEAK: topic_sentence was trained on" in (tmp_path / "out/index.html").read_text()
