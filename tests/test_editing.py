import diffusers
import pytest
import torch
from helpers import KINDS, randomise

from minisd import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    PNDMScheduler,
    UNet,
    UNetConfig,
)
from minisd.editing import img2img, last_timesteps, paste, slerp
from minisd.pipeline import denoise

CONFIG = UNetConfig(8, 2, 2, (8, 8), (False, True), num_heads=2, norm_num_groups=4)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def unet():
    return randomise(UNet(CONFIG), seeded()).eval()


class Smooth(torch.nn.Module):
    """A stand-in for a network where only schedulers are compared."""

    def forward(self, x, t, context=None):
        return torch.sin(x.mT + t / 300)


def make(kind):
    return kind(**({"skip_prk_steps": True} if kind is PNDMScheduler else {}))


def edit(unet, scheduler, strength, mask=None, steps=10):
    x_start, noise = torch.randn(2, 1, 2, 8, 8, generator=seeded(1))
    *_, last = img2img(unet, scheduler, x_start, noise, steps, strength, seeded(2), None, mask)
    return x_start, last.x


@pytest.mark.parametrize("kind", KINDS)
def test_the_stronger_the_further(unet, kind):
    far = []
    for strength in (0.1, 0.4, 1.0):
        x_start, x = edit(unet, make(kind), strength)
        far.append((x - x_start).abs().mean().item())
    assert far == sorted(far) and far[0] < far[-1] / 2


def test_it_walks_the_last_part_of_the_way(unet):
    scheduler = DDIMScheduler()
    x_start, noise = torch.randn(2, 1, 2, 8, 8, generator=seeded(1))
    states = list(img2img(unet, scheduler, x_start, noise, 10, 0.3))
    assert [int(state.t) for state in states] == scheduler.timesteps.tolist()[-3:]
    # from nothing but noise at the first timestep it is the whole way
    full = list(img2img(unet, scheduler, torch.zeros_like(noise), noise, 10, 1.0))
    alpha_bar = scheduler.alphas_cumprod[scheduler.timesteps[0]]
    *_, expected = denoise(unet, scheduler, noise * (1 - alpha_bar).sqrt(), 10)
    assert torch.equal(full[-1].x, expected.x)


@pytest.mark.parametrize("kind", KINDS)
def test_outside_of_the_mask_nothing_changes(unet, kind):
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:5, 3:7] = 1
    x_start, x = edit(unet, make(kind), 1.0, mask)
    assert torch.equal(x * (1 - mask), x_start * (1 - mask))
    assert (x - x_start)[mask.expand_as(x) == 1].abs().min() > 0
    start, one_step = edit(unet, make(kind), 0.1, mask)  # the last of ten
    assert torch.equal(one_step * (1 - mask), start * (1 - mask)) and not torch.equal(one_step, x)
    _, unmasked = edit(unet, make(kind), 1.0)
    _, everywhere = edit(unet, make(kind), 1.0, torch.ones(1, 1, 8, 8))
    assert torch.equal(everywhere, unmasked)


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind is not EulerAncestralDiscreteScheduler]
)
@pytest.mark.parametrize("strength", [0.3, 0.7, 0.9, 1.0])
def test_diffusers_schedulers_do_as_well(kind, strength):
    """PNDM as published: diffusers refuses to begin it midway."""
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:5, 3:7] = 1
    weak = strength < 0.8  # all four pairs of (steps, mask) come up among the strengths
    for steps, karras, each in (
        (10, False, mask if weak else None),
        (50, True, None if weak else mask),
    ):
        if karras and "use_karras_sigmas" not in kind().config:
            continue
        settings = make(kind).config | dict(prediction_type="sample" if karras else "epsilon")
        settings |= dict(use_karras_sigmas=True) if karras else {}
        theirs = getattr(diffusers, kind.__name__)(**settings)
        ours = kind(**settings, match_diffusers=True)
        _, a = edit(Smooth(), ours, strength, each, steps)
        _, b = edit(Smooth(), theirs, strength, each, steps)
        assert (a - b).abs().max() < 1e-5 * max(1, b.abs().max())


@pytest.mark.parametrize(
    ("steps", "strength", "left"),
    [
        (50, 0.58, 29),
        (100, 0.29, 29),
        (100, 0.57, 57),
        (49, 1 / 49, 1),
        (10, 0.39, 3),
        (9, 0.99, 8),
    ],
)
def test_a_share_is_rounded_down_but_not_for_its_binary_fraction(steps, strength, left):
    """0.58 * 50 is 28.999999999999996 (diffusers #11092)."""
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(steps)
    assert (
        last_timesteps(scheduler, steps, strength).tolist() == scheduler.timesteps[-left:].tolist()
    )


@pytest.mark.parametrize("steps", range(1, 101))
def test_every_whole_share_is_that_number_of_steps(steps):
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(steps)
    for left in range(1, steps + 1):
        for strength in (left / steps, left * (1 / steps)):
            assert len(last_timesteps(scheduler, steps, min(1.0, strength))) == left


def test_where_the_mask_is_black_the_pixels_are_put_back(generator):
    images, image = torch.rand(3, 3, 6, 8, generator=generator), torch.rand(1, 3, 6, 8)
    copy, mask = images.clone(), torch.zeros(1, 1, 6, 8)
    mask[..., 1:3, 2:7] = 1
    mask[..., 4, :], mask[..., 5, :] = 0.5, 0.499
    white = torch.zeros(3, 3, 6, 8, dtype=torch.bool)
    white[..., 1:3, 2:7] = white[..., 4, :] = True
    pasted = paste(images, image, mask)
    assert torch.equal(pasted[white], copy[white]) and torch.equal(images, copy)
    assert torch.equal(pasted[~white], image.expand(3, -1, -1, -1)[~white])
    assert torch.equal(paste(images, image, mask >= 0.5), pasted)
    own, masks = torch.rand(3, 3, 6, 8), torch.stack([mask[0], 1 - mask[0], 0 * mask[0]])
    together = paste(images, own, masks)
    alone = [paste(*(each[i : i + 1] for each in (images, own, masks))) for i in range(3)]
    assert torch.equal(together, torch.cat(alone)) and torch.equal(together[2], own[2])


def test_pixels_are_put_back_where_the_images_are():
    images = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    assert paste(images, torch.zeros(1, 3, 4, 4), torch.ones(1, 1, 4, 4)).dtype == torch.float64
    pasted = paste(images.to("meta"), torch.zeros(1, 3, 4, 4), torch.ones(1, 1, 4, 4))
    assert pasted.device.type == "meta" and pasted.shape == images.shape


@pytest.mark.parametrize("strength", [0, -0.5, 1.5, float("nan"), 0.01])
def test_strengths_that_make_no_sense(strength):
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match="strength"):
        last_timesteps(scheduler, 10, strength)


def test_on_the_sphere_nothing_gets_quieter(generator):
    a, b = torch.randn(2, 6, 4, 8, 8, generator=generator)
    assert torch.allclose(slerp(a, b, 0.0), a, atol=1e-5)
    assert torch.allclose(slerp(a, b, 1.0), b, atol=1e-5)
    for share in (0.25, 0.5, 0.75):
        norms = [x.flatten(1).norm(dim=1) for x in (a, b, slerp(a, b, share))]
        assert (norms[2] / torch.lerp(norms[0], norms[1], share) - 1).abs().max() < 0.02
        straight = torch.lerp(a, b, share).flatten(1).norm(dim=1)
        assert (straight < 0.85 * norms[2]).all()
        assert torch.allclose(slerp(a, b, share), slerp(b, a, 1 - share), atol=1e-5)


def test_equal_steps_turn_by_equal_angles(generator):
    a, b = torch.randn(2, 1, 4, 8, 8, generator=generator)
    a, b = (x / x.norm() for x in (a, b))
    way = [slerp(a, b, i / 4) for i in range(5)]
    angles = [torch.arccos((x * y).sum()).item() for x, y in zip(way, way[1:], strict=False)]
    assert max(angles) - min(angles) < 1e-3
    assert abs(sum(angles) - torch.arccos((a * b).sum()).item()) < 1e-3


def test_between_a_noise_and_itself_there_is_no_other(generator):
    a = torch.randn(2, 4, 8, 8, generator=generator)
    assert torch.allclose(slerp(a, a, 0.3), a, atol=1e-5)
    with pytest.raises(ValueError, match="one shape"):
        slerp(a, a[:1], 0.3)
