"""Folders as people have them: links, suffixes, hidden files, names of any encoding; what is left out is said."""

import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from fastcap.data import DataError
from fastcap.data.image_files import ClassFolders, FolderImages, find_images, resolve_name


def write(path):
    """Write a small JPEG, whatever the name."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(os.fsencode(path) if isinstance(path, str) else path, "JPEG")


@pytest.fixture
def album(tmp_path):
    """A folder with one photograph and a link to three, links in circles, upwards and to nothing."""
    for name in ("store/trip/a.jpg", "store/trip/b.jpg", "store/trip/deep/c.jpg", "album/own.jpg", "other.jpg"):
        write(tmp_path / name)
    album = tmp_path / "album"
    (album / "again").symlink_to("../store/trip/deep")
    (album / "itself").symlink_to("itself")
    (album / "round").symlink_to(".")
    (album / "trip").symlink_to("../store/trip")
    (album / "up").symlink_to("..")
    return album


def names(folder, places):
    return [path.relative_to(folder).as_posix() for path in find_images([folder / place for place in places]).files]


def test_links_are_followed_and_circles_end(album):
    found = ["again/c.jpg", "own.jpg", "trip/a.jpg", "trip/b.jpg"]
    assert names(album, [""]) == names(album, ["**/*.jpg"]) == names(album, ["**"]) == found
    assert names(album, ["trip"]) == names(album, ["trip/**/*.jp*"]) == ["trip/a.jpg", "trip/b.jpg", "trip/deep/c.jpg"]
    assert names(album, ["*.jpg"]) == ["own.jpg"] and names(album, ["*/?.jpg"]) == ["again/c.jpg", *found[2:]]
    assert names(album, ["own.jpg", "trip/[!b].jpg"]) == ["own.jpg", "trip/a.jpg"]


def test_suffixes_are_the_decoders_and_others_are_named(tmp_path):
    kinds = "a.jfif b.JPE c.avif d.jp2 e.ppm f.tga g.PNG h.tiff i.mpo".split()
    for name in [*kinds, "photo.heic", "raw.CR2", "notes.txt", "film.mp4"]:
        write(tmp_path / name)
    found = find_images([tmp_path])
    assert [path.name for path in found.files] == kinds
    assert "1 images of kind .heic, which is not decoded (first: " in str(found.unreadable)
    assert found.unreadable.total == 2 and "raw.CR2" in str(found.unreadable)
    assert [path.name for path in find_images([tmp_path / "*.heic"]).files] == ["photo.heic"]  # as named
    with pytest.raises(DataError, match=r"raw: no image in this folder; .*: left out 1 images of kind \.dng"):
        write(tmp_path / "raw/x.dng")
        find_images([tmp_path / "raw"])


def test_hidden_files_and_other_programs_folders_are_passed_over(tmp_path):
    for name in ("a.jpg", "._a.jpg", ".thumbnails/t.jpg", "@eaDir/a.jpg/T.jpg", "__MACOSX/._a.jpg", ".seen/b.jpg"):
        write(tmp_path / name)
    found = find_images([tmp_path])
    assert [path.name for path in found.files] == ["a.jpg"] and not found.unreadable.counts
    assert "1 hidden images (first: " in str(found.hidden) and "4 hidden folders (first: " in str(found.hidden)
    assert names(tmp_path, ["*.jpg"]) == names(tmp_path, ["**/*"]) == ["a.jpg"]
    assert names(tmp_path, [".seen"]) == names(tmp_path, [".s*/*.jpg"]) == [".seen/b.jpg"]
    with pytest.raises(DataError, match=r"no image in this folder; images: left out 1 hidden images"):
        find_images([tmp_path / "__MACOSX"])


def test_what_is_no_file_is_named(tmp_path):
    write(tmp_path / "a.jpg")
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(tmp_path / "pipe.png")
    found = find_images([tmp_path])
    assert len(found.files) == 1 and found.unreadable.total == 2 and "gone.jpg" in str(found.unreadable)
    with pytest.raises(DataError, match=r"x\.jpg: no such file"):
        find_images([tmp_path / "x.jpg"])
    with pytest.raises(DataError, match="no file matches this pattern"):
        find_images([tmp_path / "*.png"])


def test_names_of_any_encoding_and_form(tmp_path):
    write(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg"))
    composed, apart = (unicodedata.normalize(form, "été/café[1].png") for form in ("NFC", "NFD"))
    write(tmp_path / apart)
    assert len(find_images([tmp_path]).files) == 2
    assert resolve_name(tmp_path / composed) == tmp_path / apart
    assert find_images([tmp_path / composed]).files == [tmp_path / apart]  # a file's own name is no pattern
    assert find_images([tmp_path / unicodedata.normalize("NFC", "é*/café*.png")]).files == [tmp_path / apart]
    images = FolderImages(tmp_path).split("train")
    assert len(images.paths) == 1 and len(images.fingerprint()) == 64


def test_folder_sets_refuse_to_leave_out_too_much(tmp_path, caplog):
    for number in range(9):
        write(tmp_path / f"train/cat/{number}.jpg")
    write(tmp_path / "train/cat/x.heic")
    assert len(FolderImages([str(tmp_path)], max_skipped=0.1).split("train").paths) == 8
    assert "1 images of kind .heic" in caplog.text
    with pytest.raises(
        DataError, match=r"x\.heic\): 1 of 10 altogether, and max_skipped=0\.05 of them may be left out"
    ):
        FolderImages(tmp_path).split("train")
    records = ClassFolders(tmp_path).split("train")
    assert (records.num_skipped, records.classes, set(records.labels)) == (1, ["cat"], {0})
