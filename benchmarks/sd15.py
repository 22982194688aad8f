"""Stable Diffusion v1.5 in full size: minisd beside diffusers, on whatever device is there.

    python benchmarks/sd15.py [--model FOLDER] [--dtype float32] [--size 512] [--steps 2] [--quick]

Prints one table: seconds and their ratio, memory, and the largest difference relative to the
largest value. Without `--model` the weights are random and of the true shapes, and nothing is
downloaded; the two libraries share one copy of them. Each time is the median of `--repeats` calls
after one that does not count, the two libraries taking turns, and turns in who begins; the ratio is
the median of those of neighbouring calls, for a machine may become slower on the way. Loading is
measured in processes of their own, from a folder in diffusers' format that is written for it (4.3
GB; half of that in half precision): memory above that of the imports, after every weight has been
read once. `--quick` measures the same on networks of a few thousand parameters, to see that the
script runs.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from minisd import StableDiffusionPipeline, full_size
from minisd.book.compat import declare_torchvision_operators
from minisd.book.notebook import peak_memory
from minisd.device import best_device
from minisd.lab.results import table

PROMPT = "An image of Angkor with a sunset sky."
LIBRARIES = "minisd", "diffusers"
LOADING = """
import json, sys, time
library, folder, dtype = sys.argv[1:]
import torch
from minisd.book.notebook import peak_memory
if library == "minisd":
    from minisd import StableDiffusionPipeline
    settings = {}
else:
    from minisd.book.compat import declare_torchvision_operators
    declare_torchvision_operators()
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer
    settings = dict(safety_checker=None, requires_safety_checker=False)
before, start = peak_memory(), time.perf_counter()
pipe = StableDiffusionPipeline.from_pretrained(
    folder, torch_dtype=getattr(torch, dtype), **settings
)
tensors = [t for n in (pipe.text_encoder, pipe.unet, pipe.vae) for t in n.state_dict().values()]
total = sum(float(t.sum()) for t in tensors)
seconds, weights = time.perf_counter() - start, sum(t.nbytes for t in tensors)
print(json.dumps(dict(seconds=seconds, memory=peak_memory() - before, weights=weights)))
"""


def theirs_of(part: str, ours: nn.Module) -> nn.Module:
    """Return diffusers' (or transformers') network, with the very tensors of ours for weights."""
    declare_torchvision_operators()
    import diffusers
    import transformers

    raw = ours.diffusers_format.write_config(ours.config)
    with torch.device("meta"):
        if part == "text_encoder":
            theirs = transformers.CLIPTextModel(transformers.CLIPTextConfig.from_dict(raw))
        else:
            kind = diffusers.UNet2DConditionModel if part == "unet" else diffusers.AutoencoderKL
            theirs = kind.from_config(raw)
    names, wanted = ours.diffusers_names(), theirs.state_dict()
    tensors = {names[key]: tensor for key, tensor in ours.state_dict().items()}
    if not wanted.keys() & tensors.keys():  # transformers 5 has dropped a prefix
        tensors = {key.removeprefix("text_model."): tensor for key, tensor in tensors.items()}
    theirs.load_state_dict(tensors, assign=True)
    for module in theirs.modules():  # what is no weight was on the meta device too
        if "position_ids" in module._buffers:
            n = module._buffers["position_ids"].shape[-1]
            module.position_ids = torch.arange(n, device=tensors[next(iter(tensors))].device)[None]
    return theirs.eval()


def networks(pipe: StableDiffusionPipeline, size: int) -> dict[str, dict[str, Callable]]:
    """Return, for each part, a call of ours and the same call of theirs."""
    device, dtype = pipe.device, pipe.dtype
    generator = torch.Generator().manual_seed(0)
    ids = pipe.tokenizer([PROMPT]).to(device)
    side = size // pipe.vae.config.downscale
    latents = torch.randn(1, 4, side, side, generator=generator).to(device, dtype)
    context = pipe.text_encoder(ids)
    both, t = torch.cat([context, context]), torch.tensor(500, device=device)
    theirs = {part: theirs_of(part, getattr(pipe, part)) for part in full_size.NETWORKS}
    ours, x, scaling = pipe, torch.cat([latents, latents]), pipe.vae.config.scaling_factor
    return {
        "text encoder": {
            "minisd": lambda: ours.text_encoder(ids),
            "diffusers": lambda: theirs["text_encoder"](ids).last_hidden_state,
        },
        f"U-Net, 2 x {side} x {side}": {
            "minisd": lambda: ours.unet(x, t, both),
            "diffusers": lambda: theirs["unet"](x, t, both).sample,
        },
        f"decoder, {size} x {size}": {
            "minisd": lambda: ours.vae.decode(latents),
            "diffusers": lambda: theirs["vae"].decode(latents / scaling).sample,
        },
    }


def whole(pipe: StableDiffusionPipeline, folder: Path, size: int, steps: int) -> dict:
    """Return a whole run of ours, and of diffusers' pipeline with the same weights."""
    declare_torchvision_operators()
    import diffusers
    import transformers

    theirs = diffusers.StableDiffusionPipeline(
        tokenizer=transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        scheduler=diffusers.PNDMScheduler.from_pretrained(folder / "scheduler"),
        **{part: theirs_of(part, getattr(pipe, part)) for part in full_size.NETWORKS},
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    theirs.set_progress_bar_config(disable=True)
    settings = dict(prompt=PROMPT, height=size, width=size, num_inference_steps=steps)

    def run(pipe) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        array = pipe(**settings, generator=generator, output_type="np").images
        return torch.from_numpy(array)

    run_ours, run_theirs = (lambda: run(pipe)), (lambda: run(theirs))
    return {f"prompt to picture, {steps} steps": {"minisd": run_ours, "diffusers": run_theirs}}


@torch.no_grad()
def compare(calls: dict[str, Callable], device: torch.device, repeats: int) -> dict:
    """Time both calls in turn, and lay their results beside each other."""
    seconds, memory = {name: [] for name in LIBRARIES}, {}
    results = {}
    for turn in range(repeats + 1):
        for name in LIBRARIES[:: -1 if turn % 2 else 1]:
            memory[name], results[name] = None, None
            if device.type == "cuda":
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                held = torch.cuda.memory_allocated()
            start = time.perf_counter()
            result = calls[name]()
            if device.type == "cuda":
                torch.cuda.synchronize()
                memory[name] = torch.cuda.max_memory_allocated() - held
            seconds[name].append(time.perf_counter() - start)
            results[name] = result.float().cpu()
    ours, theirs = (results[name] for name in LIBRARIES)
    row = {name: statistics.median(seconds[name][1:]) for name in LIBRARIES}
    pairs = zip(*(seconds[name][1:] for name in LIBRARIES), strict=True)
    row["ratio"] = statistics.median(a / b for a, b in pairs)
    row["memory"] = memory
    row["difference"] = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    return row


def loading(folder: Path, dtype: str) -> dict:
    """Load the folder with each library, in a process of its own."""
    row, memory = {}, {}
    for name in LIBRARIES:
        command = [sys.executable, "-W", "ignore", "-c", LOADING, name, str(folder), dtype]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        measured = json.loads(done.stdout.splitlines()[-1])
        row[name], memory[name] = measured["seconds"], measured["memory"]
        row["weights"] = measured["weights"]
    row["ratio"] = row["minisd"] / row["diffusers"]
    return row | {"memory": memory, "difference": None}


def small_configs() -> None:
    """Make v1.5 narrow: the same layers, for `--quick`."""
    configs = full_size.CONFIGS
    configs["text_encoder"] = replace(configs["text_encoder"], dim=24, num_layers=2)
    configs["unet"] = replace(
        configs["unet"], channels=(8, 8, 16, 16), norm_num_groups=4, num_heads=2, context_dim=24
    )
    configs["vae"] = replace(configs["vae"], channels=(8, 8, 8, 8), norm_num_groups=4)


def gigabytes(size: int | None) -> str:
    """Write a size in bytes as GB; what was not measured is a dash."""
    return "-" if size is None else f"{size / 1e9:.2f}"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="v1.5's folder or hub id, in place of random weights")
    parser.add_argument("--variant", help="fp16, with --model")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="by device")
    parser.add_argument("--size", type=int, default=512, help="pixels on a side")
    parser.add_argument("--steps", type=int, help="of the whole run; 2 on a CPU, else 50")
    parser.add_argument("--repeats", type=int, help="3 on a CPU, else 10")
    parser.add_argument("--compile", action="store_true", help="torch.compile minisd's U-Net")
    parser.add_argument("--channels-last", action="store_true", help="the weights of both")
    parser.add_argument("--no-loading", action="store_true", help="leave out loading from disk")
    parser.add_argument("--quick", action="store_true", help="tiny networks")
    arguments = parser.parse_args()

    device = best_device()
    on_cpu = device.type == "cpu"
    name = arguments.dtype or ("float16" if device.type == "cuda" else "float32")
    dtype = getattr(torch, name)
    size = 64 if arguments.quick else arguments.size
    steps = arguments.steps or (2 if on_cpu else 50)
    repeats = arguments.repeats or (3 if on_cpu else 10)
    if arguments.quick:
        small_configs()

    start = peak_memory()
    if arguments.model:
        pipe = StableDiffusionPipeline.from_pretrained(arguments.model, dtype, arguments.variant)
    else:
        pipe = full_size.random_sd15(torch_dtype=dtype)
    rows = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if arguments.no_loading:
            for part in ("tokenizer", "scheduler"):
                settings = ("diffusers",) if part == "tokenizer" else ()
                getattr(pipe, part).save_pretrained(folder / part, *settings)
        else:
            pipe.save_pretrained(folder, format="diffusers")
            rows["loading, every weight read"] = loading(folder, name)
        gc.collect()
        layout = torch.channels_last if arguments.channels_last else torch.contiguous_format
        pipe.to(device).to(memory_format=layout)
        if arguments.compile:
            pipe.unet.compile()
        with torch.no_grad():
            parts = networks(pipe, size)
        for what, calls in parts.items():
            rows[what] = compare(calls, device, repeats)
        for what, calls in whole(pipe, folder, size, steps).items():
            rows[what] = compare(calls, device, max(1, repeats // 3))

    weights = sum(
        t.nbytes for p in full_size.NETWORKS for t in getattr(pipe, p).state_dict().values()
    )
    made = f"weights of {arguments.model}" if arguments.model else "random weights"
    print(f"v1.5, {made}, {weights / 1e9:.2f} GB in {name} on {device.type}", end="")
    print(f" ({torch.get_num_threads()} threads)" if on_cpu else "", end="; ")
    print(f"peak of this process {(peak_memory() - start) / 1e9:.2f} GB above the imports")
    head = ["what", *(f"{name} s" for name in LIBRARIES), "ratio"]
    head += [*(f"{name} GB" for name in LIBRARIES), "rel. difference"]
    lines = [
        [
            what,
            *(f"{row[name]:.3f}" for name in LIBRARIES),
            f"{row['ratio']:.2f}",
            *(gigabytes(row["memory"][name]) for name in LIBRARIES),
            "-" if row["difference"] is None else f"{row['difference']:.1e}",
        ]
        for what, row in rows.items()
    ]
    print(*table(head, "lrrrrrr", lines), sep="\n")


if __name__ == "__main__":
    main()
