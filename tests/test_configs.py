from dataclasses import dataclass, field
from typing import Literal

import pytest

from minisd import (
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    DDPMScheduler,
    TokenizerConfig,
    UNetConfig,
    VAEConfig,
)
from minisd.classifier import ClassifierConfig
from minisd.configs import MAX_LAYERS, MAX_SIZE, check_fields


@dataclass(frozen=True)
class Inner:
    size: int = 1

    def __post_init__(self):
        check_fields(self)


@dataclass(frozen=True)
class Config:
    size: int = 8
    shift: int = 0
    num_layers: int = 2
    rate: float = 0.5
    maybe: int | None = None
    switch: bool = True
    name: str = "a"
    kind: Literal["x", "y"] = "x"
    sizes: tuple[int, ...] = (1, 2)
    pairs: tuple[tuple[str, int], ...] = (("a", 1),)
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self):
        check_fields(self, "shift")


GOOD = {
    "size": [1, MAX_SIZE], "shift": [-3, 0, 4], "num_layers": [1, MAX_LAYERS],
    "rate": [0, -2, 1e-9], "maybe": [None, 3], "switch": [True, False], "name": ["", "b"],
    "kind": ["y"], "sizes": [(), (3,)], "pairs": [(), (("a", 1), ("b", 2))], "inner": [Inner(3)],
}  # fmt: skip
NAN, INF = float("nan"), float("inf")
BAD = {
    "size": [0, -1, 1.0, True, None, "8", MAX_SIZE + 1, 10**400, [8]],
    "shift": [True, 0.0, -(2**40)], "num_layers": [0, MAX_LAYERS + 1],
    "rate": [NAN, INF, -INF, True, "1", None, 10**400],
    "maybe": [0, True, "None"], "switch": [1, 0, None, "yes"], "name": [None, 3, True],
    "kind": ["z", None, ["x"]], "sizes": [3, None, "12", (0,), (True,), (1.5,), ((1,),), {"a": 1}],
    "pairs": [3, ("a", 1), (("a",),), ((1, "a"),), (("a", True),)], "inner": [3, None, ()],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(k, v) for k, values in GOOD.items() for v in values])
def test_values_that_fit_are_kept(name, value):
    assert getattr(Config(**{name: value}), name) == value


@pytest.mark.parametrize(("name", "value"), [(k, v) for k, values in BAD.items() for v in values])
def test_values_that_do_not_fit_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name}") as caught:
        Config(**{name: value})
    assert len(str(caught.value)) < 200


def test_lists_and_objects_of_json_become_tuples_and_dataclasses():
    config = Config(sizes=[1, 2], pairs=[["a", 1]], inner={"size": 4})
    assert (config.sizes, config.pairs, config.inner) == ((1, 2), (("a", 1),), Inner(4))
    with pytest.raises(ValueError, match="size must be a positive integer, got True"):
        Config(inner={"size": True})


CONFIGS = (UNetConfig, VAEConfig, CLIPTextConfig, CLIPVisionConfig, CLIPConfig, ClassifierConfig)


@pytest.mark.parametrize("kind", [*CONFIGS, TokenizerConfig, DDPMScheduler])
def test_true_is_no_size_in_any_config(kind):
    sizes = [name for name, value in vars(kind()).items() if type(value) in (int, float)]
    assert sizes
    for name in sizes:
        if name not in kind.__dataclass_fields__:
            continue
        with pytest.raises(ValueError, match=f"{name} must be .*got True"):
            kind(**{name: True})
