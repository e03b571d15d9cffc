import torch

from featherweight.train.seeds import derive, own_generators, reseed


def test_a_seed_is_the_same_on_every_machine():
    assert derive(3, "noise", 7, 1, 0) == 5486768764513887913


def test_every_part_of_the_purpose_counts():
    seeds = {derive(s, p, a, b) for s in (0, 1) for p in ("noise", "init") for a in (1, 11) for b in (1, 11)}
    assert len(seeds) == 16
    assert derive(0, "noise", 1, 11) != derive(0, "noise", 11, 1)
    assert all(0 <= s < 2**63 for s in seeds)


def test_the_callers_generator_is_as_before():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with own_generators(torch.device("cpu")):
        reseed(0, "noise", 1)
        first = torch.rand(3)
        reseed(0, "noise", 1)
        assert torch.equal(first, torch.rand(3))
    assert torch.equal(torch.rand(3), expected)
