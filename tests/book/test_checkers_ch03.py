"""The checkers of chapter 3 tell wrong answers what is wrong with them."""

import pytest
import torch
import torch.nn.functional as F

import minisd
from minisd.data.digits import digits
from minisd.schedules import add_noise, make_betas


def factors(**changed):
    return lambda: {"parameters": 1, "multiplications": 4, "scores": 16} | changed


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda: (1, 4, 16), "Return a dictionary"),
        (factors(parameters=4), "the same weights"),
        (factors(multiplications=2), "twice as high"),
        (factors(multiplications=16), "the same at every position"),
        (factors(scores=4), "compares itself with all"),
        (factors(scores=8), "By what factor does n grow"),
    ],
)
def test_growth(answer, message):
    assert minisd.check("3.3", factors())
    verdict = minisd.check("3.3", answer)
    assert not verdict and message in verdict.message


class Mended(torch.nn.Module):
    def __init__(self, channels, emb_dim):
        super().__init__()
        self.norm_1 = torch.nn.GroupNorm(4, channels)
        self.conv_1 = torch.nn.Conv2d(channels, channels, 3, padding=1)
        self.time_proj = torch.nn.Linear(emb_dim, channels)
        self.norm_2 = torch.nn.GroupNorm(4, channels)
        self.conv_2 = torch.nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, emb):
        h = self.conv_1(F.silu(self.norm_1(x)))
        h = h + self.time_proj(F.silu(emb))[:, :, None, None]
        return x + self.conv_2(F.silu(self.norm_2(h)))


class Company(Mended):
    def __init__(self, channels, emb_dim):
        super().__init__(channels, emb_dim)
        self.norm_1 = torch.nn.BatchNorm2d(channels)


class Deaf(Mended):
    def __init__(self, channels, emb_dim):
        super().__init__(channels, emb_dim)
        self.norm_2 = torch.nn.GroupNorm(channels, channels)


class NoShortcut(Mended):
    def forward(self, x, emb):
        return super().forward(x, emb) - x


class Bare(Mended):
    def __init__(self, channels, emb_dim):
        super().__init__(channels, emb_dim)
        self.norm_2 = torch.nn.Identity()


class Smaller(Mended):
    def forward(self, x, emb):
        return super().forward(x, emb)[..., 1:]


class Renamed(Mended):
    def __init__(self, channels, emb_dim):
        super().__init__(channels, emb_dim)
        self.conv_2 = torch.nn.Identity()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Company, "the others in its batch"),
        (Deaf, "does not hear the time"),
        (NoShortcut, "Which path"),
        (Bare, "Keep both"),
        (Smaller, "should stay"),
        (Renamed, "its name conv_2"),
    ],
)
def test_mended(answer, message):
    assert minisd.check("3.6", Mended)
    verdict = minisd.check("3.6", answer)
    assert not verdict and message in verdict.message


@torch.no_grad()
def losses():
    """Return the loss at t = 200 with all skips, and without the skip 0, 1, ... 5."""
    unet, x_start = minisd.UNet.from_pretrained("digits-ddpm"), digits("test").images[:64]
    noise = torch.randn(x_start.shape, generator=torch.Generator().manual_seed(5))
    x_t = add_noise(x_start, noise, (1 - make_betas()).cumprod(0)[200])
    widths, found = (32, 32, 32, 64, 64, 128), []  # of the skips
    for cut in (None, 0, 1, 5):
        hooks = []
        for number, block in zip(range(5, -1, -1), unet.up, strict=True):
            if number == cut:

                def without(block, inputs, width=widths[number]):
                    x, emb, context = inputs
                    return torch.cat([x[:, :-width], 0 * x[:, -width:]], 1), emb, context

                hooks.append(block.register_forward_pre_hook(without))
        found.append(F.mse_loss(unet(x_t, 200), noise).item())
        for hook in hooks:
            hook.remove()
    return found


def test_harm():
    whole, first, second, last = losses()
    assert minisd.check("3.7", lambda: first / whole)
    assert minisd.check("3.7", lambda: torch.tensor(1.1 * first / whole))
    for answer, message in (
        (whole / first, "Divide the loss without"),
        (first, "That is the loss without"),
        (second / whole, "comes before it"),
        (last / whole, "next to no harm"),
        (1000.0, "not in what flows on"),
        ("25", "Return one number"),
    ):
        verdict = minisd.check("3.7", lambda answer=answer: answer)
        assert not verdict and message in verdict.message, answer
