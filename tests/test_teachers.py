"""What a teacher of intra_modal knows of an image: the measure on teachers whose answer is known, and the command on a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import teachers
from benchmarks.teachers import Box
from elvis import config, pretrain
from elvis.data import phantoms
from elvis.data.images import Preprocess
from elvis.errors import ConfigError
from elvis.objectives.intra_modal import IntraModal
from elvis.ops import cosine
from elvis.types import Batch, Pair
from tests.pairs import make

TRAIN = [
    "data.size=64", "data.train=12", "data.val=0", "data.test=2", "data.comp=0", "data.swap=0", "data.decor=0", "train.steps=1", "train.batch_size=4",
    "evaluate.overlays=0", "image.arch.channels=[8,8,8,16]", "image.levels=[4]", "text.width=32", "text.depth=1", "model.dim=16", "model.hidden=32",
]  # fmt: skip


def box(study: int, inside: list[int], ring: list[int]) -> Box:
    return Box(study, True, torch.tensor(inside), torch.tensor(ring))


def test_the_auc_is_that_of_a_loop_over_tokens_ties_one_half() -> None:
    draw = torch.Generator().manual_seed(0)
    similar = torch.randint(0, 4, (3, 12, 12), generator=draw) / 4  # B N N, with many ties
    inside, ring = [1, 4, 5, 8], [0, 2, 3, 9, 11]
    expected = []
    for study in similar.tolist():
        each = []
        for k in inside:
            pairs = [(study[k][near], study[k][far]) for near in inside if near != k for far in ring]
            each.append(sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs))
        expected.append(sum(each) / len(each))
    assert teachers.auc(similar, torch.tensor(inside), torch.tensor(ring)).tolist() == pytest.approx(expected)


def knowing(boxes: list[Box], tokens: int) -> Tensor:
    """Similarities of features that say whether a token lies in the box of its image, and no more."""
    features = torch.tensor([0.0, 1.0]).repeat(len(boxes), tokens, 1)  # B N 2
    for each in boxes:
        features[each.study, each.inside] = torch.tensor([1.0, 0.0])
    return cosine(features, features)


def test_a_teacher_that_knows_the_box_has_one_and_its_control_a_half() -> None:
    boxes = [box(0, [0, 1], [2, 3]), box(1, [4, 5], [6, 7]), box(2, [8, 9, 10], [11])]
    found = teachers.own_and_control(knowing(boxes, 12), boxes, ["a", "b", "c"])
    np.testing.assert_array_equal(found, [[1.0, 0.5]] * 3)


def test_a_teacher_that_knows_positions_alone_has_no_gap() -> None:
    one = torch.rand(1, 12, 12, generator=torch.Generator().manual_seed(0))
    found = teachers.own_and_control(one.expand(3, -1, -1), [box(0, [0, 1], [2, 3]), box(2, [5, 6, 7], [8, 9])], ["a", "b", "c"])
    np.testing.assert_allclose(found[:, 0], found[:, 1], atol=1e-6)


def test_other_images_of_the_same_patient_are_no_control() -> None:
    boxes = [box(0, [0, 1], [2, 3]), box(1, [0, 1], [2, 3])]
    similar = torch.cat([knowing(boxes, 4), torch.zeros(2, 4, 4)])
    np.testing.assert_array_equal(teachers.own_and_control(similar, boxes, ["a", "a", "b", "c"]), [[1.0, 0.5]] * 2)
    np.testing.assert_allclose(teachers.own_and_control(similar, boxes, ["a", "d", "b", "c"]), [[1.0, 2 / 3]] * 2)


def test_studies_are_compared_in_parts_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    similar = torch.rand(7, 9, 9, generator=torch.Generator().manual_seed(0))
    given = (similar, [box(3, [0, 1], [2, 3]), box(6, [4, 5, 8], [2, 3])], list("abcdefg"))
    whole = teachers.own_and_control(*given)
    monkeypatch.setattr(teachers, "PART", 2)
    np.testing.assert_array_equal(teachers.own_and_control(*given), whole)


OPTIONS: list[dict[str, Any]] = [*teachers.TEACHERS.values(), {"teacher": "shuffled"}]


def drawn(studies: int = 4) -> tuple[Pair, Batch]:
    pair, batch = make(sentences=[2] * studies, words=[4] * studies)
    images = torch.rand(studies, 1, 1, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return pair, replace(batch, images=images)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_is_measured_is_what_the_loss_compares(options: dict[str, Any]) -> None:
    pair, batch = drawn()
    teacher, student = teachers.compared(pair, batch, **options)
    total, count = IntraModal(sides=("image",), **options)(pair, batch)["image"]
    off = ~torch.eye(teacher.shape[1], dtype=torch.bool)
    p, q = ((x[:, off].unflatten(1, (len(off), -1)) / 0.1).log_softmax(-1) for x in (teacher, student))  # B N N-1
    expected = (p.exp() * (p - q)).sum(-1).mean(1)
    assert float(total / count) == pytest.approx(float(expected.mean()))


def test_the_control_of_the_loss_is_the_teacher_of_the_study_before() -> None:
    pair, batch = drawn()
    own, shuffled = (teachers.compared(pair, batch, teacher=teacher)[0] for teacher in ("self", "shuffled"))
    torch.testing.assert_close(shuffled, own.roll(1, 0))


def test_nothing_is_left_of_positions_where_they_are_removed() -> None:
    pair, batch = drawn()
    raw = replace(pair.image_raw, tokens=pair.image_raw.tokens[:1].expand(4, -1, -1), mask=torch.ones_like(pair.image_raw.mask))
    teacher, _ = teachers.compared(replace(pair, image_raw=raw), batch, position="remove")
    off = teacher[:, ~torch.eye(teacher.shape[1], dtype=torch.bool)]  # a token is not compared with itself
    torch.testing.assert_close(off, torch.zeros_like(off), atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", [96, 48])  # of the model's input; the phantoms have 96 pixels
def test_a_box_has_the_tokens_inside_it_and_a_ring_those_within_24_pixels(size: int) -> None:
    held_out = phantoms.studies(seed=3, split="val", count=20, size=96)
    cells = size // 8
    found = teachers.boxes_of(held_out, Preprocess((size, size), "pad", (0.5,), (0.25,)), (cells, cells))
    expected = []
    for place, study in enumerate(held_out):
        for given in dict.fromkeys(b for g in study.groundings for b in g.boxes):
            x1, y1, x2, y2 = (edge * size / 96 for edge in given)
            centres = [((n % cells + 0.5) * 8, (n // cells + 0.5) * 8) for n in range(cells * cells)]
            inside = [n for n, (x, y) in enumerate(centres) if x1 < x < x2 and y1 < y < y2]
            ring = [n for n, (x, y) in enumerate(centres) if x1 - 24 < x < x2 + 24 and y1 - 24 < y < y2 + 24 and n not in inside]
            if 2 <= len(inside) <= 20:
                expected.append((place, inside, ring))
    assert expected
    assert [(each.study, each.inside.tolist(), each.ring.tolist()) for each in found] == expected
    kinds = [{g.category for g in held_out[each.study].groundings} for each in found if each.focal]
    assert all(each & set(phantoms.FOCAL) for each in kinds)


def test_a_row_s_gap_is_paired_and_that_of_several_checkpoints_their_mean_over_patients_and_checkpoints() -> None:
    cases = [np.array([[0.9, 0.6], [0.8, 0.7], [0.1, 0.9]]), np.array([[0.7, 0.6], [0.8, 0.5], [0.1, 0.9]])]
    chosen = np.array([True, True, False])
    one = teachers.table([{"raw": cases[0]}], chosen, ["a", "b", "b"]).splitlines()
    assert one[-1] == "| raw | 0.850 | 0.650 | +0.200 [+0.100, +0.300] |"
    both = teachers.table([{"raw": cases[0], "stride4": cases[0]}, {"raw": cases[1]}], chosen, ["a", "b", "b"]).splitlines()
    assert both[2:] == ["| raw | 0.800 | 0.600 | +0.200 [+0.100, +0.300] | +0.200 +0.200 |"]  # a row that one of them lacks is left out


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("teachers") / "run"
    assert pretrain.main(["--config", "elvis_phantom", "--out", str(out), "--quiet", *TRAIN]) == 0
    return out


@pytest.mark.slow
def test_the_command_measures_runs_and_writes_a_page(pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.md"
    assert teachers.main(["--checkpoint", str(pretrained), "--checkpoint", str(pretrained), "--images", "12", "--out", str(out)]) == 0
    text = out.read_text()
    assert text in capsys.readouterr().out
    assert "12 phantoms, split val of seed 7011" in text
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.split("## ")[1].splitlines() if line.startswith("|")]
    rows = {line[0]: line[1:] for line in lines[2:]}
    assert list(rows) == [*teachers.TEACHERS, "stride4", "stride4, standardised", *teachers.STUDENTS]
    for own, control, gap, each in rows.values():
        assert 0 <= float(own) <= 1
        assert 0 <= float(control) <= 1
        assert gap.startswith(each.split()[0])  # the same run twice
        assert len(set(each.split())) == 1


def test_runs_that_cannot_be_compared_or_have_nothing_to_measure_are_refused(pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1 images of 1 patients"):
        teachers.page([str(pretrained)], 1)
    written = (pretrained / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(written.replace("name: phantom\n", "name: phantom\n  seed: 7011\n", 1))
    with pytest.raises(ConfigError, match="seed 7011, which are held out here"):
        teachers.phantoms_of(tmp_path, 4)
    (tmp_path / "config.yaml").write_text(config.load("real_smoke", ["data.root=."]).to_yaml())
    with pytest.raises(ConfigError, match="only phantoms have every box"):
        teachers.phantoms_of(tmp_path, 4)


def test_runs_of_other_phantoms_are_not_put_together(pretrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = iter([phantoms.studies(seed=7011, split="val", count=12, size=64, level=level) for level in (1, 3)])
    monkeypatch.setattr(teachers, "phantoms_of", lambda folder, images: tuple(next(given)))
    with pytest.raises(ConfigError, match="sees other phantoms than"):
        teachers.page([str(pretrained), str(pretrained)], 12)
