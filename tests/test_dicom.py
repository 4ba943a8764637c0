"""How DICOM is shown, beyond the kinds of file that tests/test_readers.py goes through."""

from pathlib import Path

import numpy as np
import pytest

from elvis.data.images import BadImage, look, to_8_bit
from elvis.data.phantoms.files import cut, write_dicom
from elvis.data.phantoms.film import films
from tests.layouts import REAL, pixels

pydicom = pytest.importorskip("pydicom")

HEIGHT, WIDTH = 40, 56
NOISE = pixels(1)
DEEP = np.linspace(0, 4095, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)  # 12 bits


@pytest.mark.parametrize("film", films({"train": 3}), ids=lambda film: film.id)
@pytest.mark.parametrize("window", [None, (1800.0, 4200.0)])
def test_lungs_are_darker_than_the_mediastinum_in_a_monochrome1_file(tmp_path, film, window):
    shown, labels = film.read().astype(np.uint16), film.labels()
    seen = look(write_dicom(tmp_path / "a.dcm", 4095 - shown * 16, photometric="MONOCHROME1", bits=12, window=window))
    assert seen.notes == ("D013", "D014")
    lungs, heart = np.isin(labels, (1, 2)), labels == 3
    assert seen.pixels[lungs].mean() < seen.pixels[heart].mean() - 20
    assert np.corrcoef(seen.pixels.ravel(), shown.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_a_window_shows_what_pydicom_shows(tmp_path, photometric, bits, signed, function):
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    values = np.random.default_rng(bits).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (HEIGHT, WIDTH))
    values = values.astype(np.int16) if signed else (values + 2 ** (bits - 1)).astype(np.uint16)
    window = (round(1.5 * values.mean() - 20, 2), round(0.4 * 2**bits, 2))
    path = write_dicom(
        tmp_path / "a.dcm", values, photometric=photometric, bits=bits, window=window, slope=1.5, intercept=-20, tags={"VOILUTFunction": function}
    )
    file = pydicom.dcmread(path)
    shown = apply_voi_lut(apply_modality_lut(file.pixel_array, file), file)
    low = -20 + (-(2 ** (bits - 1)) * 1.5 if signed else 0)
    shown = (shown - low) / ((2**bits - 1) * 1.5) * 255
    if photometric == "MONOCHROME1":
        shown = 255 - shown
    assert np.abs(look(path).pixels - shown).max() <= 0.51


def test_a_look_up_table_keeps_the_order_of_what_it_is_given(tmp_path):
    for first, count in ((0, 4096), (1000, 500), (-100, 5000)):
        item = pydicom.Dataset()
        item.LUTDescriptor = [count, first % 2**16, 12]
        item.LUTData = np.linspace(0, 4095, count).astype("<u2").tobytes()
        item["LUTData"].VR = "OW"
        item["LUTDescriptor"].VR = "US"
        path = write_dicom(tmp_path / "a.dcm", DEEP.astype(np.int16), bits=16, tags={"VOILUTSequence": pydicom.Sequence([item])})
        expected = to_8_bit(np.clip(DEEP.astype(float) - first, 0, count - 1), 0, count - 1)
        assert np.abs(look(path).pixels.astype(int) - expected).max() <= 1


def test_a_window_of_width_1_is_a_threshold(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", DEEP, bits=12, window=(1000, 1))
    np.testing.assert_array_equal(look(path).pixels, np.where(DEEP >= 1000, 255, 0))


def test_an_empty_look_up_table_is_none(tmp_path):
    empty = pydicom.Sequence([pydicom.Dataset()])
    path = write_dicom(tmp_path / "a.dcm", NOISE, tags={"VOILUTSequence": empty, "ModalityLUTSequence": empty})
    np.testing.assert_array_equal(look(path).pixels, NOISE)


def test_a_wide_range_of_values_is_computed_value_by_value(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", DEEP, bits=16)
    file = pydicom.dcmread(path)
    file.BitsAllocated, file.BitsStored, file.HighBit = 32, 32, 31
    wide = DEEP.astype(np.uint32) * 1_000_000
    file.PixelData = wide.tobytes()
    file.save_as(path)
    np.testing.assert_allclose(look(path).pixels, to_8_bit(wide, 0, 2**32 - 1), atol=1)


def test_neither_a_message_nor_the_process_has_the_name_of_a_patient(tmp_path, capfd, caplog):
    from elvis.data import dicom

    name = "Doe^Jane of Elm Street"
    path = write_dicom(tmp_path / "a.dcm", NOISE, tags={"PatientName": name, "PatientID": "0815", "StudyDescription": name, "WindowCenter": None})
    with dicom.reading(path):
        assert "Doe" not in str(dicom.header(path))
    for part in (0.3, 0.5, 0.8, 0.99):
        shorter = tmp_path / f"{part}.dcm"
        shorter.write_bytes(path.read_bytes())
        with pytest.raises(BadImage) as error:
            look(cut(shorter, part))
        trail = [error.value]
        while following := trail[-1].__cause__ or (None if trail[-1].__suppress_context__ else trail[-1].__context__):
            trail.append(following)
        assert not any("Doe" in str(exception) for exception in trail)
    assert "Doe" not in caplog.text + "".join(capfd.readouterr())


def test_what_pydicom_warns_of_stays_unsaid_only_while_a_file_is_read(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", NOISE)
    rows = b"US\x02\x00" + HEIGHT.to_bytes(2, "little")
    path.write_bytes(path.read_bytes().replace(rows, b"US\x02\x00" + (HEIGHT - 2).to_bytes(2, "little"), 1))  # two rows are left over
    assert look(path).pixels.shape == (HEIGHT - 2, WIDTH)
    with pytest.warns(UserWarning, match="excess padding"):
        assert pydicom.dcmread(path).pixel_array.shape == (HEIGHT - 2, WIDTH)


SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"  # with pydicom, from many vendors


@pytest.mark.skipif(not SHIPPED.is_dir(), reason="pydicom came without its test files")
def test_files_of_many_vendors_are_read_or_refused_for_a_reason():
    found = {}
    for path in sorted(SHIPPED.glob("*.dcm")):
        try:
            seen = look(path)
            found[path.stem] = seen.notes
            assert seen.pixels.ndim == 2
        except BadImage as error:
            found[path.stem] = error.reason
    assert found["SC_rgb_rle"] == found["SC_ybr_full_422_uncompressed"] == found["examples_palette"] == ("D015",)
    assert found["MR_small_bigendian"] == found["MR_small_jp2klossless"] == found["MR_small_implicit"] == ("D014",)
    assert found["MR_truncated"] == "truncated"
    assert found["rtplan"] == found["test-SR"] == "no pixels"
    assert found["SC_rgb_rle_2frame"] == "several frames"
    assert found["SC_rgb_small_odd"] == "a side shorter than 16 pixels"
    assert sum(isinstance(notes, tuple) for notes in found.values()) >= 35


@pytest.mark.skipif(not SHIPPED.is_dir(), reason="pydicom came without its test files")
def test_the_same_scan_looks_the_same_in_every_encoding():
    names = ("MR_small", "MR_small_RLE", "MR_small_bigendian", "MR_small_expb", "MR_small_implicit", "MR_small_jp2klossless", "MR_small_padded")
    first, *rest = (look(SHIPPED / f"{name}.dcm").pixels for name in names)
    for other in rest:
        np.testing.assert_array_equal(other, first)


RADIOGRAPHS = REAL / "cxr" / "images"


@pytest.mark.skipif(not RADIOGRAPHS.is_dir(), reason=f"no real radiographs under {RADIOGRAPHS}")
def test_a_real_radiograph_is_the_same_as_a_dicom_file(tmp_path):
    real = look(min(RADIOGRAPHS.iterdir())).pixels
    for syntax in ("ExplicitVRLittleEndian", "RLELossless"):
        inverted = write_dicom(tmp_path / "a.dcm", 255 - real, photometric="MONOCHROME1", syntax=syntax)
        np.testing.assert_array_equal(look(inverted).pixels, real)
