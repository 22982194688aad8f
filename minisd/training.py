"""Chapter 4: the one training loop of this book, its moving average, and its checkpoints.

Everything random in a run is a function of its seed and of the step: the order of the images, the
noise, the timesteps. So a checkpoint needs no random state, and a run that was killed and resumed
ends with the weights that it would have had.
"""

import copy
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from minisd.files import replacing
from minisd.losses import LossFunction
from minisd.optim import Muon
from minisd.pretrained import read_tensors

CHECKPOINT = "checkpoint.safetensors"
OPTIMIZERS = {"AdamW": torch.optim.AdamW, "Muon": Muon}


@dataclass(frozen=True)
class TrainingSettings:
    """How to train: raises ValueError for a number out of range or an unknown optimizer."""

    steps: int
    batch_size: int = 128
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    seed: int = 0
    log_every: int = 50
    save_every: int = 100
    optimizer: Literal["AdamW", "Muon"] = "AdamW"

    def __post_init__(self):
        for name in ("steps", "batch_size", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.save_every % self.log_every:
            raise ValueError(
                f"save_every ({self.save_every}) must be a multiple of log_every ({self.log_every})"
            )
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if self.optimizer not in OPTIMIZERS:
            names = ", ".join(OPTIMIZERS)
            raise ValueError(f"unknown optimizer {self.optimizer!r}; choose from {names}")

    def learning_rate_at(self, step: int) -> float:
        """Rise linearly over `warmup_steps`, then fall to zero along a cosine."""
        warmup = min(1.0, (step + 1) / max(1, self.warmup_steps))
        return self.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * step / self.steps))


class TrainingStep(NamedTuple):
    """What the loop yields after each optimiser step."""

    step: int  # how many steps are done
    loss: Tensor  # of this step's batch, detached, averaged over all processes
    learning_rate: float
    ema: nn.Module  # the model with averaged weights, to sample from
    log: list[dict[str, float]]  # so far, every `log_every` steps: step, mean loss, rate, seconds


class EMA:
    """The exponential moving average of a model's weights, which samples better than the last.

    The decay rises to its full value over the first steps, so that the random start is forgotten.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards the weights of `model`: ema + (1 - decay) (model - ema)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        weights = [p.detach() for p in model.parameters()]
        torch._foreach_lerp_(list(self.model.parameters()), weights, 1 - decay)


class SeededBatches(Sampler[list[int]]):
    """Shuffled batches of indices, a function of (seed, step); each process takes its share."""

    def __init__(
        self, length: int, settings: TrainingSettings, first_step: int, rank: int, world: int
    ):
        self.per_epoch = length // settings.batch_size
        if not self.per_epoch:
            raise ValueError(f"a batch of {settings.batch_size} needs more than {length} examples")
        if settings.batch_size % world:
            raise ValueError(
                f"{world} processes cannot share a batch of {settings.batch_size} evenly"
            )
        self.length, self.settings, self.first_step = length, settings, first_step
        self.rank, self.world = rank, world

    def __iter__(self) -> Iterator[list[int]]:
        size, shuffled = self.settings.batch_size, None
        for step in range(self.first_step, self.settings.steps):
            epoch, position = divmod(step, self.per_epoch)
            if epoch != shuffled:
                generator = torch.Generator().manual_seed(seed_for(self.settings.seed, epoch))
                order = torch.randperm(self.length, generator=generator)
                shuffled = epoch
            batch = order[position * size : (position + 1) * size]
            yield batch[self.rank :: self.world].tolist()


def seed_for(seed: int, *numbers: int) -> int:
    """Mix a seed with other numbers into a new seed, so that no two draws share their numbers."""
    for number in numbers:
        seed = (seed * 6364136223846793005 + number * 1442695040888963407 + 1) % 2**63
    return seed


def train(
    model: nn.Module,
    loss_function: LossFunction,
    dataset: Dataset,
    settings: TrainingSettings,
    checkpoint: Path | None = None,
    accelerator: Accelerator | None = None,
    spent: float = 0.0,
) -> Iterator[TrainingStep]:
    """Train `model` in place and yield after every step; needs no more than a `for` loop around it.

    `loss_function(model, batch, generator)` returns a scalar. With a `checkpoint` path the run
    saves itself there every `save_every` steps, and goes on from there if the file exists. Runs on
    one device, or on several processes under accelerate. The log counts seconds from
    `spent`, those of the preparation.

    Raises ValueError if the data set is smaller than a batch, or if the checkpoint is damaged or
    belongs to other settings, and FloatingPointError if the loss is no longer finite.
    """
    accelerator = accelerator or Accelerator()
    device, rank = accelerator.device, accelerator.process_index
    ema = EMA(model.to(device), settings.ema_decay)
    optimizer = OPTIMIZERS[settings.optimizer](
        model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
    )
    log: list[dict[str, float]] = []
    if checkpoint is not None and checkpoint.exists():
        log = load_checkpoint(checkpoint, model, ema, optimizer, settings)
    first_step = log[-1]["step"] if log else 0
    start = time.perf_counter() - (log[-1]["seconds"] if log else spent)
    if first_step == settings.steps:  # the run was complete
        yield TrainingStep(first_step, torch.tensor(log[-1]["loss"]), 0.0, ema.model, log)
        return
    batches = SeededBatches(len(dataset), settings, first_step, rank, accelerator.num_processes)
    loader = DataLoader(dataset, batch_sampler=batches)
    wrapped, optimizer = accelerator.prepare(model, optimizer)

    generator = torch.Generator(device)
    wrapped.train()
    losses = []
    for step, batch in enumerate(loader, start=first_step):
        batch = [tensor.to(device) for tensor in batch]
        generator.manual_seed(seed_for(settings.seed, step, rank))
        learning_rate = settings.learning_rate_at(step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate

        loss = loss_function(wrapped, batch, generator)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(wrapped.parameters(), settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model, step)

        loss = accelerator.reduce(loss.detach(), "mean")
        losses.append(loss)
        done, last = step + 1, step + 1 == settings.steps
        if done % settings.log_every == 0 or last:
            mean = torch.stack(losses).mean().item()
            if not math.isfinite(mean):
                raise FloatingPointError(f"the loss is {mean} at step {done}: lower learning_rate")
            seconds = round(time.perf_counter() - start, 3)
            row = dict(step=done, loss=mean, learning_rate=learning_rate, seconds=seconds)
            log.append(row)
            losses.clear()
        if checkpoint is not None and (done % settings.save_every == 0 or last):
            if accelerator.is_main_process:
                save_checkpoint(checkpoint, model, ema, optimizer, settings, log)
        yield TrainingStep(done, loss, learning_rate, ema.model, log)


def save_checkpoint(
    path: Path,
    model: nn.Module,
    ema: EMA,
    optimizer: torch.optim.Optimizer,
    settings: TrainingSettings,
    log: list[dict[str, float]],
) -> None:
    """Write weights, average, optimiser state and log into one file, whole or not at all."""
    tensors = {f"model.{key}": tensor for key, tensor in model.state_dict().items()}
    tensors |= {f"ema.{key}": tensor for key, tensor in ema.model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": tensor for key, tensor in state.items()}
    metadata = {"settings": json.dumps(asdict(settings)), "log": json.dumps(log)}
    tensors = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata)


def load_checkpoint(
    path: Path,
    model: nn.Module,
    ema: EMA,
    optimizer: torch.optim.Optimizer,
    settings: TrainingSettings,
) -> list[dict[str, float]]:
    """Restore what `save_checkpoint` wrote and return its log, whose last row is its step.

    Raises ValueError if the file is damaged, or was written under other settings or by another
    model.
    """
    tensors = read_tensors(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    if json.loads(metadata.get("settings", "null")) != asdict(settings):
        raise ValueError(
            f"{path} belongs to a run with other settings; use them, or another folder"
        )
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}}
    for key, tensor in tensors.items():
        part, _, name = key.partition(".")
        parts[part][name] = tensor
    try:
        model.load_state_dict(parts["model"])
        ema.model.load_state_dict(parts["ema"])
    except RuntimeError as error:
        raise ValueError(f"{path} belongs to another model: {error}") from None
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in parts["optimizer"].items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return json.loads(metadata["log"])
