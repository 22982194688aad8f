"""Chapters 4 and 5: schedulers decide which noise levels to visit, and how to step between them."""

from minisd.schedulers.base import Scheduler, StepOutput
from minisd.schedulers.ddim import DDIMScheduler
from minisd.schedulers.ddpm import DDPMScheduler

__all__ = ["DDIMScheduler", "DDPMScheduler", "Scheduler", "StepOutput"]
