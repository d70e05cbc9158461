"""The grammar of the sentences, on the published templates, on random input and at every edge."""

import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causalclipseg import reports
from causalclipseg.reports import SIDES, ZONE_BOUNDS, ZONES, Report, parse, write

ALL = ZONES
U, M, L = ("upper",), ("middle",), ("lower",)
TEMPLATES = [  # (sentence after "U"/"B", left, right, count); peers.md section 3, lists A and B
    ("U one infected area, all left lung.", ALL, (), 1),
    ("U two infected areas, upper middle lower left lung.", ALL, (), 2),
    ("U three infected areas, upper middle lower left lung.", ALL, (), 3),
    ("U one infected area, all right lung.", (), ALL, 1),
    ("U two infected areas, upper middle lower right lung.", (), ALL, 2),
    ("U three infected areas, upper middle lower right lung.", (), ALL, 3),
    ("B two infected areas, all left lung and all right lung.", ALL, ALL, 2),
    ("B two infected areas, all left lung and upper middle right lung.", ALL, U + M, 2),
    ("B two infected areas, all left lung and middle lower right lung.", ALL, M + L, 2),
    ("B two infected areas, upper middle left lung and all right lung.", U + M, ALL, 2),
    ("B two infected areas, middle lower left lung and all right lung.", M + L, ALL, 2),
    ("B three infected areas, all left lung and upper middle lower right lung.", ALL, ALL, 3),
    ("B three infected areas, upper middle lower left lung and all right lung.", ALL, ALL, 3),
    ("B four infected areas, upper middle lower left lung and upper middle lower right lung.", ALL, ALL, 4),
    ("U one infected area, lower right lung.", (), L, 1),
    ("U one infected area, upper middle lower right lung.", (), ALL, 1),
    ("B two infected areas, upper left lung and lower right lung.", U, L, 2),
    ("B two infected areas, lower left lung and upper right lung.", L, U, 2),
    ("B two infected areas, lower left lung and lower right lung.", L, L, 2),
    ("B two infected areas, lower left lung and middle lower right lung.", L, M + L, 2),
    ("B two infected areas, middle lower left lung and upper middle lower right lung.", M + L, ALL, 2),
    ("B two infected areas, upper right lung and upper left lung.", U, U, 2),
    ("B two infected areas, left lung and lower right lung.", ALL, L, 2),
    ("B nine infected areas, left lung and middle right lung.", ALL, M, 9),
]
EXTENTS = {"U": "Unilateral", "B": "Bilateral"}


def full(short):
    return f"{EXTENTS[short[0]]} pulmonary infection,{short[1:]}"


@st.composite
def report_values(draw):
    """Reports that a sentence can state: at least one side, 1 to 12 areas or no count."""
    zones = st.sets(st.sampled_from(ZONES)).map(lambda s: tuple(z for z in ZONES if z in s))
    left, right = draw(st.tuples(zones, zones).filter(any))
    whole = tuple(s for s, z in zip(SIDES, (left, right), strict=True) if z == ALL and draw(st.booleans()))
    extent = "bilateral" if left and right else "unilateral"
    return Report(left, right, draw(st.none() | st.integers(1, 12)), extent, whole=whole)


@st.composite
def blob_masks(draw):
    """(H, W) bool masks of up to five rectangles, even and odd sizes, sometimes empty."""
    height, width = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    mask = np.zeros((height, width), bool)
    for _ in range(draw(st.integers(0, 5))):
        y, x = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        mask[y : y + draw(st.integers(1, 30)), x : x + draw(st.integers(1, 30))] = True
    return mask


# ------------------------------------------------------------------------------------------- reading
@pytest.mark.parametrize(("short", "left", "right", "count"), TEMPLATES)
def test_published_sentences(short, left, right, count):
    report = parse(full(short))
    assert (report.left, report.right, report.count) == (left, right, count)
    assert report.extent == EXTENTS[short[0]].lower()
    assert report.unread == () and report.contradictions == ()


@pytest.mark.parametrize("short", [t[0] for t in TEMPLATES[:21]])
def test_canonical_sentences_are_written_back_word_for_word(short):
    assert write(parse(full(short))) == full(short)


def test_the_order_of_sides_and_bare_lungs_become_canonical():
    assert write(parse(full(TEMPLATES[21][0]))).endswith("upper left lung and upper right lung.")
    assert write(parse(full(TEMPLATES[22][0]))).endswith("all left lung and lower right lung.")


@pytest.mark.parametrize(
    ("text", "left", "right"),
    [
        ("lowerl left lung", L, ()),
        ("left lung", ALL, ()),
        ("LOWER LEFT LUNG", L, ()),
        ("  lower \n\t left   lung", L, ()),
        ("Infection of the lower left lung.", L, ()),
        ("left lung, lower zone", L, ()),
        ("left lung (upper and middle), right lung (lower)", U + M, L),
        ("left lung lower, right lung upper", L, U),
        ("lower upper right lung", (), U + L),
        ("right-sided infection", (), ALL),
        ("infection of both lungs", ALL, ALL),
        ("middle lower left lung and rigth lung", M + L, ALL),
        ("Upper and lower left lung.", U + L, ()),
        ("lower left lung EOF XXX EOF XXX", L, ()),
        ("one lesion in the whole left lung", ALL, ()),
        # A phrase that begins with its side.
        ("Left lower lobe and right upper lobe", L, U),
        ("left lower zone and right lower zone", L, L),
        ("Left and right lower lobes.", L, L),
        ("Lower left and right lung.", L, L),
        ("Lower left and right upper lobe.", L, U),
        ("Bilateral lower lobe infection.", L, L),
        ("Infection in both lower lungs.", L, L),
        ("Left upper lobe and both lower lobes.", U + L, L),
        ("Both lower lobes and the right upper lobe.", L, U + L),
        ("Both upper and lower zones of the left lung.", U + L, ()),
        ("left upper, middle, and lower zones and right lower zone", ALL, L),
        ("left upper and lower right lung", U, L),
        ("left and right upper lobes and left lower lobe", U + L, U),
        # "and" after a bare lung begins the next phrase; zones said before a side are its own.
        ("left lung and upper and lower right lung", ALL, U + L),
        ("left lung, upper and lower right lung", ALL, U + L),
        ("left lung and right lower lobe", ALL, L),
        ("upper lower left lung and all right lung", U + L, ALL),
    ],
)
def test_tolerated_wordings(text, left, right):
    report = parse(text)
    assert (report.left, report.right, report.unread) == (left, right, ())


@pytest.mark.parametrize(
    ("text", "count"),
    [("3 infected areas, left lung", 3), ("nine infected areas", 9), ("left lung", None), ("12 areas", 12),
     ("infection of one lung", None), ("two infected area, left lung", 2), ("0 infected areas", 0),
     ("two ground-glass opacities", 2), ("a single lesion", 1), ("none", 0), ("None.", 0), ("No pneumonia.", 0)],
)
def test_counts(text, count):
    report = parse(text)
    assert report.count == count and report.unread == ()


@pytest.mark.parametrize(
    ("text", "unread"),
    [("Left lower lobe infection, no pleural effusion.", ("no", "pleural", "effusion")),
     ("Infection of 3 cm, left lower lobe.", ("3", "cm")),
     ("65 year old, left lower lobe", ("65", "year", "old")), ("left lower lobe, pleural effusion: none", ("pleural", "effusion", "none")),
     ("left lower lobe: no. Infection", ("no",))],
)  # fmt: skip
def test_a_number_of_something_else_counts_no_areas(text, unread):
    report = parse(text)
    assert (report.left, report.count, report.unread) == (L, None, unread)
    assert parse(f"{text}, two infected areas").count == 2


def test_side_property():
    assert parse("left lung").side == "left"
    assert parse("right lung").side == "right"
    assert parse("left lung and right lung").side == "both"
    assert parse("Pulmonary infection.").side is None


def test_what_cannot_be_read_is_said():
    assert parse("Infection of the flower left lung, light").unread == ("flower", "light")
    assert parse("左肺の感染 😀 lower left lung").unread == ("左肺の感染", "😀")
    assert parse("Infección del pulmón izquierdo").side is None
    assert parse("Infección del pulmón izquierdo").unread == ("infección", "del", "pulmón", "izquierdo")
    assert parse("upper infection").unread == ("upper",)  # a zone without a side says too little


@pytest.mark.parametrize("text", ["", "  ", ".", "😀", "\x00\ud800", "9" * 5000, "lung " * 500, "٣²½"])
def test_odd_texts_name_no_side(text):
    report = parse(text)
    assert report.side is None and report.count is None


def test_five_hundred_words():
    report = parse("blah " * 499 + "left lung")
    assert report.left == ALL and report.unread == ("blah",)


def test_not_a_string():
    with pytest.raises(TypeError, match="string"):
        parse(None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Bilateral pulmonary infection, lower left lung.", "bilateral but names only the left"),
        ("Unilateral pulmonary infection, left lung and right lung.", "unilateral but names both"),
        ("Bilateral pulmonary infection, one infected area, left lung and right lung.", "counts one"),
        ("Bilateral pulmonary infection, no infected area.", "no infected area"),
    ],
)
def test_contradictions(text, said):
    (sentence,) = parse(text).contradictions
    assert said in sentence


@pytest.mark.parametrize("text", ["No infection in the left lung.", "Infection of the left lung, no infection in the right lung"])
def test_a_no_beside_a_side_is_not_read(text):
    report = parse(text)
    assert "no" in report.unread and report.count is None and report.contradictions == ()
    assert parse(text.replace("No infection", "0 areas").replace("no infection", "0 areas")).unread == ("0",)


def test_wrong_reports_are_refused():
    with pytest.raises(ValueError, match="zone"):
        Report(left=("top",))
    with pytest.raises(ValueError, match="all three"):
        Report(left=L, whole=("left",))


@given(st.text())
def test_parse_never_raises(text):
    report = parse(text)
    assert set(report.left) | set(report.right) <= set(ZONES)


WORDS = ["left", "right", "both", "lungs", "lung", "all", "one", "two", "7", ",", ".", ":", ")", "no",
         "unilateral", "bilateral", "lowerl", "blah", "_", "-", *ZONES]


@given(st.lists(st.sampled_from(WORDS), max_size=15))
def test_any_jumble_of_the_words_reads_as_what_it_writes(words):
    report = parse(" ".join(words))
    again = parse(write(report))
    # A report without a place can't state its zones; everything it does state must survive.
    assert (again.left, again.right, again.whole) == (report.left, report.right, report.whole)
    assert again.count == report.count and again.unread == ()


# ----------------------------------------------------------------------------- writing and rewording
@given(report_values())
def test_write_then_parse(report):
    assert parse(write(report)) == report
    assert parse(write(report, all_as_one=False)).whole == ()


def test_all_as_one():
    report = Report(left=ALL, count=1, extent="unilateral", whole=("left",))
    assert write(report) == "Unilateral pulmonary infection, one infected area, all left lung."
    assert write(report, all_as_one=False).endswith("upper middle lower left lung.")


@given(st.text() | report_values().map(write))
def test_swapping_twice_gives_the_sentence_back(text):
    assert reports.swap_sides(reports.swap_sides(text)) == text


@given(report_values())
def test_swapping_swaps_the_reading(report):
    swapped = parse(reports.swap_sides(write(report)))
    assert (swapped.left, swapped.right, swapped.count) == (report.right, report.left, report.count)


def test_swap_keeps_case_and_other_words():
    assert reports.swap_sides("LEFT Left left, leftover bright") == "RIGHT Right right, leftover bright"


@pytest.mark.parametrize("make", [random.Random, np.random.default_rng])
@settings(deadline=None)
@given(report=report_values(), seed=st.integers(0, 10_000))
def test_paraphrase_keeps_sides_and_zones(make, report, seed):
    text = reports.paraphrase(report, make(seed))
    again = parse(text)
    assert (again.left, again.right) == (report.left, report.right), text
    assert again.count in (None, report.count) and again.unread == (), text
    assert len(reports._WORD.findall(text)) <= reports.LONGEST
    assert reports.paraphrase(report, make(seed)) == text


def test_paraphrases_differ_and_take_text():
    rng = random.Random(0)
    sentence = full(TEMPLATES[19][0])
    texts = {reports.paraphrase(sentence, rng) for _ in range(200)}
    assert len(texts) > 50
    assert {parse(t).count for t in texts} == {2, None}
    assert parse(reports.paraphrase("No infected area.", rng)).count == 0


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("zone", [None, *ZONES])
def test_refer_names_exactly_that_part(side, zone):
    for rng in [None, *map(random.Random, range(20)), np.random.default_rng(0)]:
        report = parse(reports.refer(side, zone, rng))
        assert getattr(report, side) == ((zone,) if zone else ALL)
        assert report.side == side and report.unread == ()


def test_refer_wording_and_errors():
    assert reports.refer("left", "lower") == "Infection of the lower left lung."
    assert reports.refer("left") == "Infection of the left lung."
    with pytest.raises(ValueError, match="side"):
        reports.refer("up")
    with pytest.raises(ValueError, match="zone"):
        reports.refer("left", "top")


def test_generic_and_empty_edits():
    assert reports.edit_none() == ""
    assert parse(reports.GENERIC) == Report()


@given(st.integers(2, 40), st.integers(0, 99))
def test_shuffled_is_a_derangement(count, seed):
    sentences = [str(i) for i in range(count)]
    out = reports.shuffled(sentences, seed)
    assert sorted(out) == sorted(sentences)
    assert all(a != b for a, b in zip(out, sentences, strict=True))
    assert out == reports.shuffled(sentences, seed)


def test_shuffled_edges():
    assert reports.shuffled([], 0) == []
    with pytest.raises(ValueError, match="at least two"):
        reports.shuffled(["alone"], 0)


# -------------------------------------------------------------------------------------------- masks
def picture(*boxes, size=100):
    mask = np.zeros((size, size), bool)
    for top, bottom, first, last in boxes:
        mask[top:bottom, first:last] = True
    return mask


@pytest.mark.parametrize(
    ("boxes", "sentence"),
    [
        ([(60, 90, 10, 40)], "Unilateral pulmonary infection, one infected area, lower left lung."),
        ([(5, 95, 10, 40)], "Unilateral pulmonary infection, one infected area, all left lung."),
        ([(5, 20, 60, 90), (27, 40, 60, 90), (60, 80, 60, 90)],
         "Unilateral pulmonary infection, three infected areas, upper middle lower right lung."),
        ([(5, 20, 10, 40), (60, 90, 10, 40), (5, 95, 60, 90)],
         "Bilateral pulmonary infection, three infected areas, upper lower left lung and all right lung."),
        # 8-connected: two boxes that touch by a corner are one area.
        ([(60, 70, 10, 20), (70, 80, 20, 30)],
         "Unilateral pulmonary infection, one infected area, lower left lung."),
        # Spilling a little into the middle is no middle; a quarter of the area there is.
        ([(40, 90, 10, 40)], "Unilateral pulmonary infection, one infected area, lower left lung."),
        ([(27, 70, 10, 40)], "Unilateral pulmonary infection, one infected area, middle lower left lung."),
        # A spill of one column over the mid-line is no second side; an area of its own is, however small.
        ([(60, 75, 20, 50), (60, 61, 50, 51)],
         "Unilateral pulmonary infection, one infected area, lower left lung."),
        ([(60, 75, 20, 40), (60, 61, 90, 91)],
         "Bilateral pulmonary infection, two infected areas, lower left lung and lower right lung."),
    ],
)
def test_describe(boxes, sentence):
    assert reports.describe(picture(*boxes)) == sentence


def test_anatomical_left_is_the_right_half_of_the_picture():
    mask = picture((60, 90, 10, 40))
    assert "lower right lung" in reports.describe(mask, "anatomical")
    with pytest.raises(ValueError, match="laterality"):
        reports.describe(mask, "patient")


def test_empty_mask():
    assert reports.describe(picture()) == "No infected area."
    assert parse("No infected area.") == reports.read_mask(picture()) == Report(count=0)


def test_every_known_way_of_storing_a_mask_reads_the_same():
    mask = picture((60, 90, 10, 40))
    expected = reports.read_mask(mask)
    for stored in (mask.astype(np.uint8), mask * np.uint8(255), mask.astype(np.float32), mask.astype(int),
                   mask * np.uint16(65535), mask * 255.0, np.where(mask, 1.0, np.nan), mask.tolist()):
        assert reports.read_mask(stored) == expected


@pytest.mark.parametrize("bad", [np.zeros(5), np.zeros((1, 4, 4)), np.zeros((0, 4)), 3, None])
def test_wrong_shapes(bad):
    with pytest.raises(ValueError, match="mask must"):
        reports.describe(bad)


def test_wrong_values():
    with pytest.raises(ValueError, match="largest value is 2"):
        reports.describe(np.full((4, 4), 2, np.uint8))
    with pytest.raises(ValueError, match="numbers"):
        reports.describe(np.full((4, 4), "x"))


@settings(deadline=None)
@given(mask=blob_masks(), laterality=st.sampled_from(reports.LATERALITIES))
def test_described_masks_read_back_and_name_only_what_is_there(mask, laterality):
    seen = reports.read_mask(mask, laterality)
    assert parse(reports.describe(mask, laterality)) == seen
    assert (seen.count == 0) == (seen.side is None) == (not mask.any())
    assert reports.disagreements(seen, seen) == []
    for side in SIDES:
        for zone in getattr(seen, side):
            assert reports.restrict(mask, side, zone, laterality).any()
        if not getattr(seen, side):  # nothing, or a spill-over
            assert reports.restrict(mask, side, None, laterality).sum() <= reports.SIDE_MIN_AREA * mask.size


@settings(deadline=None)
@given(mask=blob_masks(), laterality=st.sampled_from(reports.LATERALITIES))
def test_mirrored_picture_has_the_swapped_sentence(mask, laterality):
    mask = np.pad(mask, ((0, 0), (0, mask.shape[1] % 2)))  # an odd width has no mirror symmetry
    mirrored = reports.describe(mask[:, ::-1], laterality)
    a, b = reports.read_mask(mask, laterality), parse(mirrored)
    assert (a.left, a.right, a.count) == (b.right, b.left, b.count)
    assert reports.read_mask(mask, "image") == reports.read_mask(mask[:, ::-1], "anatomical")


@given(mask=blob_masks(), laterality=st.sampled_from(reports.LATERALITIES))
def test_the_six_parts_sum_to_the_mask(mask, laterality):
    parts = [reports.restrict(mask, s, z, laterality) for s in SIDES for z in ZONES]
    assert (np.sum(parts, 0) == mask).all()
    halves = [reports.restrict(mask, s, None, laterality) for s in SIDES]
    assert (np.sum(halves, 0) == mask).all()
    assert all(p.dtype == mask.dtype and p.shape == mask.shape for p in parts + halves)


def test_restrict_keeps_the_original_and_works_on_stacks_and_tensors():
    torch = pytest.importorskip("torch")
    mask = np.ones((2, 1, 100, 100), np.uint8) * 255
    kept = reports.restrict(mask, "right", "middle")
    first, last = (round(b * 100) for b in ZONE_BOUNDS)
    assert mask.min() == 255 and kept.dtype == np.uint8
    assert (kept[..., first:last, 50:] == 255).all() and kept.sum() == 2 * (last - first) * 50 * 255
    tensor = reports.restrict(torch.from_numpy(mask), "right", "middle")
    assert tensor.dtype == torch.uint8 and (tensor.numpy() == kept).all()
    with pytest.raises(ValueError, match="shape"):
        reports.restrict(np.ones(4), "left")
    with pytest.raises(ValueError, match="shape"):
        reports.restrict([[1]], "left")


# ------------------------------------------------------------------------------- sentence against mask
def test_disagreements():
    seen = reports.read_mask(picture((60, 90, 10, 40)))
    assert reports.disagreements(parse("Infection of the right lung."), seen) == [
        "The mask has a lesion in the left lung; the sentence does not name it.",
        "The sentence names the right lung; the mask has nothing there.",
    ]
    assert reports.disagreements(parse("upper left lung"), seen) == [
        "In the left lung the sentence names upper; the mask shows lower."
    ]
    assert reports.disagreements(parse("two infected areas, lower left lung"), seen) == [
        "The sentence counts two infected areas; the mask has one infected area."
    ]
    assert "both lungs" in reports.disagreements(parse("Bilateral pulmonary infection."), seen)[0]
    assert len(reports.disagreements(parse("No infected area."), seen)) == 2
    for agreed in ("", reports.GENERIC, "lower left lung", "1 infected area"):
        assert reports.disagreements(parse(agreed), seen) == []


def test_importing_reports_loads_no_heavy_library():
    code = "import sys, importlib.util as u; s = u.spec_from_file_location('reports', sys.argv[1]);" \
           "m = u.module_from_spec(s); sys.modules['reports'] = m; s.loader.exec_module(m);" \
           "print({'numpy', 'scipy', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, reports.__file__], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_other_words_name_the_same_places_or_nothing():
    rng = random.Random(0)
    for said in ("Chest X-ray: Pulmonary infection.", "Unilateral pulmonary infection, one infected area, lower left lung."):
        found = [reports.other_words(said, rng) for _ in range(200)]
        assert 20 < found.count("") < 60 and all(not f or (parse(f).left, parse(f).right) == (parse(said).left, parse(said).right) for f in found)
        assert not any(f.startswith("Chest") for f in found)
    assert reports.other_words("", rng) == ""


def test_a_sentence_that_is_not_understood_is_never_put_in_our_words():
    rng, said = random.Random(0), "The nuclei density in the upper left is high."
    assert {reports.paraphrase(said, rng) for _ in range(50)} == {said} and not reports.understood(said)
    found = [reports.other_words(said, rng) for _ in range(200)]
    assert {*found} == {said, ""} and 20 < found.count("") < 60


@pytest.mark.parametrize("name", ["COVID-19", "Covid 19", "covid19", "SARS-CoV-2"])
def test_the_number_in_the_name_of_the_disease_counts_no_areas(name):
    assert parse(f"{name} pneumonia, left lung.").count is None and not parse(f"{name} pneumonia, left lung.").unread
    assert parse(f"{name}: two infected areas, left lung.").count == 2
