"""Volumes: one reader for NIfTI, DICOM series and folders of slices, to one orientation, in Hounsfield units where they are due.

    volume = load(VolumeFile(root, "train_1_a_1.nii.gz"))     volume.values Z Y X, volume.spacing (z, y, x) in mm
    VolumeFile(...).read()                                     the same through a window, uint8 Z Y X: what StudyDataset reads

Axes are those of DICOM (LPS): x grows to the patient's left, y to the back, z to the head, so a slice [z] looks like a
radiograph's side convention (the patient's right is the image's left).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

CT_WINDOW = (-1000.0, 1000.0)  # CT-CLIP clips to it


@dataclass(frozen=True, slots=True)
class VolumeFile:
    """A volume on disk: a file (.nii, .nii.gz, .npz) or a folder (DICOM series, numbered slices), `name` relative to `root`.

    rescale: "on" applies slope and intercept (of the table, if given here, else of the file), "off" does not, "auto" does where the
    stored values are not Hounsfield units yet. spacing: (z, y, x) mm of the table, where the file's own is missing or wrong.
    """

    root: str
    name: str
    rescale: Literal["auto", "on", "off"] = "auto"
    slope: float | None = None
    intercept: float | None = None
    spacing: tuple[float, float, float] | None = None
    window: tuple[float, float] = CT_WINDOW

    @property
    def id(self) -> str:
        return self.name

    @property
    def path(self) -> Path:
        return Path(self.root, self.name)

    def read(self) -> np.ndarray:
        """uint8 Z Y X, the window mapped to 0..255. Raises BadImage."""
        raise NotImplementedError
