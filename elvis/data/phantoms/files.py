"""Image files as owners store them, written by hand so that a test knows every value in them."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def write_image(path: Path, image: np.ndarray, *, quality: int = 95) -> Path:
    """uint8 or uint16 H W (or H W 3, H W 4) as PNG or JPEG by the suffix; JPEG of grey only loses what `quality` says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": quality} if path.suffix.lower() in (".jpg", ".jpeg") else {}
    Image.fromarray(image).save(path, **options)
    return path


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None, *, delimiter: str = ",") -> Path:
    """CSV, gzipped where the name ends in .gz; `columns` in this order (default: those of the first row)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, list(columns or rows[0]), delimiter=delimiter, restval="")
    writer.writeheader()
    writer.writerows(rows)
    data = buffer.getvalue().encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def cut(path: Path, keep: float = 0.5) -> Path:
    """Keep only the first part of a file's bytes: an interrupted download."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def write_dicom(
    path: Path,
    values: np.ndarray,
    *,
    photometric: str = "MONOCHROME2",
    bits: int = 8,
    window: tuple[float, float] | None = None,
    slope: float | None = None,
    intercept: float | None = None,
    tags: Mapping[str, Any] | None = None,
    syntax: str = "ExplicitVRLittleEndian",
) -> Path:
    """Integers H W, or frames F H W (`bits` of them used; signed when the type is), or colours H W 3 when `photometric` says so.

    window: (centre, width). tags: further attributes by keyword (PatientID, ImagePositionPatient, ...), None takes one out.
    syntax: a name of pydicom.uid, uncompressed, or one of RLELossless, JPEG2000Lossless, JPEGBaseline8Bit (8-bit grey).
    Needs pydicom, and pylibjpeg-openjpeg for JPEG 2000.
    """
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    path.parent.mkdir(parents=True, exist_ok=True)
    uid = getattr(pydicom.uid, syntax)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if uid.is_compressed else uid
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"  # digital X-ray, for presentation
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.Modality, file.PatientName, file.PatientID = "DX", "Phantom", "phantom"
    colour = photometric.startswith(("RGB", "YBR"))
    file.Rows, file.Columns = values.shape[:2] if colour else values.shape[-2:]
    if values.ndim == 3 and not colour:
        file.NumberOfFrames = values.shape[0]
    signed = np.issubdtype(values.dtype, np.signedinteger)
    file.SamplesPerPixel, file.PhotometricInterpretation = 3 if colour else 1, photometric
    if colour:
        file.PlanarConfiguration = 0
    file.BitsAllocated = 8 if bits <= 8 else 16
    file.BitsStored, file.HighBit, file.PixelRepresentation = bits, bits - 1, int(signed)
    if window is not None:
        file.WindowCenter, file.WindowWidth = window
    if slope is not None or intercept is not None:
        file.RescaleSlope, file.RescaleIntercept = 1.0 if slope is None else slope, intercept or 0.0
    kind = ("<" if uid.is_little_endian else ">") + ("i" if signed else "u") + str(file.BitsAllocated // 8)
    data = np.ascontiguousarray(values.astype(kind)).tobytes()
    file.PixelData = data + b"\0" * (len(data) % 2)
    file["PixelData"].VR = "OB" if file.BitsAllocated == 8 else "OW"
    if syntax == "JPEGBaseline8Bit":
        buffer = io.BytesIO()
        Image.fromarray(values).save(buffer, "jpeg", quality=95)
        file.PixelData, meta.TransferSyntaxUID = pydicom.encaps.encapsulate([buffer.getvalue()]), uid
    elif uid.is_compressed:
        file.compress(uid, generate_instance_uid=False)
    for name, value in (tags or {}).items():
        file.pop(name, None) if value is None else setattr(file, name, value)
    pydicom.dcmwrite(path, file, enforce_file_format=True)
    return path


def write_series(
    folder: Path, values: np.ndarray, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0), *, intercept: float = -1024.0, series: str = "1.2.3"
) -> list[Path]:
    """A CT in Hounsfield units, integers Z Y X in LPS order, as one DICOM file a slice; the files' names say nothing of their order.

    spacing: z, y, x in mm. Stored is `values - intercept`. Returns the files from the feet up.
    """
    z, y, x = spacing
    made = []
    for number, plane in enumerate(values):
        tags = {
            "Modality": "CT",
            "SeriesInstanceUID": series,
            "InstanceNumber": len(values) - number,
            "ImagePositionPatient": [-10.0, -20.0, -30.0 + z * number],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "PixelSpacing": [y, x],
        }
        path = folder / f"{(number * 7919) % 10007:05d}.dcm"
        made.append(write_dicom(path, (plane - intercept).astype(np.int16), bits=16, slope=1.0, intercept=intercept, tags=tags))
    return made


def write_nifti(
    path: Path,
    values: np.ndarray,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    *,
    affine: np.ndarray | None = None,
    slope: float | None = None,
    intercept: float | None = None,
) -> Path:
    """A volume Z Y X in our axes (LPS) as NIfTI, stored x y z (4-D: channels C Z Y X stored c x y z, as ReXGroundingCT does).

    spacing: z, y, x in mm. affine: of the STORED array, default that of LPS with this spacing. slope, intercept: written to the
    header; the stored integers are `values` as given. Needs nibabel.
    """
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    stored = np.ascontiguousarray(np.swapaxes(values, -1, -3))
    z, y, x = spacing
    image = nibabel.Nifti1Image(stored, np.diag([-x, -y, z, 1.0]) if affine is None else affine, dtype=stored.dtype)
    if slope is not None or intercept is not None:
        image.header.set_slope_inter(1.0 if slope is None else slope, intercept or 0.0)  # of the image: it forgets those of a header given to it
    nibabel.save(image, path)
    return path


def relabel(path: Path, syntax: str) -> Path:
    """Say of a DICOM file that its pixels, which stay as they are, are compressed in this transfer syntax (a UID). Needs pydicom."""
    import pydicom
    from pydicom.encaps import encapsulate

    file = pydicom.dcmread(path)
    file.PixelData = encapsulate([file.PixelData])
    file["PixelData"].VR = "OB"
    file.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    file.save_as(path, enforce_file_format=True)
    return path
