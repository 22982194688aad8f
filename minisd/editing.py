"""Chapter 11: start from a picture (image to image, inpainting), or between two noises."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from minisd.device import Generators
from minisd.pipeline import DenoisingState, denoise_from
from minisd.schedulers import Scheduler


def last_timesteps(scheduler: Scheduler, num_inference_steps: int, strength: float) -> Tensor:
    """Return the timesteps of the last steps, a share `strength` of them, rounded down.

    Raises ValueError unless 0 < strength <= 1, and if no step is left.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be above 0 and at most 1, got {strength}")
    steps = int(round(num_inference_steps * strength, 6))  # 0.58 of 50 is 29, not 28.999...
    if not steps:
        raise ValueError(f"strength {strength} of {num_inference_steps} steps leaves no step")
    skipped = num_inference_steps - steps
    if isinstance(scheduler, Scheduler):
        return scheduler.timesteps[scheduler.calls_before(skipped) :]
    return scheduler.timesteps[skipped * scheduler.order :]  # one of diffusers'


def img2img(
    unet: nn.Module,
    scheduler: Scheduler,
    x_start: Tensor,
    noise: Tensor,
    num_inference_steps: int,
    strength: float,
    generator: Generators = None,
    context: Tensor | None = None,
    mask: Tensor | None = None,
) -> Iterator[DenoisingState]:
    """Add noise (b,c,h,w) to x_start and denoise it again, yielding the state after every call.

    Only the last steps are taken, a share `strength` of them: 1 leaves nothing of x_start, 0.3 its
    layout (Meng et al. 2022, section 3). With a `mask` (b or 1,1,h,w) only what it marks with 1 is
    drawn anew; elsewhere x_start stays (Lugmayr et al. 2022, section 4.1). Raises ValueError for a
    number of steps that the scheduler does not allow, or a strength that leaves no step.
    """
    scheduler.set_timesteps(num_inference_steps, device=x_start.device)
    timesteps = last_timesteps(scheduler, num_inference_steps, strength)
    if hasattr(scheduler, "set_begin_index"):  # not all of diffusers' have it
        scheduler.set_begin_index(len(scheduler.timesteps) - len(timesteps))
    x = scheduler.add_noise(x_start, noise, timesteps[:1])
    if mask is None:
        yield from denoise_from(unet, scheduler, timesteps, x, generator, context)
        return
    for t, t_next in zip(timesteps.split(1), [*timesteps.split(1)[1:], None], strict=True):
        (state,) = denoise_from(unet, scheduler, t, x, generator, context)
        known = x_start if t_next is None else scheduler.add_noise(x_start, noise, t_next)
        x = mask * state.x + (1 - mask) * known  # what is to stay, as noisy as the rest
        yield state._replace(x=x)


redraw = img2img  # its name in version 0.1


def paste(images: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """Put the pixels of an image back into images (b,c,h,w), wherever the mask is below 0.5.

    The image is (b or 1,c,h,w), the mask (b or 1,1,h,w) of the image's size, not of the latents'.
    """
    return torch.where(mask.to(images.device) >= 0.5, images, image.to(images))


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Interpolate between the noises a and b, (b,c,h,w) both, along a sphere: `share` 0 gives a.

    Halfway on a straight line the noise would be weaker; on the sphere its strength stays. Song et
    al. 2021 (DDIM), section 5.3. Raises ValueError if the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"need two noises of one shape, got {tuple(a.shape)}, {tuple(b.shape)}")
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    angle = torch.arccos(torch.cosine_similarity(flat_a, flat_b).clamp(-1, 1)).view(-1, 1, 1, 1)
    along = (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)
    return torch.where(angle < 1e-3, torch.lerp(a, b, share), along)  # a straight line is as good
