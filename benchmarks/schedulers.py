"""Score of the digits against network calls, for every sampler; ours beside diffusers'.

    python benchmarks/schedulers.py [--samples 1000] [--save]

Prints one table. `--save` keeps the rows beside the weights of digits-ddpm, as `samplers.json`:
chapter 5 draws its figure from them, and an interrupted run goes on from there. Every sampler gets
the same noise, the same network in the same precision, and `trailing` timesteps unless the row says
otherwise. Only DDPM clips its estimates of x_0, as in chapter 4: the others follow the network. FID
is measured as by `minisd evaluate`, and compares only at equal numbers of samples.
"""

import argparse
import json
import time

import torch
from tqdm import tqdm

from minisd import UNet
from minisd.book.compat import declare_torchvision_operators
from minisd.data.digits import digits
from minisd.device import best_device
from minisd.files import read_json, write_json
from minisd.metrics import Judge, score_digits
from minisd.pipeline import sample
from minisd.pretrained import locate
from minisd.schedulers import SAMPLERS

JUDGE, FILE = "digits-judge", "samplers.json"
FEW = (5, 10, 20, 50)
KARRAS = {"use_karras_sigmas": True}
ROWS = [  # label, sampler, its settings, steps
    *[("DDPM", "ddpm", {}, n) for n in (*FEW[1:], 100, 1000)],
    *[("DDIM", "ddim", {}, n) for n in (*FEW, 100)],
    *[("PNDM", "pndm", {"skip_prk_steps": True}, n) for n in FEW],
    *[("Euler", "euler", {}, n) for n in FEW[:3]],
    *[("Euler ancestral", "euler-ancestral", {}, n) for n in FEW[1:]],
    *[("Heun", "heun", {}, n) for n in (3, 5, 10, 25)],  # 2 n - 1 calls
    *[("DPM-Solver++ 2", "dpm-solver++", {}, n) for n in FEW],
    *[("DPM-Solver++ 3", "dpm-solver++", {"solver_order": 3}, n) for n in FEW[:3]],
    *[("DPM-Solver++ 2, Karras", "dpm-solver++", KARRAS, n) for n in FEW[:3]],
    *[("DDIM, leading", "ddim", {"timestep_spacing": "leading"}, n) for n in FEW[:3]],
]


def make(model: str, sampler: str, settings: dict, theirs: bool = False):
    """Build a scheduler for a model of digits, ours or diffusers'."""
    kind = SAMPLERS[sampler]
    config = SAMPLERS["ddpm"].from_pretrained(model).config
    config |= {"timestep_spacing": "trailing", "clip_sample": sampler == "ddpm"} | settings
    ours = kind.from_config(config)
    if not theirs:
        return ours
    declare_torchvision_operators()
    import diffusers

    return getattr(diffusers, kind.__name__).from_config(ours.config)


def draw(unet, scheduler, steps: int, n: int, precision: torch.dtype):
    """Return n samples, always from the same seed, and the seconds that they took."""
    device = next(unet.parameters()).device
    generator = torch.Generator(device).manual_seed(0)
    start = time.perf_counter()
    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
        batches = sample(unet, scheduler, n, steps, generator, batch_size=64)
        images = torch.cat([batch.float().cpu() for batch in batches])
    return images, time.perf_counter() - start


def measure(model: str, unet, judge, row, n: int, compared: int, precision: torch.dtype) -> dict:
    """Score one row, and lay a few of its pictures beside diffusers'."""
    label, sampler, settings, steps = row
    scheduler = make(model, sampler, settings)
    images, seconds = draw(unet, scheduler, steps, n, precision)
    real_train, real_test = digits("train").images, digits("test").images
    scores = score_digits(judge, images, real_train, real_test, torch.Generator().manual_seed(0))
    calls = len(scheduler.timesteps)
    result = {
        "sampler": label,
        "steps": steps,
        "calls": calls,
        "samples": n,
        "fid": scores.fid,
        "fid_interval": scores.fid_interval,
        "fid_real": scores.fid_real,
        "confidence": scores.confidence,
        "confidence_real": scores.confidence_real,
        "milliseconds": 1000 * seconds / n,
        "precision": str(precision).removeprefix("torch."),
    }
    if calls <= 50:
        ours, our_seconds = draw(unet, scheduler, steps, compared, torch.float32)
        their_scheduler = make(model, sampler, settings, theirs=True)
        theirs, their_seconds = draw(unet, their_scheduler, steps, compared, torch.float32)
        result["difference"] = (ours - theirs).abs().max().item()
        result["time_ratio"] = our_seconds / their_seconds
    return result


def main() -> None:
    """Measure all rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="digits-ddpm", help="a checkpoint of digits")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--steps", type=int, nargs="*", help="only the rows with these steps")
    parser.add_argument("--compared", type=int, default=16, help="pictures beside diffusers'")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--save", action="store_true", help=f"keep the rows in {FILE}")
    arguments = parser.parse_args()

    model = arguments.model
    unet, judge = UNet.from_pretrained(model).to(best_device()), Judge.from_pretrained(JUDGE)
    path = locate(model) / FILE
    made_by = read_json(locate(model) / "training.json")["commit"]
    head = {"model": made_by, "samples": arguments.samples, "seed": 0}
    kept = head | {"rows": []}

    def stored() -> dict:
        """Return what other runs have kept, if it is about this model."""
        found = read_json(path) if arguments.save and path.exists() else kept
        return found if found.items() >= head.items() else kept

    kept = stored()
    done = {(row["sampler"], row["steps"]) for row in kept["rows"]}
    wanted = arguments.steps or {row[3] for row in ROWS}
    todo = [row for row in ROWS if row[3] in wanted and (row[0], row[3]) not in done]
    precision = getattr(torch, arguments.precision)
    for row in tqdm(sorted(todo, key=lambda row: row[3])):
        result = measure(model, unet, judge, row, arguments.samples, arguments.compared, precision)
        kept = stored()  # several runs may share the rows between them
        kept["rows"].append(json.loads(json.dumps(result)))
        if arguments.save:
            write_json(path, kept)

    real = kept["rows"][0]["fid_real"]
    print(f"{model}, {arguments.samples} samples a row, {arguments.precision}; ", end="")
    print(f"FID of as many real digits: {real:.3f}")
    print("| sampler | steps | calls | FID | 95 % | ms/image | time ours/theirs | max difference |")
    print("|---|---:|---:|---:|---|---:|---:|---:|")
    for row in sorted(kept["rows"], key=lambda row: (row["sampler"], row["calls"])):
        low, high = row["fid_interval"]
        compared = "- | -"
        if "difference" in row:
            compared = f"{row['time_ratio']:.2f} | {row['difference']:.1e}"
        print(
            f"| {row['sampler']} | {row['steps']} | {row['calls']} | {row['fid']:.3f} | "
            f"{low:.3f} to {high:.3f} | {row['milliseconds']:.1f} | {compared} |"
        )


if __name__ == "__main__":
    main()
