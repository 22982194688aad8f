import io
import warnings

import numpy as np
import pytest
from PIL import Image

from minisd.data.folder import read_image
from minisd.data.images import as_tensor, open_picture

PHOTO = Image.effect_noise((64, 32), 60).convert("RGB")


def saved(path, orientation=None, picture=PHOTO):
    exif = Image.Exif()
    if orientation:
        exif[0x112] = orientation
    picture.save(path, exif=exif)
    return path


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_a_photo_is_upright(tmp_path, kind):
    turned = open_picture(saved(tmp_path / f"turned.{kind}", 6))
    plain = open_picture(saved(tmp_path / f"plain.{kind}"))
    assert turned.size == (32, 64) and plain.size == (64, 32)
    assert np.array_equal(turned, plain.transpose(Image.Transpose.ROTATE_270))


@pytest.mark.parametrize("orientation", [None, 6])
def test_training_and_drawing_read_the_same(tmp_path, orientation):
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    clear.paste((200, 30, 30, 255), (8, 8, 16, 24))
    path = saved(tmp_path / "sprite.png", orientation, clear)
    drawn = as_tensor(Image.open(path), "RGB")[0]
    assert (read_image(path, 40) - (2 * drawn - 1)).abs().max() < 1e-6
    assert drawn[:, 0, 0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("ground", ["white", "black"])
def test_what_is_transparent_shows_the_ground(tmp_path, ground):
    path = saved(tmp_path / "clear.png", picture=Image.new("LA", (4, 4), (90, 0)))
    assert open_picture(path, ground).getpixel((0, 0)) == (
        (255,) * 3 if ground == "white" else (0,) * 3
    )


def broken(kind):
    """The first half of a file."""
    file = io.BytesIO()
    PHOTO.save(file, kind)
    return file.getvalue()[: len(file.getvalue()) // 2]


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", *map(broken, ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO"))],
    ids=["empty", "text", "jpg", "png", "webp", "gif", "bmp", "tiff", "ppm", "ico"],
)
def test_a_broken_file_is_named(tmp_path, content):
    path = tmp_path / "half.picture"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="half.picture cannot be read as a picture: "):
        open_picture(path)


def test_what_is_no_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="none.png does not exist"):
        open_picture(tmp_path / "none.png")
    with pytest.raises(ValueError, match=f"{tmp_path.name} cannot be read as a picture"):
        open_picture(tmp_path)


def test_a_picture_that_is_too_large_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    path = saved(tmp_path / "poster.png")
    with pytest.raises(ValueError, match="poster.png cannot be read as a picture: .*2048 pixels"):
        open_picture(path)


def test_more_than_16_bits_are_refused_and_the_file_is_named(tmp_path):
    path = tmp_path / "float.tif"
    Image.new("F", (4, 4), 0.5).save(path)
    with pytest.raises(ValueError, match="float.tif .* 8 or 16 bits a channel, this one is F"):
        open_picture(path)


def test_reading_warns_of_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_picture(saved(tmp_path / "photo.jpg", 6))
