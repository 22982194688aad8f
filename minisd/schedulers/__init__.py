"""Chapters 4 and 5: schedulers decide which noise levels to visit, and how to step between them."""

from pathlib import Path

from minisd.configs import class_name
from minisd.files import read_json
from minisd.pretrained import locate
from minisd.schedulers.base import Scheduler, StepOutput
from minisd.schedulers.ddim import DDIMScheduler
from minisd.schedulers.ddpm import DDPMScheduler
from minisd.schedulers.dpm_solver import DPMSolverMultistepScheduler
from minisd.schedulers.euler import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler
from minisd.schedulers.heun import HeunDiscreteScheduler
from minisd.schedulers.pndm import PNDMScheduler
from minisd.schedulers.settings import CONFIG_FILE

SAMPLERS: dict[str, type[Scheduler]] = {  # the short names of the command line
    "ddpm": DDPMScheduler,
    "ddim": DDIMScheduler,
    "pndm": PNDMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler-ancestral": EulerAncestralDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "dpm-solver++": DPMSolverMultistepScheduler,
}
SCHEDULERS = {kind.__name__: kind for kind in SAMPLERS.values()}

__all__ = [
    "SAMPLERS",
    "SCHEDULERS",
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "PNDMScheduler",
    "Scheduler",
    "StepOutput",
    "load_scheduler",
]


def load_scheduler(name: str | Path, subfolder: str = "") -> Scheduler:
    """Load a scheduler of the kind that it was saved as; raises ValueError for an unknown kind."""
    path = locate(name, subfolder, (CONFIG_FILE,)) / CONFIG_FILE
    kind = class_name(read_json(path), path)
    if kind not in SCHEDULERS:
        raise ValueError(f"{name}: unknown scheduler {kind!r}; minisd has {', '.join(SCHEDULERS)}")
    return SCHEDULERS[kind].from_pretrained(name, subfolder)
