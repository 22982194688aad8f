"""Chapter 5: the settings of a scheduler, read and written in diffusers' format."""

from dataclasses import Field, asdict, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from minisd.files import read_json, writable_folder, write_json
from minisd.pretrained import locate

CONFIG_FILE = "scheduler_config.json"
STEP_SETTINGS = frozenset(  # settings that some schedulers have, about how they step
    (
        "clip_sample",
        "clip_sample_range",
        "lower_order_final",
        "set_alpha_to_one",
        "skip_prk_steps",
        "solver_order",
        "use_karras_sigmas",
    )
)
OFF = {  # foreign settings, with the values at which they change nothing; otherwise that is False
    # read only when another setting, which is refused, is switched on
    "dynamic_thresholding_ratio": (0.995,),
    "sample_max_value": (1.0,),
    "flow_shift": (1.0,),
    "time_shift_type": ("exponential",),
    # the values that minisd implements
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "final_sigmas_type": ("zero",),
    "algorithm_type": ("dpmsolver++",),
    "solver_type": ("midpoint",),
    "lambda_min_clipped": (-float("inf"),),
    "euler_at_final": (False, True),  # with final_sigmas_type "zero", the last step is Euler's
}


class SavedSettings:
    """Adds `config`, `from_config` and saving to a dataclass whose fields are the settings."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]  # as subclasses have them
    unused: dict[str, Any]  # settings that came with the others and only other kinds use

    @property
    def config(self) -> dict[str, Any]:
        """The settings by name, with those that came with them and only other kinds use.

        `match_diffusers`, which diffusers does not know, is among them only when it is on.
        """
        settings = self.unused | asdict(self)
        return {k: v for k, v in settings.items() if k != "match_diffusers" or v}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build a scheduler from settings, also from those of another kind of scheduler.

        Settings that both kinds have are taken over. One that only changes how other schedulers of
        minisd step has no effect here, but stays in `config` for them. Raises ValueError for any
        other setting that this kind does not implement, unless it is off.
        """
        given = {
            name: value
            for name, value in config.items()
            if not name.startswith("_") and value is not None
        }
        own = {field.name for field in fields(cls)}
        active = {
            name: value
            for name, value in given.items()
            if name not in own | STEP_SETTINGS and value not in OFF.get(name, (False,))
        }
        if active:
            raise ValueError(f"{cls.__name__} does not implement {active}")
        scheduler = cls(**{name: value for name, value in given.items() if name in own})
        scheduler.unused = {name: given[name] for name in given if name in STEP_SETTINGS - own}
        return scheduler

    @classmethod
    def from_pretrained(cls, name: str | Path, subfolder: str = "") -> Self:
        """Load the scheduler that was saved with a model; see `minisd.pretrained.locate`.

        Raises ValueError, with the file's name, for a setting that it cannot use.
        """
        file = locate(name, subfolder, (CONFIG_FILE,)) / CONFIG_FILE
        config = read_json(file)
        try:
            return cls.from_config(config)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `scheduler_config.json`, which diffusers reads too."""
        config = {"_class_name": type(self).__name__, **self.config}
        write_json(writable_folder(folder) / CONFIG_FILE, config)
