"""Reports on the layouts of real datasets, made of phantoms: R2Gen's two, ReXrank's test sets, Open-i with its sections and lateral films."""

from __future__ import annotations

import csv
import json
import re
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from downstream.reportgen import config as schemas
from downstream.reportgen import output, score, train
from downstream.reportgen.__main__ import main
from downstream.reportgen.data import context_of
from downstream.reportgen.metrics.nlg import words
from downstream.reportgen.model import Generator, load
from elvis.config import Data
from elvis.data.__main__ import main as data_main
from elvis.data.datasets import r2gen
from elvis.data.phantoms import files
from elvis.data.phantoms.layouts import export
from elvis.data.studies import load as load_studies
from elvis.errors import ConfigError, DataError
from elvis.results import read

TINY = [  # untrained visual side of a few thousand parameters, 4 x 4 image tokens a view, 8 topics, two steps
    "pretrain=false", "pretraining.data.size=64", "pretraining.image.arch={channels: [8, 16, 32, 32], stem_width: 8}", "pretraining.text.width=16",
    "pretraining.heads.codes.codes=9", "decoder.width=16", "decoder.heads=2", "decoder.layers=1", "decoder.topic_layers=1",
    "decode.max_tokens=12", "decode.max_sentences=4", "train.steps=2", "train.batch_size=4", "train.evaluate_every=2", "train.checkpoint_every=2",
    "train.accelerator=cpu", "train.devices=1", "select=bleu_4", "resamples=20", "page.cases=2",
]  # fmt: skip
MODEL = "pretraining.model={dim: 16, hidden: 24}"
ONE = [*TINY, MODEL, "pretraining.heads.topic.positions=16"]
TWO = ["data.views=all", "data.max_views=2"]
MEAN = [*ONE, *TWO, "pretraining.model.views=mean"]
CONCAT = [*TINY, MODEL, "pretraining.heads.topic.positions=32", *TWO, "pretraining.model.views=concat"]


def run(command: str, *given: str | Path) -> int:
    return main([command, *map(str, given)])


def r2gens(root: Path, clean: str = "raw") -> list[str]:
    return ["data.name=r2gen", f"data.root={root}", f"data.clean={clean}"]


def annotation(root: Path) -> dict[str, list[dict[str, Any]]]:
    return json.loads((root / "annotation.json").read_text())


def references(out: Path) -> list[list[str]]:
    """The words of the references of a run, as a reader finds them on its page."""
    page = (out / "reports.html").read_text()
    block = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert block
    return [words(" ".join(s["text"] for s in case["reference"])) for case in json.loads(block[1])["cases"]]


def private(out: Path) -> None:
    for path in [*(out / "reports").iterdir(), *out.glob("*.html")]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def by_row(out: Path) -> dict[str, Any]:
    return {r.row: r for r in read(out / "results.json")}


@pytest.fixture(scope="module")
def iu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """R2Gen's IU X-ray: two images a study."""
    root = tmp_path_factory.mktemp("iu") / "data"
    assert data_main(["export", "--layout", "r2gen", "--out", str(root), "train=12", "val=3", "test=5"]) == 0
    return root


@pytest.fixture(scope="module")
def fused(iu: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator of two views, fused by their mean, on R2Gen's cleaned text; nobody changes it."""
    out = tmp_path_factory.mktemp("fused") / "run"
    assert run("train", *MEAN, *r2gens(iu, "r2gen"), "--out", out) == 0
    return out


# ---------------------------------------------------------------------------------------------------------- R2Gen, IU


@pytest.mark.slow
def test_iu_in_r2gens_clean_text_is_learned_and_judged_in_that_text_and_says_so(iu: Path, fused: Path) -> None:
    page = (fused / "index.html").read_text()
    assert "text: r2gen (IU X-ray rules)" in page
    assert "split: that of annotation.json" in page
    private(fused)
    rows = by_row(fused)
    assert {"topic_sentence", "oracle_topic", "mode_report", "nearest_neighbour", "reference"} <= set(rows)
    assert rows["reference"].config["images"] == 5
    assert rows["reference"].metrics["bleu_4"].value == pytest.approx(1)
    assert not [name for name in rows["reference"].metrics if name.startswith(("finding", "location", "truth"))]  # the grammar is not asked
    known = {word for example in annotation(iu)["train"] for word in r2gen.clean_iu(example["report"]).split()} - {"."}
    pieces = set(load(fused).vocabulary.pieces[4:])  # type: ignore[attr-defined]
    assert pieces == known
    assert all(word == word.lower() for word in pieces)


@pytest.mark.parametrize("clean", ["raw", "r2gen"])
def test_references_are_the_reports_of_the_annotation_word_for_word(clean: str, iu: Path, fused: Path, tmp_path: Path, capsys: Any) -> None:
    assert run("evaluate", "--checkpoint", fused, *MEAN, *r2gens(iu, clean), "page.cases=5", "--out", tmp_path / "out") == 0
    assert f"text: {clean}" in (tmp_path / "out/index.html").read_text()
    told = [example["report"] for example in annotation(iu)["test"]]
    if clean == "r2gen":
        told = [r2gen.clean_iu(text).replace(" . ", " ").rstrip(" .") for text in told]
    assert sorted(references(tmp_path / "out")) == sorted(words(text) for text in told)


def test_both_views_are_seen_and_maps_lie_in_the_first(iu: Path, fused: Path) -> None:
    it = load(fused)
    assert (it.views, it.max_views, it.sizes["tokens"]) == ("all", 2, 16)
    reports = output.from_json((fused / "reports/test.json").read_text())
    assert [r.id for r in reports] == [example["id"] for example in annotation(iu)["test"]]
    said = [s for r in reports for s in r.sentences]
    assert said
    assert {s.map.shape for s in said} == {(4, 4)}
    assert {r.image for r in reports} == {0}
    assert_second_view_counts(it, iu)


@pytest.mark.slow
def test_two_views_side_by_side_are_twice_the_tokens(iu: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("train", *CONCAT, *r2gens(iu), "--out", out) == 0
    it = load(out)
    assert (it.sizes["tokens"], it.sizes["cells"]) == (32, 32)
    said = [s for r in output.from_json((out / "reports/test.json").read_text()) for s in r.sentences]
    assert said
    for sentence in said:
        assert sentence.map.shape == (4, 4)
        assert sentence.map.sum() == pytest.approx(1, abs=0.01)
    assert_second_view_counts(it, iu)
    with pytest.raises(ConfigError, match="16"):  # as many positions as one view has
        run("train", *CONCAT, *r2gens(iu), "pretraining.heads.topic.positions=16", "--out", tmp_path / "few")


def assert_second_view_counts(it: Generator, root: Path) -> None:
    """What the decoder looks at changes with the second image, and with its absence."""
    study = next(s for s in load_studies("r2gen", root=str(root)).studies if s.split == "test")
    first, second = study.images
    seen = []
    for images in ((first, second), (first, first), (first,)):
        (_, batch, _), *none = list(score.batches(it, [replace(study, images=images, views=("UNKNOWN",) * len(images))], 4, {}))
        assert not none
        memory = it.seen(batch)
        seen.append(memory.tokens * memory.mask.unsqueeze(-1))
    assert not torch.equal(seen[0], seen[1])
    assert seen[0].shape[1] != seen[2].shape[1] or not torch.equal(seen[0], seen[2])


def test_a_study_whose_image_cannot_be_read_is_counted_and_the_others_are_judged(iu: Path, fused: Path, tmp_path: Path, capsys: Any) -> None:
    root = tmp_path / "data"
    shutil.copytree(iu, root)
    files.cut(root / "images" / annotation(iu)["test"][1]["image_path"][1])  # the second of its two
    words = ["--checkpoint", fused, *MEAN, *r2gens(root, "r2gen"), "--out"]
    assert run("evaluate", *words, tmp_path / "e") == 0
    row = by_row(tmp_path / "e")["topic_sentence"]
    assert (row.config["images"], row.config["unreadable"]) == (4, 1)
    capsys.readouterr()
    assert run("generate", *words, tmp_path / "g") == 0
    assert "1 cannot be read: " + annotation(iu)["test"][1]["id"] in capsys.readouterr().out
    assert len(output.from_json((tmp_path / "g/reports/test.json").read_text())) == 4


# ------------------------------------------------------------------------------------------------------- R2Gen, MIMIC


@pytest.mark.slow
def test_each_image_of_mimic_is_an_example_and_patients_are_drawn_together(tmp_path: Path) -> None:
    root, out = tmp_path / "data", tmp_path / "out"
    export("r2gen_mimic", root, counts={"train": 12, "val": 4, "test": 6})
    assert run("train", *ONE, *r2gens(root, "r2gen"), "--out", out) == 0
    assert "text: r2gen (MIMIC-CXR rules)" in (out / "index.html").read_text()
    private(out)
    listed = annotation(root)["test"]
    assert [r.id for r in output.from_json((out / "reports/test.json").read_text())] == [example["id"] for example in listed]
    row = by_row(out)["topic_sentence"]
    assert (row.config["images"], row.config["patients"]) == (6, len({example["subject_id"] for example in listed}))
    assert row.config["patients"] < 6


def test_a_sentence_of_few_patients_does_not_travel_in_the_checkpoint(iu: Path, fused: Path) -> None:
    """topics.json names the usual sentences of each topic; of real data only those of ten studies and more."""
    it, listed = load(fused), train.table(schemas.load("mgrrg_phantom"), Data(name="r2gen"), {"root": str(iu), "clean": "r2gen"}).split("train")
    assert it.topics == train.topics(it, listed, least=train.SHARED)
    listed = [*listed, *listed[:6], *[listed[0]] * 9]  # some sentences are said often
    counts: dict[str, int] = {}
    for study in listed:
        for text in {s.text for s in study.sentences}:
            counts[text] = counts.get(text, 0) + 1
    assert min(counts.values()) == 1
    assert max(counts.values()) > train.SHARED
    for least in (1, 2, train.SHARED):
        found = train.topics(it, listed, least=least)
        assert sum(about["count"] for about in found.values()) == sum(count for count in counts.values() if count >= least)
        assert all(counts[text] == count >= least for about in found.values() for text, count in about["sentences"])
    assert found


# ----------------------------------------------------------------------------------------------------------- ReXrank


@pytest.fixture(scope="module")
def rexrank(iu: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test set of `iu` as ReXrank has it: no training, two sections, a context, the frontal image named."""
    root = tmp_path_factory.mktemp("rexrank") / "data"
    shutil.copytree(iu / "images", root / "images")
    entries = {
        example["id"]: {
            "key_image_path": example["image_path"][0], "image_path": example["image_path"], "section_findings": example["report"],
            "section_impression": None if number == 2 else f"Impression number {number}.", "split": "test",
            "report": example["report"], "frontal_lateral": ["Frontal", "Lateral"], "context": "Indication: cough.",
        }
        for number, example in enumerate(annotation(iu)["test"])
    }  # fmt: skip
    (root / "ReXRank_IUXray_test.json").write_text(json.dumps(entries))
    return root


def test_a_submission_is_written_for_a_test_set_without_training_and_judged_without_priors_of_it(
    fused: Path, rexrank: Path, tmp_path: Path, capsys: Any
) -> None:
    entries = rexrank / "ReXRank_IUXray_test.json"
    out = tmp_path / "g"
    assert run("generate", "--checkpoint", fused, *MEAN, *r2gens(rexrank), "--entries", entries, "--out", out) == 0
    submission = out / "reports/test.rexrank.json"
    private(out)
    told, wanted = json.loads(submission.read_text()), json.loads(entries.read_text())
    texts = {r.id: r.text for r in output.from_json((out / "reports/test.json").read_text())}
    assert told == {study: {**fields, "model_prediction": texts[study]} for study, fields in wanted.items()}
    capsys.readouterr()
    both = [*MEAN, *r2gens(rexrank), "sections=[findings,impression]"]
    assert run("evaluate", "--generated", submission, *both, "--out", tmp_path / "e") == 0
    assert "no training reports in this data" in (tmp_path / "e/index.html").read_text()
    rows = by_row(tmp_path / "e")
    assert list(rows) == ["test.rexrank", "reference"]
    assert rows["test.rexrank"].config["images"] == 5
    lengths = [len(words(" ".join(filter(None, (f["section_findings"], f["section_impression"]))))) for f in wanted.values()]
    assert rows["reference"].metrics["length"].value == pytest.approx(np.mean(lengths))
    assert "copied_rate" not in rows["reference"].metrics
    assert run("evaluate", "--checkpoint", fused, *MEAN, *r2gens(rexrank), "--out", tmp_path / "c") == 0
    assert list(by_row(tmp_path / "c")) == ["topic_sentence", "oracle_topic", "reference", "topic_sentence - oracle_topic"]


def test_training_and_tuning_need_training_reports(fused: Path, rexrank: Path, tmp_path: Path) -> None:
    for words_ in (["train"], ["tune", "--checkpoint", fused]):
        with pytest.raises(ConfigError, match="no study of split 'train'") as error:
            run(*words_, *MEAN, *r2gens(rexrank), "--out", tmp_path / "out")
        assert "test" in error.value.fix
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------ sections, context, views


@pytest.fixture(scope="module")
def openi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Open-i: findings, impression and indication; every third study with a lateral image first. Two test studies have nothing but a lateral."""
    root = tmp_path_factory.mktemp("openi") / "data"
    export("openi_kaggle", root, counts={"train": 34, "val": 4, "test": 2})
    test = [s.id.removeprefix("CXR") for s in load_studies("openi", root=str(root)).studies if s.split == "test"][:2]
    path = root / "indiana_projections.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["projection"] = "Lateral" if row["uid"] in test else row["projection"]
    files.write_table(path, rows)
    return root


@pytest.fixture(scope="module")
def told(openi: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator of both sections that is told the indication, of studies with a frontal image; nobody changes it."""
    out = tmp_path_factory.mktemp("told") / "run"
    assert run("train", *of_openi(openi), "--out", out) == 0
    return out


def of_openi(root: Path) -> list[str]:
    chosen = ["data.name=openi", f"data.root={root}", "sections=[findings,impression]", "context=indication", "frontal_only=true", "page.cases=10"]
    return [word for word in ONE if not word.startswith("page.")] + chosen


@pytest.mark.slow
def test_findings_and_impression_are_written_and_studies_of_a_wrong_view_are_left_out_and_counted(openi: Path, told: Path) -> None:
    listed = [s for s in load_studies("openi", root=str(openi)).studies if s.split == "test"]
    lateral = [s for s in listed if all(view == "LATERAL" for view in s.views)]
    assert len(lateral) == 2
    both = {s.id: [x for name in ("findings", "impression") for x in s.sentences if x.section == name] for s in listed if s not in lateral}
    assert any(s.section == "impression" for report in both.values() for s in report)
    assert {r.id for r in output.from_json((told / "reports/test.json").read_text())} == {id for id, report in both.items() if report}
    assert sorted(references(told)) == sorted(words(" ".join(s.text for s in report)) for report in both.values() if report)
    for name in ("index.html", "reports.html"):
        assert "2 studies left out: no frontal image" in (told / name).read_text()


def test_what_generate_leaves_out_is_said(openi: Path, told: Path, tmp_path: Path, capsys: Any) -> None:
    capsys.readouterr()
    assert run("generate", "--checkpoint", told, *of_openi(openi), "--out", tmp_path / "out") == 0
    assert "note: 2 studies left out: no frontal image" in capsys.readouterr().out
    assert (tmp_path / "out/reports/test.txt").read_bytes() == (told / "reports/test.txt").read_bytes()


def test_the_decoder_is_told_the_indication(openi: Path, told: Path, tmp_path: Path) -> None:
    it, listed = load(told), load_studies("openi", root=str(openi)).studies
    assert (it.sections, it.context) == (("findings", "impression"), "indication")
    heard = it.told(listed)
    assert heard is not None
    assert [bool(row.any()) for row in heard.mask] == [bool(study.sections.get("indication")) for study in listed]
    assert all(it.vocabulary.unknown(it.vocabulary.encode(context_of(study, "indication"))) == 0 for study in listed if study.split == "train")
    for change in ("sections=[findings]", "context="):
        with pytest.raises(ConfigError, match="the generator"):
            run("evaluate", "--checkpoint", told, *of_openi(openi), change, "--out", tmp_path / "no")


def test_a_layout_that_is_not_there_is_said_before_anything_is_written(iu: Path, tmp_path: Path) -> None:
    for root, kind, says in ((tmp_path / "absent", DataError, "no folder"), ("???", ConfigError, "root")):
        with pytest.raises(kind, match=says):
            run("train", "--config", "mgrrg_iu", f"data.root={root}", "--out", tmp_path / "out")
    with pytest.raises(ConfigError, match="no choice 'conclusion'"):
        run("train", *ONE, *r2gens(iu), "sections=[conclusion]", "--out", tmp_path / "out")
    with pytest.raises(ConfigError, match="has a sentence in impression") as error:
        run("train", *ONE, *r2gens(iu), "sections=[impression]", "--out", tmp_path / "out")
    assert "none" in error.value.fix
    assert not (tmp_path / "out").exists()
