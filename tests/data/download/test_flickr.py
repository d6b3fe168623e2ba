"""Flickr8k from the archives that people have: Kaggle's, the official ones, Karpathy's."""

import io
import json
import tarfile
import zipfile

import pytest
from PIL import Image

from fastcap.data import CocoCaptions
from fastcap.data.download import flickr
from fastcap.jobs import fetch

SPLITS = {"train": ["a.jpg", "b.jpg", "c.jpg"], "val": ["d.jpg"], "test": ["e.jpg"]}
NAMES = [f"{letter}.jpg" for letter in "abcdef"]
CAPTIONS = {name: [f'A "{name[0]}" , number {n} .' for n in range(5)] for name in NAMES}
LISTS = {
    f"Flickr_8k.{kind}Images.txt": "\n".join(SPLITS[split]) + "\n"
    for kind, split in (("train", "train"), ("dev", "val"), ("test", "test"))
}


def jpeg():
    out = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(out, "jpeg")
    return out.getvalue()


def write_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def photographs(folder):
    return {f"{folder}/{name}": jpeg() for name in NAMES} | {f"__MACOSX/{folder}/._a.jpg": b"\0\5\x16\7"}


def kaggle(path):
    rows = [f'{name},"{text.replace(chr(34), chr(34) * 2)}"' for name, texts in CAPTIONS.items() for text in texts]
    return write_zip(
        path / "archive.zip", photographs("Images") | {"captions.txt": "\n".join(["image,caption", *rows])}
    )


def official(path):
    lines = [f"{name}#{n}\t{text}" for name, texts in CAPTIONS.items() for n, text in enumerate(texts)]
    lines[0] = lines[0].replace("a.jpg#", "a.jpg.1#")
    others = {"ExpertAnnotations.txt": "a.jpg\tb.jpg#2\t1\t1", "Flickr8k.lemma.token.txt": "a.jpg#0\twrong"}
    pictures = path / "Flickr8k_Dataset.tar.gz"
    with tarfile.open(pictures, "w:gz") as archive:
        for name, content in photographs("Flicker8k_Dataset").items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    text = write_zip(path / "Flickr8k_text.zip", {"Flickr8k.token.txt": "\n".join(lines), **others, **LISTS})
    return [pictures, text]


def karpathy(path):
    images = [
        {
            "filename": name,
            "imgid": NAMES.index(name),
            "split": split,
            "sentences": [{"raw": text, "sentid": number} for number, text in enumerate(CAPTIONS[name])],
        }
        for split, names in SPLITS.items()
        for name in names
    ]
    (path / "dataset_flickr8k.json").write_text(json.dumps({"images": images}))
    return path / "dataset_flickr8k.json"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(flickr._SIZES, "flickr8k", [{split: len(names) for split, names in SPLITS.items()}])


def lay_out(tmp_path, archives):
    root = tmp_path / "flickr8k"
    fetch.main(["flickr8k", "--root", str(root), "--archive", *map(str, archives)])
    return root


@pytest.mark.parametrize("kind", ["kaggle with lists", "kaggle with Karpathy's", "official", "folder"])
def test_every_kind_of_archive_gives_the_same_set(tmp_path, capsys, kind):
    if kind == "official":
        archives = official(tmp_path)
    elif kind == "folder":
        for archive in official(tmp_path):
            (tarfile.open if archive.suffix == ".gz" else zipfile.ZipFile)(archive).extractall(tmp_path / "mine")
        archives = [tmp_path / "mine"]
    else:
        lists = [karpathy(tmp_path)] if "Karpathy" in kind else [write_zip(tmp_path / "lists.zip", LISTS)]
        archives = [kaggle(tmp_path), *lists]
    root = lay_out(tmp_path, archives)
    assert sorted(path.name for path in (root / "images").iterdir()) == NAMES
    for split, names in SPLITS.items():
        records = CocoCaptions(root, max_skipped=0).split(split)
        assert [path.name for path in records.paths] == names
        assert list(records.image_ids) == [NAMES.index(name) + 1 for name in names]
        assert records.captions == [CAPTIONS[name] for name in names]
    said = capsys.readouterr().out
    assert f"train        3 images  {root}/annotations/captions_train.json" in said
    assert ("extra        1 images" in said) == (kind != "kaggle with Karpathy's")


@pytest.mark.parametrize(
    ("archives", "message"),
    [
        (lambda path: [kaggle(path)], "do not tell which photographs are for training: add the official lists"),
        (lambda path: [path / "none.zip"], "none.zip: no such file"),
        (lambda path: official(path)[1:], "no photograph"),
        (lambda path: official(path)[:1], "no captions among the archives"),
        (lambda path: [cut(kaggle(path))], "archive.zip: is no whole archive"),
        (lambda path: [*official(path), path / "Flickr_8k.trainImages.txt"], "names 1 photographs, must be 3"),
        (lambda path: [*official(path), path / "Flickr_8k.devImages.txt"], "left out 1 without a caption"),
    ],
)
def test_what_is_missing_is_said_in_one_line(tmp_path, capsys, monkeypatch, archives, message):
    monkeypatch.setattr("logging.raiseExceptions", False)  # handlers that other tests left hold closed streams
    (tmp_path / "Flickr_8k.trainImages.txt").write_text("a.jpg\n")
    (tmp_path / "Flickr_8k.devImages.txt").write_text("x.jpg\n")
    with pytest.raises(SystemExit) as stop:
        lay_out(tmp_path, archives(tmp_path))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "flickr8k/annotations").exists()


def cut(path):
    path.write_bytes(path.read_bytes()[:-50])
    return path
