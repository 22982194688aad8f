"""What a busy machine costs: one picture and one training step, alone and beside other work.

    python benchmarks/threads.py [--repeats 5] [--turns 3]

Ways for a computer's cores to work together: torch's default; threads that sleep as soon as they
wait; threads that spin briefly first; and minisd's, which adds one thread for small work. How
threads wait is decided when torch is loaded, so each measurement is a process of its own. The ways
take turns: a machine that changes its speed changes it for all. Beside means other processes that
never rest. Shown are medians in seconds, and the ratio to torch's default alone.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from importlib import import_module

WAYS = {
    "torch's default": {},
    "sleep at once": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spin briefly": {"GOMP_SPINCOUNT": "1000"},
    "minisd": None,
}
WORK = "picture", "training step"


def measure(work: str, ours: bool, repeats: int) -> list[float]:
    """Return the seconds of each run in this process."""
    import_module("minisd" if ours else "torch")  # whoever comes first decides how threads wait
    import torch

    import minisd
    from minisd import threads

    if not ours:
        threads.SMALL = 0.0
    if work == "picture":
        pipe = minisd.StableDiffusionPipeline.from_pretrained("postcards")

        def run() -> None:
            generator = torch.Generator().manual_seed(0)
            pipe("a red house", num_inference_steps=25, guidance_scale=4.0, generator=generator)
    else:
        torch.manual_seed(0)
        unet = minisd.UNet(minisd.UNetConfig.MNIST)
        optimizer = torch.optim.AdamW(unet.parameters())
        x, t = torch.randn(64, 1, 28, 28), torch.randint(1000, (64,))

        def run() -> None:
            optimizer.zero_grad()
            unet(x, t).square().mean().backward()
            optimizer.step()

    run()  # the first is slower
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def in_a_process(work: str, way: str, busy: int, repeats: int) -> list[float]:
    """Measure in a fresh process, beside `busy` others that never rest."""
    settings = WAYS[way]
    environment = os.environ | {"MINISD_PROGRESS": "0"} | (settings or {})
    command = [sys.executable, __file__, "--one", work, way, "--repeats", str(repeats)]
    with ExitStack() as stack:
        for _ in range(busy):
            other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(other.wait)
            stack.callback(other.kill)
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
    return [float(value) for value in done.stdout.split()]


def main() -> None:
    """Measure all ways, in turns, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="runs in a process")
    parser.add_argument("--turns", type=int, default=3, help="processes for each number")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        work, way = arguments.one
        print(*measure(work, WAYS[way] is None, arguments.repeats))
        return
    print(f"{'':32}" + "".join(f"{f'beside {busy}' if busy else 'alone':>20}" for busy in range(3)))
    for work in WORK:
        times: dict[tuple[str, int], list[float]] = {}
        for _ in range(arguments.turns):
            for busy in range(3):
                for way in WAYS:
                    found = in_a_process(work, way, busy, arguments.repeats)
                    times.setdefault((way, busy), []).extend(found)
        base = statistics.median(times["torch's default", 0])
        for way in WAYS:
            cells = [statistics.median(times[way, busy]) for busy in range(3)]
            row = "".join(f"{f'{cell:.3f} s ({cell / base:.2f})':>20}" for cell in cells)
            print(f"{work + ', ' + way:32}{row}", flush=True)


if __name__ == "__main__":
    main()
