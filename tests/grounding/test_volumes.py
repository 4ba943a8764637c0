"""Grounding in volumes: maps and masks scored as they are defined, the rows beside them, and the command with what it refuses."""

from __future__ import annotations

import csv
import json
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from downstream.grounding import config as schemas
from downstream.grounding import tables, volume_report, volumes
from downstream.grounding.__main__ import main
from downstream.grounding.volumes import CENTRE, CHOICE, EVEN, STRUCTURE, Raster, gather, run, seen_window
from elvis import checkpoints
from elvis.backbones import create_backbone
from elvis.data import studies
from elvis.data.frames import VolumeFrame, VolumePreprocess
from elvis.data.images import BadImage, Look
from elvis.data.phantoms import layouts
from elvis.data.structures import Structures
from elvis.data.studies import StudyTable
from elvis.data.tokenizer import Tokenizer
from elvis.errors import ConfigError, DataError
from elvis.metrics import grounding
from elvis.model import VisionLanguageModel
from elvis.pretrained import Pretrained
from elvis.registry import TEXT_ENCODERS
from elvis.types import Grounding, ImageFeatures, Mask, Sentence, Study, TextFeatures, UnitFeatures
from tests.grounding.test_maps import write as write_2d

SHAPE = (8, 12, 16)
LUNG, HEART, NODULE, EFFUSION = 40, 80, 160, 240  # grey values
BOXES = {  # name -> (grey, its slices)
    "lung": (LUNG, np.s_[1:7, 2:10, 1:8]),
    "heart": (HEART, np.s_[2:6, 3:9, 9:14]),
    "nodule": (NODULE, np.s_[2:4, 4:6, 2:4]),
    "effusion": (EFFUSION, np.s_[4:6, 6:9, 10:12]),
}


@dataclass(frozen=True)
class Computed:
    """A painted volume, or a mask of one of its boxes."""

    id: str
    shows: str = ""
    shape: tuple[int, ...] = SHAPE
    spacing: tuple[float, ...] = (2.0, 1.0, 1.0)

    path = "painted"

    def read(self) -> np.ndarray:
        if self.id == "broken":
            raise BadImage("truncated", self.id)
        out = np.zeros(self.shape, np.uint8 if not self.shows else bool)
        for name, (grey, where) in BOXES.items():
            if not self.shows:
                out[where] = grey
            elif name == self.shows:
                out[where] = True
        return out

    def look(self) -> Look:
        return Look(self.read(), (), self.spacing)


class Voxels:
    """A model whose token says which grey values its cell holds, and whose phrase says which one it means."""

    name, kinds, patients = "grey", ("cosine",), None
    means = {"There is a nodule.": NODULE, "There is fluid.": EFFUSION, "Elsewhere.": LUNG}

    def __init__(self, size: tuple[int, int, int] = SHAPE, grid: tuple[int, int, int] = SHAPE, **how: Any) -> None:
        self.preprocess = VolumePreprocess(size, how.pop("fit", "pad"), (0.5,), (0.5,), **how)
        self.grid = grid
        self.pretrained, self.structures = self, None
        self.model = SimpleNamespace(learned_query="", image=SimpleNamespace(spec=SimpleNamespace(ndim=3)))

    def see(self, source: Any, spacing: Sequence[float] = ()) -> Look:
        return self.preprocess.look(source, spacing)

    def frame(self, pixels: np.ndarray, spacing: Sequence[float] = ()) -> VolumeFrame:
        return self.preprocess.frame(pixels.shape, spacing)

    def images(self, images: Sequence[np.ndarray], spacing: Sequence[Sequence[float]]) -> tuple[ImageFeatures, ImageFeatures]:
        pixels = torch.from_numpy(np.stack([self.preprocess.resize(*each) for each in zip(images, spacing, strict=True)])).long()
        bins = F.one_hot(pixels // 8, 32).permute(0, 4, 1, 2, 3).float()
        tokens = F.adaptive_avg_pool3d(bins, self.grid).flatten(2).transpose(1, 2)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
        found = ImageFeatures(pooled=tokens.mean(1), tokens=tokens, mask=mask, grid=self.grid)
        return found, found

    def phrases(self, phrases: Sequence[str]) -> TextFeatures:
        vectors = F.one_hot(torch.tensor([self.means[p] // 8 for p in phrases]), 32).float()
        mask = torch.ones(len(phrases), 1, dtype=torch.bool)
        units = {"sentence": UnitFeatures(vectors.unsqueeze(1), mask, mask.long())}
        return TextFeatures(pooled=vectors, tokens=vectors.unsqueeze(1), mask=mask, grid=(1,), units=units)


TOLD = (Sentence("There is a nodule.", region="lung"), Sentence("There is fluid.", region="heart"))


def study(name: str, split: str = "test", **changes: Any) -> Study:
    groundings = tuple(
        Grounding(text.text, (), kind, place, masks=(Mask(kind, "computed", Computed(name, kind)),))
        for place, (text, kind) in enumerate(zip(TOLD, ("nodule", "effusion"), strict=True))
    )
    masks = tuple(Mask(part, "computed", Computed(name, part)) for part in ("lung", "heart"))
    return replace(Study(name, f"p-{name}", split, (Computed(name),), sentences=TOLD, groundings=groundings, masks=masks), **changes)


def configured(*words: str) -> Any:
    return schemas.load("phantom_ct", ["page.cases=2", "resamples=20", *words])


def scored(model: Any, some: Sequence[Study], *words: str) -> volumes.Outcome:
    chosen = configured(*words)
    return run([model], gather(StudyTable(tuple(some)), chosen, structures=False), chosen)


def box(name: str) -> np.ndarray:
    return Computed("x", name).read()


# ------------------------------------------------------------------------------------------------------------ the numbers


def test_a_map_that_is_the_mask_is_perfect_in_original_voxels() -> None:
    share = box("nodule").sum() / np.prod(SHAPE)
    found = scored(Voxels(), [study("a")], f"volumes.share={share}").cases["test"]
    nodule, fluid = found["grey"]
    assert (nodule["dice"], nodule["hit"], nodule["pointing"]) == (1, 1, 1)
    assert nodule["auroc"] == nodule["ap"] == pytest.approx(1)
    assert (nodule["voxels"], nodule["category"]) == (box("nodule").sum(), "nodule")
    assert fluid["dice"] == 1  # its region is larger than the share: all of the voxels of the highest value are in
    assert "nodule" not in json.dumps([nodule["phrase"], nodule["tags"], nodule["study"]])


def test_a_phrase_that_means_something_else_scores_what_overlap_and_chance_give() -> None:
    wrong = study("a", groundings=(replace(study("a").groundings[0], phrase="Elsewhere.", sentence=None),))
    outcome = scored(Voxels(), [wrong], "volumes.share=0.1")
    (case,) = outcome.cases["test"]["grey"]
    shown = Computed("a").read() == LUNG  # the map; the nodule is cut out of it
    assert (case["dice"], case["pointing"]) == (0, 0)
    assert case["auroc"] == pytest.approx((~shown)[~box("nodule")].mean() / 2, abs=2e-3)
    assert STRUCTURE not in outcome.cases["test"]  # the phrase names no region


@pytest.mark.parametrize("how", [{"fit": "pad"}, {"fit": "crop"}, {"spacing": (2.0, 2.0, 2.0)}], ids=["pad", "stretched", "cut"])
def test_numbers_are_those_of_the_map_in_the_originals_voxels(how: dict[str, Any]) -> None:
    model = Voxels((6, 4, 8), (3, 2, 4), **how)
    outcome = scored(model, [study("a")], "volumes.share=0.05")
    look = model.see(Computed("a"))
    seen, _ = model.images([look.pixels], [look.spacing])
    frame = model.frame(look.pixels, look.spacing)
    for place, name in enumerate(("nodule", "effusion")):
        vector = model.phrases([TOLD[place].text]).units["sentence"].vectors[0]
        grids = {"grey": F.cosine_similarity(vector, seen.tokens[0], dim=-1).reshape(3, 2, 4)}
        grids["oracle 3x2x4"] = torch.from_numpy(frame.to_cells((3, 2, 4), box(name)))
        for row, grid in grids.items():
            map, mask = frame.to_original(grid.float()), torch.from_numpy(box(name))
            case = outcome.cases["test"][row][place]
            assert case["cnr"] == pytest.approx(float(grounding.cnr(map, mask, spatial=3)), abs=1e-3, nan_ok=True)
            assert case["auroc"] == pytest.approx(float(grounding.auroc(map, mask, spatial=3)), abs=2e-3, nan_ok=True)
            assert case["pointing"] == pytest.approx(float(grounding.pointing(map, mask, spatial=3)), abs=1e-6)
            values = map[~map.isnan()]
            cut = values.sort(descending=True).values[int(np.ceil(0.05 * len(values))) - 1]
            predicted = (map >= cut - 1e-6).numpy()
            assert case["dice"] == pytest.approx(2 * (predicted & box(name)).sum() / (predicted.sum() + box(name).sum()), abs=0.02)


def test_in_the_input_what_it_shows_of_the_volume_is_scored_and_no_padding() -> None:
    model = Voxels((8, 16, 16), (8, 16, 16))
    outcome = scored(model, [study("a", spacing=(1.0, 1.0, 1.0))], "volumes.space=input", "volumes.share=0.01")
    look = model.see(Computed("a"))
    frame = model.frame(look.pixels, look.spacing)
    window = Raster.of("input", frame).window
    content = np.zeros(frame.size, bool)
    content[window] = True
    assert content.sum() == round(np.prod([n * s for n, s in zip(SHAPE, frame.scale, strict=True)])) < content.size
    mask = frame.to_input(box("nodule"))
    shown = model.preprocess.resize(look.pixels, look.spacing)
    case, oracle = outcome.cases["test"]["grey"][0], outcome.cases["test"]["oracle 8x16x16"][0]
    inside = torch.from_numpy(shown // 8 == NODULE // 8).float()[window]
    expected = grounding.auroc(inside, torch.from_numpy(mask[window]), spatial=3)
    assert case["auroc"] == pytest.approx(float(expected), abs=2e-3)
    assert oracle["auroc"] == pytest.approx(1, abs=0.02)


def test_in_the_input_a_region_that_it_does_not_show_is_counted_out() -> None:
    model = Voxels((2, 4, 4), (2, 4, 4), spacing=(2.0, 1.0, 1.0))  # the middle alone
    outcome = scored(model, [study("a")], "volumes.space=input", "volumes.share=0.01")
    assert outcome.excluded == {"region vanishes in the model's input": 2}
    assert not outcome.cases


@pytest.mark.parametrize("how", [{"fit": "pad"}, {"spacing": (2.0, 2.0, 2.0)}, {"spacing": (4.0, 0.3, 1.0)}])
def test_the_seen_window_is_where_a_map_is_not_nan(how: dict[str, Any]) -> None:
    frame = VolumePreprocess((6, 4, 8), how.pop("fit", "pad"), (0.5,), (0.5,), **how).frame(SHAPE, (2.0, 1.0, 1.0))
    expected = np.zeros(SHAPE, bool)
    expected[seen_window(frame)] = True
    np.testing.assert_array_equal(expected, ~frame.to_original(torch.rand(3, 2, 4)).isnan().numpy())


def test_the_centre_prior_and_the_true_structure_are_what_they_say() -> None:
    outcome = scored(Voxels(), [study("a")], "volumes.share=0.01")
    structure, prior = outcome.cases["test"][STRUCTURE], outcome.cases["test"][CENTRE]
    for place, (name, region) in enumerate((("nodule", "lung"), ("effusion", "heart"))):
        both, whole = (box(name) & box(region)).sum(), box(region).sum()
        assert structure[place]["pointing"] == pytest.approx(both / whole)
        assert structure[place]["dice"] == pytest.approx(2 * both / (whole + box(name).sum()))  # ties: the whole structure
    z, y, x = np.meshgrid(*((np.arange(n) + 0.5) / n - 0.5 for n in SHAPE), indexing="ij")
    map = torch.from_numpy(np.exp(-(z**2 + y**2 + x**2) / 0.125))
    assert prior[0]["auroc"] == pytest.approx(float(grounding.auroc(map, torch.from_numpy(box("nodule")), spatial=3)), abs=0.02)


def test_a_share_is_chosen_on_another_split_without_the_judged_patients() -> None:
    some = [study("a"), study("b", "val"), study("c", "val", patient="p-a")]
    chosen = configured()
    gathered = gather(StudyTable(tuple(some)), chosen, structures=False)
    assert [scan.study.id for scan in gathered.scans[CHOICE]] == ["b"]
    outcome = run([Voxels()], gathered, chosen)
    assert set(outcome.cases) == {"test"}
    assert outcome.shares["grey"] == 0.001  # ties: every share up to the size of a region predicts the whole of it, and the smallest is taken
    assert outcome.cases["test"]["grey"][0]["dice"] == 1
    with pytest.raises(DataError, match="to choose the predicted share on"):
        gather(StudyTable((study("a"),)), chosen, structures=False)
    with pytest.raises(DataError, match="to choose the predicted share on"):
        gather(StudyTable(tuple(some)), configured("volumes.choose_on=test"), structures=False)


def test_a_reference_that_the_choice_does_not_hold_is_left_out_and_a_model_may_not_be() -> None:
    nameless = study("b", "val", sentences=tuple(replace(told, region="") for told in TOLD))
    outcome = scored(Voxels(), [study("a"), nameless])
    assert set(outcome.cases["test"]) == {"grey", CENTRE, "oracle 8x12x16"}
    assert [note.partition(":")[0] for note in outcome.notes] == [f"no row {STRUCTURE}"]
    assert [set(target.metrics) for volume in outcome.shown for target in volume.targets] == [set(outcome.cases["test"])] * 2
    broken = study("broken", "val")
    with pytest.raises(DataError, match="no phrase of split 'val' could be scored by grey"):
        scored(Voxels(), [study("a"), broken])


def test_few_instances_are_told_of_the_splits_where_they_are_few() -> None:
    partial = tuple(replace(truth, tags=frozenset({"partial"})) for truth in study("a").groundings)
    table = StudyTable((study("a", "train", groundings=partial), study("b", "val")))
    (note,) = gather(table, configured("splits=[val]", "volumes.choose_on=train"), structures=False).notes
    assert note.startswith("the predicted share is chosen on train, where at most three")
    (note,) = gather(table, configured("splits=[train,val]", "volumes.share=0.1"), structures=False).notes
    assert note.startswith("train: at most three")
    assert gather(table, configured("splits=[val]", "volumes.share=0.1"), structures=False).notes == []


def test_a_region_outside_what_a_model_sees_is_missed_and_said_to_be_undefined() -> None:
    model = Voxels((2, 4, 4), (2, 4, 4), spacing=(2.0, 1.0, 1.0))  # the middle alone
    chosen = configured("volumes.share=0.01")
    outcome = run([model], gather(StudyTable((study("a"),)), chosen, structures=False), chosen)
    for case in outcome.cases["test"]["grey"]:
        assert [case[name] for name in ("dice", "hit", "pointing")] == [0, 0, 0]
        assert all(np.isnan(case[name]) for name in ("auroc", "ap", "cnr"))
    found = volume_report.all_results(outcome, chosen, {})
    lost = {"cnr": 2, "auroc": 2, "ap": 2}
    assert {r.row: r.config["undefined"] for r in found} == {"grey": lost, "oracle 2x4x4": lost, CENTRE: {}, STRUCTURE: {}}
    assert "test: of grey cnr is not defined for 2 of 2 phrases, auroc is not defined for 2 of 2 phrases" in tables.undefined(found)


def test_equal_phrases_of_a_volume_are_one_with_all_their_masks() -> None:
    one, two = study("a").groundings
    outcome = scored(Voxels(), [study("a", groundings=(one, replace(one, masks=two.masks)))], "volumes.share=0.01")
    (case,) = outcome.cases["test"]["grey"]
    assert case["voxels"] == box("nodule").sum() + box("effusion").sum()


def test_what_cannot_be_scored_is_counted_and_strict_makes_it_an_error() -> None:
    wrong = Mask("nodule", "computed", Computed("x", "nodule", shape=(8, 12, 15)))
    empty = Mask("nodule", "computed", Computed("x", "no such box"))
    first, second = study("a").groundings
    some = [
        study("a", groundings=(replace(first, masks=(wrong,)), replace(second, masks=(empty,)))),
        study("broken"),
        study("c", groundings=(first, replace(second, masks=()))),
    ]
    chosen = configured("volumes.share=0.01")
    gathered = gather(StudyTable(tuple(some)), chosen, structures=False)
    assert +gathered.excluded == {"phrase without a mask": 1}
    outcome = run([Voxels()], gathered, chosen)
    counted = {"mask of another shape than its volume": 1, "mask is empty": 1, "volume cannot be used: truncated": 2}
    assert outcome.excluded == counted
    assert [case["study"] for case in outcome.cases["test"]["grey"]] == ["c"]
    for name, match in (("a", "its volume"), ("broken", "truncated")):
        with pytest.raises(DataError, match=match):
            scored(Voxels(), [s for s in some if s.id == name], "volumes.share=0.01", "strict=true")


def test_a_table_without_masks_of_voxels_is_refused() -> None:
    flat = study("a", groundings=(Grounding("There is a nodule.", ((0, 0, 4, 4),)),), masks=())
    with pytest.raises(DataError, match="no phrase with a mask of voxels in test"):
        gather(StudyTable((flat,)), configured(), structures=True)
    with pytest.raises(DataError, match="no study in split 'test'"):
        gather(StudyTable((study("a", "val"),)), configured(), structures=False)


# ------------------------------------------------------------------------------------------------- a checkpoint of its own


def pretrained(seed: int = 0) -> Pretrained:
    """A small 3D model with a query for each of the ten structures."""
    torch.manual_seed(seed)
    stages = {"layers": [1, 1], "channels": [4, 8], "steps": [2, 2, 2], "depth_steps": [2, 2, 1], "stem": [3, 3, 3]}
    image = create_backbone("resnet3d", in_chans=1, input_size=[16, 32, 32], **stages)
    text = TEXT_ENCODERS.create("tiny", vocab_size=60, width=16, depth=1, heads=2, max_length=64)
    words, told = Structures.load("ct"), ["there is a nodule in the left upper lobe", "pleural fluid is seen on the right"]
    heads = {"structure": {"name": "region_query", "queries": len(words.names), "heads": 2}}
    model = VisionLanguageModel(image, text, dim=16, hidden=24, heads=heads)
    preprocess = VolumePreprocess((16, 32, 32), "pad", image.spec.mean, image.spec.std)
    return Pretrained(model.eval(), Tokenizer.train(told, 60), preprocess, max_tokens=64, structures=words)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    facts = {"commit": "abc", "data": "none", "step": 3, "config": "x"}
    place = tmp_path_factory.mktemp("checkpoint") / "tiny3d"
    return checkpoints.save(place, pretrained(), config_yaml="", metrics={}, provenance=facts, patients=np.array([], np.int64))


@pytest.fixture(scope="module")
def rexgroundingct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rexgroundingct")
    layouts.export("rexgroundingct", root, counts={"train": 5, "val": 3, "test": 1}, depth=12, height=40, width=48)
    return root


SMALL = ["data.size=[16,32,32]", "data.test=5", "data.val=3", "resamples=20", "page.cases=2", "--quiet"]


def test_structure_queries_are_scored_against_the_true_structures() -> None:
    table = studies.load("phantom_ct", size=[16, 32, 32], train=0, val=0, test=2, masks=True)
    it = pretrained()
    chosen = configured("volumes.share=0.01")
    model = SimpleNamespace(name="m", kinds=("cosine",), preprocess=it.preprocess, pretrained=it, phrases=lambda p: it.phrases(p)[0])
    outcome = run([model], gather(table, chosen, structures=True), chosen)
    first = table.studies[0]
    found = {case["category"]: case for case in outcome.structures["test"]["m"] if case["study"] == first.id}
    look = it.see(first.images[0])
    after, _ = it.images([look.pixels], [look.spacing])
    attention = it.model.look("structure", after).attention.mean(2)[0].detach()
    assert set(found) == set(it.structures.names) - {"other"}
    for number, name in enumerate(it.structures.names):
        if name == "other":
            continue
        masks = [mask.data.read() for mask in first.masks if it.structures.of_region(mask.name) == number]
        whole = torch.from_numpy(np.any(masks, 0)).float()[None]  # the structures of phantoms do not overlap
        share = F.adaptive_avg_pool3d(whole, after.grid).flatten()
        assert found[name]["mass"] == pytest.approx(float((attention[number] * share).sum()), abs=1e-4)
        assert found[name]["chance"] == pytest.approx(float(share.mean()), abs=1e-5)
        count = max(1, round(float(share.sum())))
        top = attention[number].topk(count).indices
        assert found[name]["dice"] == pytest.approx(float(2 * share[top].sum() / (count + share.sum())), abs=1e-4)
    rows = outcome.structures["test"]
    grid = "x".join(map(str, after.grid))
    assert set(rows) == {"m", f"oracle {grid}", EVEN}
    assert all(len(cases) == len(rows["m"]) == 18 for cases in rows.values())
    assert all(case["mass"] == pytest.approx(case["chance"], abs=1e-5) for case in rows[EVEN])
    assert all(
        case["mass"] >= case["chance"] and case["dice"] >= other["dice"] - 1e-6 for case, other in zip(rows[f"oracle {grid}"], rows["m"], strict=True)
    )


def test_grids_that_lie_otherwise_have_references_of_their_own_and_further_images_are_counted() -> None:
    table = studies.load("phantom_ct", size=[16, 32, 32], train=0, val=0, test=1, masks=True)
    it, chosen = pretrained(), configured("volumes.share=0.01")
    middle = replace(it.preprocess, spacing=tuple(n / 2 for n in table.studies[0].images[0].look().spacing))  # half of each axis
    other = Pretrained(it.model, it.tokenizer, middle, max_tokens=64, structures=it.structures)
    models = [SimpleNamespace(name=n, kinds=("cosine",), preprocess=p.preprocess, pretrained=p, phrases=lambda s: it.phrases(s)[0])
              for n, p in (("whole", it), ("middle", other))]  # fmt: skip
    rows = run(models, gather(table, chosen, structures=True), chosen).structures["test"]
    assert set(rows) == {"whole", "middle", "oracle 4x4x4", EVEN, "oracle 4x4x4 of middle", f"{EVEN} of middle"}
    for of in ("", " of middle"):
        assert [case["chance"] for case in rows[f"oracle 4x4x4{of}"]] == [case["chance"] for case in rows[of.removeprefix(" of ") or "whole"]]
    first = table.studies[0]
    twice = replace(first, images=first.images * 2, masks=(*first.masks, *(replace(mask, image=1) for mask in first.masks)))
    outcome = run(models[:1], gather(StudyTable((twice,)), chosen, structures=True), chosen)
    assert outcome.excluded == {"structure mask of a study's further image": len(first.masks)}
    assert outcome.structures["test"]["whole"] == rows["whole"]


def test_an_evaluation_on_phantom_ct_writes_everything_it_says(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["evaluate", "--checkpoint", str(folder), "--checkpoint", f"other={folder}", "--config", "phantom_ct", "--out", str(out), *SMALL]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert {p.name for p in out.iterdir()} == {"config.yaml", "results.json", "table.md", "per_case.csv", "index.html"}
    rows = json.loads((out / "results.json").read_text())
    phrases = {r["row"]: r for r in rows if r["task"] == "grounding"}
    assert set(phrases) == {"tiny3d", "other", CENTRE, "oracle 4x4x4", STRUCTURE}
    assert {r["row"] for r in rows if r["task"] == "structure grounding"} == {"tiny3d", "other", "oracle 4x4x4", EVEN}
    assert phrases["tiny3d"]["metrics"] == phrases["other"]["metrics"]
    assert phrases["oracle 4x4x4"]["metrics"]["auroc"]["value"] > 0.95
    assert phrases["tiny3d"]["provenance"]["checkpoints"]["other"].startswith("commit abc")
    assert "chosen for each row on val by the macro Dice" in phrases["tiny3d"]["protocol"]
    table = (out / "table.md").read_text()
    assert "other minus tiny3d" in table
    assert "tiny3d minus centre_prior" in table
    assert "original voxels" in said
    with (out / "per_case.csv").open() as file:
        cases = list(csv.DictReader(file))
    assert sum(case["task"] == "phrase" for case in cases) == sum(r["config"]["phrases"] for r in phrases.values())
    told = [s.text for study in studies.load("phantom_ct", size=[16, 32, 32], train=0, val=0, test=5).studies for s in study.sentences]
    assert not any(text in (out / name).read_text() for text in told for name in ("per_case.csv", "results.json", "table.md"))
    assert stat.S_IMODE((out / "index.html").stat().st_mode) != 0o600


def test_rexgroundingct_is_judged_on_val_focal_and_others_apart(
    folder: Path, rexgroundingct: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [f"data.root={rexgroundingct}", "resamples=20", "page.cases=2", "--quiet"]
    assert (
        main(
            [
                "evaluate",
                "--checkpoint",
                str(folder),
                "--config",
                "rexgroundingct",
                "--out",
                str(out),
                *words,
                "splits=[val,train]",
                "volumes.share=0.01",
            ]
        )
        == 0
    )
    assert "at most three instances of a finding are drawn" in capsys.readouterr().out
    rows = [r for r in json.loads((out / "results.json").read_text()) if r["split"] == "train"]
    assert {"dice", "focal_dice", "non_focal_dice", "focal_hit"} <= set(rows[0]["metrics"])
    assert {r["task"] for r in rows} == {"grounding"}  # it has no masks of structures
    for name in ("index.html", "per_case.csv"):
        assert stat.S_IMODE((out / name).stat().st_mode) == 0o600
    assert str(rexgroundingct) not in (out / "index.html").read_text()
    assert "Patients." in (out / "index.html").read_text()


def test_radgenome_ct_asks_structures_alone_and_says_nothing_of_phrases(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = tmp_path / "radgenome_ct", tmp_path / "out"
    layouts.export("radgenome_ct", root, counts={"train": 1, "val": 2, "test": 0}, depth=12, height=40, width=48)
    words = [f"data.root={root}", "resamples=20", "--quiet", "--out", str(out)]
    assert main(["evaluate", "--checkpoint", str(folder), "--config", "radgenome_ct", *words]) == 0
    rows = json.loads((out / "results.json").read_text())
    assert {(r["task"], r["split"], r["row"]) for r in rows} == {("structure grounding", "val", row) for row in ("tiny3d", "oracle 4x4x4", EVEN)}
    judged = [study for study in studies.load("radgenome_ct", root=str(root)).studies if study.split == "val"]
    asked = {(study.id, Structures.load("ct").of_region(mask.name)) for study in judged for mask in study.masks}
    assert rows[0]["config"]["masks"] == len(asked) == 17  # heart and mediastinum are one of ours; of one study the layout leaves a mask out
    said, table, page = capsys.readouterr().out, (out / "table.md").read_text(), (out / "index.html").read_text()
    assert "scored: val 17 structures" in said
    for text in (said, table, page):
        assert "attention of a learned structure query" in text
        assert "share chosen" not in text
        assert "the share of a volume" not in text
        assert CENTRE not in text


def test_a_checkpoint_that_saw_patients_of_rexgroundingct_is_refused_with_what_to_do_and_show_says_so(rexgroundingct: Path, tmp_path: Path) -> None:
    table = studies.load("rexgroundingct", root=str(rexgroundingct), on_leak="allow")
    trained = checkpoints.save(
        tmp_path / "leaky", pretrained(), config_yaml="", metrics={}, provenance={"commit": "abc", "data": "ct_rate", "step": 3, "config": "x"},
        patients=studies.fingerprints(table),
    )  # fmt: skip
    words = ["--checkpoint", str(trained), "--config", "rexgroundingct", f"data.root={rexgroundingct}", "--quiet"]
    with pytest.raises(ConfigError, match=r"for chest CT: data\.exclude=ROOT of ReXGroundingCT"):
        main(["evaluate", *words, "--out", str(tmp_path / "out")])
    assert main(["show", *words, "force=true", "--count", "1", "--out", str(tmp_path / "one.html")]) == 0
    assert "LEAK, forced: leaky was trained on" in (tmp_path / "one.html").read_text()


def test_what_volumes_do_not_use_is_refused_by_both_commands(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("a\n")
    images_only = ["preset=afloc", "protocol={margin: 0}", "on_invalid=skip", "resized=true", "batch_size=2", "workers=1"]
    for word in (f"cases={tmp_path / 'ids.txt'}", *images_only):
        name = word.partition("=")[0]
        with pytest.raises(ConfigError, match=f"3D checkpoints do not use {name}="):
            volumes.checked([], configured(word))
    for words in (["evaluate"], ["show"], ["show", "--image", str(tmp_path / "ids.txt"), "--phrase", "x"]):
        common = [*words, "--checkpoint", str(folder), "--config", "phantom_ct", "--out", str(tmp_path / "out.html")]
        with pytest.raises(ConfigError, match="3D checkpoints do not use preset=afloc, batch_size=2"):
            main([*common, "preset=afloc", "batch_size=2"])
        with pytest.raises(ConfigError, match="no checkpoint gives the map 'structure'"):
            main([*common, "maps=[structure]"])
    assert not (tmp_path / "out.html").exists()


def test_images_and_volumes_are_told_apart(folder: Path, tmp_path: Path) -> None:
    flat = write_2d(tmp_path / "flat")
    few = ["--quiet", "--out", str(tmp_path / "out")]
    flat_table = ["data.train=0", "data.test=3", "data.comp=0", "data.decor=0", "data.swap=0", "splits=[test]"]
    with pytest.raises(ConfigError, match="holds volumes, flat sees images"):
        main(["evaluate", "--checkpoint", str(flat), "--config", "phantom_ct", "data.test=2", "data.val=0", *few])
    with pytest.raises(DataError, match="no phrase with a mask of voxels"):
        main(["evaluate", "--checkpoint", str(folder), "--config", "phantom", *flat_table, *few])
    with pytest.raises(ConfigError, match="flat 2D, tiny3d 3D"):
        main(["evaluate", "--checkpoint", str(flat), "--checkpoint", str(folder), "--config", "phantom_ct", *few])
    with pytest.raises(ConfigError, match="gradcam is not made for volumes"):
        main(["evaluate", "--checkpoint", str(folder), "--config", "phantom_ct", "maps=[gradcam]", *few])
    with pytest.raises(ConfigError, match="are of 3D checkpoints"):
        main(["show", "--checkpoint", str(flat), "--image", "x.nii", "--phrase", "a nodule"])
    with pytest.raises(ConfigError, match=r"volumes\.space must be original or input"):
        configured("volumes.space=cells")
    assert not (tmp_path / "out").exists()


def test_show_makes_a_page_or_a_picture_of_cases_or_of_any_volume(
    folder: Path, rexgroundingct: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["show", "--checkpoint", str(folder), "--quiet"]
    assert main([*common, "--config", "phantom_ct", *SMALL[:3], "--count", "2", "--out", str(tmp_path / "some.png")]) == 0
    assert main([*common, "--config", "phantom_ct", *SMALL[:3], "--count", "1", "--out", str(tmp_path / "some.html")]) == 0
    assert "the share given: 0.01" in (tmp_path / "some.html").read_text()
    assert capsys.readouterr().out.count("the share given: 0.01") == 2
    volume = next(rexgroundingct.rglob("*_fixed/**/*.nii.gz"))
    words = ["--image", str(volume), "--phrase", "There is a nodule.", "--phrase", "Fluid."]
    assert main([*common, *words, "--out", str(tmp_path / "one.html")]) == 0
    text = (tmp_path / "one.html").read_text()
    assert "There is a nodule." in text
    assert "pleura and diaphragm" in text
    assert stat.S_IMODE((tmp_path / "one.html").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "some.html").stat().st_mode) != 0o600
    with pytest.raises(ConfigError, match="no volume at"):
        main([*common, "--image", str(tmp_path / "nowhere.nii"), "--phrase", "x"])
    with pytest.raises(ConfigError, match=r"ends in \.html or \.png"):
        main([*common, *words, "--out", str(tmp_path / "one.pdf")])
