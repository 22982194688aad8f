import pytest
import torch
from helpers import randomise

from minisd import DDIMScheduler, DDPMScheduler, UNet, UNetConfig
from minisd.pipeline import denoise, sample

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


def test_a_generator_of_another_device_raises(unet):
    with pytest.raises(ValueError, match="generator is on cpu, the model on meta"):
        next(sample(unet.to("meta"), DDIMScheduler(), 1, 2, torch.Generator()))
