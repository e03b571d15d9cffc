"""Our matching of names against peft's own functions, over a table of paths and configs."""

import itertools
import random
import re
from typing import Any

import pytest

from featherweight.checkpoint.peft.names import endings, matched, named, pattern_value, regex, targeted
from featherweight.core.errors import InputError

PATHS = [
    "foo", "foo.bar", "fourier.foo", "transformer.h.1.attn.attention.q_proj", "h.1.attn.attention.q_proj.foo",
    "blocks.1.weight", "blocks.1.bias", "mlp.blocks.1.weight", "mlp.blocks.1.bias", "model.layers.0.self_attn.q_proj",
    "model.layers.1.self_attn.q_proj", "model.layers.10.self_attn.q_proj", "model.layers.1.experts.0.up_proj",
    "model.norm", "decoder.layers.3.fc1", "encoder.layers.3.fc1", "h.2.c_attn", "classifier", "classifier.dense",
    "score", "lm_head", "not_q_proj",
    "bert.pooler.dense", "bert.encoder.layer.0.attention.output.dense", "bert.encoder.layer.0.output.dense",
]  # fmt: skip
TARGETS: list[Any] = [
    ["q_proj"], ["foo"], ["foo", "bar"], ".*bar", ".*foo", r".*\.(q_proj|fc1)", ["output.dense"], ["dense"],
    ["model.layers.1.self_attn.q_proj"], ["weight"], ["blocks.1.weight", "fc1"], ["c_attn", "up_proj"],
]  # fmt: skip
OTHERS: list[dict[str, Any]] = [
    {}, {"layers_to_transform": [1]}, {"layers_to_transform": 1}, {"layers_to_transform": []},
    {"layers_to_transform": [0, 3], "layers_pattern": ["layers"]}, {"exclude_modules": ["q_proj"]},
    {"layers_to_transform": [1, 2], "layers_pattern": "h"}, {"exclude_modules": r".*layers\.1\..*"},
    {"modules_to_save": ["classifier", "score"]},
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_as_peft_matches(target: Any, other: dict[str, Any]) -> None:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists

    fields = {"target_modules": target} | other
    if isinstance(target, str) and "layers_to_transform" in other:
        with pytest.raises(ValueError, match="layers_to_transform"):
            LoraConfig(**fields)
        return
    config = LoraConfig(**fields)
    for path in PATHS:
        theirs = check_target_module_exists(config, path)
        assert matched(path, fields) == (bool(theirs) and not isinstance(theirs, _ExcludedModule)), path


@pytest.mark.parametrize(
    "patterns", [{"q_proj": 1}, {r"layers\.1.*": 2, "q_proj": 1}, {"foo": 3, ".*foo": 4}, {"proj": 9}, {}]
)
def test_patterns_as_peft_reads_them(patterns: dict[str, int]) -> None:
    from peft.utils.other import get_pattern_key

    for path in PATHS:
        assert pattern_value(path, patterns, 7) == patterns.get(get_pattern_key(patterns, path), 7), path


@pytest.mark.parametrize("size", [1, 2, 3])
def test_what_is_written_means_exactly_the_wanted(size: int) -> None:
    every = list(itertools.combinations(PATHS, size))
    for wanted in random.Random(0).sample(every, min(len(every), 60)):
        assert {p for p in PATHS if matched(p, {"target_modules": named(wanted, PATHS)})} == set(wanted)
        pattern = re.compile(rf"(?:.*\.)?(?:{regex(wanted, PATHS)})")
        assert {p for p in PATHS if pattern.fullmatch(p)} == set(wanted)
        assert {p for p in PATHS if pattern_value(p, dict.fromkeys(endings(wanted, PATHS), 1), 0)} == set(wanted)


def test_short_where_it_can_be() -> None:
    q = [p for p in PATHS if p.endswith("self_attn.q_proj")]
    assert named(q, PATHS) == ["self_attn.q_proj"]
    assert named(["foo"], ["foo", "fourier.foo"]) == "foo"
    assert named(["fourier.foo"], ["foo", "fourier.foo"]) == ["fourier.foo"]


def test_a_target_that_hits_nothing_is_an_error() -> None:
    """PEFT passes over it as long as another one hits."""
    with pytest.raises(
        InputError, match=r"c\.json:target_modules: target that hits no module; got 'q_porj'; did you mean 'q_proj'"
    ):
        targeted({"target_modules": ["q_porj", "fc1"]}, PATHS, "c.json")
    with pytest.raises(InputError, match="no target modules"):
        targeted({}, PATHS, "c.json")
