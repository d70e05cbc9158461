"""Layouts on disk, matching and decoding; every folder is made here, in the layouts users have."""
import csv
import shutil
import warnings

import numpy as np
import pytest
from openpyxl import Workbook
from PIL import Image

from causalclipseg.data import DataError, data_digest, describe_layout, find_samples, load_image, load_mask, split_rule
from causalclipseg.data.tables import sample_key

SIZE = 32
BOTH = "Bilateral pulmonary infection, two infected areas, lower left lung and lower right lung."
LEFT = "Unilateral pulmonary infection, one infected area, lower left lung."


# ---------------------------------------------------------------- making folders

def table(path, rows, header=("Image", "Description")):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ([header] if header else []) + [list(r) for r in rows]
    if path.suffix == ".xlsx":
        book = Workbook()
        for row in rows:
            book.active.append(list(row))
        book.save(path)
    else:
        with open(path, "w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file).writerows(rows)


def pair(images, masks, name, mask_name=None, ending=".png", size=SIZE):
    """A grey picture and its mask, different for every name."""
    rng = np.random.default_rng(sum(map(ord, name)))
    images.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (size, size), dtype=np.uint8)).save(images / f"{name}{ending}")
    if masks is not None:
        masks.mkdir(parents=True, exist_ok=True)
        mask = np.zeros((size, size), np.uint8)
        mask[size // 2:size - 2, 3:size // 2 - 2] = 255
        Image.fromarray(mask).save(masks / (mask_name or f"mask_{name}.png"))


def names(split, n):
    return [f"{'covid' if i % 2 else 'sub-S1' + str(i) + '_run-1'}_{split}{i}" for i in range(n)]


def make_kaggle(root, train=8, val=2, test=3, ids=True):
    home = root / "QaTa-COV19" / "QaTa-COV19-v2"
    members_of = {"Train Set": names("train", train) + names("val", val), "Test Set": names("test", test)}
    for folder, members in members_of.items():
        for name in members:
            pair(home / folder / "Images", home / folder / "Ground-truths", name)
    table(root / "QaTa-COV19" / "Train_text_for_Covid19.xlsx",
          [(f"mask_{n}.png", f"{LEFT} {n}") for n in names("val", val) + names("train", train)])
    table(home / "test_TEXT_for_covid19.xlsx", [(f"mask_{n}.png", LEFT) for n in names("test", test)])
    if ids:
        table(root / "QaTa-COV19" / "Train_ID.xlsx", [(f"mask_{n}.png",) for n in names("train", train)], ("Image",))
        table(root / "QaTa-COV19" / "Val_ID.xlsx", [(f"mask_{n}.png",) for n in names("val", val)], ("Image",))
    return home


def make_lvit(root, train=8, val=2, test=3, shared_text=False):
    for split, n in (("Train", train), ("Val", val), ("Test", test)):
        if n:
            for name in names(split, n):
                pair(root / f"{split}_Folder" / "img", root / f"{split}_Folder" / "labelcol", name, f"{name}.png")
            if not shared_text or split == "Test":
                table(root / f"{split}_Folder" / f"{split}_text.xlsx", [(f"{x}.png", LEFT) for x in names(split, n)])
    if shared_text:
        table(root / "Train_Folder" / "Train_Val_text.xlsx",
              [(f"{x}.png", LEFT) for x in names("Train", train) + names("Val", val)])


def make_csv(root, train=10, test=3):
    for split, n in (("Train", train), ("Test", test)):
        for name in names(split, n):
            pair(root / split / "Images", root / split / "GTs", name)
        table(root / "prompt" / f"{split.lower()}.csv", [(f"mask_{x}.png", LEFT) for x in names(split, n)])


def make_flat_csv(root, header=("filename", "text")):
    for split, n in (("train", 8), ("val", 2), ("test", 3)):
        for name in names(split, n):
            pair(root / "Images", root / "Ground-truths", name)
        table(root / f"{split}.csv", [(x, LEFT) for x in names(split, n)], header)


LAYOUTS = {"kaggle": (make_kaggle, "published ids"), "lvit": (make_lvit, "folders"),
           "csv": (make_csv, "first 80 per cent of rows"), "flat csv": (make_flat_csv, "folders")}


# ---------------------------------------------------------------- layouts

@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_layout_is_found_by_itself(tmp_path, kind):
    make, rule = LAYOUTS[kind]
    make(tmp_path / "inside" if kind != "kaggle" else tmp_path)
    for root in (tmp_path, next(tmp_path.iterdir())):
        assert describe_layout(root) == kind.split()[-1] and split_rule(root) == rule
        found = {s: find_samples(root, s, strict=True) for s in ("train", "val", "test")}
        assert [len(found[s]) for s in found] == [8, 2, 3]
        assert {x.split for x in found["val"]} == {"val"}
        assert find_samples(root, "all", strict=True) == found["train"] + found["val"] + found["test"]
    for sample in found["train"]:
        assert sample_key(sample.image.name) == sample_key(sample.mask.name) == sample.name.lower()
        assert sample.report.startswith("Unilateral")
    assert {(x.source, x.subject) for x in found["test"]} == {("covid", None), ("sub", "S10"), ("sub", "S12")}


def test_kaggle_from_the_version_folder_and_by_ids(tmp_path):
    home = make_kaggle(tmp_path)
    train = find_samples(home, "train", strict=True)
    assert len(train) == 8 and all("train" in x.name for x in train) and all(x.report.endswith(x.name) for x in train)
    assert all("val" in x.name for x in find_samples(home, "val", strict=True))


def test_one_id_table_is_enough_and_overlap_is_refused(tmp_path):
    make_kaggle(tmp_path)
    (tmp_path / "QaTa-COV19" / "Train_ID.xlsx").unlink()
    assert {x.name for x in find_samples(tmp_path, "train", strict=True)} == set(names("train", 8))
    shutil.copy(tmp_path / "QaTa-COV19" / "Val_ID.xlsx", tmp_path / "QaTa-COV19" / "Train_ID.xlsx")
    with pytest.raises(DataError, match="share 2 ids"):
        find_samples(tmp_path)


def test_without_ids_the_first_80_per_cent_of_rows_train(tmp_path):
    make_kaggle(tmp_path, ids=False)
    assert split_rule(tmp_path) == "first 80 per cent of rows"
    rows = names("val", 2) + names("train", 8)  # the order in the table
    assert [x.name for x in find_samples(tmp_path, "train")] == rows[:8]
    assert [x.name for x in find_samples(tmp_path, "val")] == rows[8:]


@pytest.mark.parametrize("kind", ["kaggle", "csv"])
@pytest.mark.parametrize("listed", [True, False])
def test_a_table_of_val_over_the_train_folder_is_the_validation(tmp_path, kind, listed):
    """listed: the train table has its rows, too, as the published one does; nothing may then be on both sides."""
    if kind == "kaggle":
        tables, members = make_kaggle(tmp_path, ids=False) / "prompt", names("val", 2) + names("train", 8)
        (tmp_path / "QaTa-COV19" / "Train_text_for_Covid19.xlsx").unlink()
    else:
        make_csv(tmp_path)
        tables, members = tmp_path / "prompt", names("Train", 10)
    table(tables / "train.csv", [(n, LEFT) for n in members[0 if listed else 2 :]])
    table(tables / "val.csv", [(f"mask_{n}.png", BOTH) for n in members[:2]])
    train, val = (find_samples(tmp_path, s, strict=True) for s in ("train", "val"))
    assert [x.name for x in val] == members[:2] and {(x.report, x.split) for x in val} == {(BOTH, "val")}
    assert [x.name for x in train] == members[2:] and split_rule(tmp_path) == "folders"
    pair(train[0].image.parent, None, "stray")
    with pytest.warns(UserWarning, match=r"1 pictures without a sentence \(stray.png\)"):
        assert len(find_samples(tmp_path, "all")) == 13
    bare = [x.name for x in find_samples(tmp_path, "all", need_masks=False, need_reports=False)]
    assert len(bare) == len(set(bare)) == 14, "each picture once, whatever number of tables share its folder"


@pytest.mark.parametrize("name", ["Valid", "Validation"])
@pytest.mark.parametrize("folder, inner, text", [
    ("{} Set", ("Images", "Ground-truths"), "{}_text_for_Covid19.csv"), ("{}_Folder", ("img", "labelcol"), "{}_text.csv"),
    ("{}", ("Images", "GTs"), "prompt/{}.csv")])
def test_val_may_be_called_valid_or_validation(tmp_path, name, folder, inner, text):
    for split, n in (("Train", 3), (name, 2)):
        for x in names(split, n):
            pair(*(tmp_path / folder.format(split) / part for part in inner), x)
        table(tmp_path / text.format(split), [(x, LEFT) for x in names(split, n)])
    assert [x.name for x in find_samples(tmp_path, "val", strict=True)] == names(name, 2) and split_rule(tmp_path) == "folders"
    assert len(find_samples(tmp_path, "train", strict=True)) == 3


def test_a_folder_of_pictures_and_masks_without_a_table_is_one_part_where_nothing_else_is(tmp_path):
    v1 = tmp_path / "QaTa-COV19" / "QaTa-COV19-v1"
    for name in names("a", 5):
        pair(v1 / "Images", v1 / "Ground-truths", name)
    pair(tmp_path / "__MACOSX" / "QaTa-COV19-v1" / "Images", tmp_path / "__MACOSX" / "QaTa-COV19-v1" / "Ground-truths", "x")
    assert describe_layout(tmp_path) == "csv" and len(find_samples(tmp_path, "all", need_reports=False)) == 5
    with pytest.raises(DataError, match="no sentences. Looked for prompt/train.csv.*data describe"):
        find_samples(tmp_path)
    make_kaggle(tmp_path)  # as Kaggle has them, one beside the other
    assert describe_layout(tmp_path) == "kaggle" and len(find_samples(tmp_path, "train", strict=True)) == 8


def test_lvit_shared_text_and_missing_folders(tmp_path):
    make_lvit(tmp_path / "a", shared_text=True)
    assert [len(find_samples(tmp_path / "a", s, strict=True)) for s in ("train", "val", "test")] == [8, 2, 3]
    make_lvit(tmp_path / "b", train=0, val=0)
    assert len(find_samples(tmp_path / "b", "all", strict=True)) == 3
    with pytest.raises(DataError, match="no train split, only: test"):
        find_samples(tmp_path / "b")


@pytest.mark.parametrize("ending", [".jpg", ".tif", ".bmp", ".PNG"])
@pytest.mark.parametrize("entry", ["mask_Case_1.png", "Case_1", "case_1.PNG", "img/Case_1.tif", " MASK_case_1 "])
def test_names_match_robustly(tmp_path, ending, entry):
    pair(tmp_path / "Test_Folder" / "img", tmp_path / "Test_Folder" / "labelcol", "Case_1", "mask_CASE_1.png", ending)
    table(tmp_path / "Test_text.xlsx", [(entry, LEFT)])
    sample, = find_samples(tmp_path, "test", strict=True)
    assert sample.name == "Case_1" and sample.source == "other" and sample.mask.name == "mask_CASE_1.png"


@pytest.mark.parametrize("header, row", [
    (("IMAGE", " description "), ("1.png", LEFT)), (None, ("1.png", LEFT)), (("", ""), ("mask_1.png", LEFT)),
    ((None, "Image", "Description"), (0, "1", LEFT)), (("Image", ""), ("1", LEFT)), (("text", "image"), (LEFT, 1)),
    (("foo", "bar"), (1, LEFT))])
@pytest.mark.parametrize("kind", [".xlsx", ".csv"])
def test_headers_in_other_cases_unnamed_or_missing(tmp_path, header, row, kind):
    pair(tmp_path / "Images", tmp_path / "GTs", "1")
    table(tmp_path / f"test{kind}", [row], header)
    sample, = find_samples(tmp_path, "test", strict=True)
    assert (sample.name, sample.report) == ("1", LEFT)


def test_csv_with_semicolons_or_unquoted_commas(tmp_path):
    pair(tmp_path / "Images", tmp_path / "GTs", "1")
    (tmp_path / "test.csv").write_text(f"Image;Description\n1.png;{LEFT}\n")
    assert find_samples(tmp_path, "test")[0].report == LEFT
    (tmp_path / "test.csv").write_text(f"Image,Description\n1.png,{LEFT}\n")
    with pytest.raises(DataError, match="row 2 has 4 columns.*double quotes"):
        find_samples(tmp_path, "test")
    (tmp_path / "test.csv").write_bytes("Image,Description\n1.png,Läsion\n".encode("cp1252"))
    with pytest.raises(DataError, match="UTF-8"):
        find_samples(tmp_path, "test")
    for text, said in (("Image\n1.png\n", "needs two columns, Image and Description; its first row is .'Image'"), ("", "missing .an empty table"),
                       (f'Image,Description\n1.png,"{LEFT}\n', "can't be read as CSV .*Check its double quotes")):  # fmt: skip
        (tmp_path / "test.csv").write_text(text)
        with pytest.raises(DataError, match=said):
            find_samples(tmp_path, "test")


def test_what_people_write_into_tables_is_read(tmp_path):
    pair(tmp_path / "Images", tmp_path / "GTs", "1")
    in_lines = LEFT.replace("lower left", "lower\nleft").replace(", ", ",\r\n ", 1)
    for text in (f'Image,Description\n1.png,"{in_lines}"\n', f'Image, Description\n1.png, "{LEFT}"\n', f"1.png;{LEFT}\n",
                 f"mask_1;{LEFT}\n", f'1.png,"{LEFT}"\n', f"\n1.png\t{LEFT}\n", f'"Image";"Description, in English"\n1;"{LEFT}"\n'):  # fmt: skip
        (tmp_path / "test.csv").write_bytes(text.encode())
        sample, = find_samples(tmp_path, "test", strict=True)
        assert sample.report == LEFT, text
    (tmp_path / "test.csv").unlink()
    table(tmp_path / "test.xlsx", [("1.png", in_lines, "see the first reading")])  # a note beside the two columns
    assert find_samples(tmp_path, "test", strict=True)[0].report == LEFT


def test_a_split_without_a_picture_is_named(tmp_path):
    make_csv(tmp_path, train=1)
    with pytest.raises(DataError, match=r"\(csv layout\): no sample in split train"):
        find_samples(tmp_path, "train")


# ---------------------------------------------------------------- what is wrong is said

def test_duplicates_that_disagree_are_refused_by_name(tmp_path):
    pair(tmp_path / "Images", tmp_path / "GTs", "a")
    table(tmp_path / "test.csv", [("a.png", LEFT), ("mask_a", LEFT)])
    assert len(find_samples(tmp_path, "test", strict=True)) == 1  # the same sentence twice is no contradiction
    table(tmp_path / "test.csv", [("a.png", LEFT), ("mask_a", BOTH)])
    with pytest.raises(DataError, match="row 3: a has two different sentences"):
        find_samples(tmp_path, "test")
    table(tmp_path / "test.csv", [("a.png", LEFT)])
    shutil.copy(tmp_path / "GTs" / "mask_a.png", tmp_path / "GTs" / "a.png")
    assert len(find_samples(tmp_path, "test", strict=True)) == 1
    Image.new("L", (SIZE, SIZE)).save(tmp_path / "GTs" / "a.png")
    with pytest.raises(DataError, match="a.png and mask_a.png"):
        find_samples(tmp_path, "test")


def test_unmatched_things_are_counted_and_named(tmp_path):
    make_csv(tmp_path)
    (tmp_path / "Test" / "GTs" / f"mask_{names('Test', 3)[0]}.png").unlink()
    pair(tmp_path / "Test" / "Images", None, "stray")
    table(tmp_path / "prompt" / "test.csv", [(x, LEFT) for x in (*names("Test", 3), "ghost")])
    with pytest.warns(UserWarning, match=r"1 sentences without a picture \(ghost\); 1 pictures without a sentence "
                                         r"\(stray.png\); 1 pictures without a mask \(sub-S10_run-1_Test0.png\)"):
        assert len(find_samples(tmp_path, "test")) == 2
    with pytest.raises(DataError, match="ghost"):
        find_samples(tmp_path, "test", strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(find_samples(tmp_path, "train")) == 8  # trouble in another split is no trouble here
    with pytest.warns(UserWarning, match="ghost"):
        bare = find_samples(tmp_path, "test", need_masks=False, need_reports=False)
    assert [(x.name, x.mask is None, x.report == "") for x in bare if x.name in ("stray", names("Test", 3)[0])] \
        == [(names("Test", 3)[0], True, False), ("stray", True, True)]


def test_missing_things_are_said_in_one_sentence(tmp_path):
    with pytest.raises(DataError, match="not there"):
        find_samples(tmp_path / "nowhere")
    with pytest.raises(DataError, match="No data set recognised.*an empty folder"):
        find_samples(tmp_path)
    home = make_kaggle(tmp_path)
    (home / "test_TEXT_for_covid19.xlsx").write_text("not a workbook")
    with pytest.raises(DataError, match="can't be read as an Excel workbook"):
        find_samples(tmp_path, "test")
    (home / "test_TEXT_for_covid19.xlsx").unlink()
    with pytest.raises(DataError, match="no sentences. Looked for Test_text_for_Covid19.xlsx"):
        find_samples(tmp_path, "test")
    assert len(find_samples(tmp_path, "test", need_reports=False)) == 3
    with pytest.raises(DataError, match="split must be"):
        find_samples(tmp_path, "Test")
    make_csv(tmp_path / "QaTa-COV19" / "other")
    with pytest.raises(DataError, match="several data sets"):
        find_samples(tmp_path)


def test_digest_is_stable_under_moving_and_sees_changes(tmp_path):
    make_csv(tmp_path / "a")
    before = find_samples(tmp_path / "a", "all")
    digests = data_digest(before), data_digest(before, contents=True)
    shutil.move(tmp_path / "a", tmp_path / "b")
    after = find_samples(tmp_path / "b", "all")
    assert (data_digest(after[::-1]), data_digest(after, contents=True)) == digests and len(digests[0]) == 64
    assert data_digest(after[1:]) != digests[0]
    Image.new("L", (SIZE, SIZE)).save(after[0].mask)
    assert data_digest(after, contents=True) != digests[1]


# ---------------------------------------------------------------- decoding

MASK = np.zeros((6, 8), bool)
MASK[1:4, 2:7] = True


def palette(colours):
    """MASK as a palette picture: index 0 and 1 with two given colours."""
    out = Image.frombytes("P", MASK.shape[::-1], MASK.astype(np.uint8).tobytes())
    out.putpalette(sum(colours, []))
    return out


@pytest.mark.parametrize("picture", [
    Image.fromarray(MASK.astype(np.uint8)), Image.fromarray(MASK.astype(np.uint8) * 255), Image.fromarray(MASK),
    palette([[0, 0, 0], [255, 255, 255]]), palette([[0, 0, 0], [128, 0, 0]]), palette([[0, 0, 0], [1, 1, 1]]),
    palette([[0, 0, 0], [0, 0, 0]]), Image.fromarray(MASK.astype(np.uint16) * 65535),
    Image.fromarray(np.stack([MASK * np.uint8(255)] * 3, 2)),
    Image.fromarray(np.stack([MASK * np.uint8(255)] * 3 + [np.full(MASK.shape, 255, np.uint8)], 2)),
], ids=["0/1", "0/255", "1 bit", "palette", "red palette", "palette 0/1", "flat palette", "16 bit", "RGB", "RGBA"])
def test_mask_encodings(tmp_path, picture):
    picture.save(tmp_path / "m.png")
    mask = load_mask(tmp_path / "m.png")
    assert mask.dtype == np.bool_ and np.array_equal(mask, MASK)


def test_mask_edges_and_inverted_palette(tmp_path):
    cases = ([0, 127, 128, 255], [0, 0, 1, 1]), ([0, 0, 0, 0], [0, 0, 0, 0]), ([1, 1, 0, 1], [1, 1, 0, 1])
    for values, expected in cases:
        Image.fromarray(np.array([values], np.uint8)).save(tmp_path / "m.png")
        assert load_mask(tmp_path / "m.png").tolist() == [[bool(v) for v in expected]]
    palette([[255, 255, 255], [0, 0, 0]]).save(tmp_path / "m.png")  # the colours count, not the index
    assert np.array_equal(load_mask(tmp_path / "m.png"), ~MASK)
    Image.fromarray(MASK.astype(np.uint8) * 2).save(tmp_path / "m.png")
    with pytest.raises(DataError, match="largest value is 2"):  # a guess could be an empty mask
        load_mask(tmp_path / "m.png")


@pytest.mark.parametrize("colours, full", [
    ([[0, 0, 0], [0, 0, 0]], True), ([[0, 0, 0], [255, 255, 255]], True), ([[255, 255, 255], [0, 0, 0]], False)])
def test_a_palette_mask_of_one_index(tmp_path, colours, full):
    one = Image.frombytes("P", (4, 3), bytes([1] * 12))
    one.putpalette(sum(colours, []))
    one.save(tmp_path / "m.png")
    assert load_mask(tmp_path / "m.png").all() == load_mask(tmp_path / "m.png").any() == full


def test_masks_that_cannot_be_trusted_are_refused_and_white_may_be_zero(tmp_path):
    for value in (np.nan, np.inf, -np.inf):
        Image.fromarray(np.where(MASK, value, 0).astype(np.float32)).save(tmp_path / "m.tif")
        with pytest.raises(DataError, match="m.tif is no mask: it holds values that are not numbers"):
            load_mask(tmp_path / "m.tif")
    pages = [Image.fromarray(MASK), Image.fromarray(~MASK)]
    pages[0].save(tmp_path / "m.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match="m.tif holds 2 pictures .frames or pages.; save the one that is meant"):
        load_mask(tmp_path / "m.tif")
    for mode, high in ((np.uint16, 65535), (np.uint8, 255)):
        Image.fromarray(np.where(MASK, 0, high).astype(mode)).save(tmp_path / "m.tif", tiffinfo={262: 0})
        assert np.array_equal(load_mask(tmp_path / "m.tif"), load_image(tmp_path / "m.tif") > 127), mode
    Image.fromarray(np.where(MASK, 0, 65535).astype(np.uint16)).save(tmp_path / "m.tif", tiffinfo={262: 0})
    assert np.array_equal(load_mask(tmp_path / "m.tif"), MASK)


def test_image_encodings(tmp_path):
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    rgb = np.stack([grey] * 3, 2)
    rgba = np.dstack([rgb, np.where(MASK, 255, 0).astype(np.uint8)])
    cases = {"grey.png": (grey, grey), "rgb.png": (rgb, grey), "rgba.png": (rgba, grey * MASK),
             "wide.png": (grey.astype(np.uint16) * 100, grey * 255.0 / 235), "unit.tif": (grey / np.float32(255), grey),
             "signed.tif": (grey.astype(np.int32) - 100, grey * 255.0 / 235), "one.png": (MASK, MASK * 255)}
    for name, (array, expected) in cases.items():
        Image.fromarray(array).save(tmp_path / name)
        image = load_image(tmp_path / name)
        assert image.dtype == np.uint8 and np.abs(image.astype(float) - expected).max() <= 0.51, name
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:900])
    Image.fromarray(np.full((2, 2), np.nan, np.float32)).save(tmp_path / "nan.tif")
    for name in ("text.png", "empty.png", "cut.png", "gone.png", "nan.tif"):
        with pytest.raises(DataError, match=name):
            load_image(tmp_path / name)
    for name, said in (("gone.png", "gone.png is not there"), ("text.png", "text.png can't be read as a picture"), ("cut.png", "cut.png can't be read as a picture")):
        with pytest.raises(DataError, match=said):
            load_mask(tmp_path / name)
