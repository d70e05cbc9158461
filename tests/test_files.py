"""Files and folders that are whole or not there."""
import os

import pytest

from causalclipseg._files import check_new_folder, put_in_place, write_text


def test_text_is_written_whole_and_leaves_nothing_beside_it(tmp_path):
    write_text(tmp_path / "deep" / "a.txt", "one")
    write_text(tmp_path / "deep" / "a.txt", "two ü")
    assert (tmp_path / "deep" / "a.txt").read_text(encoding="utf-8") == "two ü"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.txt"]


def test_text_that_cannot_be_written_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.txt", "half \ud800")
    assert (tmp_path / "a.txt").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_written_beside_takes_the_place_of_nothing_or_of_an_empty_one(tmp_path):
    for name in ("new", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        folder = check_new_folder(tmp_path / name)
        (tmp_path / "beside").mkdir()
        (tmp_path / "beside" / "a").touch()
        put_in_place(tmp_path / "beside", folder)
        assert os.listdir(folder) == ["a"]


def test_a_folder_that_can_not_be_replaced_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "full" / "inside").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "full" / "inside")
    for name, said in (("file", "not empty"), ("full", "not empty"), ("full/inside", "the folder you are in"), ("/", "a mount point"), ("file/new", "cannot be written")):
        with pytest.raises(ValueError, match=said):
            check_new_folder(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["file", "full"]
