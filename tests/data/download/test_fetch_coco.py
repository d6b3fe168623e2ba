"""COCO from a server that breaks off, moves, and is busy; and archives that are not what they should be."""

import dataclasses
import io
import json
import zipfile
from hashlib import md5

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image

from fastcap.build import CONFIG_DIR
from fastcap.data.download import coco
from fastcap.jobs import fetch
from tests.data.download.server import Site, serve

IMAGES = {"train2014": [1, 2, 3], "val2014": [11, 12, 13]}


def _jpeg(number):
    out = io.BytesIO()
    Image.new("RGB", (64, 48), (40 * (number % 6), 80, 9)).save(out, "jpeg")
    return out.getvalue()


def _zip(members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def _name(part, number):
    return f"COCO_{part}_{number:012d}.jpg"


def _karpathy():
    splits = {1: "train", 2: "train", 3: "train", 11: "val", 12: "test", 13: "restval"}
    return {
        "images": [
            {
                "filepath": part,
                "filename": _name(part, i),
                "cocoid": i,
                "imgid": i + 100,
                "split": splits[i],
                "sentences": [{"raw": f"A picture,\nnumber {i}.", "sentid": 10 * i + n} for n in range(5)],
            }
            for part, ids in IMAGES.items()
            for i in ids
        ]
    }


def _captions(part):
    return {
        "images": [{"id": i, "file_name": _name(part, i)} for i in IMAGES[part]],
        "annotations": [{"id": 9 * i, "image_id": i, "caption": f"picture {i}"} for i in IMAGES[part]],
    }


@pytest.fixture
def site(monkeypatch):
    """A small COCO on a server, its pieces declared as the real ones are."""
    site = Site()
    for part, ids in IMAGES.items():
        site.files[f"/zips/{part}.zip"] = _zip({f"{part}/{_name(part, i)}": _jpeg(i) for i in ids})
    site.files["/annotations/annotations_trainval2014.zip"] = _zip(
        {f"annotations/captions_{part}.json": json.dumps(_captions(part)) for part in IMAGES}
    )
    site.files["/caption_datasets.zip"] = _zip({"dataset_coco.json": json.dumps(_karpathy())})
    pieces = []
    for piece in coco.PIECES["2014"]:
        raw = site.files[f"/{piece.file}"]
        pieces.append(dataclasses.replace(piece, size=len(raw), md5=md5(raw).hexdigest(), images=min(piece.images, 3)))
    monkeypatch.setattr(coco, "PIECES", {"2014": pieces})
    monkeypatch.setitem(coco.COUNTS, "coco", {"train": 4, "val": 1, "test": 1})
    with serve(site) as site.url:
        monkeypatch.setattr(coco, "COCO_URL", site.url)
        monkeypatch.setattr(coco, "KARPATHY_URL", site.url)
        yield site


def _run(root, *more):
    fetch.main(["coco", "--root", str(root), *more])


def test_coco_comes_over_a_bad_line_and_trains(site, tmp_path):
    root = tmp_path / "coco"
    site.cut["/zips/train2014.zip"] = [len(site.files["/zips/train2014.zip"]) // 2]
    site.files["/elsewhere"] = site.files.pop("/zips/val2014.zip")
    site.moved["/zips/val2014.zip"] = "/elsewhere"
    _run(root)
    assert sorted(p.name for p in root.iterdir()) == ["annotations", "images"], "archives are gone"
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        cfg = compose("train", overrides=["data=coco", f"data.source.root={root}", "data.source.max_skipped=0"])
    source = instantiate(cfg.data.source)
    assert [len(source.split(name)) for name in ("train", "val", "test")] == [4, 1, 1]
    records = source.split("train")
    assert records.image_ids[-1] == 13 and records.paths[-1] == root / "images/val2014" / _name("val2014", 13)
    assert list(records.captions[-1]) == ["A picture, number 13."] * 5
    assert records.load_image(3, 32).shape == (32, 32, 3)
    asked = len(site.gets)
    _run(root)
    assert len(site.gets) == asked


def test_a_piece_already_there_is_used(site, tmp_path):
    archives, folder = tmp_path / "archives", tmp_path / "images/val2014"
    archives.mkdir()
    (archives / "train2014.zip").write_bytes(site.files["/zips/train2014.zip"])
    folder.mkdir(parents=True)
    for i in IMAGES["val2014"][:2]:
        (folder / _name("val2014", i)).write_bytes(_jpeg(i))
    kept = (folder / _name("val2014", 11)).stat().st_mtime_ns
    _run(tmp_path)
    assert [path for path, _ in site.gets if "zips" in path] == ["/zips/val2014.zip"]
    assert len(list(folder.iterdir())) == 3 and (folder / _name("val2014", 11)).stat().st_mtime_ns == kept
    assert not archives.exists()


def _fails(root, capsys, *more):
    with pytest.raises(SystemExit) as stop:
        _run(root, *more)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("fastcap: error: ") and error.count("\n") == 1
    return error


def test_a_wrong_checksum_ends_it(site, tmp_path, capsys):
    site.files["/zips/train2014.zip"] = site.files["/zips/train2014.zip"][:-1] + b"x"
    error = _fails(tmp_path, capsys)
    assert "/zips/train2014.zip" in error and "MD5" in error
    assert not (tmp_path / "images/train2014").exists() and (tmp_path / "images/val2014").is_dir()


def test_missing_images_are_counted(site, tmp_path, capsys, monkeypatch):
    captions, val, train = coco.PIECES["2014"]
    monkeypatch.setitem(coco.PIECES, "2014", [captions, dataclasses.replace(val, images=4), train])
    assert "val2014.zip: 3 images, must be 4" in _fails(tmp_path, capsys)
