"""Features of folders and datasets as Parquet: the same numbers as the backbone gives, told what they are of, whole or not at all."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import elvis
from elvis import config, extract, terminal
from elvis.backbones import create_backbone
from elvis.checkpoints import verify
from elvis.errors import CheckpointError, ConfigError, DataError
from tests.test_interop_smp import cnn
from tests.test_interop_smp import saved as of_images
from tests.test_interop_transformers import saved

TINY = ["data.train=5", "data.val=1", "data.test=2", "data.comp=0", "data.swap=0", "data.level=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return of_images(tmp_path_factory.mktemp("extract") / "checkpoint", cnn())


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven films of different sizes, some in a folder of their own, and one file that is none."""
    root, draw = tmp_path_factory.mktemp("films"), np.random.default_rng(0)
    (root / "more").mkdir()
    for number in range(7):
        Image.fromarray(draw.integers(0, 256, (50 + number, 60), dtype=np.uint8)).save(root / ("more" if number % 2 else "") / f"{number}.png")
    (root / "notes.png").write_text("no film")
    return root


def command(*words: Any) -> int:
    words = [str(word) for word in words] + ["--quiet", "--device", "cpu"]
    terminal.begin(words)
    return extract.main(words)


def test_a_folder_becomes_a_table_with_the_features_of_the_backbone(
    folder: Path, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "features.parquet"
    assert command("--checkpoint", folder, "--images", films, "--out", out, "--tokens", "--batch-size", 3, "--max-bad", 0.2) == 0
    table, backbone, preprocess = pq.read_table(out), elvis.load_backbone(folder), elvis.load_pretrained(folder).preprocess
    assert table.column_names == ["path", "pooled", "tokens"]
    paths = table["path"].to_pylist()
    assert paths == ["0.png", "2.png", "4.png", "6.png", "more/1.png", "more/3.png", "more/5.png"]
    about = json.loads(table.schema.metadata[b"elvis"])
    pooled, tokens = (np.stack(table[name].to_numpy()) for name in ("pooled", "tokens"))
    with torch.no_grad():
        expected = backbone(torch.stack([preprocess.tensor(preprocess.show(films / path), 1) for path in paths]))
    np.testing.assert_allclose(pooled, expected.pooled, atol=1e-5)
    np.testing.assert_allclose(tokens.reshape(7, *about["grid"], about["width"]), expected.tokens.unflatten(1, expected.grid), atol=1e-5)
    assert about["weights"] == verify(folder)["model.safetensors"]
    assert (about["image"]["model"], about["spec"]["width"], about["preprocess"]["size"]) == ("resnet10t", 32, [64, 64])
    assert "not a medical device" in about["notice"]
    assert str(tmp_path) not in json.dumps(about)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert [json.loads(line) for line in out.with_name("features.parquet.bad.jsonl").read_text().splitlines()] == [
        {"path": "notes.png", "reason": "not an image"}
    ]
    assert capsys.readouterr().out == f"7 rows: {out}\n1 images cannot be read: features.parquet.bad.jsonl\n"
    assert sorted(file.name for file in out.parent.iterdir()) == ["features.parquet", "features.parquet.bad.jsonl"]


@pytest.mark.slow
def test_a_dataset_brings_patients_splits_and_labels(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.parquet"
    command("--checkpoint", folder, "--config", "elvis_phantom", "--out", out, "--projected", "--batch-size", 4, *TINY)
    table = pq.read_table(out)
    assert table["split"].to_pylist() == ["train"] * 5 + ["val"] + ["test"] * 2
    assert len(set(table["study"].to_pylist())) == 8
    assert all(table["patient"].to_pylist())
    assert set(table["label:effusion"].to_pylist()) <= {0, 1}
    rows, model = extract.of_dataset(config.load("elvis_phantom", TINY), volumes=False), elvis.load_pretrained(folder)
    assert [row.columns["path"] for row in rows] == table["path"].to_pylist()
    projected, _ = model.images([row.source for row in rows])
    np.testing.assert_allclose(np.stack(table["pooled"].to_numpy()), projected.pooled, atol=1e-5)


def test_rows_are_written_in_groups_as_they_come(folder: Path, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "ROWS", 4)
    of, done = extract.encoder(str(folder)), []
    rows = extract.of_folder(films, volumes=False)
    count, bad = extract.extract(of, rows, tmp_path / "f.parquet", batch_size=2, max_bad=1, step=done.append)
    groups = pq.ParquetFile(tmp_path / "f.parquet").metadata
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [4, 3]
    assert (count, len(bad), sum(done)) == (7, 1, 8)


def test_too_many_unreadable_images_leave_no_table(folder: Path, films: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.parquet"
    with pytest.raises(DataError, match=r"1 of 8 images cannot be read, such as notes\.png: not an image") as refusal:
        command("--checkpoint", folder, "--images", films, "--out", out)
    assert "--max-bad" in refusal.value.fix
    assert [file.name for file in tmp_path.iterdir()] == ["features.parquet.bad.jsonl"]


def test_a_crash_leaves_nothing(folder: Path, films: Path, tmp_path: Path) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract.extract(extract.encoder(str(folder)), extract.of_folder(films, volumes=False), tmp_path / "f.parquet", batch_size=2, step=stop)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (["--images", "FILMS"], ConfigError, "features of what"),
        (["--checkpoint", "RUN", "--backbone", "test_resnet", "--images", "FILMS"], ConfigError, "features of what"),
        (["--checkpoint", "RUN"], ConfigError, "features of which images"),
        (["--checkpoint", "RUN", "--images", "FILMS", "data.root=x"], ConfigError, r"'data\.root=x' is of no config"),
        (["--backbone", "test_resnet", "--images", "FILMS", "--projected"], ConfigError, "--projected is of a checkpoint"),
        (["--checkpoint", "RUN", "--images", "FILMS", "--random"], ConfigError, "--random is of --backbone"),
        (["--checkpoint", "RUN", "--images", "FILMS", "--batch-size", "0"], ConfigError, "--batch-size 0"),
        (["--checkpoint", "RUN", "--images", "FILMS", "--device", "tpu"], ConfigError, "no device 'tpu' here"),
        (["--checkpoint", "nothing", "--images", "FILMS"], CheckpointError, "no checkpoint directory at nothing"),
        (["--backbone", "resnt50", "--images", "FILMS"], ConfigError, "no backbone 'resnt50'"),
        (["--checkpoint", "RUN", "--images", "EMPTY"], DataError, "no image under"),
        (["--checkpoint", "RUN", "--images", "nothing"], DataError, "no folder nothing"),
        pytest.param(
            ["--checkpoint", "RUN", "--config", "structure_ct_phantom"],
            ConfigError,
            "the encoder sees images, 'phantom_ct' holds volumes",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(
    words: list[str], error: type[Exception], said: str, folder: Path, films: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    names = {"RUN": folder, "FILMS": films, "EMPTY": tmp_path / "empty"}
    with pytest.raises(error, match=said):
        extract.main([*(str(names.get(word, word)) for word in words), "--out", str(tmp_path / "f.parquet"), "--quiet"])
    assert not (tmp_path / "f.parquet").exists()


def test_a_table_that_is_there_is_not_written_over(folder: Path, films: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.parquet"
    out.write_text("mine")
    with pytest.raises(ConfigError, match=r"f\.parquet is there already"):
        command("--checkpoint", folder, "--images", films, "--out", out)
    assert out.read_text() == "mine"


def test_a_named_backbone_sees_images_as_its_own_weights_were_trained(films: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.parquet"
    command("--backbone", "test_resnet", "--random", "--images", films, "--out", out, "--max-bad", 1)
    about = json.loads(pq.read_schema(out).metadata[b"elvis"])
    assert (about["weights"], about["image"]["model"]) == ("random", "test_resnet")
    assert (about["preprocess"]["mean"], about["preprocess"]["fit"]) == (about["spec"]["mean"], "pad")


@pytest.mark.slow
def test_volumes_are_rows_too(tmp_path: Path) -> None:
    backbone = create_backbone("resnet3d", in_chans=1, layers=[1, 1, 1, 1], channels=[8, 8, 8, 8]).eval()
    folder, scans = saved(tmp_path / "checkpoint", backbone), tmp_path / "scans"
    scans.mkdir()
    scan = np.random.default_rng(0).integers(-1000, 400, (16, 40, 40)).astype(np.int16)
    np.savez(scans / "a.npz", scan)
    out = tmp_path / "f.parquet"
    command("--checkpoint", folder, "--images", scans, "--out", out, "--tokens")
    table = pq.read_table(out)
    assert table["path"].to_pylist() == ["a.npz"]
    about = json.loads(table.schema.metadata[b"elvis"])
    _, expected = elvis.load_pretrained(folder).images([scans / "a.npz"])
    np.testing.assert_allclose(np.stack(table["tokens"].to_numpy()).reshape(1, -1, about["width"]), expected.tokens, atol=1e-5)
    assert tuple(about["grid"]) == expected.grid
    command("--checkpoint", folder, "--config", "structure_ct_phantom", "--out", tmp_path / "g.parquet", "data.train=2", "data.val=1", "data.test=1",
            "data.size=[16,32,32]")  # fmt: skip
    assert pq.read_table(tmp_path / "g.parquet")["split"].to_pylist() == ["train", "train", "val", "test"]
