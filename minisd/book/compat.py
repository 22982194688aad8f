"""Make `import torchvision` work beside a CPU-only torch.

diffusers, transformers and torchmetrics import torchvision. Its wheels on the package index are
compiled against CUDA. Beside a CPU build of torch their compiled part cannot be loaded, and
`import torchvision` then stops at the missing operator `torchvision::nms`. Only torchvision's
Python part is needed, so this module declares the two operators, without implementing them, where
they are missing. minisd itself does without torchvision: call this only where diffusers or
transformers is imported beside it (chapters 13 and 14, parity tests, benchmarks), and before.
"""

import importlib.util
from pathlib import Path

import torch

MISSING_OPERATORS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

_libraries: list[torch.library.Library] = []  # a declaration lives as long as its Library


def declare_torchvision_operators() -> None:
    """Declare `torchvision::nms` and `torchvision::qnms` unless the compiled part loads."""
    if hasattr(torch.ops.torchvision, "nms") or _compiled_part_loads():
        return
    library = torch.library.Library("torchvision", "DEF")
    for schema in MISSING_OPERATORS.values():
        library.define(schema)
    _libraries.append(library)


def _compiled_part_loads() -> bool:
    """Whether torchvision's compiled operators can be loaded into this torch."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # no torchvision at all: nothing to repair
    for file in Path(spec.origin).parent.glob("_C*"):
        try:
            torch.ops.load_library(file)
        except OSError:  # compiled against a CUDA that is not here
            return False
        return hasattr(torch.ops.torchvision, "nms")
    return False
