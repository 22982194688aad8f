"""Chapter 9: the autoencoder: images to latents and back, from our postcards to v1.5's."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.configs import check_fields
from minisd.device import draw_noise
from minisd.layers import ResnetBlock, SelfAttention2d, Upsample
from minisd.pretrained import Pretrained
from minisd.weights import VAE_FORMAT

NORM_EPS = 1e-6  # ten times smaller than the U-Net's


@dataclass(frozen=True)
class VAEConfig:
    """The sizes of an autoencoder.

    `channels` has one entry per level, the highest resolution first; between two levels the image
    halves. The first level sees patches of `patch_size` x `patch_size` pixels, v1.5's the pixels
    themselves. `scaling_factor` is 1 / std of the latents. Raises ValueError for sizes that do not
    fit.
    """

    sample_size: int = 64
    in_channels: int = 3
    latent_channels: int = 4
    channels: tuple[int, ...] = (96, 128)
    layers_per_block: int = 1
    norm_num_groups: int = 8
    patch_size: int = 4
    scaling_factor: float = 1.0

    POSTCARDS: ClassVar["VAEConfig"]
    SD15: ClassVar["VAEConfig"]

    def __post_init__(self):
        check_fields(self)
        if self.scaling_factor <= 0:
            raise ValueError(f"scaling_factor must be a positive number, got {self.scaling_factor}")
        if not self.channels:
            raise ValueError("channels needs one entry per level, got none")
        for width in self.channels:
            if width % self.norm_num_groups:
                raise ValueError(
                    f"every width must be a multiple of norm_num_groups ({self.norm_num_groups}), "
                    f"got {width}"
                )
        if self.sample_size % self.downscale:
            raise ValueError(
                f"latents are {self.downscale} times smaller than the image: sample_size must be "
                f"a multiple of {self.downscale}, got {self.sample_size}"
            )

    @property
    def downscale(self) -> int:
        """How many times smaller the latents are than the image, in height and in width."""
        return self.patch_size * 2 ** (len(self.channels) - 1)


VAEConfig.POSTCARDS = VAEConfig()
VAEConfig.SD15 = VAEConfig(
    sample_size=512,
    channels=(128, 256, 512, 512),
    layers_per_block=2,
    norm_num_groups=32,
    patch_size=1,
    scaling_factor=0.18215,
)


def make_resnet(config: VAEConfig, in_channels: int, out_channels: int) -> ResnetBlock:
    """Return the U-Net's residual block, without its time."""
    return ResnetBlock(in_channels, out_channels, None, config.norm_num_groups, NORM_EPS)


def make_middle(config: VAEConfig) -> nn.Sequential:
    """Return attention between two residual blocks, (b,c,h,w) -> (b,c,h,w)."""
    width = config.channels[-1]
    return nn.Sequential(
        make_resnet(config, width, width),
        SelfAttention2d(width, 1, config.norm_num_groups, NORM_EPS),
        make_resnet(config, width, width),
    )


class Encoder(nn.Module):
    """Image (b,in_channels,h,w) -> mean and log variance (b,2 latent_channels,h/8,w/8).

    The layout is that of Esser et al. 2021, with a mean and a variance instead of a codebook.
    """

    def __init__(self, config: VAEConfig):
        super().__init__()
        width = config.channels[0]
        self.to_patches = nn.PixelUnshuffle(config.patch_size)  # b c (h p) (w p) -> b (c p p) h w
        self.conv_in = nn.Conv2d(config.in_channels * config.patch_size**2, width, 3, padding=1)
        layers: list[nn.Module] = []
        for level, channels in enumerate(config.channels):
            if level > 0:  # halve the size; padded only on the right and below, unlike the U-Net's
                halve = nn.Conv2d(width, width, 3, stride=2)
                layers.append(nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), halve))
            for _ in range(config.layers_per_block):
                layers.append(make_resnet(config, width, channels))
                width = channels
        self.down = nn.Sequential(*layers)
        self.mid = make_middle(config)
        self.norm_out = nn.GroupNorm(config.norm_num_groups, width, NORM_EPS)
        self.conv_out = nn.Conv2d(width, 2 * config.latent_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv_in(self.to_patches(image))
        x = self.mid(self.down(x))
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """Unscaled latents (b,latent_channels,h/8,w/8) -> image (b,in_channels,h,w)."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        width = config.channels[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, width, 3, padding=1)
        self.mid = make_middle(config)
        layers: list[nn.Module] = []
        for level, channels in enumerate(reversed(config.channels)):
            if level > 0:
                layers.append(Upsample(width))
            for _ in range(config.layers_per_block + 1):
                layers.append(make_resnet(config, width, channels))
                width = channels
        self.up = nn.Sequential(*layers)
        self.norm_out = nn.GroupNorm(config.norm_num_groups, width, NORM_EPS)
        self.conv_out = nn.Conv2d(width, config.in_channels * config.patch_size**2, 3, padding=1)
        self.to_pixels = nn.PixelShuffle(config.patch_size)  # b (c p p) h w -> b c (h p) (w p)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.up(self.mid(self.conv_in(latents)))
        return self.to_pixels(self.conv_out(F.silu(self.norm_out(x))))


class DiagonalGaussian:
    """What the encoder knows of the latents of an image: a mean and a log variance for each number.

    From moments (b,2c,h,w): `mean` and `logvar` (b,c,h,w), `logvar` kept within -30 and 20.
    """

    def __init__(self, moments: Tensor):
        self.mean, logvar = moments.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw latents (b,c,h,w), through which gradients pass. Kingma 2014, section 2.4."""
        mean = self.mean
        noise = draw_noise(mean.shape, generator, mean.device, mean.dtype)
        return mean + (0.5 * self.logvar).exp() * noise

    def mode(self) -> Tensor:
        """Return the most likely latents (b,c,h,w), which are the mean."""
        return self.mean

    def kl(self) -> Tensor:
        """Return the divergence (b,) from a standard normal, in nats. Kingma 2014, app. B."""
        terms = self.mean.square() + self.logvar.exp() - 1 - self.logvar
        return 0.5 * terms.sum(dim=(1, 2, 3))


class AutoencoderKL(Pretrained, nn.Module):
    """Make an image several times smaller, and give it back. Rombach et al. 2022, section 3.1.

    `encode` and `decode` speak in scaled latents, of about unit variance, as diffusion wants them;
    everything else in latents as they are. Images are in [-1,1], of any size whose sides are
    multiples of `config.downscale`. Raises ValueError for an image or latents of the wrong shape.
    """

    config_class = VAEConfig
    config: VAEConfig
    diffusers_format = VAE_FORMAT

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        c = config.latent_channels
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(2 * c, 2 * c, 1)
        self.post_quant_conv = nn.Conv2d(c, c, 1)
        self.decoder = Decoder(config)
        with torch.no_grad():  # begin with little variance, or its noise drowns the first steps
            self.quant_conv.get_parameter("bias")[c:] -= 6

    def posterior(self, image: Tensor) -> DiagonalGaussian:
        """Return the distribution of the unscaled latents of image (b,in_channels,h,w)."""
        self.check_image(image)
        return DiagonalGaussian(self.quant_conv(self.encoder(image)))

    def reconstruct(self, z: Tensor) -> Tensor:
        """Turn unscaled latents z (b,c,h/8,w/8) into an image (b,in_channels,h,w)."""
        return self.decoder(self.post_quant_conv(z))

    def encode(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the scaled latents of image (b,in_channels,h,w): (b,latent_channels,h/8,w/8).

        With a generator they are drawn from the posterior, without one they are its mean.
        """
        posterior = self.posterior(image)
        z = posterior.mode() if generator is None else posterior.sample(generator)
        return self.config.scaling_factor * z

    def decode(self, latents: Tensor) -> Tensor:
        """Return the image of scaled latents, in about [-1,1]: clamp it before you show it."""
        c = self.config.latent_channels
        if latents.ndim != 4 or latents.shape[1] != c:
            raise ValueError(f"latents must be (b, {c}, h, w), got {tuple(latents.shape)}")
        return self.reconstruct(latents / self.config.scaling_factor)

    def forward(
        self, image: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, DiagonalGaussian]:
        """Return the reconstruction of a sample from the posterior, and the posterior."""
        posterior = self.posterior(image)
        return self.reconstruct(posterior.sample(generator)), posterior

    def check_image(self, image: Tensor) -> None:
        """Raise ValueError that says what does not fit and what to do."""
        c, multiple = self.config.in_channels, self.config.downscale
        if image.ndim != 4 or image.shape[1] != c:
            raise ValueError(f"image must be (b, {c}, h, w), got {tuple(image.shape)}")
        h, w = image.shape[2:]
        if h % multiple or w % multiple or not h or not w:
            down = [max(1, side // multiple) * multiple for side in (h, w)]
            raise ValueError(
                f"height and width must be multiples of {multiple}, got {h} x {w}: "
                f"resize or crop the image, to {down[0]} x {down[1]} for example"
            )


@torch.no_grad()
def measure_scaling_factor(vae: AutoencoderKL, images: Tensor, batch_size: int = 100) -> float:
    """Return 1 / std of the latents drawn for images (n,c,h,w). Rombach et al. 2022, app. G.

    Their variance is that of the means plus the mean of the variances: nothing needs to be drawn.
    """
    posteriors = [vae.posterior(batch) for batch in images.split(batch_size)]
    means = torch.cat([posterior.mean for posterior in posteriors])
    variances = torch.cat([posterior.logvar.exp() for posterior in posteriors])
    return float((means.var(correction=0) + variances.mean()).rsqrt())
