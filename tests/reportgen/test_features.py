"""Features of a frozen visual side: written once, whole and for their owner alone; never another model's, another selection's, another image's."""

from __future__ import annotations

import os
import pickle
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from downstream.reportgen import config as schemas
from downstream.reportgen import features, score
from downstream.reportgen.model import Generator, Sight
from downstream.reportgen.train import Table, Task, kept_features, prepare
from elvis.assembly import create_objectives
from elvis.config import Config, Data, Model
from elvis.data import cache
from elvis.data.volumes import VolumeFile
from elvis.errors import CheckpointError, ConfigError
from elvis.training import train_mode
from elvis.types import Study
from tests.reportgen import tiny


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ELVIS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def it() -> Generator:
    return tiny.ct_generator()


def of(it: Generator, listed: Any, where: str | Path = "auto", **options: Any) -> features.Store:
    return features.of(it, listed, str(where), **{"batch_size": 2, "dataset": "phantom_ct", "progress": False, **options})


def files(folder: Path, count: int = 3) -> list[Study]:
    """Studies whose volumes lie on disk."""
    folder.mkdir()
    out = []
    for n, scan in enumerate(tiny.scans(count)):
        np.savez(folder / f"{n}.npz", scan.images[0].load().values)
        out.append(replace(scan, images=(VolumeFile(str(folder), f"{n}.npz"),)))
    return out


def changed(it: Generator, **options: Any) -> Generator:
    return tiny.ct_generator(**{"visual": it.pretrained, "per_structure": it.per_structure, "head_reduction": it.head_reduction, **options})


# ------------------------------------------------------------------------------------------------------------ written


def test_what_is_kept_is_what_is_seen_in_half_precision(it: Generator) -> None:
    listed = tiny.scans(3)
    store = of(it, listed)
    assert store.about["shape"] == [40, 24]
    for study in listed:
        with torch.no_grad():
            memory = it.seen(tiny.batch(it, [study]))
        tokens, mask, place = store[study.id]
        assert (tokens.dtype, mask.dtype) == (np.float16, np.bool_)
        assert np.abs(tokens - memory.tokens[0].numpy()).max() < 2e-3
        assert np.array_equal(mask, memory.mask[0].numpy())
        assert np.array_equal(place, memory.place[0].numpy())
    assert store.bytes == 3 * 40 * (24 * 2 + 1 + 4)


def test_it_is_written_once_and_found_again(it: Generator, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = tiny.scans(2)
    first = of(it, listed)
    assert first.folder.parent == own_cache / "features"
    monkeypatch.setattr(score, "batches", None)  # nothing is looked at again
    again = of(tiny.ct_generator(), tiny.scans(2))  # another process: the same weights, the same scans
    assert again.folder == first.folder
    assert all(np.array_equal(a, b) for study in listed for a, b in zip(first[study.id], again[study.id], strict=True))
    worker = pickle.loads(pickle.dumps(again))
    assert np.array_equal(worker[listed[1].id][0], first[listed[1].id][0])
    assert (worker.images, worker.about) == (first.images, first.about)


def test_only_the_owner_may_open_it_and_no_report_is_in_it(it: Generator, tmp_path: Path) -> None:
    listed, old = tiny.scans(2), os.umask(0o022)
    (tmp_path / "runs").mkdir(mode=0o755)
    try:
        stores = [of(it, listed), of(it, listed, tmp_path / "runs" / "features")]
    finally:
        os.umask(old)
    for store in stores:
        assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE((store.folder / name).stat().st_mode) for name in features.FILES} == {0o600}
        everything = b"".join(path.read_bytes() for path in store.folder.iterdir())
        assert not any(text.encode() in everything for text in tiny.sentences(listed))
    assert stat.S_IMODE((tmp_path / "runs").stat().st_mode) == 0o755  # what holds the folder is not ours


def test_volumes_that_cannot_be_read_are_counted_and_left_out(it: Generator, tmp_path: Path) -> None:
    listed = files(tmp_path / "data", 4)
    (tmp_path / "data/1.npz").write_bytes(b"PK\3\4 no zip")
    store = of(it, listed)
    assert store.about["unreadable"] == {listed[1].id: "truncated"}
    assert (listed[1].id in store, store.about["studies"]) == (False, 3)
    assert np.abs(store[listed[3].id][0] - of(it, [listed[3]])[listed[3].id][0]).max() == 0  # a row is its own study's
    for file in (tmp_path / "data").iterdir():
        file.unlink()
    with pytest.raises(ConfigError, match="not one image can be read"):
        of(it, listed)
    assert not [path for path in (tmp_path / "cache/features").iterdir() if path.name.startswith(".")]


def test_studies_with_fewer_views_are_filled_up() -> None:
    it = tiny.generator("transformer", views="all", max_views=2)
    one, two = tiny.studies(1), tiny.studies(2, views=2)[1:]
    for listed in ([*one, *two], [*two, *one]):
        store = of(it, listed, batch_size=1)
        tokens, mask, place = store[one[0].id]
        assert (store.about["shape"], mask.tolist()) == ([32, 16 * 4], [True] * 16 + [False] * 16)
        assert not tokens[16:].any()
        assert place.tolist() == [*range(16), *[-1] * 16]
        assert store[two[0].id][1].all()


def test_what_no_decoder_was_made_for_is_the_same(it: Generator) -> None:
    shown = Sight(it.pretrained, it.tokens, it.per_structure, it.head_reduction)
    listed = tiny.scans(2)
    assert shown.shape == (40, 24)
    assert features.place_of(shown, listed) == features.place_of(it, listed)
    assert [array.shape for array in of(shown, listed)[listed[1].id]] == [(40, 24), (40,), (40,)]


@pytest.mark.parametrize("per_structure", [3, "all"])
def test_the_nearest_neighbour_by_kept_features_is_that_by_images(per_structure: int | str, monkeypatch: pytest.MonkeyPatch) -> None:
    it = tiny.ct_generator(per_structure=per_structure)
    known, asked = tiny.scans(6), tiny.scans(3, split="test")
    store = of(it, known)
    nearest = [study.id for study in score.neighbours(it, asked, known, 2)]
    assert len(set(nearest)) > 1
    looked, whole = [], score.batches
    monkeypatch.setattr(score, "batches", lambda it, some, *rest: [looked.extend(s.id for s in some), *whole(it, some, *rest)][1:])
    assert [study.id for study in score.neighbours(it, asked, known, 2, store)] == nearest
    assert looked == [study.id for study in asked]
    alone = of(it, [s for s in known if s.id != nearest[0]])
    assert nearest[0] not in {study.id for study in score.neighbours(it, asked, known, 2, alone)}  # one that could not be read


# -------------------------------------------------------------------------------------------------------- never another's


def test_another_weight_selection_or_preprocessing_has_another_place(it: Generator) -> None:
    listed = tiny.scans(2)
    others = [
        changed(it),
        changed(it, per_structure=4),
        changed(it, per_structure="all"),
        changed(it, head_reduction="mean"),
        changed(it, tokens="raw"),
    ]
    narrow = replace(it.pretrained, preprocess=replace(it.pretrained.preprocess, window=(-1000.0, 400.0)))
    moved = tiny.pretrained_ct()
    with torch.no_grad():
        moved.model.image.stem[0].weight[0, 0, 0, 0, 0] += 1e-3
    heads = tiny.pretrained_ct(views="mean")
    others += [changed(it, visual=narrow), changed(it, visual=moved), changed(it, visual=heads)]
    places = [features.place_of(other, listed) for other in others]
    assert places[0] == features.place_of(it, listed)
    assert len(set(places)) == len(places)


def test_other_images_have_another_place(it: Generator, tmp_path: Path) -> None:
    scans = tiny.scans(2)
    wide = tuple(replace(s, images=(replace(s.images[0], window=(-1000.0, 1000.0)),)) for s in scans)
    spaced = tuple(replace(s, spacing=(9.0, 1.0, 1.0)) for s in scans)
    kinds = [scans, scans[:1], scans[::-1], wide, spaced, tiny.scans(2, domain="B"), tiny.scans(2, seed=1)]
    assert len({features.place_of(it, listed) for listed in kinds}) == len(kinds)
    listed = files(tmp_path / "data", 2)
    before = features.place_of(it, listed)
    os.rename(tmp_path / "data", tmp_path / "moved")
    here = [replace(s, images=(replace(s.images[0], root=str(tmp_path / "moved")),)) for s in listed]
    assert features.place_of(it, here) == before  # it is the data that counts, not where it lies
    os.utime(tmp_path / "moved/0.npz", ns=(1, 1))
    assert features.place_of(it, here) != before


def test_a_folder_of_another_model_selection_or_image_is_refused(it: Generator, tmp_path: Path) -> None:
    listed = files(tmp_path / "data", 3)
    of(it, listed[:2], tmp_path / "features")
    assert of(it, listed[:1], tmp_path / "features").about["studies"] == 2  # a part of it will do
    with pytest.raises(ConfigError, match="lacks 1 of the studies"):
        of(it, listed, tmp_path / "features")
    for other in (changed(it, per_structure=4), changed(it, head_reduction="mean"), changed(it, visual=tiny.pretrained_ct(seed=1))):
        with pytest.raises(ConfigError, match="another visual side or selection"):
            of(other, listed[:2], tmp_path / "features")
    os.utime(tmp_path / "data/1.npz", ns=(1, 1))
    with pytest.raises(ConfigError, match=f"images of 1 studies are not those.*{listed[1].id}"):
        of(it, listed[:2], tmp_path / "features")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds no features"):
        of(it, listed, tmp_path / "mine")
    assert (tmp_path / "mine/thesis.txt").read_text() == "mine"


def test_a_flipped_byte_is_refused(it: Generator, tmp_path: Path) -> None:
    listed = tiny.scans(2)
    of(it, listed, tmp_path / "features")
    for name in features.FILES:
        path = tmp_path / "features" / name
        whole = bytearray(path.read_bytes())
        whole[-3] ^= 1
        path.write_bytes(whole)
        with pytest.raises(CheckpointError, match=f"{name} differs from its sha256"):
            of(it, listed, tmp_path / "features")
        whole[-3] ^= 1
        path.write_bytes(whole)
    (tmp_path / "features/ids.json").unlink()
    with pytest.raises(CheckpointError, match=r"ids\.json is missing"):
        of(it, listed, tmp_path / "features")


@pytest.mark.parametrize("ends", [KeyboardInterrupt, SystemExit])
def test_an_export_that_is_stopped_leaves_nothing_half(
    it: Generator, own_cache: Path, monkeypatch: pytest.MonkeyPatch, ends: type[BaseException]
) -> None:
    seen, calls = it.seen, []

    def stop(batch: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise ends
        return seen(batch)

    with monkeypatch.context() as patch:
        patch.setattr(it, "seen", stop)
        with pytest.raises(ends):
            of(it, tiny.scans(4))
    assert list((own_cache / "features").iterdir()) == []
    assert of(it, tiny.scans(4)).about["studies"] == 4


def test_purge_takes_the_features_and_what_a_killed_export_left_and_nothing_else(it: Generator, own_cache: Path) -> None:
    store = of(it, tiny.scans(1))
    half = own_cache / "features" / ".stage-abc"
    half.mkdir()
    (half / "tokens.npy").write_bytes(b"12345")
    mine = own_cache / "features" / "mine"
    mine.mkdir()
    bytes = cache.size(store.folder)
    assert cache.folders() == sorted([half, store.folder])
    assert cache.purge() == (own_cache, bytes + 5)
    assert list((own_cache / "features").iterdir()) == [mine]


# ---------------------------------------------------------------------------------------------------------------- trained on


def task(it: Generator, mode: str = "frozen", objectives: nn.ModuleDict | None = None, fixed: tuple[str, ...] = ()) -> Task:
    objectives = objectives or nn.ModuleDict()
    prepare(it.pretrained.model, objectives, ["report", "sentence", "structure"], mode, it.tokens, fixed)
    made = Task(it, objectives, it.to_input, mode=mode)
    train_mode(made)
    return made


def loss(made: Task, batch: Any) -> torch.Tensor:
    return sum(total / count.clamp_min(1) for total, count in made(batch).values())


def moved(made: Task, batch: Any) -> set[str]:
    """Names of what a step changes, buffers too."""
    before = {name: value.clone() for name, value in made.state_dict().items()}
    adam = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], 1e-2)
    loss(made, batch).backward()
    adam.step()
    return {name for name, value in made.state_dict().items() if not torch.equal(value, before[name])}


def test_the_loss_from_features_is_that_from_images(it: Generator) -> None:
    listed = tiny.scans(4)
    store = of(it, listed)
    from_images, from_features = tiny.raw_batch(it, listed), tiny.dataset(it, listed, features=store)
    kept = from_features.collate([from_features.item(n) for n in range(4)])
    assert kept.images.shape == (4, 1, 1, 1, 1, 1)  # no volume was read
    made = task(it)
    with torch.no_grad():
        assert float(loss(made, kept)) == pytest.approx(float(loss(made, from_images)), rel=2e-3)
    grads = []
    for given in (kept, from_images):
        made.zero_grad()
        loss(made, given).backward()
        grads.append(torch.cat([p.grad.flatten() for p in made.decoder.parameters() if p.grad is not None]))
    assert torch.nn.functional.cosine_similarity(*grads, dim=0) > 0.999


def test_frozen_changes_nothing_of_the_visual_side() -> None:
    made = task(tiny.ct_generator())
    names = moved(made, tiny.raw_batch(tiny.ct_generator(), tiny.scans(3)))
    assert names
    assert all(name.startswith("decoder.") for name in names)


@pytest.mark.parametrize("blocks", [0, 1])
def test_finetuning_moves_backbone_projection_and_structure_queries(blocks: int) -> None:
    it = tiny.ct_generator(visual=tiny.pretrained_ct(blocks=blocks))
    names = moved(task(it, "finetune"), tiny.raw_batch(it, tiny.scans(3)))
    assert {"model.image.stem.0.weight", "model.image.stem.1.running_mean", "model.image_local.weight", "model.heads.structure.learned"} <= names
    assert not any(name.startswith("model.text") for name in names)
    assert all(p.grad is not None for p in it.pretrained.model.parameters() if p.requires_grad)
    assert all(p.grad is not None for p in it.decoder.look.parameters())


def test_joint_training_goes_on_with_the_structure_contrast_and_its_fixed_text_side() -> None:
    it = tiny.ct_generator()
    given = Config(objectives={"structure_contrast": {"queue": 4}}, model=Model(dim=16))
    objectives, _ = create_objectives(given)
    made = task(it, "joint", objectives, ("^text",))
    batch = tiny.dataset(it, tiny.scans(3), units=["report", "sentence", "structure"], structures=it.pretrained.structures)
    shown = batch.collate([batch.item(n) for n in range(3)])
    assert set(made(shown)) == {"decoder/words", "structure_contrast/image_to_text"}
    names = moved(made, shown)
    assert {"model.image.stem.0.weight", "model.heads.structure.learned", "model.heads.structure.out.weight", "decoder.look.into.weight"} <= names
    assert not any(name.startswith("model.text") for name in names)
    assert not made.model.text.training
    assert all(p.grad is not None for p in it.pretrained.model.parameters() if p.requires_grad)
    assert int(objectives["structure_contrast"].filled.sum()) > 0


# ------------------------------------------------------------------------------------------------------------------ refused


def chosen(*words: str) -> schemas.Reportgen:
    return schemas.load("structure_ct_phantom", list(words))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["visual=finetune"], "visual is finetune"),
        (["visual=joint"], "visual is joint"),
        (["visual_lr=0.1"], "a frozen visual side learns nothing"),
        (["features=''", "visual=finetune", "visual_lr=0"], "visual_lr is 0: give a positive number"),
        (["decoder={name: topic_sentence}"], "not among the kept features"),
        (["features=''", "decoder={name: topic_sentence}"], "lays topics over all image tokens"),
        (["per_structure=0"], "one at least"),
        (["per_structure=many"], "or all"),
        (["head_reduction=median"], "head_reduction"),
        (["decode.min_tokens=300"], r"decode\.max_report=220"),
    ],
)
def test_settings_that_do_not_fit_are_refused(words: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        chosen(*words)


def test_settings_that_fit_are_not() -> None:
    assert chosen("per_structure=all", "head_reduction=mean", "decode.min_tokens=100").per_structure == "all"  # of a report, not of a sentence
    assert chosen("features=''", "visual=finetune").features == ""


def test_augmented_and_drawn_images_are_not_kept(it: Generator) -> None:
    class Fabric:
        device, world_size = "cpu", 1

    class Two(Fabric):
        world_size = 2

    table = Table(tiny.scans(2), [], None, "phantom_ct")
    with pytest.raises(ConfigError, match="not exported yet"):  # the second process would have to wait for hours
        kept_features(it, chosen(), table, Data(), Two(), progress=False)
    for section, says in ((Data(augment={"rotate": 5.0}), "augment would change"), (Data(views="random"), "one view")):
        with pytest.raises(ConfigError, match=says):
            kept_features(it, chosen(), table, section, Fabric(), progress=False)
    listed, store = kept_features(it, chosen(), table, Data(), Fabric(), progress=False)
    assert [study.id for study in listed] == list(store.rows)
    assert kept_features(it, chosen(), table, Data(), Two(), progress=False)[0] == listed
