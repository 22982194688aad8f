"""Chapter 4: the one training loop of this book, its moving average, and its checkpoints.

Everything random in a run is a function of its seed and of the step: the order of the images, the
noise, the timesteps. So a checkpoint needs no random state, and a run that was killed and resumed
ends with the weights that it would have had. It resumes only as the same run: a checkpoint says
what else decides the weights (data, model, precision, the order of the weights in memory,
processes), and fits no other run.
"""

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, SharedDict
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from minisd.checkpoints import describe_run, load_checkpoint, save_checkpoint
from minisd.losses import LossFunction
from minisd.optim import Muon

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
        """Move the average towards the weights of `model`: ema + (1 - decay) (model - ema).

        Buffers, such as the running mean of a batch norm, are copied: they average already.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        weights = [p.detach() for p in model.parameters()]
        averages = [p.detach() for p in self.model.parameters()]
        # Not public, but what torch's own moving average (swa_utils) calls.
        torch._foreach_lerp_(averages, weights, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        for average, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(buffer)


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
        size, order = self.settings.batch_size, None
        for step in range(self.first_step, self.settings.steps):
            epoch, position = divmod(step, self.per_epoch)
            if order is None or position == 0:  # a new epoch
                generator = torch.Generator().manual_seed(seed_for(self.settings.seed, epoch))
                order = torch.randperm(self.length, generator=generator)
            batch = order[position * size : (position + 1) * size]
            yield batch[self.rank :: self.world].tolist()


def seed_for(seed: int, *numbers: int) -> int:
    """Mix a seed with other numbers into a new seed, so that no two draws share their numbers."""
    for number in numbers:
        seed = (seed * 6364136223846793005 + number * 1442695040888963407 + 1) % 2**63
    return seed


def new_accelerator(mixed_precision: str | None = None) -> Accelerator:
    """Return an Accelerator with this precision, whatever others there are; None: the launcher's.

    accelerate keeps one precision per process and refuses another. So the new Accelerator gets a
    new state; others keep theirs. Raises ValueError as `check_accelerator` does.
    """
    AcceleratorState._shared_state = SharedDict()
    return check_accelerator(Accelerator(mixed_precision=mixed_precision))


def check_accelerator(accelerator: Accelerator) -> Accelerator:
    """Return an Accelerator that `train` can use; raise ValueError for any other."""
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError(
            f"gradient_accumulation_steps is {accelerator.gradient_accumulation_steps}, but here "
            "every batch is an optimiser step: set it to 1, and batch_size to what a step takes"
        )
    if accelerator.mixed_precision == "fp16" and accelerator.scaler is None:
        raise ValueError("fp16 needs a GPU: on a CPU use bf16 or no mixed precision")
    return accelerator


def train(
    model: nn.Module,
    loss_function: LossFunction,
    dataset: Dataset,
    settings: TrainingSettings,
    checkpoint: Path | None = None,
    accelerator: Accelerator | None = None,
    spent: float = 0.0,
    recipe: str | None = None,
    timings: dict[str, float] | None = None,
) -> Iterator[TrainingStep]:
    """Train `model` in place and yield after every step; a `for` loop around it is all it needs.

    `loss_function(model, batch, generator)` returns a scalar. With a `checkpoint` path the run
    saves itself there every `save_every` steps, and resumes from there if the file exists; `recipe`
    is its name in the file, where `timings` are kept as well: how the precision was chosen. The
    weights stay in the order in memory in which they come: channels first or last. Runs on one
    device, or on several processes under accelerate. The log counts seconds from `spent`, those of
    the preparation.

    Raises ValueError if the data set is smaller than a batch, if the checkpoint is damaged or
    belongs to another run, or if the accelerator accumulates gradients; FloatingPointError if the
    loss is no longer finite; OSError if a checkpoint cannot be written.
    """
    accelerator = check_accelerator(accelerator) if accelerator else new_accelerator()
    device, rank = accelerator.device, accelerator.process_index
    model = accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # an earlier run may have
    vars(model).pop("_is_accelerate_prepared", None)  # left another precision in it
    ema = EMA(model.to(device), settings.ema_decay)
    optimizer = OPTIMIZERS[settings.optimizer](
        model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
    )
    parts = model, ema.model, optimizer, accelerator.scaler
    run = describe_run(model, dataset, settings, accelerator, recipe)
    log: list[dict[str, float]] = []
    if checkpoint is not None and checkpoint.exists():
        log = load_checkpoint(checkpoint, run, *parts)
    first_step = int(log[-1]["step"]) if log else 0
    start = time.perf_counter() - (log[-1]["seconds"] if log else spent)
    if first_step == settings.steps:  # the run was complete
        yield TrainingStep(first_step, torch.tensor(log[-1]["loss"]), 0.0, ema.model, log)
        return
    batches = SeededBatches(run["examples"], settings, first_step, rank, accelerator.num_processes)
    loader = DataLoader(dataset, batch_sampler=batches)
    AcceleratorState._shared_state = vars(accelerator.state)  # `prepare` reads the precision there
    wrapped, optimizer = accelerator.prepare(model, optimizer)

    generator = torch.Generator(device)
    parameters = list(model.parameters())
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
        accelerator.clip_grad_norm_(parameters, settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model, step)

        loss = torch.as_tensor(accelerator.reduce(loss.detach(), "mean"))
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
                save_checkpoint(checkpoint, run, log, *parts, timings)
        yield TrainingStep(done, loss, learning_rate, ema.model, log)
