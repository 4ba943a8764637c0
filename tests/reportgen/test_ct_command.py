"""Report generation from chest CT, as a user types it: pretrain, export, train, generate, evaluate, on phantoms and on files."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import load_file

from downstream.reportgen import commands, decoders, output, score, show
from downstream.reportgen import config as schemas
from downstream.reportgen.__main__ import main
from downstream.reportgen.config import Decode
from downstream.reportgen.model import load
from downstream.reportgen.reports import Generated, Spoken
from elvis import results
from elvis.data.images import BadImage
from elvis.data.montage import montage_map
from elvis.data.phantoms.scan import ScanImage
from elvis.data.volumes import volume_files
from elvis.errors import ConfigError, DataError
from elvis.results import read
from tests.reportgen import tiny

pytestmark = pytest.mark.slow

TINY = [  # a model of some ten thousand parameters, 4 x 4 x 4 patches, three tokens of each structure
    "data.size=[16,32,32]", "data.train=12", "data.val=4", "data.test=4", "data.masks=false", "pretraining.image.channels=[8,16]",
    "pretraining.image.layers=[1,1]", "pretraining.image.steps=[2,2,2]", "pretraining.image.depth_steps=[1,2,2]", "pretraining.text.width=16",
    "pretraining.model.dim=16", "pretraining.heads.structure.blocks=1", "pretraining.heads.structure.heads=2",
    "pretraining.objectives.structure_contrast.queue=4", "pretraining.train.steps=2", "pretraining.train.batch_size=4",
    "pretraining.train.checkpoint_every=2", "pretraining.train.accelerator=cpu", "pretraining.train.devices=1", "per_structure=3",
    "decoder.width=16", "decoder.heads=2", "decoder.layers=1", "decode.max_report=20", "decode.max_sentences=6", "decode.beams=1",
    "vocabulary.size=200", "train.accelerator=cpu", "train.devices=1", "train.steps=2", "train.batch_size=4", "train.checkpoint_every=1",
    "train.evaluate_every=2", "resamples=10", "page.cases=2", "limit=3",
]  # fmt: skip


def run(command: str, *words: str | Path) -> int:
    return main([command, "--config", "structure_ct_phantom", *TINY, *map(str, words), "--quiet"])


def decoder_weights(out: Path) -> bytes:
    return (out / "checkpoints/step_00000002/decoder.safetensors").read_bytes()


@pytest.fixture(autouse=True, scope="module")
def no_curves_and_a_cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ELVIS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(results, "draw_curves", lambda rows: Figure())  # which takes as long as everything else
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pretrained, trained on features in the cache, judged; nobody changes it."""
    out = tmp_path_factory.mktemp("trained") / "run"
    assert run("train", "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What its visual side sees of the training scans."""
    out, said = tmp_path_factory.mktemp("exported") / "features", io.StringIO()
    with contextlib.redirect_stdout(said):
        assert run("export", "--checkpoint", trained / "pretraining", "--out", out) == 0
    assert "features of 12 studies: 40 tokens of 16 each" in said.getvalue()
    assert f"folder: {out}" in said.getvalue()
    return out


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of volumes: two .npz, a series of slices, one that is broken, and what is none."""
    folder = tmp_path_factory.mktemp("volumes")
    scans = tiny.scans(3, split="test")
    for n, scan in enumerate(scans[:2]):
        np.savez(folder / f"{n}.npz", scan.images[0].load().values)
    (folder / "series").mkdir()
    for z, plane in enumerate(scans[2].images[0].read()):
        Image.fromarray(plane).save(folder / "series" / f"{z:03}.png")
    (folder / "broken.nii.gz").write_bytes(b"no volume")
    (folder / "LICENSE").write_text("words")
    (folder / ".hidden.npz").write_bytes(b"")
    return folder


# -------------------------------------------------------------------------------------------------------------- train


def test_a_run_from_nothing_writes_reports_with_maps_of_the_volume(trained: Path) -> None:
    assert [r.row for r in read(trained / "results.json") if " - " not in r.row] == ["bert", "mode_report", "nearest_neighbour", "reference"]
    reports = output.from_json((trained / "reports/test.json").read_text())
    maps = [s.map for r in reports for s in r.sentences if s.map is not None]
    assert len(reports) == 3
    assert maps
    assert all(m.shape == (4, 4, 4) and m.sum() == pytest.approx(1, abs=1e-3) for m in maps)
    assert all(s.box is None for r in reports for s in r.sentences)
    page = (trained / "reports.html").read_text()
    assert reports[0].id in page
    assert '"cells":[12,16]' in page  # twelve slices, four across, each a grid of 4 x 4
    first, last = (trained / path for path in ("pretraining/checkpoints/step_00000002", "checkpoints/step_00000002"))
    assert (first / "model.safetensors").read_bytes() == (last / "model.safetensors").read_bytes()  # frozen


@pytest.fixture
def unjudged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end with their training: what judges them takes longer than they do."""
    monkeypatch.setattr(commands, "report", lambda *args, **options: [])


@pytest.mark.slow
@pytest.mark.usefixtures("unjudged")
def test_training_goes_on_where_it_was_cut_and_from_exported_features_to_the_same_weights(trained: Path, exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "cut"
    shutil.copytree(trained, out)
    for name in ("step_00000002", "best"):
        shutil.rmtree(out / "checkpoints" / name)
    config = out / "config.yaml"
    config.write_text(config.read_text().replace("visual_lr: 1.0\n", ""))  # begun before the option was there
    assert run("train", "--out", out, "--resume") == 0
    assert decoder_weights(out) == decoder_weights(trained)
    checkpoint = ["--checkpoint", trained / "pretraining"]
    again = tmp_path / "again"
    assert run("train", *checkpoint, f"features={exported}", "--out", again) == 0
    assert decoder_weights(again) == decoder_weights(trained)
    assert run("train", *checkpoint, "features=''", "--out", tmp_path / "seen") == 0
    ours, theirs = (json.loads((path / "log.jsonl").read_text().splitlines()[0]) for path in (trained, tmp_path / "seen"))
    assert ours["decoder/words"] == pytest.approx(theirs["decoder/words"], rel=2e-3)


def test_other_tokens_than_were_exported_are_refused(trained: Path, exported: Path, tmp_path: Path) -> None:
    checkpoint = ["--checkpoint", trained / "pretraining"]
    with pytest.raises(ConfigError, match="another visual side or selection"):
        run("train", *checkpoint, f"features={exported}", "per_structure=4", "--out", tmp_path / "out")
    with pytest.raises(ConfigError, match="augment would change"):
        run("train", *checkpoint, "data.augment={rotate: 5}", "--out", tmp_path / "out3")
    with pytest.raises(ConfigError, match="export needs a visual side"):
        run("export")
    with pytest.raises(ConfigError, match="speaks of topics"):
        run("export", *checkpoint, "features=''", "tokens=raw", "decoder={name: topic_sentence}")


def test_an_export_needs_no_decoder(trained: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "create", None)  # a language model is not built to look at volumes
    assert run("export", "--checkpoint", trained / "pretraining", "--out", tmp_path / "features") == 0
    assert (tmp_path / "features/tokens.npy").read_bytes() == (exported / "tokens.npy").read_bytes()


def test_what_was_exported_is_not_looked_at_again_to_judge(trained: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, whole = [], score.priors
    monkeypatch.setattr(score, "priors", lambda *args: [found.append(args[-1]), whole(*args)])
    for n, words in enumerate([[f"features={exported}"], [], ["features=''"]]):
        assert run("evaluate", "--checkpoint", trained, *words, "--out", tmp_path / str(n)) == 0
    assert [store and store.folder == exported for store in found] == [True, False, None]
    rows = [{r.row: r.metrics["bleu_4"].value for r in read(tmp_path / n / "results.json")}["nearest_neighbour"] for n in "012"]
    assert len(set(rows)) == 1


@pytest.mark.usefixtures("unjudged")
def test_the_visual_side_learns_at_a_rate_of_its_own(trained: Path, tmp_path: Path) -> None:
    words = ["--checkpoint", trained / "pretraining", "visual=finetune", "features=''", "train.steps=1", "train.evaluate_every=0"]
    before = load_file(trained / "pretraining/checkpoints/step_00000002/model.safetensors")
    moved, decoders_of = [], []
    for rate in ("1.0", "0.25"):
        assert run("train", *words, f"visual_lr={rate}", "--out", tmp_path / rate) == 0
        last = tmp_path / rate / "checkpoints/step_00000001"
        after = load_file(last / "model.safetensors")
        moved.append({name: after[name] - value for name, value in before.items() if ".running_" not in name and value.is_floating_point()})
        decoders_of.append((last / "decoder.safetensors").read_bytes())
    assert decoders_of[0] == decoders_of[1]
    far = {name for name, step in moved[0].items() if step.abs().max() > 0}
    assert {"image.stem.0.weight", "heads.structure.learned"} <= far
    for name in far:
        torch.testing.assert_close(moved[1][name], 0.25 * moved[0][name], atol=1e-6, rtol=1e-2)


@pytest.mark.usefixtures("unjudged")
def test_volumes_without_features_are_noted_and_too_many_of_them_end_the_run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, checkpoint = ScanImage.look, ["--checkpoint", trained / "pretraining", f"features={tmp_path / 'features'}"]

    def look(self: ScanImage) -> Any:
        if self.id == tiny.scans(12)[3].id:
            raise BadImage("truncated", self.id)
        return whole(self)

    monkeypatch.setattr(ScanImage, "look", look)
    with pytest.raises(DataError, match=r"1 of 12 studies cannot be read \(truncated 1\)"):
        run("train", *checkpoint, "--out", tmp_path / "strict")
    assert run("train", *checkpoint, "data.max_bad_fraction=0.1", "--out", tmp_path / "out") == 0
    bad = [json.loads(line) for line in (tmp_path / "out/bad_studies.jsonl").read_text().splitlines()]
    assert bad == [{"id": tiny.scans(12)[3].id, "reason": "truncated"}]


@pytest.mark.usefixtures("unjudged")
def test_everything_trains_together_with_the_structure_contrast(trained: Path, tmp_path: Path) -> None:
    words = ["visual=joint", "features=''", "train.evaluate_every=0"]
    assert run("train", "--checkpoint", trained / "pretraining", *words, "--out", tmp_path / "out") == 0
    rows = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["structure_contrast/image_to_text"]) and np.isfinite(row["decoder/words"]) for row in rows if "loss" in row)
    before, after = (load_weights(path) for path in (trained, tmp_path / "out"))
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert {"image", "image_local", "heads"} <= moved
    assert not any(name.startswith("text") for name in moved)  # pretraining kept it fixed
    assert "freeze:" in (tmp_path / "out/checkpoints/step_00000002/config.yaml").read_text()


def load_weights(out: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(out / "checkpoints/step_00000002/model.safetensors")


# ----------------------------------------------------------------------------------------------------------- generate


def test_generate_reads_files_and_folders_of_slices(trained: Path, volumes: Path, tmp_path: Path, capsys: Any) -> None:
    assert run("generate", "--checkpoint", trained, "--images", volumes, "--out", tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert "1 cannot be read: broken.nii.gz (not a volume)" in told
    reports = output.from_json((tmp_path / "out/reports/images.json").read_text())
    assert [r.id for r in reports] == ["0.npz", "1.npz", "series"]
    page = (tmp_path / "out/images.html").read_text()
    assert page.count('"image":"') == 2  # page.cases
    it = load(trained)
    for report, scan in zip(reports, tiny.scans(3, split="test"), strict=True):
        window = scan.images[0].look() if report.id == "series" else it.pretrained.see(volumes / report.id)
        assert it.write([window.pixels], Decode(max_report=20, max_sentences=6))[0].text == report.text


def test_one_volume_or_series_is_a_folder_of_one(volumes: Path, tmp_path: Path) -> None:
    assert [name for name, _ in volume_files(volumes)] == ["0.npz", "1.npz", "broken.nii.gz", "series"]
    (name, file), *more = volume_files(volumes / "series")
    assert (name, file.look().pixels.shape, more) == ("series", (16, 32, 32), [])
    (name, file), *more = volume_files(volumes / "0.npz")
    assert (name, file.look().pixels.shape, more) == ("0.npz", (16, 32, 32), [])
    with pytest.raises(DataError, match="no folder"):
        list(volume_files(tmp_path / "none"))


def test_a_folder_without_a_volume_is_refused(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.nii").write_bytes(b"no")
    with pytest.raises(DataError, match=r"no volume under .* can be read: not a volume"):
        run("generate", "--checkpoint", trained, "--images", tmp_path / "in", "--out", tmp_path / "out")


def test_studies_whose_volumes_cannot_be_read_are_counted(trained: Path) -> None:
    it, scans = load(trained), list(tiny.scans(3, split="test"))

    class Broken:
        id = "broken"

        def read(self) -> np.ndarray:
            raise BadImage("truncated", self.id)

    scans[1] = replace(scans[1], images=(Broken(),))
    found = score.write(it, scans, Decode(max_report=10), name="model", oracle=False, batch_size=2, seed=0)
    assert found.unreadable == {scans[1].id: "truncated"}
    assert [r.id for r in found.reports["model"]] == [scans[0].id, scans[2].id]


# -------------------------------------------------------------------------------------------------------- files, pages


def test_a_map_of_a_volume_is_written_by_its_cells_above_zero_and_read_again() -> None:
    map = np.zeros((3, 4, 5), np.float32)
    map[0, 1, 2], map[2, 3, 4], map[1, 0, 0] = 0.75, 0.2499996, 1e-9
    text = output.to_json([Generated("a", (Spoken("x", 0.5, map=map),))])
    assert json.loads(text)["reports"][0]["sentences"][0]["map"] == {"shape": [3, 4, 5], "place": [7, 59], "weight": [0.75, 0.25]}
    again = output.from_json(text)[0].sentences[0].map
    assert again.dtype == np.float32
    assert np.abs(again - map).max() < 1e-6
    for old, new in (
        ('"place": [7, 59]', '"place": [7, 60]'),
        ('"shape": [3, 4, 5]', '"shape": [60]'),
        ('"weight": [0.75, 0.25]', '"weight": [1, 2, 3]'),
    ):
        assert old in text
        with pytest.raises(DataError, match="not complete"):
            output.from_json(text.replace(old, new))


def test_a_volume_is_shown_as_slices_of_what_the_model_sees_with_maps_at_the_same_places(trained: Path) -> None:
    it = load(trained)
    scan = tiny.scans(1)[0]
    look = it.pretrained.see(scan.images[0])
    picture = show.picture(it, look, 1000)
    assert picture.slices == (0, 2, 3, 4, 6, 7, 8, 10, 11, 12, 14, 15)
    assert picture.pixels.shape == (3 * 32, 4 * 32)
    assert (picture.frame.height, picture.frame.width, picture.frame.size) == (96, 128, (96, 128))
    assert (picture.frame.scale, picture.frame.offset) == ((1.0, 1.0), (0.0, 0.0))
    for n, z in enumerate(picture.slices):
        row, column = divmod(n, 4)
        assert np.array_equal(picture.pixels[32 * row : 32 * row + 32, 32 * column : 32 * column + 32], look.pixels[z])
    map = np.random.default_rng(0).random((4, 4, 4), np.float32)
    assert np.array_equal(picture.map(map), montage_map(map, 16, picture.slices, 4))
    said = picture.of(Generated("a", (Spoken("x", 1.0, map=map), Spoken("y", 1.0)))).sentences
    assert (said[0].map.shape, said[1].map) == ((12, 16), None)
    assert show.picture(it, look, 64).pixels.shape == (48, 64)


def test_an_image_is_shown_as_it_is() -> None:
    it = tiny.generator("transformer")
    look = it.pretrained.see(np.tile(np.arange(60, dtype=np.uint8), (40, 1)))
    picture = show.picture(it, look, 30)
    assert picture.pixels.shape == (20, 30)
    assert picture.frame == it.pretrained.preprocess.frame(40, 60)
    map = np.ones((4, 4), np.float32)
    assert picture.map(map) is map


@pytest.mark.slow
def test_evaluate_and_tune_read_volumes(trained: Path, tmp_path: Path) -> None:
    assert run("evaluate", "--checkpoint", trained, "--out", tmp_path / "judged", "limit=2") == 0
    assert {r.row for r in read(tmp_path / "judged/results.json")} >= {"bert", "reference"}
    words = ["tune.part=report", "tune.level=report", "tune.train.steps=1", "tune.train.batch_size=4", "tune.held_out=2", "limit=1", "page.cases=0"]
    cpu = ["tune.train.accelerator=cpu", "tune.train.devices=1", "tune.train.checkpoint_every=1"]
    assert run("tune", "--checkpoint", trained, *words, *cpu, "--out", tmp_path / "tuned") == 0
    assert schemas.load("structure_ct_phantom", TINY).tokens == load(tmp_path / "tuned").tokens == "structures"
