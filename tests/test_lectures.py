"""The ledger of the lectures: no row without an owner; and the arithmetic that Foundation can settle."""

import ast
import math
import re
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers

import featherweight as fw

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
