"""The stream: what it scores, in any batch size and number of processes; the rows that never look; every adapter end to end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from downstream.grounding import references
from downstream.grounding.cases import gather
from downstream.grounding.config import Grounding
from downstream.grounding.evaluate import Outcome, _Scorers, run
from downstream.grounding.protocols import PRESETS, Protocol
from downstream.grounding.score import Scores
from elvis.data import studies as tables
from elvis.data.phantoms import files, layouts
from elvis.data.phantoms.film import Film
from elvis.data.studies import StudyTable
from elvis.errors import DataError, NumericsError
from elvis.metrics.priors import LocationPrior
from tests.grounding.stub import GREYS, Grey, paint, study

OURS = Protocol()


def evaluated(*studies, model: Grey | None = None, protocol: Protocol = OURS, **config: object) -> Outcome:
    found = gather(StudyTable(tuple(studies)), ["test"], protocol)
    outcome = run([model or Grey(GREYS)], found, protocol, Grounding(data={"name": "x"}, **{"workers": 0, **config}))  # type: ignore[arg-type]
    outcome.excluded += found.excluded
    return outcome


def mean(outcome: Outcome, row: str, metric: str, split: str = "test") -> float:
    return float(np.nanmean([case[metric] for case in outcome.cases[split][row]]))


def test_a_model_that_sees_finds_everything_and_the_blind_rows_do_not() -> None:
    outcome = evaluated(*(study(n) for n in range(12)))
    rows = set(outcome.cases["test"])
    assert rows == {"grey", "random", "centre_prior", "mean_box", "text_prior", "oracle 24x24"}
    assert mean(outcome, "grey", "pointing") == 1
    assert mean(outcome, "grey", "wid") == 1
    assert mean(outcome, "grey", "auroc") > 0.97
    assert mean(outcome, "oracle 24x24", "pointing") == 1
    assert mean(outcome, "random", "pointing") < 0.3
    assert 0.4 < mean(outcome, "random", "auroc") < 0.6
    assert mean(outcome, "centre_prior", "pointing") < mean(outcome, "text_prior", "pointing") < 1
    case = outcome.cases["test"]["grey"][0]
    assert (case["study"], case["category"], case["image"], case["sentence"]) == ("test-0", "nodule", 0, 0)
    assert isinstance(case["phrase"], int)


@pytest.mark.slow
def test_batches_and_processes_change_nothing() -> None:
    some = [study(n, shape=(60, 90) if n % 2 else (48, 72)) for n in range(5)]
    whole = evaluated(*some)
    parts = evaluated(*some, batch_size=2, workers=2)
    assert list(whole.cases["test"]) == list(parts.cases["test"])
    for row, cases in whole.cases["test"].items():
        for a, b in zip(cases, parts.cases["test"][row], strict=True):
            assert {k: v for k, v in a.items() if not isinstance(v, float)} == {k: v for k, v in b.items() if not isinstance(v, float)}
            assert [v for v in a.values() if isinstance(v, float)] == pytest.approx(
                [v for v in b.values() if isinstance(v, float)], nan_ok=True, abs=1e-5
            )


def test_an_image_is_encoded_once_for_all_its_phrases_and_a_phrase_once_for_all_its_images() -> None:
    model = Grey(GREYS)
    asked: list[str] = []
    phrases = model.phrases
    model.phrases = lambda some: asked.extend(some) or phrases(some)  # type: ignore[method-assign]
    evaluated(*(study(n) for n in range(5)), model=model, batch_size=2)
    assert model.seen == [2, 2, 1]
    assert sorted(asked) == sorted(GREYS)


def test_what_cannot_be_read_is_counted_by_reason() -> None:
    outcome = evaluated(study(0), study(1, readable=False), replace(study(2), groundings=study(2).groundings[:1]))
    assert outcome.excluded["image cannot be read: truncated"] == 3
    assert len(outcome.cases["test"]["grey"]) == 4
    with pytest.raises(DataError, match="test-1: its image cannot be read: truncated"):
        evaluated(study(0), study(1, readable=False), strict=True)


def test_two_geometries_have_two_oracles() -> None:
    found = gather(StudyTable((study(0),)), ["test"], OURS)
    both = [Grey(GREYS, name="a"), Grey(GREYS, name="b", fit="crop"), Grey(GREYS, name="c", cells=12), Grey(GREYS, name="d")]
    outcome = run(both, found, OURS, Grounding(data={"name": "x"}, workers=0))
    assert [row for row in outcome.cases["test"] if row.startswith("oracle")] == ["oracle 24x24", "oracle 24x24 of 96x96", "oracle 12x12"]


def test_an_oracle_has_a_row_of_every_image_also_where_two_geometries_agree() -> None:
    """A square image looks the same padded and cropped."""
    found = gather(StudyTable((study(0), study(1, shape=(90, 90)))), ["test"], OURS)
    outcome = run([Grey(GREYS, name="a"), Grey(GREYS, name="b", fit="crop")], found, OURS, Grounding(data={"name": "x"}, workers=0))
    assert {row: len(cases) for row, cases in outcome.cases["test"].items() if row.startswith("oracle")} == {
        "oracle 24x24": 6,
        "oracle 24x24 of 96x96": 6,
    }


def test_a_map_that_is_not_finite_stops_the_evaluation_with_the_study() -> None:
    model = Grey(GREYS)
    model.gradcam = lambda images, phrases: [torch.full((len(some), 4, 4), torch.nan) for some in phrases]  # type: ignore[method-assign]
    with pytest.raises(NumericsError, match=r"gradcam.*test-0"):
        evaluated(study(0), model=model, maps=["gradcam"])


def test_a_model_without_a_map_that_was_asked_for_is_named() -> None:
    found = gather(StudyTable((study(0),)), ["test"], OURS)
    lacking = Grey(GREYS, name="plain")
    lacking.kinds = ("cosine",)
    outcome = run([Grey(GREYS), lacking], found, OURS, Grounding(data={"name": "x"}, workers=0, maps=["gradcam"]))
    assert outcome.models == ["grey (gradcam)"]
    assert any("plain gives no map gradcam" in note for note in outcome.notes)


def test_several_maps_are_rows_that_name_their_map() -> None:
    outcome = evaluated(study(0), maps=["cosine", "gradcam"])
    assert outcome.models == ["grey (cosine)", "grey (gradcam)"]
    assert "GradCAM" in outcome.about["grey (gradcam)"]


def test_presets_change_the_cases_and_the_numbers() -> None:
    twice = replace(study(0), groundings=(replace(study(0).groundings[0], boxes=((0, 0, 9, 9), (60, 30, 80, 50))),))
    assert len(evaluated(twice).cases["test"]["grey"]) == 1
    assert len(evaluated(twice, protocol=PRESETS["radzero"]).cases["test"]["grey"]) == 2
    lowered = Grey({phrase.lower(): grey for phrase, grey in GREYS.items()})
    afloc = evaluated(study(0), protocol=PRESETS["afloc"], model=lowered)
    assert mean(afloc, "grey", "cnr") != mean(evaluated(study(0)), "grey", "cnr")


SLEEPER = """
import sys, time
from downstream.grounding.evaluate import processes
if __name__ == "__main__":
    with processes(2) as pool:
        print(*[pool.submit(__import__("os").getpid).result() for _ in range(8)], flush=True)
        time.sleep(60)
"""


def test_a_scorer_that_is_killed_ends_in_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(self: object) -> Scores:
        raise BrokenProcessPool

    monkeypatch.setattr("concurrent.futures.Future.result", dead)
    scorers = _Scorers(0, OURS, Outcome([], {}))
    scorers.sent.append((None, Future()))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="enough memory"):
        scorers._receive()


@pytest.mark.slow
def test_no_scorer_outlives_an_evaluation_that_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "sleeper.py"
    script.write_text(SLEEPER)
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}) as process:
        pids = {int(pid) for pid in process.stdout.readline().split()}  # type: ignore[union-attr]
        assert pids
        process.kill()
    end = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2] for pid in pids):
        assert time.monotonic() < end, "a scorer is still there"
        time.sleep(0.1)


# ------------------------------------------------------------------------------------------------------- references


def test_priors_are_fitted_on_training_boxes_or_else_on_other_patients_only() -> None:
    train = [study(n, split="train") for n in range(30)]
    shots = gather(StudyTable((study(0),)), ["test"], OURS).shots["test"]
    fitted = references.fit(train, shots)
    assert len(fitted.priors) == 1
    assert "90 training phrases" in fitted.about["text_prior"]
    test = [study(n) for n in range(40)]
    shots = gather(StudyTable(tuple(test)), ["test"], OURS).shots["test"]
    crossed = references.fit([], shots)
    assert "other patients" in crossed.about["mean_box"]
    for shot in shots[:6]:
        number = references.fold(shot.study.patient)
        others = LocationPrior.fit(
            (c.phrase, c.category, c.truth.boxes, (60, 90)) for s in shots if references.fold(s.study.patient) != number for c in s.cases
        )
        map, _ = crossed.maps(shot, (60, 90))["text_prior"]
        np.testing.assert_allclose(map[0], others.text(shot.cases[0].phrase, shot.cases[0].category).numpy(), atol=1e-6)


def test_one_patient_alone_has_no_priors_to_be_fitted_and_the_notes_say_so() -> None:
    outcome = evaluated(study(0))
    assert "text_prior" not in outcome.cases["test"]
    assert "random" in outcome.cases["test"]
    assert any("no text_prior" in note for note in outcome.notes)


def test_a_prior_never_saw_a_judged_patient_and_training_images_that_cannot_be_read_lead_to_the_folds() -> None:
    both = [study(n, split="train", patient=f"p{n}") for n in range(6)] + [study(n, patient=f"p{n}") for n in range(3)]
    found = gather(StudyTable(tuple(both)), ["test"], OURS)
    assert {s.patient for s in found.train} == {"p3", "p4", "p5"}
    assert gather(StudyTable(tuple(both)), ["train"], OURS).train == []
    blind = [replace(study(n, split="train", readable=False), groundings=tuple(replace(g, size=None) for g in study(n).groundings)) for n in range(9)]
    shots = gather(StudyTable(tuple(study(n) for n in range(30))), ["test"], OURS).shots["test"]
    assert "folds" in references.fit(blind, shots).about["text_prior"]


def test_random_is_the_same_for_the_same_seed_and_phrase() -> None:
    (shot,) = gather(StudyTable((study(0),)), ["test"], OURS).shots["test"]
    one, two, other = (references.References((), seed).maps(shot, (60, 90))["random"][0] for seed in (0, 0, 1))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one[0], one[1])


# --------------------------------------------------------------------------------------------- adapters, end to end

LAYOUTS = {
    "ms_cxr": ("ms_cxr", {}),
    "ms_cxr json": ("ms_cxr", {}),
    "ms_cxr 0.1": ("ms_cxr", {}),
    "ms_cxr 0.1 json": ("ms_cxr", {}),
    "vindr_cxr": ("vindr_cxr", {}),
    "padchest_gr": ("padchest_gr", {}),
    "padchest_gr_zip": ("padchest_gr", {}),
    "padchest_gr es": ("padchest_gr", {"language": "es"}),
}


def arrange(name: str, root: Path) -> None:
    """The exporter writes both files of MS-CXR 1.1.0: leave one, or call it as release 0.1 does (which has no split)."""
    csv, json = root / "MS_CXR_Local_Alignment_v1.1.0.csv", root / "MS_CXR_Local_Alignment_v1.1.0.json"
    if "json" in name:
        csv.unlink()
    elif name.startswith("ms_cxr"):
        json.unlink()
    if "0.1" in name:
        left = json if "json" in name else csv
        text = left.read_text()
        if left is csv:
            text = "".join(",".join(line.split(",")[:-1]) + "\n" for line in text.splitlines())
        left.with_name(left.name.replace("1.1.0", "1.0.0")).write_text(text)
        left.unlink()


def repaint(path: Path, film: Film, greys: Mapping[str, int]) -> None:
    """Black, with the truth of the generator in one grey a category: smaller regions over larger ones."""
    boxes = sorted(
        ((b, greys[g.category]) for g in film.groundings() for b in g.boxes), key=lambda item: -(item[0][2] - item[0][0]) * (item[0][3] - item[0][1])
    )
    image = paint((film.height, film.width), [(*map(round, box), grey) for box, grey in boxes])
    if path.suffix == ".dicom":
        files.write_dicom(path, image)
    else:
        files.write_image(path, image, quality=100)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("shape", [pytest.param((80, 120), id="wide", marks=pytest.mark.slow), pytest.param((130, 84), id="tall")])
def test_every_adapter_is_right_end_to_end_on_films_that_are_not_square(name: str, shape: tuple[int, int], tmp_path: Path) -> None:
    """The generator's truth is painted into the image files; a model that looks for a phrase's grey finds it where the adapter says it is."""
    layout = name.split()[0]
    made = layouts.export(layout, tmp_path, counts={"train": 3, "test": 14}, height=shape[0], width=shape[1], seed=3)
    arrange(name, tmp_path)
    dataset, options = LAYOUTS[name]
    kinds = sorted({g.category for film in made.truth.values() for g in film.groundings()})
    greys = {kind: 40 + 24 * i for i, kind in enumerate(kinds)}
    if dataset == "vindr_cxr" and "nodule" in greys:
        greys["mass"] = greys["nodule"]  # one class there
    for file, film in made.truth.items():
        repaint(tmp_path / file, film, greys)
    table = tables.checked(tables.index(dataset, root=str(tmp_path), **options), dataset)
    split = "test"
    found = gather(table, [split], OURS)
    means, exact = {}, Counter()
    for shot in found.shots[split]:
        film = next(
            film
            for file, film in made.truth.items()
            if shot.study.images[shot.image].id.endswith(file) or file.endswith(shot.study.images[shot.image].id)
        )
        for case, boxes in zip(shot.cases, shot.boxes(shape), strict=True):
            near = [
                (max(abs(a - b) for a, b in zip(box, true, strict=True)), g.category) for box in boxes for g in film.groundings() for true in g.boxes
            ]
            assert min(near)[0] <= 1.5, "a box of the adapter is not one of the generator"
            means[case.phrase] = greys[min(near)[1]]
            exact[min(near)[1]] += 1
    assert len(exact) >= 4, "too few kinds of finding to prove anything"
    outcome = run([Grey(means, size=128, cells=64)], found, OURS, Grounding(data={"name": dataset}, workers=0))
    assert not +found.excluded - Counter({"phrase without a box": 99})
    assert mean(outcome, "grey", "pointing", split) > 0.9
    assert mean(outcome, "grey", "auroc", split) > 0.9
    assert mean(outcome, "oracle 64x64", "pointing", split) > 0.95
    assert mean(outcome, "random", "pointing", split) < 0.4
    shutil.rmtree(tmp_path)


def test_the_manifest_is_right_end_to_end(tmp_path: Path) -> None:
    from tests import layouts as trees

    images, rows, annotations = [], [], []
    for number in range(6):
        it = study(number, shape=(60, 90))
        files.write_image(tmp_path / f"images/{number}.png", it.images[0].read())  # type: ignore[union-attr]
        rows.append({"id": f"s{number}", "image": f"images/{number}.png", "text": "A mass.", "patient": f"p{number}", "split": "test"})
        images.append({"file_name": f"images/{number}.png", "width": 90, "height": 60})
        annotations += [
            {"image_id": number + 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "label_text": g.phrase} for g in it.groundings for x1, y1, x2, y2 in g.boxes
        ]
    trees.write_table(tmp_path / "manifest.csv", rows)
    trees.write_boxes(tmp_path / "boxes.json", images, annotations)
    table = tables.checked(tables.index("manifest", root=str(tmp_path)))
    found = gather(table, ["test"], OURS)
    outcome = run([Grey(GREYS)], found, OURS, Grounding(data={"name": "manifest"}, workers=0))
    assert len(outcome.cases["test"]["grey"]) == 18
    assert mean(outcome, "grey", "pointing") == 1
