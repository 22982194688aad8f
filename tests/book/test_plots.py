import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from minisd.book import plots
from minisd.book.plots import image_grid


def test_grey_images_lie_row_by_row():
    images = torch.linspace(-1, 1, 4).reshape(4, 1, 1, 1).expand(4, 1, 3, 3)
    pixels = np.asarray(image_grid(images, columns=2, scale=1, gap=0))
    assert pixels.shape == (6, 6) and pixels.dtype == np.uint8
    corners = [pixels[0, 0], pixels[0, -1], pixels[-1, 0], pixels[-1, -1]]
    assert [int(p) for p in corners] == [0, 85, 170, 255]


def test_colours_keep_their_channel():
    images = torch.full((1, 3, 2, 2), -1.0)
    images[:, 1] = 1.0
    picture = image_grid(images, scale=1, gap=0)
    assert picture.mode == "RGB" and picture.getpixel((1, 1)) == (0, 255, 0)


def test_every_image_stands_in_its_cell_with_a_grey_margin():
    images, gap = torch.rand(5, 1, 4, 6) * 2 - 1, 3
    pixels = np.asarray(image_grid(images, columns=2, scale=1, gap=gap))
    expected = np.full((3 * (4 + 2 * gap), 2 * (6 + 2 * gap)), 200)
    for i, image in enumerate(images):
        row, column = divmod(i, 2)
        top, left = row * (4 + 2 * gap) + gap, column * (6 + 2 * gap) + gap
        expected[top : top + 4, left : left + 6] = ((image[0] + 1) * 127.5).round()
    assert np.array_equal(pixels, expected)


@pytest.mark.parametrize(("n", "shape"), [(1, (1, 1)), (4, (2, 2)), (64, (8, 8)), (10, (4, 3))])
def test_the_grid_is_as_square_as_possible(n, shape):
    picture = image_grid(torch.zeros(n, 1, 2, 2), scale=1, gap=0)
    assert (picture.height // 2, picture.width // 2) == shape


def test_scale_repeats_pixels():
    image = torch.tensor([-1.0, 1.0]).reshape(1, 1, 1, 2)
    pixels = np.asarray(image_grid(image, scale=3, gap=0))
    assert pixels.tolist() == [[0, 0, 0, 255, 255, 255]] * 3


def test_values_outside_the_range_are_clipped():
    pixels = np.asarray(image_grid(torch.tensor([-9.0, 9.0]).reshape(1, 1, 1, 2), scale=1, gap=0))
    assert pixels.tolist() == [[0, 255]]


def test_the_images_are_not_changed():
    images = torch.randn(3, 1, 4, 4, requires_grad=True)
    copy = images.detach().clone()
    image_grid(images)
    assert torch.equal(images, copy)


@pytest.mark.parametrize("shape", [(0, 1, 4, 4), (2, 2, 4, 4), (2, 4, 4, 4), (1, 4, 4), (4, 4)])
def test_what_is_no_image_raises(shape):
    with pytest.raises(ValueError, match="1 or 3"):
        image_grid(torch.zeros(shape))


@pytest.mark.parametrize(("still", "shown"), [(-1, 2), (0, 0), (1, 1)])
def test_an_animation_opens_on_its_still(still, shown):
    frames = [torch.full((1, 1, 4, 4), value) for value in (-1.0, 0.0, 1.0)]
    animation = plots.animate(frames, ["a", "b", "c"], "three greys", still=still)
    bundle = animation._repr_mimebundle_()
    assert f'max="2" value="{shown}"' in bundle["text/html"]
    assert f">{'abc'[shown]}</output>" in bundle["text/html"]
    assert f"translateX(-{100 * shown / 3:.4f}%)" in bundle["text/html"]
    picture = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
    middle = picture.width // 2, picture.height // 2
    assert abs(picture.convert("L").getpixel(middle) - 127.5 * shown) < 1


class Player(HTMLParser):
    """What a browser reads of a player: the attributes of its parts, and the text shown."""

    def __init__(self, html):
        super().__init__()
        self.found, self.text = {}, ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        assert tag in ("figure", "div", "img", "button", "input", "output")
        self.found.setdefault(tag, dict(attributes))

    def handle_data(self, data):
        self.text += data


def test_words_in_a_player_are_words_whatever_they_hold():
    alt = 'a sign that says "open" & <b>'
    labels = ['a "red" house', "this|that", "<i>it's</i>", "two\nlines"]
    player = Player(plots.animate([torch.zeros(1, 1, 4, 4)] * 4, labels, alt, still=2).html())
    assert player.found["img"]["alt"] == alt
    assert player.found["figure"]["data-labels"].split("\n") == [*labels[:3], "two lines"]
    assert "split('\\n')[i]" in player.found["input"]["oninput"]
    assert player.text == "Play" + labels[2]
