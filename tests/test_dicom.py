"""DICOM files, made here: window, inversion, sides, and every kind that is refused."""
import io
import sys

import numpy as np
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, generate_uid

from causalclipseg.images import ImageError, read_picture

VALUES = (np.arange(64 * 48).reshape(64, 48) % 4096).astype(np.uint16)


def dicom(values=VALUES, **tags) -> bytes:
    """The bytes of a DICOM file; a tag of None is left out."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", generate_uid()
    meta.TransferSyntaxUID = tags.pop("syntax", ExplicitVRLittleEndian)
    data = FileDataset("x", {}, file_meta=meta, preamble=b"\0" * 128)
    settings = dict(
        SOPClassUID=meta.MediaStorageSOPClassUID, SOPInstanceUID=meta.MediaStorageSOPInstanceUID, Modality="DX",
        Rows=values.shape[-2] if values.ndim < 4 else 1, Columns=values.shape[-1], SamplesPerPixel=1, BitsAllocated=16, BitsStored=12, HighBit=11,
        PixelRepresentation=0, PhotometricInterpretation="MONOCHROME2", PatientOrientation=["L", "F"], PatientName="Secret^Name",
        PixelData=values.tobytes(),
    )  # fmt: skip
    for name, value in {**settings, **tags}.items():
        if value is not None:
            setattr(data, name, value)
    if "PixelData" in data:
        data["PixelData"].VR = "OW"
    out = io.BytesIO()
    data.save_as(out, enforce_file_format=True)
    return out.getvalue()


def test_the_files_window_is_applied_as_the_standard_says():
    """PS3.3 C.11.2.1.2.1, linear: ((x - (c - 0.5)) / (w - 1) + 0.5), between 0 and 1."""
    picture = read_picture(dicom(WindowCenter=1000, WindowWidth=500))
    wanted = np.clip((VALUES - (1000 - 0.5)) / (500 - 1) + 0.5, 0, 1) * 255
    assert np.abs(picture.pixels - wanted).max() <= 1
    assert any("centre 1000, width 500" in w for w in picture.warnings)


def test_without_a_window_the_values_are_stretched_and_it_is_said():
    picture = read_picture(dicom())
    assert picture.pixels.min() == 0 and picture.pixels.max() == 255 and any("stretched" in w for w in picture.warnings)


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 1000, "WindowWidth": 500}])
def test_monochrome1_is_inverted(window):
    plain = read_picture(dicom(**window)).pixels.astype(int)
    turned = read_picture(dicom(PhotometricInterpretation="MONOCHROME1", **window))
    assert np.abs(turned.pixels - (255 - plain)).max() <= 1 and any("inverted" in w for w in turned.warnings)


@pytest.mark.parametrize("orientation, says", [(["L", "F"], "patient's right"), (["R", "F"], "patient's LEFT"), (None, "does not say")])
def test_sides_are_said(orientation, says):
    assert any(says in w for w in read_picture(dicom(PatientOrientation=orientation)).warnings)


@pytest.mark.parametrize("tags, says", [({"ViewPosition": "LL"}, "frontal"), ({"ImageLaterality": "R"}, "right side alone"), ({"Laterality": "L"}, "left side alone"), ({"Modality": "CT"}, "modality CT")])
def test_other_views_and_modalities_are_said(tags, says):
    assert any(says in w for w in read_picture(dicom(**tags)).warnings)


@pytest.mark.parametrize("content, says", [
    (dicom(PixelData=None), "holds no picture"),
    (dicom(np.stack([VALUES] * 3), NumberOfFrames=3, Rows=64, Columns=48), "3 frames"),
    (dicom(Rows=20000, Columns=20000), "at most 80,000,000"),
    (dicom()[:1500], "damaged"),
    (dicom(syntax=JPEGLSLossless, PixelData=b"\xfe\xff\x00\xe0\0\0\0\0"), "cannot be read"),
    (b"\0" * 128 + b"DICM" + b"rubbish", "damaged|holds no picture"),
])  # fmt: skip
def test_a_file_without_a_usable_picture_is_one_sentence(content, says, tmp_path):
    path = tmp_path / "scan.dcm"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=says) as caught:
        read_picture(path)
    assert str(caught.value).startswith(str(path)) and "Secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_path_and_bytes_give_the_same_pixels(tmp_path):
    path = tmp_path / "scan.dcm"
    path.write_bytes(dicom(WindowCenter=1000, WindowWidth=500))
    assert np.array_equal(read_picture(path).pixels, read_picture(path.read_bytes()).pixels)


def test_without_pydicom_it_is_said_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    (tmp_path / "scan.dcm").write_bytes(dicom())
    with pytest.raises(ImageError, match=r"scan.dcm is a DICOM file; reading it needs pydicom \(pip install pydicom\)"):
        read_picture(tmp_path / "scan.dcm")
