import pytest
import torch
from helpers import randomise

from minisd import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, UNet, UNetConfig
from minisd.device import seeded
from minisd.maps import Concatenation
from minisd.pipeline import ClassifierFreeGuidance, DenoisingState, denoise, sample

PLAIN = UNetConfig(8, 2, 2, (8, 8), (False, True), num_heads=2, norm_num_groups=4)
WORDS = UNetConfig(8, 2, 2, (8, 8), (False, True), 1, 2, 4, context_dim=5)


@pytest.fixture
def unet():
    return randomise(UNet(PLAIN)).eval()


def draw(unet, seed, n=3, scheduler=DDIMScheduler, **settings):
    generator = torch.Generator().manual_seed(seed)
    return list(sample(unet, scheduler(), n, 5, generator, **settings))


def test_each_step_is_yielded(unet):
    scheduler = DDIMScheduler()
    noise = torch.randn(2, 2, 8, 8)
    copy = noise.clone()
    states = list(denoise(unet, scheduler, noise, 7))
    assert [int(s.t) for s in states] == scheduler.timesteps.tolist() and len(states) == 7
    assert all(s.x.shape == s.x_start.shape == noise.shape for s in states)
    assert all(not s.x.requires_grad for s in states)
    assert torch.equal(noise, copy)
    assert torch.equal(states[-1].x, states[-1].x_start)  # the last step arrives at the estimate


def test_the_loop_is_network_then_scheduler(unet):
    noise = torch.randn(1, 2, 8, 8)
    *_, last = denoise(unet, DDIMScheduler(), noise, 4)
    scheduler, x = DDIMScheduler(), noise
    scheduler.set_timesteps(4)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t), t, x).prev_sample
    assert torch.equal(last.x, x)


def test_what_the_scheduler_asks_for_is_done_to_the_noise_and_to_each_input():
    """Euler's scheduler starts at a large sigma, and shows the network x / sqrt(sigma^2 + 1)."""
    scheduler, seen = EulerDiscreteScheduler(), []

    def record(x, t, context):
        seen.append(x)
        return torch.zeros_like(x)  # all that is left is the picture: x stays as it is

    noise = torch.randn(2, 1, 4, 4)
    states = list(denoise(record, scheduler, noise, 3))
    start = scheduler.init_noise_sigma * noise
    assert scheduler.init_noise_sigma > 10
    for state, x, sigma in zip(states, seen, scheduler.sigmas, strict=False):
        torch.testing.assert_close(state.x, start)
        torch.testing.assert_close(x, start / (sigma**2 + 1) ** 0.5)


def test_the_context_reaches_the_network():
    unet = randomise(UNet(WORDS)).eval()
    noise, context = torch.randn(2, 2, 8, 8), torch.randn(2, 3, 5)
    *_, a = denoise(unet, DDIMScheduler(), noise, 4, context=context)
    *_, b = denoise(unet, DDIMScheduler(), noise, 4, context=-context)
    assert (a.x - b.x).abs().max() > 1e-4


@pytest.mark.parametrize("scheduler", [DDPMScheduler, DDIMScheduler])
def test_a_seed_gives_its_images(unet, scheduler):
    first = torch.cat(draw(unet, 3, scheduler=scheduler))
    torch.manual_seed(99)
    assert torch.equal(torch.cat(draw(unet, 3, scheduler=scheduler)), first)
    assert not torch.equal(torch.cat(draw(unet, 4, scheduler=scheduler)), first)
    assert first.shape == (3, 2, 8, 8)


def test_batches_are_no_larger_than_asked(unet):
    assert [len(batch) for batch in draw(unet, 0, n=8, batch_size=3)] == [3, 3, 2]
    assert [len(batch) for batch in draw(unet, 0, n=3, batch_size=3)] == [3]


@pytest.mark.parametrize("n", [0, -4])
def test_a_number_of_images_below_one_raises(unet, n):
    with pytest.raises(ValueError, match=f"at least 1, got {n}"):
        draw(unet, 0, n=n)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_a_wrong_number_of_steps_raises(unet, steps):
    with pytest.raises(ValueError, match=f"between 1 and 1000, got {steps}"):
        next(sample(unet, DDIMScheduler(), 1, steps))


def test_a_network_that_needs_words_says_so():
    with pytest.raises(ValueError, match="takes a context"):
        next(sample(UNet(WORDS), DDIMScheduler(), 1, 2))


def test_a_generator_of_the_cpu_serves_every_device(unet, monkeypatch):
    """One seed, one noise: it is drawn on the CPU and brought to the network."""
    seen, drawn, randn = [], [], torch.randn

    def watched(*arguments, device, **settings):
        drawn.append(torch.device(device).type)
        return randn(*arguments, device=device, **settings)

    def keep(unet, scheduler, x, *_):
        seen.append(x.device.type)
        yield DenoisingState(torch.tensor(0), x, None)

    monkeypatch.setattr("minisd.pipeline.denoise", keep)
    monkeypatch.setattr(torch, "randn", watched)
    list(sample(unet.to("meta"), DDIMScheduler(), 2, 2, seeded(3)))
    assert seen == ["meta"] and drawn == ["cpu"]
    (x,) = sample(unet.to_empty(device="cpu"), DDIMScheduler(), 2, 2, seeded(3))
    assert torch.equal(x, randn(2, 2, 8, 8, generator=seeded(3)))


# ---- Guidance ----------------------------------------------------------------------------------


@pytest.fixture
def words():
    return randomise(UNet(WORDS)).eval()


def guided(kind, unet, scale, null_context=None, b=3, n=4, t=500):
    """Return what `kind` predicts, and what it should, from two separate calls."""
    generator = torch.Generator().manual_seed(1)
    x, context = (torch.randn(shape, generator=generator) for shape in ((b, 2, 8, 8), (b, n, 5)))
    if null_context is None:
        null_context = torch.randn(1, n, 5, generator=generator)
    with torch.no_grad():
        found = kind(unet, null_context, scale)(x, t, context)
        uncond, cond = unet(x, t, null_context.expand(b, -1, -1)), unet(x, t, context)
    return found, uncond, cond


@pytest.mark.parametrize("scale", [-1, 0, 0.5, 1, 1.5, 4, 7.5])
@pytest.mark.parametrize("t", [0, torch.tensor(700), torch.tensor([3, 400, 999])])
def test_guidance_is_the_formula_of_two_calls(words, scale, t):
    found, uncond, cond = guided(ClassifierFreeGuidance, words, scale, t=t)
    assert found.shape == (3, 2, 8, 8)
    assert torch.allclose(found, uncond + scale * (cond - uncond), atol=1e-5)
    paper = (1 + (scale - 1)) * cond - (scale - 1) * uncond  # Ho and Salimans 2022, eq. 6
    assert torch.allclose(found, paper, atol=1e-4)


def test_scale_1_is_the_plain_network_and_0_does_not_listen(words):
    found, uncond, cond = guided(ClassifierFreeGuidance, words, 1)
    assert torch.allclose(found, cond, atol=1e-5) and (cond - uncond).abs().max() > 1e-2
    found, uncond, _ = guided(ClassifierFreeGuidance, words, 0)
    assert torch.allclose(found, uncond, atol=1e-5)


def test_each_picture_may_have_its_own_empty_prompt(words):
    null_context = torch.randn(3, 4, 5)
    found, uncond, cond = guided(ClassifierFreeGuidance, words, 3.0, null_context)
    assert torch.allclose(found, uncond + 3 * (cond - uncond), atol=1e-5)
    assert not torch.allclose(
        found, guided(ClassifierFreeGuidance, words, 3.0, null_context.flip(0))[0]
    )


class Swapped(ClassifierFreeGuidance):
    """A planted fault: pushes away from the prompt."""

    def forward(self, x, t, context):
        null_context = self.null_context.expand_as(context)
        return ClassifierFreeGuidance(self.unet, context, self.guidance_scale)(x, t, null_context)


class Shifted(ClassifierFreeGuidance):
    """A planted fault: takes the scale for the paper's w."""

    def __init__(self, unet, null_context, scale):
        super().__init__(unet, null_context, scale + 1)


@pytest.mark.parametrize("fault", [Swapped, Shifted])
def test_a_planted_fault_is_seen(words, fault):
    for scale in (0, 1, 4):
        found, uncond, cond = guided(fault, words, scale)
        assert (found - (uncond + scale * (cond - uncond))).abs().max() > 1e-2


def test_guidance_is_one_call_for_both_and_leaves_its_arguments_alone(words):
    sizes = []
    words.register_forward_pre_hook(lambda _, inputs: sizes.append([len(part) for part in inputs]))
    x, context, null_context = torch.randn(3, 2, 8, 8), torch.randn(3, 4, 5), torch.zeros(1, 4, 5)
    copies = x.clone(), context.clone()
    ClassifierFreeGuidance(words, null_context, 2.0)(x, 10, context)
    assert sizes == [[6, 6, 6]]
    assert torch.equal(x, copies[0]) and torch.equal(context, copies[1]) and not null_context.any()


def test_a_guided_network_draws(words):
    noise, context = torch.randn(2, 2, 8, 8), torch.randn(2, 3, 5)
    network = ClassifierFreeGuidance(words, torch.zeros(1, 3, 5), 3.0)
    *_, last = denoise(network, DDIMScheduler(), noise, 4, context=context)
    scheduler, x = DDIMScheduler(), noise
    scheduler.set_timesteps(4)
    with torch.no_grad():
        for t in scheduler.timesteps:
            uncond, cond = words(x, t, torch.zeros(2, 3, 5)), words(x, t, context)
            x = scheduler.step(uncond + 3 * (cond - uncond), t, x).prev_sample
    assert torch.allclose(last.x, x, atol=1e-4)
    *_, plain = denoise(words, DDIMScheduler(), noise, 4, context=context)
    assert (plain.x - last.x).abs().max() > 1e-2


# Concatenated channels

SEEING = UNetConfig(8, 5, 2, (8, 8), (False, True), 1, 2, 4, context_dim=5)


@pytest.fixture
def seeing():
    return randomise(UNet(SEEING)).eval()


def test_the_network_sees_the_concatenated_channels(seeing):
    x, t, context = torch.randn(3, 2, 8, 8), torch.tensor([5, 50, 500]), torch.randn(3, 4, 5)
    c_concat = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        got = Concatenation(seeing, c_concat)(x, t, context)
        assert torch.equal(got, seeing(torch.cat([x, c_concat], dim=1), t, context))
        one = Concatenation(seeing, c_concat[:1])(x, t, context)
        assert torch.equal(one, seeing(torch.cat([x, c_concat[[0, 0, 0]]], dim=1), t, context))
        nothing = Concatenation(seeing, torch.zeros(1, 3, 1, 1))(x, t, context)
        assert torch.equal(nothing, seeing(torch.cat([x, 0 * c_concat], dim=1), t, context))


def test_from_outside_it_is_a_network_with_fewer_channels(seeing):
    config = Concatenation(seeing, torch.zeros(1, 3, 1, 1)).config
    assert config == UNetConfig(8, 2, 2, (8, 8), (False, True), 1, 2, 4, context_dim=5)


def test_guidance_shows_each_picture_its_own_twice(seeing):
    x, context, null_context = torch.randn(2, 2, 8, 8), torch.randn(2, 4, 5), torch.randn(1, 4, 5)
    c_concat = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        both = ClassifierFreeGuidance(Concatenation(seeing, c_concat), null_context, 3.0)(
            x, 9, context
        )
        for i in range(2):
            seen = Concatenation(seeing, c_concat[i : i + 1])
            one = ClassifierFreeGuidance(seen, null_context, 3.0)(
                x[i : i + 1], 9, context[i : i + 1]
            )
            assert (both[i] - one[0]).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 4, 8), "as large as its picture"),
        ((4, 3, 8, 8), "6 pictures cannot share 4 maps"),
        ((2, 3, 8, 8), "6 pictures cannot share 2 maps"),  # twice would be guidance
    ],
)
def test_what_cannot_be_concatenated(seeing, shape, message):
    network = Concatenation(seeing, torch.zeros(shape))
    with pytest.raises(ValueError, match=message):
        network(torch.zeros(6, 2, 8, 8), 9, torch.zeros(6, 4, 5))
