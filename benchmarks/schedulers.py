"""Score of the digits against network calls, for every sampler; ours beside diffusers'.

    python benchmarks/schedulers.py [--samples 1000] [--save]

Prints one table. `--save` keeps the rows beside the weights of digits-ddpm, as `samplers.json`:
chapter 5 draws its figure from them, and an interrupted run goes on from there. Every sampler gets
the same noise, the same network in the same precision, and `trailing` timesteps unless the row says
otherwise. Only DDPM clips its estimates of x_0, as in chapter 4: the others follow the network. FID
is measured as by `minisd evaluate`, and compares only at equal numbers of samples.

Sample k of every row comes from the same noise, so two rows are compared in pairs: `confidences`
keeps the judge's answer to each sample, and `fid_resampled` the FIDs of resamples that are the same
in every row. The interval of a difference is that of the differences of these. Where minisd does
otherwise than diffusers, the pictures are compared under `match_diffusers`.
"""

import argparse
import time

import torch
from tqdm import tqdm

from minisd import UNet
from minisd.book.compat import declare_torchvision_operators
from minisd.classifier import Classifier
from minisd.data.digits import digits
from minisd.device import best_device, in_batches
from minisd.files import read_json
from minisd.lab.evaluation import score_digits
from minisd.lab.results import Results, table
from minisd.metrics import frechet_distance
from minisd.pipeline import sample
from minisd.pretrained import locate
from minisd.schedulers import SAMPLERS

JUDGE, FILE, RESAMPLES = "digits-judge", "samplers.json", 200
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


def paired(judge, images, real) -> dict[str, list[float]]:
    """Return what tests between rows need: one number for each sample, one for each resample."""
    features, test = in_batches(judge.features, images), in_batches(judge.features, real)
    with torch.no_grad():
        confidences = judge.heads["digit"](features).softmax(-1).amax(-1)
    generator, n = torch.Generator().manual_seed(1), len(images)
    draws = [torch.randint(n, (n,), generator=generator) for _ in range(RESAMPLES)]
    return {
        "confidences": [round(each, 4) for each in confidences.tolist()],
        "fid_resampled": [round(frechet_distance(features[rows], test), 4) for rows in draws],
    }


def measure(
    model: str, unet, judge, real, row, n: int, compared: int, precision: torch.dtype
) -> dict:
    """Score one row against `real`, digits of both splits, and compare pictures with diffusers'."""
    label, sampler, settings, steps = row
    scheduler = make(model, sampler, settings)
    images, seconds = draw(unet, scheduler, steps, n, precision)
    scores = score_digits(judge, images, *real, torch.Generator().manual_seed(0))
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
        **paired(judge, images, real[1][:n]),
    }
    if calls <= 50:
        our_scheduler = make(model, sampler, settings | {"match_diffusers": True})
        their_scheduler = make(model, sampler, settings, theirs=True)
        ours, our_seconds = draw(unet, our_scheduler, steps, compared, torch.float32)
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
    unet, judge = UNet.from_pretrained(model).to(best_device()), Classifier.from_pretrained(JUDGE)
    real = digits("train").images, digits("test").images
    made_by = read_json(locate(model) / "training.json")["commit"]
    about = {"model": made_by, "samples": arguments.samples, "seed": 0}
    results = Results(about, locate(model) / FILE if arguments.save else None)
    done = {(row["sampler"], row["steps"]) for row in results.rows}
    wanted = arguments.steps or {row[3] for row in ROWS}
    todo = [row for row in ROWS if row[3] in wanted and (row[0], row[3]) not in done]
    precision = getattr(torch, arguments.precision)
    for row in tqdm(sorted(todo, key=lambda row: row[3])):
        results.add(
            measure(model, unet, judge, real, row, arguments.samples, arguments.compared, precision)
        )

    fid_real = results.rows[0]["fid_real"]
    print(f"{model}, {arguments.samples} samples a row, {arguments.precision}; ", end="")
    print(f"FID of as many real digits: {fid_real:.3f}")
    head = ["sampler", "steps", "calls", "FID", "95 %", "ms/image", "time ours/theirs"]
    rows = [
        [
            row["sampler"],
            row["steps"],
            row["calls"],
            f"{row['fid']:.3f}",
            "{:.3f} to {:.3f}".format(*row["fid_interval"]),
            f"{row['milliseconds']:.1f}",
            f"{row['time_ratio']:.2f}" if "time_ratio" in row else "-",
            f"{row['difference']:.1e}" if "difference" in row else "-",
        ]
        for row in sorted(results.rows, key=lambda row: (row["sampler"], row["calls"]))
    ]
    print(*table([*head, "max difference"], "lrrrlrrr", rows), sep="\n")


if __name__ == "__main__":
    main()
