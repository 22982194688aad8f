"""The checkers of chapter 1 tell wrong answers what is wrong with them."""

import pytest

import minisd


def latent_size(height, width, channels, down):
    shape = (channels, height // down, width // down)
    return shape, 3 * height * width / (shape[0] * shape[1] * shape[2])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda h, w, c, down: (c, h // down, w // down), "two things"),
        (lambda h, w, c, down: ((h // down, w // down, c), 48), "Channels come first"),
        (lambda h, w, c, down: ((c, h // down, w // down), down**2), "forget the channels"),
        (lambda h, w, c, down: ((c, h // down, w // down), down), "Both the height and the width"),
        (lambda *a: (latent_size(*a)[0], 1 / latent_size(*a)[1]), "the inverse"),
        (lambda *a: (latent_size(*a)[0], 48), "1024 x 1024 pixels, 16 channels"),
        (lambda h, w, c, down: ((c, w // down, h // down), 48), "512 x 768"),
    ],
)
def test_latent_size(answer, message):
    assert minisd.check("1.1", latent_size)
    verdict = minisd.check("1.1", answer)
    assert not verdict and message in verdict.message


def right(setting):
    changed = {"nothing": "", "prompt": "ids vectors", "seed": "noise"}.get(setting, "")
    loop = {"nothing": "", "decoder": "picture"}.get(setting, "latents picture")
    return {*changed.split(), *loop.split()}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda setting: [], "Return a set"),
        (lambda setting: {"tokens"}, "'tokens'] are no things"),
        (lambda setting: {"picture"}, "If nothing changes, the picture cannot change"),
        (lambda setting: right(setting) - {"ids"}, "to the ids. Only the tokenizer"),
        (lambda setting: right(setting) - {"vectors"}, "to the vectors"),
        (lambda s: right(s) | ({"noise"} if s == "prompt" else set()), "drawn from the seed"),
        (lambda s: right(s) - ({"picture"} if s == "scheduler" else set()), "the scheduler"),
        (lambda s: right(s) | ({"latents"} if s == "decoder" else set()), "the decoder"),
    ],
)
def test_what_changes(answer, message):
    assert minisd.check("1.2", right)
    verdict = minisd.check("1.2", answer)
    assert not verdict and message in verdict.message


def rows(first, last):
    """Return a way to guess the sky from these rows of the picture."""

    def guess(images):
        red, green, blue = images[:, :, first:last].mean(dim=(2, 3)).unbind(1)
        rules = (("day", blue > 0.3), ("sunset", red - green > 0.2), ("night", red + green < -1.3))
        return [
            next((name for name, holds in rules if holds[i]), "storm") for i in range(len(images))
        ]

    return guess


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda images: "night", "a list of 32 words"),
        (lambda images: ["dusk"] * len(images), "['dusk'] are no skies"),
        (lambda images: ["night"] * len(images), "you say night where it is"),
        (rows(-8, None), "Look at the first rows"),
    ],
)
def test_guess_sky(answer, message):
    assert minisd.check("1.3", rows(0, 8))
    verdict = minisd.check("1.3", answer)
    assert not verdict and message in verdict.message
