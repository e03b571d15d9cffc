"""The ledger of the lectures: no row without an owner; and the arithmetic that Foundation can settle."""

import ast
import math
import re
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

import featherweight as fw
from featherweight.quant.report import usage

ROOT = Path(__file__).parents[1]
LATER = {3, 4, 5, 6, 7}
TEST = re.compile(r"`(tests/[^`\s]+?\.py)::(\w+)`")
FIGURE = re.compile(r"`(benchmarks/results/[^`\s]+?\.json)`")
ISSUE = re.compile(r"\bissue (\d+)\b")
VERDICT = re.compile(r"\*\*(refuted|quoted)\*\*[^:]*: ([^*]+)")


# --- the ledger ---


def rows() -> list[tuple[int, int, str, str]]:
    """(lecture, line, what the text says, owner) of every table row of the ledger."""
    found, lecture = [], 0
    for number, line in enumerate((ROOT / "docs/lectures.md").read_text("utf-8").splitlines(), 1):
        lecture += line.startswith("## Lecture ")
        if line.startswith("|") and not line.startswith(("| the text says |", "|---")):
            cells = [c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]]
            assert len(cells) == 2, f"line {number}: {len(cells)} cells"
            found.append((lecture, number, *cells))
    return found


@cache
def functions(path: Path) -> set[str]:
    return {n.name for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.FunctionDef)}


def faults(owner: str) -> list[str]:
    """What is wrong with the owner of a row: nobody there, or somebody who does not exist."""
    wrong = [] if kinds(owner) else ["no owner"]
    for file, function in TEST.findall(owner):
        if not (ROOT / file).is_file() or function not in functions(ROOT / file):
            wrong.append(f"no test {file}::{function}")
    wrong += [f"no figure {f}" for f in FIGURE.findall(owner) if not (ROOT / f).is_file()]
    wrong += [f"issue {n} is not one of {sorted(LATER)}" for n in ISSUE.findall(owner) if int(n) not in LATER]
    for verdict, reason in VERDICT.findall(owner):
        if verdict == "refuted" and not re.search(r"\d|`tests/", reason):
            wrong.append("a refutation without arithmetic")
        if verdict == "quoted" and len(reason.split()) < 4:
            wrong.append("a quotation without a reason")
    return wrong


def kinds(owner: str) -> set[str]:
    """The kinds of owners that a cell names."""
    patterns = {"test": TEST, "figure": FIGURE, "issue": ISSUE}
    return {k for k, p in patterns.items() if p.search(owner)} | {verdict for verdict, _ in VERDICT.findall(owner)}


def test_every_row_has_an_owner_that_exists():
    assert not [f"docs/lectures.md:{n}: {said!r}: {w}" for _, n, said, owner in rows() for w in faults(owner)]


def test_the_check_of_owners_finds_what_is_wrong():
    assert faults("`tests/test_lectures.py::rows`, issue 3") == []
    assert faults("later") == ["no owner"]
    assert faults("issue 2") == ["issue 2 is not one of [3, 4, 5, 6, 7]"]
    assert faults("`tests/test_lectures.py::nobody`") == ["no test tests/test_lectures.py::nobody"]
    assert faults("`benchmarks/results/none.json`") == ["no figure benchmarks/results/none.json"]
    assert faults("**refuted**: it is not so") == ["a refutation without arithmetic"]
    assert faults("**quoted**: a link") == ["a quotation without a reason"]


def test_the_ledger_covers_five_lectures_and_quotes_little():
    text = (ROOT / "docs/lectures.md").read_text("utf-8")
    assert [int(n) for n in re.findall(r"^## Lecture (\d)", text, re.M)] == [1, 2, 3, 4, 5]
    said = [(lecture, what) for lecture, _, what, _ in rows()]
    assert len(said) == len(set(said)) >= 350
    assert sum(kinds(owner) == {"quoted"} for *_, owner in rows()) <= 0.15 * len(said)


# --- counts worked by hand in the texts ---


@pytest.fixture(scope="module")
def bert_layer() -> int:
    with torch.device("meta"):
        layer = transformers.BertModel(transformers.BertConfig(num_hidden_layers=1)).encoder.layer[0]
    return sum(p.numel() for p in layer.parameters())


def test_a_bert_layer_has_seven_million(bert_layer):
    d, f = 768, 3072
    assert bert_layer == 4 * (d * d + d) + (d * f + f) + (f * d + d) + 2 * 2 * d == 7_087_872


def test_a_bottleneck_of_32_has_fifty_thousand(bert_layer):
    one = 768 * 32 + 32 + 32 * 768 + 768
    assert one == 49_952
    assert round(bert_layer / (2 * one), 1) == 70.9


def test_lora_on_a_bert_layer_is_128_times_fewer(bert_layer):
    """The text says ~140x; 768*4*2*4 + (768*4 + 3072*4)*2 is 55,296, and the attached adapter has as many."""
    by_hand = 768 * 4 * 2 * 4 + (768 * 4 + 3072 * 4) * 2
    assert by_hand == 24_576 + 30_720 == 55_296
    with torch.device("meta"):
        model = transformers.BertModel(transformers.BertConfig(num_hidden_layers=1))
    fw.attach(model, fw.LoRA(rank=4, targets=("query", "key", "value", "output", "up", "down")), head=False)
    assert fw.trainable(model).trainable == by_hand
    assert round(bert_layer / by_hand, 1) == 128.2
    assert round(bert_layer / 50_000, 1) == 141.8  # where the 140 comes from: the rounded 50k


def test_bitfit_is_a_thousandth_of_bert():
    with torch.device("meta"):
        model = transformers.BertModel(transformers.BertConfig())
    fw.attach(model, fw.BitFit(), head=False)
    count = fw.trainable(model)
    assert (count.trainable, count.total) == (102_912, 109_482_240)
    assert round(count.share, 3) == 0.094


@pytest.mark.parametrize("n", [2, 16, 768, 4096])
def test_low_rank_saves_below_half_the_width(n):
    """The text says r > n/2; A and B, n × r each, are smaller than n × n exactly for r < n/2."""
    assert all((2 * n * r < n * n) == (r < n / 2) for r in range(n + 1))


# --- linear algebra ---


def test_rank_is_the_number_of_independent_rows():
    full = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low = full[:, :2] @ full[:2]
    assert [int(torch.linalg.matrix_rank(m)) for m in (full, full.T, low, low.T)] == [6, 6, 2, 2]


def test_the_3x3_example_is_an_outer_product():
    given = torch.tensor([[1.0, 2, 1], [2, 4, 2], [-1, -2, -1]])
    assert torch.equal(torch.outer(torch.tensor([1.0, 2, -1]), torch.tensor([1.0, 2, 1])), given)
    assert torch.linalg.matrix_rank(given) == 1
    assert torch.equal(given[1], 2 * given[0])
    assert torch.equal(given[2], -given[0])


def test_the_near_low_rank_example_is_close_to_rank_one():
    """Full rank, yet the best rank-1 matrix (Eckart–Young) is 0.2 % away; closer still with a smaller change."""
    low = torch.tensor([[1, 2, 1], [2, 4, 2], [-1, -2, -1]], dtype=torch.float64)
    change = torch.zeros(3, 3, dtype=torch.float64)
    change[1, 0], change[2, 2] = 0.01, -0.01
    assert torch.linalg.matrix_rank(low + change) == 3

    def missed(m: torch.Tensor) -> float:
        u, s, v = torch.linalg.svd(m)
        return float((m - s[0] * torch.outer(u[:, 0], v[0])).norm() / m.norm())

    assert 0 < missed(low + change / 10) < missed(low + change) < 0.002


def test_any_update_is_a_full_rank_product():
    """ "Full rank = full fine-tuning" as far as what can be expressed: any ΔW is B A with r = min(d, k)."""
    update = torch.randn(5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, s, v = torch.linalg.svd(update, full_matrices=False)
    torch.testing.assert_close((u * s) @ v, update)


# --- numbers ---


def test_length_bias_products_and_what_normalizing_does():
    """.7, .036 and .0072 are right; by length (exp β) .7, .514 and .494: closer, in the same order."""
    answers = [[0.7], [0.2, 0.5, 0.6, 0.75, 0.8], [0.2, 0.5, 0.4, 0.5, 0.6, 0.75, 0.8]]
    assert [round(math.prod(a), 4) for a in answers] == [0.7, 0.036, 0.0072]
    assert [round(math.prod(a) ** (1 / len(a)), 3) for a in answers] == [0.7, 0.514, 0.494]


def test_float_formats():
    """Sign, exponent and fraction bits; smallest normal and largest value."""
    for dtype, exponent, fraction, tiny, largest in (
        (torch.float32, 8, 23, 1.18e-38, 3.4e38),
        (torch.float16, 5, 10, 6.1e-5, 6.55e4),
        (torch.bfloat16, 8, 7, 1.18e-38, 3.39e38),
    ):
        info = torch.finfo(dtype)
        assert info.bits == 1 + exponent + fraction
        assert info.eps == 2.0**-fraction
        assert info.tiny == 2.0 ** (2 - 2 ** (exponent - 1)) == pytest.approx(tiny, rel=5e-3)
        assert info.max == (2 - 2.0**-fraction) * 2.0 ** (2 ** (exponent - 1) - 1) == pytest.approx(largest, rel=5e-3)


def test_half_precision_reaches_65504_in_steps_of_a_1024th():
    assert torch.finfo(torch.float16).max == 65504
    one = torch.ones((), dtype=torch.float16)
    assert torch.nextafter(one, one + 1) == 1 + 1 / 1024
    assert torch.tensor(65520.0).half().isinf()


def test_halving_a_model_halves_its_bytes():
    tiny = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.LayerNorm(5))
    size = sum(p.numel() * p.element_size() for p in tiny.parameters())
    assert 2 * sum(p.numel() * p.element_size() for p in tiny.half().parameters()) == size


def test_int8_range():
    info = torch.iinfo(torch.int8)
    assert (info.min, info.max, info.bits) == (-128, 127, 8)


def test_integers_from_minus_n_to_n_need_lg_of_2n_plus_1_bits():
    """The text says lg(2n): one value short, and for n = 1 one bit for three values."""
    assert math.ceil(math.log2(2 * 127 + 1)) == 8
    assert (math.log2(2 * 1), math.ceil(math.log2(2 * 1 + 1))) == (1, 2)


def test_double_quantization_saves_0_373_bits():
    assert 32 / 64 == 0.5
    assert round(8 / 64 + 32 / (64 * 256), 3) == 0.127
    assert round(0.5 - (8 / 64 + 32 / (64 * 256)), 3) == 0.373


def test_bfloat16_has_16_bits():
    """The text calls it 32-bit."""
    assert torch.finfo(torch.bfloat16).bits == 16


def test_small_updates_vanish_in_bfloat16():
    """A weight of 1 that is moved a hundred times by 1/512 has not moved; in float32 it has, by 100/512."""
    moved = {dtype: torch.ones((), dtype=dtype) for dtype in (torch.bfloat16, torch.float32)}
    for _ in range(100):
        moved = {dtype: weight + 1 / 512 for dtype, weight in moved.items()}
    assert moved[torch.bfloat16] == 1
    assert moved[torch.float32] == 1 + 100 / 512


def test_most_weights_of_a_trained_model_are_small(data_dir):
    """More than half of every matrix lies in the quarter of its range about 0; evenly spread it would be a quarter."""
    tensors = load_file(data_dir / "stories260k" / "hf" / "model.safetensors")
    matrices = [t.float().abs() for name, t in tensors.items() if t.dim() == 2 and ".layers." in name]
    assert len(matrices) == 35
    assert min(float((m < m.max() / 4).float().mean()) for m in matrices) > 0.5


def test_a_narrower_range_has_fewer_collisions_and_no_place_for_outliers():
    """int4 with one scale. An outlier of 60: the whole range is spent on it, a percentile's range cuts it off."""
    normal = torch.randn(1 << 14, generator=torch.Generator().manual_seed(0))
    spoiled = torch.cat([normal[1:], torch.tensor([60.0])])
    whole, narrow = (fw.Absmax(bits=4, per="tensor", clip=c) for c in (None, 99.9))

    def seen(scheme: fw.Absmax, x: torch.Tensor) -> tuple[float, float]:
        packed = scheme.encode(x)
        return usage(packed, x.shape).collisions, float(scheme.decode(packed, x.shape, torch.float32)[-1])

    assert seen(narrow, normal)[0] < 0.9 * seen(whole, normal)[0]
    collisions, last = seen(whole, spoiled)
    assert collisions > 0.99
    assert last == pytest.approx(60)
    collisions, last = seen(narrow, spoiled)
    assert collisions < 0.2
    assert last < 4


# --- memory and work ---


def llama(width: int, inner: int, layers: int) -> tuple[int, int, int]:
    """Parameters of the linear layers, of all else (tables of 32,000, norms), and of LoRA r 64 on the former."""
    linear = layers * (4 * width * width + 3 * width * inner)
    return linear, 2 * 32_000 * width + (2 * layers + 1) * width, layers * 64 * (8 * width + 3 * (width + inner))


NF4, NF4_DOUBLE = 4 + 32 / 64, 4 + 8 / 64 + 32 / (64 * 256)  # bits a parameter


def qlora_gb(shape: tuple[int, int, int], bits: float, trained: int = 12) -> float:
    """Linear layers as codes, all else in 16 bits, `trained` bytes for each parameter of the adapters."""
    linear, other, adapters = shape
    return (linear * bits / 8 + 2 * other + trained * adapters) / 1e9


def test_full_lora_and_qlora_on_65_billion():
    """12 bytes a trained parameter (weights and gradients in 16 bits, Adam's two states in 32), no activations."""
    linear, other, adapters = shape = llama(8192, 22016, 80)
    assert linear + other == 65_285_660_672
    assert round(12 * (linear + other) / 1e9) == 783
    assert round((2 * (linear + other) + 12 * adapters) / 1e9) == 140
    assert round(qlora_gb(shape, NF4_DOUBLE), 2) == 44.05
    assert round(qlora_gb(shape, NF4_DOUBLE, trained=16), 2) == 47.25  # adapters and their gradients in 32 bits too


def test_double_quantization_on_33_and_65_billion():
    """All weights of 65B as codes: 33.68 GB, 3.04 saved. With adapters in training it decides on 33B in 24 GB."""
    total = sum(llama(8192, 22016, 80)[:2])
    assert round(total * NF4_DOUBLE / 8e9, 2) == 33.68
    assert round(total * (NF4 - NF4_DOUBLE) / 8e9, 2) == 3.04
    small, large = ([round(qlora_gb(s, b), 2) for b in (NF4, NF4_DOUBLE)]
                    for s in (llama(6656, 17920, 60), llama(8192, 22016, 80)))  # fmt: skip
    assert small == [24.76, 23.27]
    assert large == [47.07, 44.05]


@pytest.mark.parametrize(
    ("total", "trained", "full", "adapted", "prints"),
    [
        (2_849_757_184, 4_718_592, 45.6, 11.47, (47.14, 14.4)),
        (12_921_057_280, 9_437_184, 206.74, 51.84, (None, 56)),
        (7_069_016_064, 3_932_160, 113.1, 28.34, (None, 32)),
    ],
    ids=["T0_3B", "mt0-xxl", "bloomz-7b1"],
)
def test_the_table_of_an_80_gb_card(total, trained, full, adapted, prints):
    """fp32 weights, and 16 bytes for what is trained: below what was printed, and above 80 GB where nothing was."""
    assert round(16 * total / 1e9, 2) == full
    assert round((4 * total + 16 * trained) / 1e9, 2) == adapted < prints[1]
    assert full < prints[0] if prints[0] else full > 80


def test_lora_on_gpt3_needs_a_third_or_less():
    """The paper's 1.2 TB and 350 GB; at 12 bytes a trained parameter it is a sixth."""
    total, trained = 174_604_259_328, 37_748_736
    assert round(1200 / 350, 2) == 3.43
    assert (round(2 * total / 1e9), round(12 * total / 1e9)) == (349, 2095)
    assert round(12 * total / (2 * total + 12 * trained), 1) == 6.0


def test_frozen_weights_save_a_third_of_the_work_and_none_of_the_forward_pass():
    """Of three products for a matrix (output, gradient of the input, gradient of the weight) the last is not needed."""
    size, layers = 256, 8
    counts = {}
    for kind in ("full", "lora"):
        model = torch.nn.Sequential(*(torch.nn.Linear(size, size, bias=False) for _ in range(layers)))
        if kind == "lora":
            fw.attach(model, fw.LoRA(rank=1, targets=".*"))
        with FlopCounterMode(display=False) as forward:
            out = model(torch.randn(64, size))
        with FlopCounterMode(display=False) as backward:
            out.sum().backward()
        counts[kind] = forward.get_total_flops(), backward.get_total_flops()
    one = 2 * 64 * size * size
    assert counts["full"] == (layers * one, (2 * layers - 1) * one)  # nobody asks for the first input's gradient
    assert layers * one < counts["lora"][0] < 1.02 * layers * one
    assert (layers - 1) * one < counts["lora"][1] < 1.05 * layers * one
    assert sum(counts["lora"]) < 0.68 * sum(counts["full"])
