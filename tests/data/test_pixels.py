import io
import pickle
import threading

import numpy as np
import pytest
from PIL import Image

from fastcap.data import DataError, decode_image
from fastcap.data.caches import PixelCache


def encode(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(size=64):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8))


def plain(pixels):
    assert pixels.dtype == np.uint8 and pixels.shape == (8, 8, 3)
    return tuple(int(value) for value in pixels.reshape(-1, 3).mean(0).round())


def test_kinds_of_image():
    assert plain(decode_image(encode(Image.new("L", (5, 9), 77)), 8)) == (77, 77, 77)
    assert plain(decode_image(encode(Image.new("1", (5, 9), 1)), 8)) == (255, 255, 255)
    grey16 = Image.fromarray(np.full((9, 5), 0x8001, np.uint16))
    assert grey16.mode == "I;16"
    assert plain(decode_image(encode(grey16), 8)) == (128, 128, 128)
    red, green, blue = plain(decode_image(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"), 8))
    assert red > 200 and green < 60 and blue < 60
    assert plain(decode_image(encode(Image.new("RGBA", (5, 5), (9, 9, 9, 0))), 8)) == (255, 255, 255)
    palette = Image.new("P", (5, 5), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert plain(decode_image(encode(palette), 8)) == (10, 20, 30)
    assert plain(decode_image(encode(palette, transparency=0), 8)) == (255, 255, 255)
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("red", "blue")]
    moving = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert plain(decode_image(moving, 8)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("samples", "kind"),
    [
        (np.float32([0, 0.25, 1]), "TIFF"),
        (np.float32([0, 0.25, 1.004]), "TIFF"),  # a filter overshoots
        (np.float32([0, 64, 255]), "TIFF"),
        (np.float32([0, 16384, 65535]), "TIFF"),
        (np.float32([-3, -1.5, 3]), "TIFF"),
        (np.uint16([0, 64, 255]), "PNG"),
        (np.uint16([0, 1024, 4095]), "PNG"),
        (np.uint16([0, 16384, 65535]), "PNG"),
        (np.int32([-1000, 500, 5000]), "TIFF"),
    ],
)
def test_samples_of_more_than_8_bits_are_scaled_by_their_range(samples, kind):
    pixels = decode_image(encode(Image.fromarray(samples.repeat(8)[None].repeat(8, 0)), kind), 24)
    assert np.abs(pixels[12, [2, 12, 21], 0].astype(int) - [0, 64, 255]).max() <= 1


def test_samples_that_are_no_numbers_are_refused():
    with pytest.raises(DataError, match=r"x: image cannot be decoded .*no sample is a number"):
        decode_image(encode(Image.new("F", (5, 9), float("nan")), "TIFF"), 8, "x")


def test_bad_files_are_named(tmp_path, monkeypatch):
    path = tmp_path / "photo.jpg"
    with pytest.raises(DataError, match=r"photo\.jpg: image file is missing"):
        decode_image(path, 8)
    for content in (b"", b"GIF89a", b"<html>"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"photo\.jpg: (not an image|image cannot be decoded)"):
            decode_image(path, 8)
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"):
        whole = encode(noise(), kind)
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DataError, match=r"photo\.jpg"):
            decode_image(path, 8)
    with pytest.raises(DataError, match="upload 3: "):
        decode_image(b"no", 8, name="upload 3")
    with pytest.raises(DataError):
        decode_image(tmp_path, 8)
    path.write_bytes(encode(noise()))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(DataError, match=r"photo\.jpg: 64 x 64 pixels"):
        decode_image(path, 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"photo\.jpg: .*DecompressionBomb"):
        decode_image(path, 8)


def test_cache_is_kept_and_rebuilt_when_cut_short(make_set, tmp_path, monkeypatch):
    records = make_set([["a"]] * 5).split("train")
    (tmp_path / "images" / "3.png").write_bytes(b"broken")
    first = PixelCache(records, 8, tmp_path / "cache")
    assert first.pixels.shape == (5, 3, 8, 8)
    assert [index for index, _ in first.bad] == [3] and "3.png" in first.bad[0][1]
    assert np.array_equal(first.pixels[1].transpose(1, 2, 0), records.load_image(1, 8))
    assert np.array_equal(first.pixels, PixelCache(records, 8).pixels)
    assert np.array_equal(first.pixels, pickle.loads(pickle.dumps(first)).pixels)
    assert not list((tmp_path / "cache").glob("*.part"))

    decoded = []
    load = records.load_image
    monkeypatch.setattr(records, "load_image", lambda index, size: decoded.append(index) or load(index, size))
    again = PixelCache(records, 8, tmp_path / "cache")
    assert not decoded and again.bad == first.bad and np.array_equal(again.pixels, first.pixels)

    whole, expected = first.path.read_bytes(), first.pixels.copy()
    for damage in (whole[:-1], whole[:40], b""):
        first.path.write_bytes(damage)
        decoded.clear()
        assert np.array_equal(PixelCache(records, 8, tmp_path / "cache").pixels, expected)
        assert len(decoded) == 5
    first.path.with_suffix(".json").write_text("{")
    decoded.clear()
    assert PixelCache(records, 8, tmp_path / "cache").bad == first.bad
    assert len(decoded) == 5


def load_all(records):
    return PixelCache(records, 8).pixels


def test_concurrent_builds_agree(make_set, tmp_path):
    records = make_set([["a"]] * 20).split("train")
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(PixelCache(records, 8, tmp_path / "cache").pixels))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(np.array_equal(pixels, load_all(records)) for pixels in found)
