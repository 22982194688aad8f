"""Chapter 10: what a pipeline is asked to draw, and what it cannot be asked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from minisd.data.images import Picture
from minisd.device import Generators
from minisd.tokenizer import as_list


@dataclass(frozen=True, eq=False)
class Request:
    """What a pipeline is asked to draw: the arguments of a call, but for the type of its output.

    Raises ValueError for what no pipeline can draw; what only one cannot, that pipeline refuses.
    """

    prompt: str | Sequence[str]
    negative_prompt: str | Sequence[str] = ""
    height: int | None = None
    width: int | None = None
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    num_images_per_prompt: int = 1
    generator: Generators = None
    latents: Tensor | None = None
    image: Picture | None = None
    strength: float = 0.8
    mask: Picture | None = None

    def __post_init__(self):
        if not math.isfinite(self.guidance_scale):
            raise ValueError(f"guidance_scale must be a finite number, got {self.guidance_scale}")
        if self.num_images_per_prompt < 1:
            got = self.num_images_per_prompt
            raise ValueError(f"num_images_per_prompt must be positive, got {got}")
        n, negatives = len(self.prompts), len(self.negative_prompts)
        if negatives not in (1, n):
            raise ValueError(f"{n} prompts have {negatives} negative prompts: give one, or {n}")
        if self.mask is not None and self.image is None:
            raise ValueError("a mask needs an image, of which it says what to draw anew")
        if isinstance(self.generator, Sequence) and len(self.generator) != self.num_images:
            raise ValueError(
                f"{self.num_images} pictures have {len(self.generator)} generators: "
                "give one for all, or one for each"
            )

    @property
    def prompts(self) -> list[str]:
        """The prompts as a list."""
        return as_list(self.prompt)

    @property
    def negative_prompts(self) -> list[str]:
        """The negative prompts as a list: one for all pictures, or one for each prompt."""
        return as_list(self.negative_prompt)

    @property
    def num_images(self) -> int:
        """How many pictures are drawn."""
        return len(self.prompts) * self.num_images_per_prompt
