import pytest
import torch

from minisd.device import MAX_SEED, check_precision, draw_noise, has_bfloat16, seeded

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("kind", "capability", "there"),
    [("cuda", (7, 5), False), ("cuda", (8, 0), True), ("cuda", (12, 0), True), ("cpu", None, True)],
)
def test_bfloat16_needs_a_card_that_multiplies_in_it(monkeypatch, kind, capability, there):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)  # a T4 says so, too
    assert has_bfloat16(torch.device(kind)) == there


def test_float16_is_refused_on_a_cpu_alone():
    with pytest.raises(ValueError, match="float16 needs a GPU"):
        check_precision(CPU, torch.float16)
    for device, dtype in (("cuda", torch.float16), ("mps", torch.float16), ("cpu", torch.bfloat16)):
        check_precision(torch.device(device), dtype)


@pytest.mark.parametrize("seed", [0, 2**63, MAX_SEED])
def test_a_seed_up_to_64_bits(seed):
    first, again = (torch.rand(3, generator=seeded(seed)) for _ in range(2))
    assert torch.equal(first, again) and seeded(seed).device == CPU
    assert not torch.equal(first, torch.rand(3, generator=seeded(seed ^ 1)))


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1, 10**30])
def test_any_other_seed_is_named(seed):
    with pytest.raises(ValueError, match=f"between 0 and 18446744073709551615, got {seed}"):
        seeded(seed)


def test_of_several_generators_each_draws_its_row_as_if_alone():
    rows = draw_noise((3, 4, 5), [seeded(i) for i in (7, 8, 7)], CPU, torch.bfloat16)
    assert rows.dtype == torch.bfloat16 and torch.equal(rows[0], rows[2])
    for row, seed in zip(rows, (7, 8, 7), strict=True):
        assert torch.equal(row[None], draw_noise((1, 4, 5), seeded(seed), CPU, torch.bfloat16))
    for n in (0, 2, 4):
        with pytest.raises(ValueError, match=f"3 pictures have {n} generators"):
            draw_noise((3, 4, 5), [seeded(0)] * n, CPU)


def test_noise_is_drawn_where_the_generator_is():
    assert draw_noise((2, 3), seeded(0), torch.device("meta")).device.type == "meta"
