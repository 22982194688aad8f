"""Which autoencoder keeps most detail for its price? Shapes and losses at equal processor time.

    python benchmarks/autoencoders.py [--minutes 5] [--seeds 1] [--arms few,many,fine]

Each arm trains an autoencoder of postcards from nothing, in float32 with channels last, on one
thread: so several can run beside each other, and what counts is the processor's time, not the
clock's. How long a step takes is measured first, and gives the arm its number of steps. Scored on
unseen postcards: PSNR, whole and on the subject, and the edge energy kept. Prints one table.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset
from tqdm import tqdm

from minisd import AutoencoderKL, VAEConfig
from minisd.data.postcards import LAYERS, Postcards
from minisd.lab.evaluation import UNSEEN_SEED
from minisd.lab.evaluation.postcards import reconstructed
from minisd.losses import Distance, autoencoder_loss
from minisd.metrics import psnr
from minisd.quality import edge_energy, edges_kept, psnr_inside
from minisd.training import TrainingSettings, TrainingStep, train

TIMED = 8  # steps, after two that do not count
HALF = 0.5  # of the postcards hold two subjects


def with_edges(a: Tensor, b: Tensor) -> Tensor:
    """Return the squared error of images (b,c,h,w), plus twice the edge energy of the error."""
    return F.mse_loss(a, b) + 2 * edge_energy(a - b).mean()


@dataclass(frozen=True)
class Arm:
    """An autoencoder, and how it is trained."""

    latent_channels: int = 16
    patch_size: int = 4
    channels: tuple[int, ...] = (96, 128)
    learning_rate: float = 3e-3
    batch_size: int = 16
    distance: Distance = F.mse_loss

    @property
    def config(self) -> VAEConfig:
        """The sizes of the autoencoder."""
        sizes = dict(patch_size=self.patch_size, channels=self.channels)
        return replace(VAEConfig.POSTCARDS, latent_channels=self.latent_channels, **sizes)


FINE = Arm(patch_size=2, channels=(32, 64, 128))
ARMS = {
    "few": Arm(latent_channels=4),
    "many": Arm(),
    "slow": Arm(learning_rate=1.5e-3),
    "small batch": Arm(batch_size=8),
    "coarse": Arm(patch_size=8, channels=(256,)),
    "fine": FINE,
    "fine wide": replace(FINE, channels=(48, 96, 128)),
    "pixels": replace(FINE, patch_size=1, channels=(16, 32, 64, 128)),
    "fine L1": replace(FINE, distance=F.l1_loss),
    "fine edges": replace(FINE, distance=with_edges),
}


def follow(arm: Arm, cards: TensorDataset, steps: int, seed: int) -> Iterator[TrainingStep]:
    """Train an arm, a function of its seed, and yield every step."""
    with torch.random.fork_rng():
        torch.random.manual_seed(seed)
        vae = AutoencoderKL(arm.config)
    vae = vae.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    settings = TrainingSettings(
        steps=steps,
        batch_size=arm.batch_size,
        learning_rate=arm.learning_rate,
        ema_decay=0.998,
        seed=seed,
        optimizer="Muon",
    )
    return train(vae, autoencoder_loss(distance=arm.distance), cards, settings)


def seconds_of_a_step(arm: Arm, cards: TensorDataset) -> float:
    """Return the median processor time of an arm's steps."""
    ends = []
    for _ in follow(arm, cards, TIMED + 2, seed=0):
        ends.append(time.process_time())
    return statistics.median(b - a for a, b in zip(ends[1:], ends[2:], strict=False))


def score(vae: AutoencoderKL, n: int) -> dict[str, float]:
    """Return what an autoencoder keeps of n unseen postcards."""
    data = Postcards("test", n, seed=UNSEEN_SEED, two=HALF)
    images, subject = data.images(), data.masks() == LAYERS.index("subject")
    decoded = reconstructed(vae, images)
    return {
        "PSNR": float(psnr(decoded, images).mean()),
        "PSNR on the subject": float(psnr_inside(decoded, images, subject).mean()),
        "edges kept": edges_kept(decoded, images),
        "edges kept on the subject": edges_kept(decoded, images, subject),
    }


def main() -> None:
    """Train the arms one after the other and print a row for each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="processor time of a run")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--arms", default=",".join(ARMS), help="separated by commas")
    parser.add_argument("--cards", type=int, default=24_000, help="postcards to learn from")
    parser.add_argument("--samples", type=int, default=512, help="unseen postcards that score")
    arguments = parser.parse_args()
    unknown = set(names := arguments.arms.split(",")) - set(ARMS)
    if unknown:
        parser.error(f"unknown arms {sorted(unknown)}; choose from {', '.join(ARMS)}")
    torch.set_num_threads(1)
    cards = TensorDataset(Postcards("train", arguments.cards, two=HALF).images())
    for name in names:
        spent = seconds_of_a_step(ARMS[name], cards)
        steps = max(1, round(60 * arguments.minutes / spent))
        for seed in range(arguments.seeds):
            run = partial(tqdm, total=steps, desc=f"{name}, seed {seed}", disable=None)
            *_, last = run(follow(ARMS[name], cards, steps, seed))
            found = score(last.ema, arguments.samples)
            row = "; ".join(f"{title} {value:.3f}" for title, value in found.items())
            print(f"{name}, seed {seed}: {1000 * spent:.0f} ms, {steps} steps: {row}", flush=True)


if __name__ == "__main__":
    main()
