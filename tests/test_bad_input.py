"""Pictures and sentences as people really have them: the right pixels, or one sentence that says what is wrong."""
import io
import json
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from causalclipseg import images
from causalclipseg.cli import main
from causalclipseg.demo.engine import upload
from causalclipseg.images import ImageError, read_image, read_picture

RAMP = np.arange(48 * 40, dtype=np.float64).reshape(48, 40) / (48 * 40 - 1)  # 48 rows, 40 columns, 0 to 1
GREY = np.round(RAMP * 255).astype(np.uint8)
SENTENCE = "Unilateral pulmonary infection, one infected area, lower left lung."


def said(warnings, *words):
    """The one warning that holds all words."""
    found = [w for w in warnings if all(word in w for word in words)]
    assert len(found) == 1, (words, warnings)
    return found[0]


# ---------------------------------------------------------------- encodings


def palette():
    return Image.fromarray(GREY).convert("P", palette=Image.Palette.ADAPTIVE, colors=256)


def rgba(alpha):
    return Image.fromarray(np.dstack([GREY, GREY, GREY, alpha.astype(np.uint8)]))


HALF = np.where(np.arange(40) < 20, 255, 0)[None].repeat(48, 0)
EXIF = Image.Exif()
EXIF[0x0112] = 6  # the camera was turned: show it turned by 90 degrees clockwise

# name, picture, options of save, expected pixels, largest difference, the words of its warnings
PICTURES = [
    ("grey.png", Image.fromarray(GREY), {}, GREY, 0, []),
    ("rgb.png", Image.fromarray(GREY).convert("RGB"), {}, GREY, 0, []),
    ("grey.jpg", Image.fromarray(GREY), {"quality": 95}, GREY, 6, []),
    ("turned.jpg", Image.fromarray(GREY), {"quality": 95, "exif": EXIF}, np.rot90(GREY, -1), 6, ["EXIF"]),
    ("turned.tif", Image.fromarray(GREY), {"exif": EXIF}, np.rot90(GREY, -1), 0, ["EXIF"]),
    ("palette.png", palette(), {}, GREY, 0, []),
    ("one_bit.png", Image.fromarray(GREY > 127), {}, (GREY > 127) * 255, 0, []),
    ("opaque.png", rgba(np.full(GREY.shape, 255)), {}, GREY, 0, []),
    ("half.png", rgba(HALF), {}, np.where(HALF, GREY, 0), 0, ["black"]),
    ("transparent_grey.png", Image.fromarray(GREY), {"transparency": 255}, np.where(GREY < 255, GREY, 0), 0, ["black"]),
    ("16.png", Image.fromarray((RAMP * 4095).astype(np.uint16)), {}, GREY, 1, ["stretched"]),
    ("16.tif", Image.fromarray((RAMP * 65535).astype(np.uint16)), {}, GREY, 1, ["stretched"]),
    ("white is zero.tif", Image.fromarray(65535 - (RAMP * 65535).astype(np.uint16)), {"tiffinfo": {262: 0}}, GREY, 1, ["inverted", "stretched"]),
    ("unit.tif", Image.fromarray(RAMP.astype(np.float32)), {}, GREY, 0, []),
    ("float.tif", Image.fromarray((RAMP * 3000 - 1000).astype(np.float32)), {}, GREY, 1, ["stretched"]),
    ("signed.tif", Image.fromarray((RAMP * 3000 - 1000).astype(np.int32)), {}, GREY, 1, ["stretched"]),
    ("red.png", Image.fromarray(np.dstack([GREY, GREY * 0, GREY * 0])), {}, np.round(GREY * 0.299), 1, ["colour"]),
    ("cmyk.jpg", Image.fromarray(GREY).convert("RGB").convert("CMYK"), {"quality": 95}, GREY, 8, []),
    ("constant.png", Image.new("L", (40, 48), 9), {}, np.full(GREY.shape, 9), 0, ["same value"]),
    ("flat.png", Image.fromarray(GREY // 64), {}, GREY // 64, 0, ["contrast"]),
]


@pytest.mark.parametrize("name, picture, options, expected, tolerance, words", PICTURES, ids=[p[0] for p in PICTURES])
def test_every_encoding_gives_the_pixels_a_viewer_shows(tmp_path, name, picture, options, expected, tolerance, words):
    picture.save(tmp_path / name, **options)
    pixels, warnings = read_picture(tmp_path / name)
    assert pixels.dtype == np.uint8 and pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= tolerance
    assert len(warnings) == len(words), warnings
    for word in words:
        said(warnings, word)
    content = (tmp_path / name).read_bytes()
    with Image.open(io.BytesIO(content)) as opened:
        for source in (str(tmp_path / name), content, bytearray(content), io.BytesIO(content), opened):
            again = read_picture(source)
            assert np.array_equal(again.pixels, pixels) and again.warnings == warnings
    with open(tmp_path / name, "rb") as file:
        assert np.array_equal(read_image(file), pixels)


@pytest.mark.parametrize("array, expected, words", [
    (GREY, GREY, []),
    (GREY[:, :, None], GREY, []),
    (np.dstack([GREY] * 3), GREY, []),
    (rgba(HALF), np.where(HALF, GREY, 0), ["black"]),
    (GREY > 127, (GREY > 127) * 255, []),
    (np.dstack([GREY > 127] * 3), (GREY > 127) * 255, []),
    ((RAMP * 65535).astype(np.uint16), GREY, ["stretched"]),
    (np.dstack([RAMP * 65535] * 3).astype(np.uint16), GREY, ["stretched"]),
    (RAMP, GREY, []),
    (RAMP.astype(np.float16), GREY, []),
    (np.dstack([RAMP] * 3), GREY, []),
    (np.dstack([RAMP] * 3 + [HALF / 255]), np.where(HALF, GREY, 0), ["black"]),
    (np.dstack([RAMP, RAMP * 0, RAMP * 0]), GREY * 0.299, ["colour"]),
    (RAMP * 900 - 300, GREY, ["stretched"]),
    (GREY.T.astype(">i4") * 100, GREY.T, ["stretched"]),
], ids=lambda x: f"{x.dtype}{x.shape}" if isinstance(x, np.ndarray) else None)  # fmt: skip
def test_arrays(array, expected, words):
    pixels, warnings = read_picture(array)
    assert pixels.dtype == np.uint8 and pixels.shape == expected.shape
    assert np.abs(pixels.astype(float) - expected).max() <= 1
    assert len(warnings) == len(words), warnings
    for word in words:
        said(warnings, word)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**16 - 1), st.integers(0, 2**16 - 1), st.booleans())
def test_stretching_uses_the_whole_range_and_keeps_the_order(a, b, as_float):
    low, high = sorted((a, b + 2))
    values = np.linspace(low, high, 32 * 32).reshape(32, 32)
    values = values * 1.0 if as_float else np.round(values).astype(np.int64)
    pixels = read_image(values)
    if values.max() > values.min():
        assert pixels.flat[0] == 0 and pixels.flat[-1] == 255
    assert (np.diff(pixels.ravel().astype(int)) >= 0).all()


# ---------------------------------------------------------------- what cannot be read


def truncated(tmp_path, ending, share=0.5):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (200, 200), np.uint8)
    Image.fromarray(noise).save(buffer, format=ending)
    (tmp_path / f"cut.{ending}").write_bytes(buffer.getvalue()[: int(share * len(buffer.getvalue()))])
    return f"cut.{ending}"


def file_of(content, name="file.png"):
    return lambda folder: (folder / name).write_bytes(content) and name or name


def picture_of(array, name):
    def make(folder):
        Image.fromarray(array).save(folder / name)
        return name

    return make


def folder_of(folder):
    (folder / "folder.png").mkdir()
    return "folder.png"


def two_pages(folder):
    Image.fromarray(GREY).save(folder / "pages.tif", save_all=True, append_images=[Image.fromarray(GREY.copy())])
    return "pages.tif"


def claims(width, height):
    """A small PNG whose header claims another size."""

    def make(folder):
        buffer = io.BytesIO()
        Image.new("1", (40, 40)).save(buffer, format="png")
        content = bytearray(buffer.getvalue())
        content[16:24] = struct.pack(">II", width, height)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        (folder / "bomb.png").write_bytes(content)
        return "bomb.png"

    return make


BAD = {
    "1x1": (picture_of(np.zeros((1, 1), np.uint8), "dot.png"), "1×1 pixels"),
    "thin": (picture_of(np.zeros((31, 500), np.uint8), "thin.png"), "500×31 pixels"),
    "truncated JPEG": (lambda folder: truncated(folder, "jpeg"), "damaged"),
    "truncated PNG": (lambda folder: truncated(folder, "png"), "damaged"),
    "header of a TIFF": (lambda folder: truncated(folder, "tiff", 0.001), "read"),
    "empty": (file_of(b""), "empty"),
    "text": (file_of("Not a picture, but a note.\n".encode()), "not a picture"),
    "zeros": (file_of(bytes(5000)), "not a picture"),
    "EPS": (file_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n"), "not a picture"),
    "folder": (folder_of, "is a folder"),
    "missing": (lambda folder: "gone.png", "not there"),
    "device": (lambda folder: os.devnull, "is not a regular file"),
    "name with a zero": (lambda folder: "a\0b.png", "not the name of a file"),
    "long name": (lambda folder: "a" * 5000 + ".png", "cannot be read"),
    "NaN": (picture_of(np.where(GREY > 5, RAMP, np.nan).astype(np.float32), "nan.tif"), "NaN"),
    "infinity": (picture_of(np.where(GREY > 5, RAMP, np.inf).astype(np.float32), "inf.tif"), "NaN or infinity"),
    "pages": (two_pages, "holds 2 pictures"),
    "too large": (claims(9000, 9900), "9000×9900 pixels"),
    "bomb": (claims(40_000, 40_000), "pixels"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore:Corrupt EXIF")
def test_bad_files_are_named_in_one_sentence(tmp_path, case):
    make, words = BAD[case]
    path = tmp_path / make(tmp_path)
    with pytest.raises(ImageError) as caught:
        read_image(path)
    message = str(caught.value)
    assert words in message and path.name[:20] in message.replace("\\x00", "\0") and "\n" not in message and message.endswith(".")


def test_an_upload_that_is_not_there_is_refused_in_one_sentence(tmp_path):
    for name, said in ((None, "There is no picture yet"), (str(tmp_path / "gone.png"), "no longer on the server; upload it again")):
        with pytest.raises(ValueError, match=said):
            upload(name)


@pytest.mark.parametrize("source, words", [
    (np.zeros((3, 64, 64)), r"not \(3, 64, 64\)"), (np.zeros((64, 64, 2)), "shape"), (np.zeros(64), "shape"),
    (np.zeros((0, 64)), "pixels"), (np.full((64, 64), "a"), "numbers"), (np.zeros((64, 64), complex), "numbers"),
    (np.zeros((64, 64), object), "numbers"), (np.full((64, 64), np.nan), "NaN"), (None, "NoneType"), (7, "int"),
    (b"", "empty"), (b"hello", "not a picture"), (io.StringIO("hello"), "binary"), (Image.new("L", (1, 1)), "1×1"),
    (np.dstack([RAMP] * 3 + [RAMP * 255]), "opacity"), (np.broadcast_to(np.uint8(1), (9000, 9000)), "9000×9000"),
])  # fmt: skip
def test_bad_sources(source, words):
    with pytest.raises(ImageError, match=words):
        read_image(source)


def test_pillows_own_limit_lies_above_ours():
    assert images.MOST_PIXELS < Image.MAX_IMAGE_PIXELS  # else Pillow would warn on the console first


# ---------------------------------------------------------------- through the command line


def run(capsys, *arguments):
    """Exit status, stdout and stderr of the command line."""
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    out = capsys.readouterr()
    assert "Traceback" not in out.err
    return caught.value.code or 0, out.out, out.err


@pytest.mark.parametrize("case", BAD)
def test_predict_refuses_bad_pictures(tmp_path, capsys, tiny_model_dir, case):
    make, words = BAD[case]
    path = tmp_path / make(tmp_path)
    status, out, err = run(capsys, "predict", path, SENTENCE, "--out", tmp_path / "out", "--model", tiny_model_dir)
    assert status == 2 and out == "" and not (tmp_path / "out").exists()
    assert err.startswith("causalclipseg: ") and err.count("\n") == 1 and words in err


@pytest.mark.parametrize("name", [p[0] for p in PICTURES])
def test_predict_takes_every_encoding(tmp_path, capsys, tiny_model_dir, name):
    _, picture, options, expected, _, words = next(p for p in PICTURES if p[0] == name)
    picture.save(tmp_path / name, **options)
    status, out, err = run(capsys, "predict", tmp_path / name, SENTENCE, "--out", tmp_path / "out", "--model", tiny_model_dir)
    assert status == 0 and "Written to" in out
    for file in ("mask", "probability", "causal", "confounder", "overlay"):
        with Image.open(tmp_path / "out" / f"{file}.png") as written:
            assert written.size == expected.shape[::-1] and written.mode == ("RGB" if file == "overlay" else "L")
    warnings = json.loads((tmp_path / "out" / "result.json").read_text())["warnings"]
    assert len(warnings) == len(words) == err.count("\n")


def test_predict_on_a_large_16_bit_picture(tmp_path, capsys, tiny_model_dir):
    ramp = np.arange(4096, dtype=np.uint16) * 16
    Image.fromarray(np.broadcast_to(ramp, (4096, 4096)).copy()).save(tmp_path / "large.png", compress_level=1)
    status, _, err = run(capsys, "predict", tmp_path / "large.png", SENTENCE, "--out", tmp_path / "out", "--model", tiny_model_dir)
    assert status == 0 and "stretched" in err
    with Image.open(tmp_path / "out" / "mask.png") as mask:
        assert mask.size == (4096, 4096) and set(np.unique(np.asarray(mask))) <= {0, 255}


SENTENCES = {
    "empty": ("", ["no sentence"]),
    "blank": (" \n\t", ["no sentence"]),
    "500 words": ("infection " * 250 + "gribble " * 250, ["gribble", "could not be read", "its end was not read"]),
    "emoji": ("🫁🦠 😷", ["🫁", "could not be read", "do not rely"]),
    "Chinese": ("左下肺感染", ["could not be read", "do not rely"]),
    "Spanish": ("Infección pulmonar, dos áreas infectadas", ["infección", "do not rely"]),
    "Arabic": ("التهاب رئوي", ["could not be read", "do not rely"]),
    "marks": ("?!…", ["do not rely"]),
    "a shell's stray byte": ("lower left lung \udcff", []),
    "zero byte": ("lower left\0 lung", []),
    "contradiction": ("Bilateral pulmonary infection, lower left lung.", ["contradicts", "bilateral"]),
    "markup": ("<script>alert(1)</script> lower left lung", ["script"]),
}


@pytest.mark.parametrize("case", SENTENCES)
def test_predict_takes_every_sentence(tmp_path, capsys, tiny_model_dir, case):
    sentence, words = SENTENCES[case]
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    arguments = ("--out", tmp_path / "out", "--model", tiny_model_dir)
    status, out, err = run(capsys, "predict", tmp_path / "grey.png", sentence, *arguments)
    assert status == 0 and all(word in err for word in words), err
    assert bool(err) == bool(words)
    result = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert [f"causalclipseg: warning: {w}" for w in result["warnings"]] == err.splitlines()


def test_predict_refuses_an_endless_sentence(tmp_path, capsys, tiny_model_dir):
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    status, _, err = run(capsys, "predict", tmp_path / "grey.png", "a" * 10_001, "--out", tmp_path / "out", "--model", tiny_model_dir)
    assert status == 2 and "10,001 characters" in err and err.count("\n") == 1


@pytest.mark.parametrize("ending, options", [("tif", {"exif": EXIF}), ("png", {"exif": EXIF})])
def test_data_sets_turn_picture_and_mask_alike(tmp_path, ending, options):
    from causalclipseg.data import load_image, load_mask

    mask = np.where(GREY > 127, 255, 0).astype(np.uint8)
    for name, pixels in (("image", GREY), ("mask", mask)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.{ending}", **options)
    assert np.array_equal(load_image(tmp_path / f"image.{ending}"), np.rot90(GREY, -1))
    assert np.array_equal(load_mask(tmp_path / f"mask.{ending}"), np.rot90(mask, -1) > 0)
