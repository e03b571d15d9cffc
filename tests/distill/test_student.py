"""Students: which blocks are kept, that they compute what the teacher's blocks do, and that they are plain models."""

from copy import deepcopy
from typing import Any

import pytest
import torch

import featherweight as fw
from featherweight.core.errors import InputError
from featherweight.distill.importance import importance
from featherweight.distill.keep import kept
from featherweight.distill.student import stacks_of

SIZE: dict[str, Any] = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 4,
                        "intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0}  # fmt: skip
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2}
MIXED = ["full_attention", "sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
PAIR = {"d_model": 32, "vocab_size": 99, "pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 2}
HALVES = {"encoder_layers": 5, "decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
          "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64}  # fmt: skip
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", "BertConfig", {**SIZE, "num_labels": 3}),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", {**SIZE, **SPECIAL}),
    "distilbert": ("DistilBertForSequenceClassification", "DistilBertConfig",
                   {"vocab_size": 99, "dim": 32, "n_layers": 5, "n_heads": 4, "hidden_dim": 48}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config",
             {"vocab_size": 99, "n_embd": 32, "n_layer": 5, "n_head": 4, "n_positions": 64, **SPECIAL}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**SIZE, **SPECIAL, "num_key_value_heads": 2}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config",
              {**SIZE, **SPECIAL, "num_key_value_heads": 2, "layer_types": MIXED, "sliding_window": 3,
               "use_sliding_window": True}),
    "neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", {**SIZE, **SPECIAL}),
    "neo": ("GPTNeoForCausalLM", "GPTNeoConfig",
            {"vocab_size": 99, "hidden_size": 32, "num_layers": 5, "num_heads": 4, "intermediate_size": 48,
             "max_position_embeddings": 64, "attention_types": [[["global", "local"], 2], [["local"], 1]],
             "window_size": 3, **SPECIAL}),
    "t5": ("T5ForConditionalGeneration", "T5Config",
           {**PAIR, "d_kv": 8, "d_ff": 48, "num_layers": 5, "num_decoder_layers": 3, "num_heads": 4}),
    "bart": ("BartForConditionalGeneration", "BartConfig", {**PAIR, **HALVES, "bos_token_id": 1}),
}  # fmt: skip
PAIRS = ("t5", "bart")


def build(arch: str) -> Any:
    import transformers as hf

    model, config, options = MODELS[arch]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        made = getattr(hf, model)(getattr(hf, config)(**options)).eval()
        for p in made.parameters():
            p.data.add_(0.05 * torch.randn_like(p))
    return made


def logits(model: Any, arch: str) -> torch.Tensor:
    ids = torch.randint(3, 99, (2, 9), generator=torch.Generator().manual_seed(1))
    given = {"input_ids": ids, "attention_mask": (torch.arange(9) < torch.tensor([[9], [6]])).long()}
    given |= {"decoder_input_ids": ids.flip(1)} if arch in PAIRS else {"use_cache": False}
    if arch in ("bert", "roberta", "distilbert"):
        given.pop("use_cache")
    with torch.no_grad():
        return model(**given).logits


def shortened_by_hand(teacher: Any, chosen: dict[str, tuple[int, ...]]) -> Any:
    """The teacher with blocks taken out of its lists: what a student has to compute."""
    model = deepcopy(teacher)
    for path, numbers in chosen.items():
        parent, _, name = path.rpartition(".")
        whole = model.get_submodule(path)
        setattr(model.get_submodule(parent), name, torch.nn.ModuleList([whole[i] for i in numbers]))
    for path, numbers in chosen.items():  # models that walk so many blocks, and those that ask for each one's kind
        stack = model.get_submodule(path.rpartition(".")[0])
        if getattr(getattr(stack, "config", None), "layer_types", None):
            stack.config.layer_types = [stack.config.layer_types[i] for i in numbers]
            stack.config.num_hidden_layers = len(numbers)
    return model


@pytest.mark.parametrize("arch", MODELS)
def test_a_student_is_the_teacher_with_fewer_blocks(arch: str, tmp_path: Any) -> None:
    teacher = build(arch)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    config = teacher.config.to_dict()
    student = fw.student(teacher, layers=2)
    chosen = {path: (0, n - 1) for path, n in stacks_of(teacher).items()}
    assert stacks_of(student) == dict.fromkeys(chosen, 2)
    by_hand = logits(shortened_by_hand(teacher, chosen), arch)
    assert torch.equal(logits(student, arch), by_hand)

    student.save_pretrained(tmp_path)
    loaded = type(student).from_pretrained(tmp_path).eval()
    assert torch.equal(logits(loaded, arch), by_hand)

    assert teacher.config.to_dict() == config
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    theirs = {p.untyped_storage().data_ptr() for p in teacher.state_dict().values()}
    assert not theirs & {p.untyped_storage().data_ptr() for p in student.state_dict().values()}
    assert [p.requires_grad for p in student.parameters()] == [True] * len(list(student.parameters()))


def test_all_blocks_kept_is_a_copy() -> None:
    teacher = build("qwen2")
    assert torch.equal(logits(fw.student(teacher, layers=5), "qwen2"), logits(teacher, "qwen2"))


@pytest.mark.parametrize("arch", ["gpt2", "llama", "qwen2"])
def test_generation_with_a_cache_equals_without(arch: str) -> None:
    """Each block's number in the cache is its own again."""
    student = fw.student(build(arch), layers=[1, 2, 4])
    ids = torch.arange(5, 13)[None]
    made = [
        student.generate(ids, max_new_tokens=6, do_sample=False, use_cache=c, pad_token_id=0) for c in (True, False)
    ]
    assert torch.equal(*made)


def test_the_position_table_of_t5_stays_when_its_block_goes() -> None:
    teacher = build("t5")
    student = fw.student(teacher, layers={"encoder": [2, 4]})
    assert stacks_of(student) == {"encoder.block": 2, "decoder.block": 3}
    table = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    assert torch.equal(student.state_dict()[table], teacher.state_dict()[table])
    query = "layer.0.SelfAttention.q.weight"
    assert torch.equal(
        student.get_parameter(f"encoder.block.0.{query}"), teacher.get_parameter(f"encoder.block.2.{query}")
    )


def test_tied_weights_are_tied_again() -> None:
    student = fw.student(build("gpt2"), layers=2)
    assert student.lm_head.weight is student.transformer.wte.weight


def test_kinds_of_layers_follow_their_blocks() -> None:
    assert fw.student(build("qwen2"), layers=[0, 1, 4]).config.layer_types == [MIXED[0], MIXED[1], MIXED[4]]
    assert fw.student(build("neo"), layers=[1, 2]).config.attention_layers == ["local", "global"]


def test_a_head_that_reads_the_mean_goes_on_reading_it() -> None:
    from featherweight.interop.pooling import set_pool

    teacher = build("bert")
    plain = logits(teacher, "bert")
    set_pool(teacher, "mean")
    wanted = logits(teacher, "bert")
    assert not torch.equal(wanted, plain)
    assert torch.equal(logits(fw.student(teacher, layers=5), "bert"), wanted)


def test_the_random_state_is_left_alone() -> None:
    teacher = build("bert")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    fw.student(teacher)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_shorter_student_with_lora_is_attach() -> None:
    student = fw.student(build("llama"), layers=2)
    fw.attach(student, fw.LoRA(rank=2))
    assert torch.equal(logits(student, "llama"), logits(fw.student(build("llama"), layers=2), "llama"))


def test_published_lists() -> None:
    assert kept(6, "spread", 12) == (0, 2, 4, 7, 9, 11)
    assert kept(None, "spread", 12) == (0, 2, 4, 7, 9, 11)
    assert kept(6, "strided", 12) == (0, 2, 4, 6, 8, 10)
    assert kept(4, "groups", 12) == (2, 5, 8, 11)
    assert kept(3, "first", 12) == (0, 1, 2)
    assert kept(3, "last", 12) == (9, 10, 11)
    assert kept(1, "spread", 12) == (0,)


def test_published_counts() -> None:
    """Students of BERT-base, RoBERTa-base and GPT-2 by rule, and of configs of their own; nothing is allocated."""
    import transformers as hf

    teachers = [
        (hf.BertModel, hf.BertConfig(), 109_482_240, 66_955_008),
        (hf.GPT2LMHeadModel, hf.GPT2Config(), 124_439_808, 81_912_576),  # DistilGPT-2
        (hf.RobertaModel, hf.RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1),
         124_645_632, 82_118_400),  # DistilRoBERTa
    ]  # fmt: skip
    narrow = [
        (hf.DistilBertModel, hf.DistilBertConfig(), 66_362_880),
        (hf.BertModel, hf.BertConfig(hidden_size=312, intermediate_size=1200, num_hidden_layers=4), 14_350_248),
        (hf.BertModel, hf.BertConfig(hidden_size=384, intermediate_size=1536, num_hidden_layers=6), 22_713_216),
    ]
    bert, sizes = hf.BertModel, ((4, 312, 1200), (6, 384, None), (12, 384, None))  # TinyBERT4, MiniLM-L6 and L12
    counts = [14_350_248, 22_713_216, 33_360_000]
    with torch.device("meta"):
        made = [fw.student(bert(hf.BertConfig()), layers=n, width=d, ffn=f) for n, d, f in sizes]
        assert [m.num_parameters() for m in made] == counts
        for model, config, whole, half in teachers:
            teacher = model(config)
            assert teacher.num_parameters() == whole
            assert fw.student(teacher).num_parameters() == half
        for model, config, count in narrow:
            assert model(config).num_parameters() == count
    token_types_and_pooler = 2 * 768 + 768 * 768 + 768
    assert teachers[0][3] - token_types_and_pooler == narrow[0][2]  # what DistilBERT leaves out of BERT's 6 layers


@pytest.mark.parametrize("arch", MODELS)
def test_a_narrower_student(arch: str, tmp_path: Any) -> None:
    """Half as wide with as many heads, from values of its own: a plain model that loads again."""
    teacher = build(arch)
    student = fw.student(teacher, layers=2, width=16)
    config = student.config
    assert (config.hidden_size, config.num_attention_heads) == (16, teacher.config.num_attention_heads)
    assert logits(student, arch).shape[-1] == logits(teacher, arch).shape[-1]
    student.save_pretrained(tmp_path)
    assert torch.equal(logits(type(student).from_pretrained(tmp_path).eval(), arch), logits(student, arch))
    assert torch.equal(logits(fw.student(teacher, layers=2, width=16), arch), logits(student, arch))
    assert not torch.equal(logits(fw.student(teacher, layers=2, width=16, seed=1), arch), logits(student, arch))
    assert set(stacks_of(student).values()) == {2}


def test_feed_forward_layers_keep_their_proportion() -> None:
    assert fw.student(build("bert"), width=16).config.intermediate_size == 24
    assert fw.student(build("bert"), width=16, ffn=7).config.intermediate_size == 7
    assert fw.student(build("bert"), ffn=7).config.hidden_size == 32
    assert fw.student(build("gpt2"), width=16).transformer.h[0].mlp.c_fc.weight.shape == (16, 64)


def test_embeddings_of_a_size_of_their_own_are_copied() -> None:
    import transformers as hf

    config = hf.ElectraConfig(**{**SIZE, "embedding_size": 24})
    teacher = hf.ElectraForSequenceClassification(config)
    student = fw.student(teacher, width=16)
    own, theirs = (m.get_input_embeddings().weight for m in (student, teacher))
    assert torch.equal(own, theirs)
    assert own.untyped_storage().data_ptr() != theirs.untyped_storage().data_ptr()
    assert student.electra.embeddings_project.weight.shape == (16, 24)


@pytest.mark.parametrize("arch", ["bert", "llama", "t5"])
def test_importance_is_the_loss_without_each_block(arch: str, words: Any) -> None:
    """By brute force: each block taken out of its list, the loss of the rows summed by hand."""
    teacher = build(arch)
    teacher.tokenizer = words
    rows: list[dict[str, Any]] = [{"prompt": "a b c", "completion": " d e"}, {"prompt": "b", "completion": " f a c"}]
    if arch == "bert":
        rows = [{"text": "a b c", "label": "x"}, {"text": "d e", "label": "y"}, {"text": "f", "label": "z"}]
        teacher.task = fw.Classification(labels=("x", "y", "z"))
    else:
        teacher.task = fw.Seq2Seq() if arch == "t5" else fw.CausalLM()
    found = importance(teacher, rows)
    assert found.keys() == stacks_of(teacher).keys()
    for path, losses in found.items():
        blocks = stacks_of(teacher)[path]
        for gone, loss in enumerate(losses):
            if arch == "t5" and gone == 0:
                continue  # its first block holds the table of positions, which taking it out by hand would lose
            left = {p: tuple(i for i in range(n) if (p, i) != (path, gone)) for p, n in stacks_of(teacher).items()}
            by_hand = shortened_by_hand(teacher, left)
            assert fw.evaluate(by_hand, rows, teacher.task, tokenizer=words)["loss"] == pytest.approx(loss, abs=1e-6)
        wanted = sorted(sorted(range(blocks), key=lambda i: -losses[i])[:2])
        student = fw.student(teacher, layers=2, keep="importance", data=rows)
        name = next(k for k in teacher.state_dict() if k.startswith(f"{path}.0.") and k.endswith("weight") and
                    f"{path}.1.{k.removeprefix(f'{path}.0.')}" in teacher.state_dict())  # fmt: skip
        tail = name.removeprefix(f"{path}.0.")
        for place, block in enumerate(wanted):
            assert torch.equal(
                student.state_dict()[f"{path}.{place}.{tail}"], teacher.state_dict()[f"{path}.{block}.{tail}"]
            )


def test_a_test_split_decides_nothing(words: Any) -> None:
    teacher = build("bert")
    teacher.tokenizer, teacher.task = words, fw.Classification(labels=("x", "y", "z"))
    train, other = [{"text": "a b", "label": "x"}], [{"text": "c", "label": "y"}]
    assert importance(teacher, {"train": train, "test": other}) == importance(teacher, train)
    assert importance(teacher, {"train": train, "valid": other}) == importance(teacher, other)


@pytest.fixture(scope="module")
def words() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<pad>", "?", "</s>", *"abcdef"])}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="?")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"layers": 6}, "1 to 5; got 6"),
        ({"layers": 0}, "1 to 5; got 0"),
        ({"layers": []}, "empty list"),
        ({"layers": [0, 7, 3]}, r"no such block.*got 7\n.*not in order"),
        ({"layers": 2, "keep": "spred"}, "did you mean 'spread'"),
        ({"layers": {"encoder": 2}}, "no such stack"),
        ({"width": 33}, "1 to 32, the teacher's; got 33"),
        ({"width": 18}, "a multiple of 4; got 18"),
        ({"width": 0, "ffn": 0}, "no width of a student.*ffn: no size"),
        ({"keep": "importance"}, "importance is measured on rows"),
        ({"data": [{"text": "a"}]}, "data decides nothing"),
    ],
)  # fmt: skip
def test_bad_input(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"(?s){said}"):
        fw.student(build("bert"), **given)


def test_teachers_that_cannot_be_cut() -> None:
    with pytest.raises(InputError, match="not a transformers model"):
        fw.student(torch.nn.Linear(2, 2))
    teacher = build("bert")
    fw.attach(teacher, fw.LoRA(rank=2))
    with pytest.raises(InputError, match=r"has adapters.*merge or fw\.detach"):
        fw.student(teacher)
    coded = build("llama")
    fw.quantize(coded, fw.NF4())
    with pytest.raises(InputError, match="is quantized"):
        fw.student(coded)
