"""Every trainable count that the papers print and the architectures determine, on models without storage.

A mark says how the printed figure compares with the exact one: "=" the exact count rounds to it, "!" it does not, and
the exact one stands.
"""

import math
from dataclasses import dataclass
from functools import cache

import pytest
import torch
import transformers

import featherweight as fw
from featherweight.core.count import Trainable
from featherweight.core.method import Method

SHAPES = {
    "bert-base": ("BertModel", {}),
    "bert-base-cased": ("BertModel", {"vocab_size": 28996}),
    "bert-large": (
        "BertModel",
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    ),
    "bert-base-cased-pretraining": ("BertForPreTraining", {"vocab_size": 28996}),
    "roberta-base": ("RobertaModel", {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}),
    "roberta-base-mnli": (
        "RobertaForSequenceClassification",
        {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "num_labels": 3},
    ),
    "gpt2-medium": ("GPT2Model", {"n_embd": 1024, "n_layer": 24, "n_head": 16}),
    "gpt2-large": ("GPT2Model", {"n_embd": 1280, "n_layer": 36, "n_head": 20}),
    "gpt2-xl": ("GPT2Model", {"n_embd": 1600, "n_layer": 48, "n_head": 25}),
    "gpt3-175b": ("GPT2Model", {"n_embd": 12288, "n_layer": 96, "n_head": 96, "n_positions": 2048}),
    "bloomz-7b1": ("BloomModel", {"hidden_size": 4096, "n_layer": 30, "n_head": 32, "vocab_size": 250880}),
}
SHAPES["roberta-large"] = ("RobertaModel", SHAPES["roberta-base"][1] | SHAPES["bert-large"][1])
SHAPES["bert-large-cased"] = ("BertModel", SHAPES["bert-large"][1] | {"vocab_size": 28996})
SHAPES["deberta-v2-xxl"] = (
    "DebertaV2Model",
    {
        "hidden_size": 1536, "num_hidden_layers": 48, "num_attention_heads": 24, "intermediate_size": 6144,
        "vocab_size": 128100, "type_vocab_size": 0, "relative_attention": True, "max_relative_positions": -1,
        "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": ["p2c", "c2p"],
        "conv_kernel_size": 3, "conv_act": "gelu", "position_biased_input": False, "layer_norm_eps": 1e-7,
    },
)  # fmt: skip
LLAMA = {"vocab_size": 32000, "max_position_embeddings": 2048}
SHAPES["llama-7b"] = (
    "LlamaForCausalLM",
    LLAMA | {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008},
)
SHAPES["llama-65b"] = (
    "LlamaForCausalLM",
    LLAMA | {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "intermediate_size": 22016},
)


def t5(layers: int, d: int, f: int, heads: int, vocab: int = 32128, cls: str = "T5") -> tuple[str, dict]:
    """T5 v1.1: gated GELU, untied LM head, keys 64 wide."""
    shape = {
        "d_model": d,
        "d_ff": f,
        "num_layers": layers,
        "num_decoder_layers": layers,
        "num_heads": heads,
        "d_kv": 64,
    }
    return f"{cls}ForConditionalGeneration", shape | {"vocab_size": vocab, "feed_forward_proj": "gated-gelu"}


SHAPES |= {
    "t5-80m": t5(8, 512, 1024, 6),
    "t5-250m": t5(12, 768, 2048, 12),
    "t5-780m": t5(24, 1024, 2816, 16),
    "t0-3b": t5(24, 2048, 5120, 32),
    "t0": t5(24, 4096, 10240, 64),
    "mt0-large": t5(24, 1024, 2816, 16, 250112, "MT5"),
    "mt0-xxl": t5(24, 4096, 10240, 64, 250112, "MT5"),
}


@cache
def build(name: str) -> torch.nn.Module:
    """The architecture without storage; the T5 family with the untied head of its checkpoints."""
    cls, shape = SHAPES[name]
    kind = getattr(transformers, cls)
    with torch.device("meta"):
        model = kind(kind.config_class(**shape))
        if "d_model" in shape:
            model.lm_head.weight = torch.nn.Parameter(torch.empty(shape["vocab_size"], shape["d_model"]))
    return model


@dataclass(frozen=True)
class Printed:
    """A count in a table: `text` as printed (if at all), `mark` whether the exact count rounds to it."""

    model: str
    method: Method | tuple[Method, ...]  # several: counted together
    exact: int
    text: str = ""
    mark: str = "="

    def __str__(self) -> str:
        kinds = "+".join(type(m).__name__ for m in together(self.method))
        return f"{self.model}-{kinds}-{self.text or self.exact}"


def rounds_to(exact: int, text: str) -> bool:
    """Whether the exact count, rounded to as many digits as printed, is what is printed."""
    unit = {"K": 10**3, "M": 10**6, "B": 10**9}[text[-1]]
    digits = len(text[:-1].partition(".")[2])
    return abs(exact / unit - float(text[:-1])) <= 0.5 * 10**-digits


Methods = Method | tuple[Method, ...]


def together(method: Methods) -> tuple[Method, ...]:
    return method if isinstance(method, tuple) else (method,)


def counted(model: str, method: Methods) -> int:
    return attached(model, method).trainable


def attached(model: str, method: Methods, head: bool = False) -> Trainable:
    built = build(model)
    for i, one in enumerate(together(method)):
        fw.attach(built, one, str(i), head=head, stack=True)
    count = fw.trainable(built)
    fw.detach(built)
    return count


def qv(rank: int) -> Method:
    return fw.LoRA(rank=rank, targets=("query", "value"))


FULL = [
    Printed("roberta-base", fw.Full(), 124_645_632, "125.0M", "!"),
    Printed("roberta-base", fw.Full(), 124_645_632, "125M"),
    Printed("roberta-large", fw.Full(), 355_359_744, "355.0M", "!"),
    Printed("roberta-large", fw.Full(), 355_359_744, "355M"),
    Printed("deberta-v2-xxl", fw.Full(), 1_564_549_632, "1500.0M", "!"),
    Printed("gpt2-medium", fw.Full(), 354_823_168, "354.92M", "!"),
    Printed("gpt2-medium", fw.Full(), 354_823_168, "345M", "!"),
    Printed("gpt2-large", fw.Full(), 774_030_080, "774.03M"),
    Printed("gpt2-xl", fw.Full(), 1_557_611_200, "1.5B", "!"),
    Printed("gpt3-175b", fw.Full(), 174_604_259_328, "175255.8M", "!"),
    Printed("bert-base", fw.Full(), 109_482_240, "109M"),
    Printed("bert-base-cased", fw.Full(), 108_310_272, "109M", "!"),
    Printed("bert-base-cased-pretraining", fw.Full(), 108_932_934, "109M"),
    Printed("bert-large", fw.Full(), 335_141_888, "335M"),
    Printed("bert-large-cased", fw.Full(), 333_579_264, "335M", "!"),
    Printed("t5-80m", fw.Full(), 76_961_152, "80M", "!"),
    Printed("t5-250m", fw.Full(), 247_577_856, "250M", "!"),
    Printed("t5-780m", fw.Full(), 783_150_080, "780M", "!"),
    Printed("t0-3b", fw.Full(), 2_849_757_184, "3B"),
    Printed("t0", fw.Full(), 11_135_332_352, "11B"),
    Printed("mt0-xxl", fw.Full(), 12_921_057_280, "12B", "!"),
    Printed("bloomz-7b1", fw.Full(), 7_069_016_064, "7B"),
    Printed("llama-7b", fw.Full(), 6_738_415_616, "7B"),
    Printed("llama-65b", fw.Full(), 65_285_660_672, "65B"),
]
TOP2 = [Printed("gpt2-medium", fw.Head(last=2), 25_192_448, "25.19M")]
BITFIT = [
    Printed("roberta-base", fw.BitFit(), 102_912, "0.1M"),
    Printed("bert-base", fw.BitFit(), 102_912),
    Printed("bert-large", fw.BitFit(), 272_384),
    Printed("gpt3-175b", fw.BitFit(), 12_988_416, "14.2M", "!"),
]
NORMS = [Printed("t0-3b", fw.LayerNorm(), 249_856, "250K")]
LORA = [
    Printed("roberta-base", qv(8), 294_912, "0.3M"),
    Printed("roberta-large", qv(8), 786_432, "0.8M"),
    Printed("deberta-v2-xxl", qv(16), 4_718_592, "4.7M"),
    Printed("deberta-v2-xxl", qv(8), 2_359_296, "4.7M", "!"),
    Printed("gpt2-medium", qv(4), 393_216, "0.35M", "!"),
    Printed("gpt2-large", qv(4), 737_280, "0.77M", "!"),
    Printed("gpt3-175b", qv(1), 4_718_592, "4.7M"),
    Printed("gpt3-175b", qv(8), 37_748_736, "37.7M"),
    Printed("gpt3-175b", fw.LoRA(rank=4, targets="attention"), 37_748_736, "37.7M"),
    Printed("gpt3-175b", fw.LoRA(rank=2, targets="attention"), 18_874_368, "37.7M", "!"),
    Printed("t0-3b", fw.LoRA(rank=4, targets="linear"), 8_847_360),
    Printed("t0-3b", qv(8), 4_718_592),
    Printed("mt0-xxl", qv(8), 9_437_184),
    Printed("bloomz-7b1", fw.LoRA(rank=8, targets=r"query_key_value"), 3_932_160),
    Printed("llama-7b", fw.LoRA(rank=64, targets="linear"), 159_907_840, "159.9M"),
]
BUDGET = [
    ("query",),
    ("key",),
    ("value",),
    ("output",),
    ("query", "key"),
    ("query", "value"),
    ("query", "key", "value", "output"),
]
IA3 = [
    Printed("t0-3b", fw.IA3(), 540_672, "540K", "!"),
    Printed("t0", fw.IA3(), 1_081_344),
]

# Adapter-H and Adapter-P of Hu et al. are counted without the norms, Adapter-L with its own
ADAPTERS = [
    Printed("gpt2-medium", fw.Lin(bottleneck=6), 368_784, "0.37M"),
    Printed("gpt2-medium", fw.Lin(bottleneck=8), 467_136, "0.5M"),
    Printed("gpt2-medium", fw.Lin(bottleneck=224), 11_089_152, "11.09M"),
    Printed("gpt2-large", fw.Lin(bottleneck=8), 875_808, "0.88M"),
    Printed("gpt2-large", fw.Lin(bottleneck=248), 23_002_848, "23.00M"),
    Printed("gpt2-medium", fw.Houlsby(bottleneck=5, norms=False), 540_912, "0.5M"),
    Printed("gpt2-medium", fw.Houlsby(bottleneck=112, norms=False), 11_064_576, "11.09M", "!"),
    Printed("gpt2-medium", fw.Houlsby(bottleneck=113, norms=False), 11_162_928, "11.09M", "!"),
    Printed("roberta-base", fw.Pfeiffer(bottleneck=16), 304_320, "0.3M"),
    Printed("roberta-base", fw.Pfeiffer(bottleneck=48), 894_528, "0.9M"),
    Printed("roberta-large", fw.Pfeiffer(bottleneck=64), 3_171_840, "3.0M", "!"),
    Printed("roberta-large", fw.Pfeiffer(bottleneck=16), 811_392, "0.8M"),
    Printed("roberta-large", fw.Houlsby(bottleneck=64, norms=False), 6_343_680, "6.0M", "!"),
    Printed("roberta-large", fw.Houlsby(bottleneck=8, norms=False), 835_968, "0.8M"),
    Printed("gpt3-175b", fw.Houlsby(bottleneck=1, norms=False), 7_078_080, "7.1M"),
    Printed("gpt3-175b", fw.Houlsby(bottleneck=4, norms=False), 21_234_432, "21.2M"),
    Printed("gpt3-175b", fw.Houlsby(bottleneck=8, norms=False), 40_109_568, "40.1M"),
    Printed("gpt3-175b", fw.Houlsby(bottleneck=16, norms=False), 77_859_840, "77.9M"),
    Printed("gpt3-175b", fw.Houlsby(bottleneck=64, norms=False), 304_361_472, "304.4M"),
    *(Printed("bert-base", fw.Pfeiffer(bottleneck=b), n) for b, n in ((16, 304_320), (48, 894_528), (64, 1_189_632))),
    Printed("bert-base", fw.Houlsby(bottleneck=32, norms=False), 1_198_848),
]
HOULSBY = [
    ("bert-base", 36_864, {8: 313_536, 16: 608_640, 64: 2_379_264, 256: 9_461_760}),
    ("bert-large", 98_304, {8: 835_968, 64: 6_343_680, 256: 25_227_264}),
]
VIRTUAL = [
    Printed("gpt3-175b", fw.Prompt(tokens=256 + 8), 3_244_032, "3.2M"),
    Printed("gpt3-175b", fw.PTuning(template=(256, 8), encoder="none"), 3_244_032, "3.2M"),
    # L d (l_p + l_i), as many infix as prefix vectors: our n keys and n values per block
    Printed("gpt3-175b", fw.Prefix(tokens=8, hidden=0), 18_874_368, "20.2M", "!"),
    Printed("gpt3-175b", fw.Prefix(tokens=2, hidden=0), 4_718_592, "5.1M", "!"),
    Printed("gpt3-175b", fw.Prefix(tokens=4, hidden=0), 9_437_184, "10.1M", "!"),
    Printed("gpt3-175b", fw.Prefix(tokens=18, hidden=0), 42_467_328, "44.1M", "!"),
    Printed("gpt3-175b", fw.Prefix(tokens=32, hidden=0), 75_497_472, "76.1M", "!"),
    Printed("gpt2-medium", fw.Prefix(tokens=7, hidden=0), 344_064, "0.35M", "!"),
    Printed("gpt2-large", fw.Prefix(tokens=8, hidden=0), 737_280, "0.77M", "!"),
    Printed("bert-base-cased", fw.PTuning(), 8_278_272),
    Printed("bert-large-cased", fw.PTuning(), 14_707_712),
    Printed("roberta-base", fw.PTuning(), 8_278_272),
    Printed("roberta-large", fw.PTuning(), 14_707_712),
    Printed("gpt2-medium", fw.PTuning(), 14_707_712),
    Printed("gpt2-xl", fw.PTuning(), 35_883_200),
    Printed("llama-7b", fw.LlamaAdapter(per_head=True), 1_229_760, "1.2M"),
]
VERA = [
    Printed("gpt2-medium", fw.VeRA(rank=1024), 98_304, "0.098M"),
    Printed("gpt2-large", fw.VeRA(rank=1024), 165_888, "0.17M"),
    Printed("roberta-base", fw.VeRA(rank=1024), 43_008, "0.043M"),
    Printed("roberta-large", fw.VeRA(rank=256), 61_440, "0.061M"),
]
CREATED = fw.BitFit(create=True, targets=("attention", "gate", "up"))
T_FEW = [
    Printed("t0-3b", (CREATED, fw.LayerNorm()), 1_331_200, "1.3M"),
    Printed("t0-3b", (fw.Pfeiffer(reduction=32), fw.LayerNorm()), 12_934_144, "12.9M"),
    Printed("t0-3b", (fw.Compacter(shared_rule=False), fw.LayerNorm()), 870_400, "807K", "!"),
    Printed("t0-3b", (fw.Compacter(shared_rule=False, plus=True), fw.LayerNorm()), 560_128, "540K", "!"),
    Printed("t0-3b", fw.Prompt(tokens=10, decoder=True), 40_960, "41K"),
    Printed("t0-3b", fw.Prompt(tokens=100, decoder=True), 409_600, "409K", "!"),
    Printed("t0-3b", fw.Prefix(tokens=2, hidden=0), 589_824, "576K", "!"),
    Printed("t0-3b", (fw.LoRA(rank=4, targets="linear"), fw.LayerNorm()), 9_097_216, "9.1M"),
    Printed("t0-3b", fw.Intrinsic(dimension=500_000), 500_000, "500K"),
    Printed("t0-3b", fw.Intrinsic(dimension=20_000), 20_000, "20K"),
    Printed("bert-base", fw.Compacter(), 57_088),
    Printed("bert-base", fw.Compacter(plus=True), 28_576),
]


def check(row: Printed) -> None:
    assert counted(row.model, row.method) == row.exact
    assert not row.text or rounds_to(row.exact, row.text) is (row.mark == "=")


@pytest.mark.parametrize("row", FULL, ids=str)
def test_full(row):
    check(row)


@pytest.mark.parametrize("row", TOP2, ids=str)
def test_top_two_blocks(row):
    check(row)


@pytest.mark.parametrize("row", BITFIT, ids=str)
def test_bitfit(row):
    check(row)


@pytest.mark.parametrize("row", NORMS, ids=str)
def test_layer_norm(row):
    check(row)


@pytest.mark.parametrize("row", LORA, ids=str)
def test_lora(row):
    check(row)


@pytest.mark.parametrize("targets", BUDGET, ids="-".join)
def test_lora_budget_of_table_5(targets):
    """18 × 2²⁰ parameters, printed "18M": rank 8 on one projection, 4 on two, 2 on all four."""
    rank = 8 // len(targets)
    assert counted("gpt3-175b", fw.LoRA(rank=rank, targets=targets)) == 18 * 2**20
    assert not rounds_to(18 * 2**20, "18M")


@pytest.mark.parametrize(
    ("targets", "per_rank"), [(("query",), 2_359_296), (("query", "value"), 4_718_592), ("attention", 9_437_184)]
)
@pytest.mark.parametrize("rank", [1, 2, 4, 8, 64])
def test_lora_ranks_of_table_6(targets, per_rank, rank):
    assert counted("gpt3-175b", fw.LoRA(rank=rank, targets=targets)) == rank * per_rank


@pytest.mark.parametrize("row", IA3, ids=str)
def test_ia3(row):
    check(row)


@pytest.mark.parametrize("row", ADAPTERS, ids=str)
def test_adapters(row):
    check(row)


@pytest.mark.parametrize(("model", "norms", "counts"), HOULSBY, ids=[m for m, *_ in HOULSBY])
def test_houlsby_with_and_without_the_norms(model, norms, counts):
    for size, exact in counts.items():
        assert counted(model, fw.Houlsby(bottleneck=size, norms=False)) == exact
        assert counted(model, fw.Houlsby(bottleneck=size)) == exact + norms


@pytest.mark.parametrize("row", VIRTUAL, ids=str)
def test_virtual_tokens(row):
    check(row)


@pytest.mark.parametrize("row", VERA, ids=str)
def test_vera(row):
    check(row)


@pytest.mark.parametrize("row", T_FEW, ids=str)
def test_t_few(row):
    check(row)


@pytest.mark.parametrize(("density", "exact", "text"), [(0.002, 5_699_514, "6M"), (0.0002, 569_951, "600K")])
def test_fishmask_keeps_a_share_of_all_parameters(density, exact, text):
    assert math.floor(density * counted("t0-3b", fw.Full())) == exact
    assert f"{exact:.0e}" == f"{float(text[:-1]) * {'K': 1e3, 'M': 1e6}[text[-1]]:.0e}"


def test_one_adapter_of_bert_and_the_layer_it_sits_in():
    """ "about 50K" beside "about 7M": 49,952 of 7,087,872, two of them 70.9 times fewer; LoRA r 4 on all six 128.2."""
    layer = sum(p.numel() for p in build("bert-base").encoder.layer[0].parameters())
    two = counted("bert-base", fw.Houlsby(bottleneck=32, norms=False)) // 12
    low = counted("bert-base", fw.LoRA(rank=4, targets=("attention", "mlp"))) // 12
    assert (layer, two, low) == (7_087_872, 2 * 49_952, 24_576 + 30_720)
    assert (round(layer / two, 1), round(layer / low, 1)) == (70.9, 128.2)


def test_ia3_on_disk():
    """ "4.2 MB": 1,081,344 floats of 4 bytes are 4.33 MB or 4.125 MiB; neither rounds to 4.2."""
    size = 4 * counted("t0", fw.IA3())
    assert size == 4_325_376
    assert round(size / 1e6, 1) == 4.3
    assert round(size / 2**20, 1) == 4.1


def test_peft_prints_for_mt0_large():
    """trainable params: 2359296 || all params: 1231940608 || trainable%: 0.19151053100118282"""
    count = attached("mt0-large", fw.LoRA(rank=8, alpha=32, dropout=0.1, targets=("query", "value")))
    assert (count.trainable, count.total) == (2_359_296, 1_231_940_608)
    assert count.share == 0.19151053100118282


def test_a_classification_head_is_counted_apart():
    """RoBERTa-base with LoRA r 8 and MNLI's head: 294,912 + 592,899; "0.3M" counts without heads."""
    assert attached("roberta-base-mnli", qv(8), head=True).trainable == 294_912 + 592_899


def test_a_step_of_gpt3_is_smaller_by_ten_thousand():
    """ "10,000 x fewer": 9,251 at r 4 on q and v; 37,003 at r 1."""
    full = counted("gpt3-175b", fw.Full())
    assert round(full / counted("gpt3-175b", qv(4))) == 9_251
    assert round(full / counted("gpt3-175b", qv(1))) == 37_003


def test_memory_of_the_weights():
    """GPT-3 in fp32 700 GB, LLaMA-65B fine-tuned in 16 bits over 780 GB (12 bytes each), BERT's file 436 MB."""
    assert round(4 * counted("gpt3-175b", fw.Full()) / 1e9) == 698
    assert round(12 * counted("llama-65b", fw.Full()) / 1e9) == 783
    assert round(4 * counted("bert-base-cased-pretraining", fw.Full()) / 1e6) == 436
