"""The config of an evaluation: what is evaluated on, by which protocol. Models come from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from elvis import config as configs
from elvis.errors import ConfigError, nearest


@dataclass
class Page:
    cases: int = 120  # shown in the gallery: the best and the worst of every category, then others evenly; 0 = none, and no pictures
    size: int = 384  # pixels of their long side; of volumes at most 128


SPACES = ("original", "input")
IMAGES_ONLY = ("preset", "protocol", "cases", "on_invalid", "resized", "batch_size", "workers")  # what 3D checkpoints do not use


@dataclass
class Volumes:
    """Of 3D checkpoints alone. A prediction is the highest `share` of a map's voxels."""

    space: str = "original"  # the voxels that are counted: the volume's own, or those of the model's input that show it
    share: float = 0.0  # of the volume; 0 = chosen, for each row, on `choose_on` by the macro Dice
    choose_on: str = "val"  # a split that is not judged; volumes of judged patients are left out of it
    choose_limit: int = 60  # volumes


@dataclass
class Grounding:
    """`data`: {name: a dataset, its options}. Everything else has a default. 3D checkpoints refuse what is in IMAGES_ONLY."""

    preset: str = "default"  # elvis.grounding protocols: default | biovil | afloc | radzero
    protocol: dict[str, Any] = field(default_factory=dict)  # single fields of the preset, changed
    data: dict[str, Any] = field(default_factory=dict)
    splits: list[str] = field(default_factory=lambda: ["test"])
    maps: list[str] = field(default_factory=lambda: ["cosine"])  # cosine | gradcam | the label of an objective or a head of the checkpoint
    cases: str = ""  # a file that chooses cases: ids, a CSV (id, phrase), or a .pth of MedRPG
    limit: int = 0  # images per split; 0 = all
    strict: bool = False  # counts that differ from the owner's, and images that are missing, are an error
    on_invalid: str = "error"  # boxes outside their image or without area: error | skip (counted)
    resized: bool = False  # the images are copies of another size than their boxes were drawn in
    force: bool = False  # evaluate a model on patients it was trained on (the page says so)
    batch_size: int = 16  # images
    workers: int = -1  # processes that score; -1 = one per core, less where there is little to do; 0 = in this process
    resamples: int = 1000
    seed: int = 0
    page: Page = field(default_factory=Page)
    volumes: Volumes = field(default_factory=Volumes)
    imports: list[str] = field(default_factory=list)


def load(name: str, overrides: Sequence[str] = ()) -> Grounding:
    """A checked config. Raises ConfigError."""
    found: Grounding = configs.load(name, overrides, task="grounding", schema=Grounding)
    wrong = [f"{key} must not be negative, not {value}" for key, value in (("limit", found.limit), ("page.cases", found.page.cases)) if value < 0]
    wrong += [
        f"{key} must be positive, not {value}" for key, value in (("batch_size", found.batch_size), ("page.size", found.page.size)) if value < 1
    ]
    wrong += [f"resamples must be 1 or more, not {found.resamples}"] * (found.resamples < 1) + [f"workers={found.workers}"] * (found.workers < -1)
    wrong += [f"on_invalid must be error or skip, not '{found.on_invalid}'{nearest(found.on_invalid, ('error', 'skip'))}"] * (
        found.on_invalid not in ("error", "skip")
    )
    wrong += ["splits is empty"] * (not found.splits) + ["maps is empty"] * (not found.maps)
    wrong += [f"volumes.space must be {' or '.join(SPACES)}, not '{found.volumes.space}'{nearest(found.volumes.space, SPACES)}"] * (
        found.volumes.space not in SPACES
    )
    wrong += [f"volumes.share must be from 0 to below 1, not {found.volumes.share}"] * (not 0 <= found.volumes.share < 1)
    wrong += [f"volumes.choose_limit must be positive, not {found.volumes.choose_limit}"] * (found.volumes.choose_limit < 1)
    if not isinstance(found.data.get("name"), str):
        wrong.append("data.name must be the name of a dataset")
    if wrong:
        raise ConfigError("; ".join(wrong), "mend the keys above; --print-config shows the whole config")
    return found
