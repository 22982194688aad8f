"""Chapter 5: an interactive figure of sampler trajectories in two dimensions, in plain HTML."""

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from string import Template

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from minisd.book.plots import INK, NOISE, PAPER, PIXELS, QUIET, STYLE

EXTENT = 3.2  # the figure shows [-EXTENT, EXTENT] in both directions


@dataclass(frozen=True)
class Explorer:
    """Walks from noise to data, chosen by three sliders: sampler, steps, seed.

    `walks[sampler][steps]` is (seeds, calls + 1, n, 2): the points of every network call, and the
    end. `data` (m,2) lies behind them. The page needs no server and no network. Raises ValueError
    if the samplers differ in their numbers of steps or of seeds.
    """

    walks: Mapping[str, Mapping[int, Tensor]]
    data: Tensor
    alt: str
    opens_at: tuple[int, int, int] = (0, 0, 0)  # positions of the three sliders

    def __post_init__(self):
        kinds = {
            tuple((steps, len(walk)) for steps, walk in by_steps.items())
            for by_steps in self.walks.values()
        }
        if len(kinds) != 1:
            raise ValueError("every sampler needs walks for the same numbers of steps and of seeds")

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {
            "text/html": self.html(),
            "image/png": self.still(),
            "text/plain": f"Interactive figure: {self.alt}",
        }

    def html(self) -> str:
        """Return the figure with its data (16 bits a coordinate) and its script."""
        samplers, steps = list(self.walks), list(next(iter(self.walks.values())))
        walks = [[self.walks[name][n] for n in steps] for name in samplers]
        shapes = [[list(walk.shape[:3]) for walk in row] for row in walks]
        packed = torch.cat([_pixels(walk).flatten() for row in walks for walk in row])
        points = base64.b64encode(packed.numpy().astype("<u2").tobytes()).decode()
        spec = {
            "samplers": samplers,
            "steps": steps,
            "shapes": shapes,
            "data": (_pixels(self.data) / 10).tolist(),
            "points": points,
        }
        first, second, third = self.opens_at
        return PAGE.substitute(
            id="walks-" + sha256(points.encode()).hexdigest()[:8],
            alt=escape(self.alt),
            spec=json.dumps(spec, separators=(",", ":")).replace("<", r"\u003c"),  # no </script>
            last_sampler=len(samplers) - 1,
            last_steps=len(steps) - 1,
            last_seed=len(walks[0][0]) - 1,
            sampler=first,
            steps=second,
            seed=third,
            paper=PAPER,
            ink=INK,
            quiet=QUIET,
            noise=NOISE,
            pixels=PIXELS,
        )

    def still(self) -> str:
        """Return the opening view as a PNG picture, in base64."""
        by_steps = list(self.walks.values())[self.opens_at[0]]
        walk = list(by_steps.values())[self.opens_at[1]][self.opens_at[2]]
        with plt.rc_context(STYLE):
            figure, axis = plt.subplots(figsize=(4, 4))
            axis.scatter(*self.data.T, s=3, color=PIXELS, alpha=0.3)
            axis.plot(*walk.unbind(-1), color=INK, linewidth=0.7)
            axis.scatter(*walk[0].T, s=12, color=NOISE)
            axis.scatter(*walk[-1].T, s=12, color=PIXELS)
            axis.set(xlim=(-EXTENT, EXTENT), ylim=(-EXTENT, EXTENT), aspect="equal")
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png")
            plt.close(figure)
        return base64.b64encode(buffer.getvalue()).decode()


def _pixels(points: Tensor) -> Tensor:
    """Turn points (...,2) into positions on a square of 4000 units, y downwards."""
    flipped = torch.stack([points[..., 0], -points[..., 1]], dim=-1)
    return ((flipped / EXTENT + 1) * 2000).clamp(0, 4000).round().int()


PAGE = Template("""\
<figure class="minisd-explorer" id="$id" style="margin:1em auto;max-width:30em">
<svg viewBox="0 0 400 400" role="img" aria-label="$alt"
 style="display:block;width:100%;height:auto;background:$paper;border-radius:4px"></svg>
<div style="display:grid;grid-template-columns:auto 1fr 9em;gap:.3em .7em;margin-top:.5em">
<span>sampler</span><input type="range" min="0" max="$last_sampler" value="$sampler"
 aria-label="sampler" style="min-width:0"><output></output>
<span>steps</span><input type="range" min="0" max="$last_steps" value="$steps"
 aria-label="steps" style="min-width:0"><output></output>
<span>seed</span><input type="range" min="0" max="$last_seed" value="$seed"
 aria-label="seed" style="min-width:0"><output></output>
</div>
<script>
(function () {
  var spec = $spec, figure = document.getElementById("$id");
  var svg = figure.querySelector("svg"), sliders = figure.querySelectorAll("input");
  var outputs = figure.querySelectorAll("output"), bytes = atob(spec.points);
  function at(k) { return (bytes.charCodeAt(2 * k) + 256 * bytes.charCodeAt(2 * k + 1)) / 10; }
  function dot(x, y, r, colour, opacity) {
    return '<circle cx="' + x + '" cy="' + y + '" r="' + r + '" fill="' + colour +
      '" opacity="' + opacity + '"/>';
  }
  var data = spec.data.map(function (p) { return dot(p[0], p[1], 1.6, "$pixels", 0.25); }).join("");
  var starts = [], total = 0;
  spec.shapes.forEach(function (row) {
    starts.push(row.map(function (s) { var start = total; total += 2 * s[0] * s[1] * s[2];
      return start; }));
  });
  function draw() {
    var i = +sliders[0].value, j = +sliders[1].value, seed = +sliders[2].value;
    var shape = spec.shapes[i][j], calls = shape[1], n = shape[2];
    var start = starts[i][j] + 2 * seed * calls * n, lines = "", dots = "";
    for (var p = 0; p < n; p++) {
      var path = [];
      for (var c = 0; c < calls; c++) {
        var k = start + 2 * (c * n + p), x = at(k), y = at(k + 1);
        path.push(x + "," + y);
        if (c == 0) dots += dot(x, y, 3.5, "$noise", 1);
        else if (c == calls - 1) dots += dot(x, y, 3.5, "$pixels", 1);
        else if (calls < 60) dots += dot(x, y, 1.3, "$ink", 0.6);
      }
      lines += '<polyline points="' + path.join(" ") +
        '" fill="none" stroke="$ink" stroke-width="0.8" opacity="0.55"/>';
    }
    svg.innerHTML = data + lines + dots;
    outputs[0].textContent = spec.samplers[i];
    outputs[1].textContent = spec.steps[j] + " (" + (calls - 1) + " calls)";
    outputs[2].textContent = seed;
  }
  sliders.forEach(function (slider) { slider.addEventListener("input", draw); });
  draw();
})();
</script></figure>
""")
