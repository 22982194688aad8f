"""Chapters 13 and 14: Stable Diffusion v1.5 in true size: random weights, and where real ones are.

Weights under a licence are not part of this package. Random ones of the same shapes cost as much
to load and to run, which is all that a test of speed, memory or agreement needs.
"""

import math
from collections.abc import Callable
from itertools import islice, product
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from minisd.clip import CLIPTextConfig, CLIPTextModel
from minisd.pretrained import SD15, Pretrained, Unfilled, copies
from minisd.schedulers import PNDMScheduler
from minisd.stable_diffusion import INDEX, StableDiffusionPipeline
from minisd.tensors import weight_files
from minisd.tokenizer import Tokenizer, TokenizerConfig
from minisd.unet import UNet, UNetConfig
from minisd.vae import AutoencoderKL, VAEConfig
from minisd.weights import CLIP_TEXT_FORMAT, UNET_FORMAT, VAE_FORMAT

NETWORKS: dict[str, type[Pretrained]] = {
    "text_encoder": CLIPTextModel, "unet": UNet, "vae": AutoencoderKL,
}  # fmt: skip
CONFIGS = {
    "text_encoder": CLIPTextConfig.SD15, "unet": UNetConfig.SD15, "vae": VAEConfig.SD15,
}  # fmt: skip
FORMATS = {"text_encoder": CLIP_TEXT_FORMAT, "unet": UNET_FORMAT, "vae": VAE_FORMAT}


def random_tensor(name: str, shape: torch.Size, seed: int = 0) -> Tensor:
    """Draw the tensor `name` of a network, the same one for the same seed, whoever asks and when.

    Weights keep the size of what flows through them, biases are small, and the weights of norms
    near 1: no branch of the network is silent, as some are before training.
    """
    generator = torch.Generator().manual_seed(crc32(f"{seed} {name}".encode()))
    tensor = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        return tensor.div_(math.sqrt(math.prod(shape[1:])))
    return tensor.mul_(0.1).add_(float("norm" in name and name.endswith("weight")))


def random_network(
    part: str, seed: int = 0, torch_dtype: torch.dtype = torch.float32
) -> Pretrained:
    """Build one of v1.5's NETWORKS with random weights, of which there is never a second copy."""
    with torch.device("meta"), Unfilled():
        network = NETWORKS[part](CONFIGS[part])
    tensors = {
        name: random_tensor(name, like.shape, seed).to(torch_dtype)
        for name, like in network.state_dict().items()
    }
    network.load_state_dict(tensors, assign=True)
    return network.eval()


def random_sd15(seed: int = 0, torch_dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """Build all of Stable Diffusion v1.5 without a download: true sizes, random weights.

    It takes 4.3 GB of memory, half of that in float16 or bfloat16. What it draws means nothing.
    """
    networks: dict[str, Any] = {part: random_network(part, seed, torch_dtype) for part in NETWORKS}
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
        skip_prk_steps=True, set_alpha_to_one=False,
    )  # fmt: skip
    return StableDiffusionPipeline(stand_in_tokenizer(), **networks, scheduler=scheduler)


def stand_in_tokenizer() -> Tokenizer:
    """Return a tokenizer with as many tokens as CLIP's, most of them pairs of bytes.

    CLIP's own vocabulary is part of the download. This one loses nothing, but cuts words finely.
    """
    config = TokenizerConfig.CLIP
    alphabet = config.alphabet()  # 256 bytes, then the same at the end of a word
    room = CLIPTextConfig.SD15.vocab_size - len(alphabet) - len(config.special_tokens)
    merges = list(islice(product(alphabet[:256], alphabet[256:]), room))
    tokens = [*alphabet, *map("".join, merges), *config.special_tokens]
    return Tokenizer({token: i for i, token in enumerate(tokens)}, merges, config)


class on_demand(TorchFunctionMode):  # lower case, as torch.no_grad is: it is used in `with`
    """Run a model of the meta device: each weight exists only while it is computed with.

    `fetch` is given the name and the shape of a weight, and returns it. Within the block every call
    of a function of torch gets the fetched weight in the place of the empty one.
    """

    def __init__(self, model: nn.Module, fetch: Callable[[str, torch.Size], Tensor]):
        super().__init__()
        self.names = {id(p): name for name, p in model.named_parameters()}
        self.fetch = fetch

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        def bring(value: Any) -> Any:
            name = self.names.get(id(value))
            return value if name is None else self.fetch(name, value.shape)

        return function(*tree_map(bring, args), **tree_map(bring, kwargs or {}))


def find_weights(variant: str | None = None) -> Path | None:
    """Return a folder with all that v1.5 needs, or None; nothing is downloaded.

    It is looked for in `minisd.pretrained.copies()`, then in the hub's cache. `variant="fp16"`
    asks for the half-precision files.
    """
    from huggingface_hub import try_to_load_from_cache  # slow to import, and rarely needed

    folders = [folder / SD15 for folder in copies()]
    cached = try_to_load_from_cache(SD15, INDEX)
    if isinstance(cached, str):
        folders.append(Path(cached).parent)
    files = [INDEX, "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"]
    for part, foreign in FORMATS.items():
        weights, _ = weight_files(foreign.file, variant)
        files += [f"{part}/config.json", f"{part}/{weights}"]
    return next((f for f in folders if all((f / file).is_file() for file in files)), None)


def weights_are_here(variant: str | None = None) -> bool:
    """Whether v1.5 can be loaded without a network; see `find_weights`."""
    return find_weights(variant) is not None
