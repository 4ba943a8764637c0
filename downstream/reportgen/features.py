"""What a frozen visual side says of every study, computed once: tokens as the decoder takes them, in half precision, checksummed.

FOLDER/  tokens.npy (n M W float16)  mask.npy (n M bool)  place.npy (n M int32)  ids.json (whose each row is, and a hash of the images it is of)
         about.json (what made them)  manifest.json

Written beside its place and renamed whole (elvis.checkpoints.write), verified before it is read, for its owner's eyes alone. Without a folder of its
own it lies in the user's cache under a hash of the weights, the selection and the images, so that another checkpoint or another K never takes it for
its own. `python -m elvis.data purge` empties the cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from downstream.reportgen.decoders.base import Memory
from downstream.reportgen.model import Sight
from elvis import checkpoints, terminal
from elvis.checkpoints import border
from elvis.data import cache, shards
from elvis.errors import ConfigError
from elvis.types import Study

FORMAT = 1  # of what is computed: another one where the code gives other features for the same weights
FILES = ("tokens.npy", "mask.npy", "place.npy", "ids.json", "about.json")


class Store:
    """Exported features, mapped: `store[id]` -> tokens M W, mask M, place M. Raises CheckpointError when a file is not as it was written."""

    def __init__(self, folder: Path) -> None:
        checkpoints.verify(folder, FILES)
        self._open(folder)

    def _open(self, folder: Path) -> None:
        self.folder = folder
        with border.believed(folder / "ids.json"):
            ids = json.loads((folder / "ids.json").read_text())
            self.rows = {id: row for row, (id, _) in enumerate(ids)}
            self.images = dict(ids)  # id -> `fingerprint`
        self.about = border.read_json(folder / "about.json")
        with border.believed(folder / "tokens.npy, mask.npy, place.npy"):
            self.arrays = [np.lib.format.open_memmap(folder / name, mode="r") for name in FILES[:3]]
            if [array.dtype for array in self.arrays] != [np.float16, bool, np.int32] or any(len(array) < len(ids) for array in self.arrays):
                raise ValueError("not the arrays of its ids")

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    def __contains__(self, id: str) -> bool:
        return id in self.rows

    def __getitem__(self, id: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        tokens, mask, place = (array[self.rows[id]] for array in self.arrays)
        return tokens, mask, place

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:  # a worker process: verified already, mapped anew
        self._open(state["folder"])


def key(sight: Sight) -> str:
    """A hash of what makes features of images: the visual side and its weights, how images come in, what is kept of them, and FORMAT."""
    digest = hashlib.sha256(json.dumps([FORMAT, sight.pretrained.model.recipe], sort_keys=True).encode())
    for name, value in sorted(sight.pretrained.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    kept = [sight.tokens, sight.per_structure, sight.head_reduction, sight.views, sight.max_views]
    digest.update(json.dumps([sight.pretrained.preprocess.to_json(), kept], sort_keys=True).encode())
    return digest.hexdigest()[:32]


def fingerprint(study: Study) -> str:
    """A hash of a study's images: how each is read (its name, its window, what a phantom is made of), sizes and times of files, wherever they lie."""
    images = [[repr(replace(image, root="")) if hasattr(image, "root") else repr(image), shards.stamp(image)] for image in study.images]  # type: ignore[type-var]
    return hashlib.sha256(json.dumps([study.id, study.views, study.spacing, images]).encode()).hexdigest()[:32]


def place_of(sight: Sight, studies: Sequence[Study]) -> Path:
    """Where the user's cache keeps the features of these studies."""
    of_all = hashlib.sha256(json.dumps([fingerprint(study) for study in studies]).encode()).hexdigest()
    return cache.home() / "features" / f"{key(sight)}-{of_all[:16]}"


def export(sight: Sight, studies: Sequence[Study], folder: Path, *, batch_size: int, dataset: str, progress: bool = True) -> Store:
    """Look at every study once and write what was seen. Studies without a readable image are not among them, and counted in about.json."""
    from downstream.reportgen import score

    sight.eval()
    unreadable: dict[str, str] = {}

    def fill(stage: Path) -> None:
        ids: list[tuple[str, str]] = []
        arrays: list[np.ndarray] = []
        with terminal.progress(len(studies), "study", "features", show=progress) as bar:
            for kept, batch, _ in score.batches(sight, studies, batch_size, unreadable):
                with torch.no_grad():
                    memory = sight.seen(batch)
                found = _whole(memory, sight.shape[0])
                if not arrays:
                    arrays = [_new(stage / name, len(studies), value) for name, value in zip(FILES, found, strict=False)]
                for array, value in zip(arrays, found, strict=True):
                    array[len(ids) : len(ids) + len(kept)] = value.cpu().numpy()
                ids += [(study.id, fingerprint(study)) for study in kept]
                bar.update(len(kept))
        if not ids:
            raise ConfigError("not one image can be read: there are no features", "is data.root complete?")
        for array in arrays:
            array.flush()  # type: ignore[attr-defined]
        about = {
            "key": key(sight), "dataset": dataset, "tokens": sight.tokens, "per_structure": sight.per_structure,
            "head_reduction": sight.head_reduction, "shape": list(arrays[0].shape[1:]), "studies": len(ids), "unreadable": unreadable,
        }  # fmt: skip
        checkpoints.write_json(stage / "ids.json", ids)
        checkpoints.write_json(stage / "about.json", about)
        for file in stage.iterdir():
            file.chmod(0o600)

    checkpoints.write(folder, fill)
    cache.private(folder)
    return Store(folder)


def _whole(memory: Memory, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """tokens B M W float16, mask B M, place B M int32, filled up to the `count` that a study with all its views has."""
    width = memory.tokens.shape[1]
    place = torch.arange(width, device=memory.mask.device).expand(len(memory), -1) if memory.place is None else memory.place
    room = (0, count - width)
    return pad(memory.tokens, (0, 0, *room)).half(), pad(memory.mask, room), pad(place.int(), room, value=-1)


def _new(path: Path, rows: int, like: Tensor) -> np.ndarray:
    return np.lib.format.open_memmap(path, "w+", like.cpu().numpy().dtype, (rows, *like.shape[1:]))


def there(sight: Sight, studies: Sequence[Study], where: str) -> bool:
    """Whether these features were exported already, or others to this folder."""
    folder = place_of(sight, studies) if where == "auto" else Path(where).expanduser()
    return (folder / checkpoints.MANIFEST).is_file()


def of(sight: Sight, studies: Sequence[Study], where: str, *, batch_size: int, dataset: str, progress: bool = True) -> Store:
    """The features of these studies: those that `where` holds ("auto" = the user's cache), made where they are not there yet.

    ConfigError for a folder that another visual side, selection or set of images was exported to, or whose images have changed since.
    """
    folder = place_of(sight, studies) if where == "auto" else Path(where).expanduser()
    if not (folder / checkpoints.MANIFEST).is_file():
        if where != "auto" and folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty and holds no features", "choose a new folder")
        if where == "auto":
            cache.private(folder.parent)
        return export(sight, studies, folder, batch_size=batch_size, dataset=dataset, progress=progress)
    store = Store(folder)
    if store.about["key"] != key(sight):
        raise ConfigError(
            f"{folder} holds features of another visual side or selection "
            f"(tokens {store.about['tokens']}, {store.about['per_structure']} a structure, {store.about['head_reduction']})",
            "export them anew to another folder, or say features=auto",
        )
    missing = [study.id for study in studies if study.id not in store and study.id not in store.about["unreadable"]]
    if missing:
        raise ConfigError(f"{folder} lacks {len(missing)} of the studies, such as {missing[0]}", "export them anew to another folder")
    if changed := [study.id for study in studies if study.id in store and store.images[study.id] != fingerprint(study)]:
        raise ConfigError(
            f"{folder}: the images of {len(changed)} studies are not those that were exported, such as {changed[0]}",
            "export them anew to another folder, or say features=auto",
        )
    return store
