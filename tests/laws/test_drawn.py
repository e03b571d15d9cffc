"""What is drawn for a run covers the whole: no method without its law, no architecture without one."""

from support.cases import METHODS, meaningless
from support.laws import DRAWN
from support.models import EVERY


def test_every_architecture_meets_every_law() -> None:
    """Of the laws that were collected with this file."""
    for name, (among, each, drawn) in DRAWN.items():
        for method, archs in drawn.items():
            there = [a for a in among if not meaningless(method, a)]
            assert len(archs) == min(each, len(there)), (name, method)
        met = {a for archs in drawn.values() for a in archs}
        assert each < 3 or met == {a for a in among if any(not meaningless(m, a) for m in drawn)}, name


def test_every_case_applies_somewhere_and_every_architecture_has_many() -> None:
    for name in METHODS:
        assert any(not meaningless(name, a) for a in EVERY), name
    for arch in EVERY:
        assert sum(not meaningless(n, arch) for n in METHODS) >= len(METHODS) // 2, arch
