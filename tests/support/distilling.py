"""Tiny teachers, their words and batches, for tests of distillation."""

from typing import Any

import torch

import featherweight as fw
from featherweight.distill.pair import Pair
from featherweight.distill.task import Distilled

TEXT = "name food area price near good bad cheap river city pub inn thai fast warm cold staff slow tasty dull"
WORDS = TEXT.split()
SIZE = 24  # of the vocabulary: three special tokens, the words and a mask
SMALL: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2,
                         "vocab_size": SIZE, "max_position_embeddings": 64, "pad_token_id": 0}  # fmt: skip
YES_NO = fw.Classification(labels=("no", "yes"))


def words() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    every = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", *WORDS, "<mask>"])}
    core = Tokenizer(models.WordLevel(every, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    named = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **named)


def disturbed(made: Any) -> Any:
    """No parameter at 0 or 1, where mistakes hide."""
    for p in made.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    return made.eval()


def bert(masked: bool = False, **config: Any) -> Any:
    """A classifier of texts, or a masked language model."""
    import transformers as hf

    with torch.random.fork_rng():
        torch.manual_seed(7)
        kind = hf.BertForMaskedLM if masked else hf.BertForSequenceClassification
        return disturbed(kind(hf.BertConfig(**{**SMALL, **config})))


def llama(**config: Any) -> Any:
    import transformers as hf

    with torch.random.fork_rng():
        torch.manual_seed(7)
        given = {**SMALL, "num_key_value_heads": 1, "bos_token_id": None, "eos_token_id": 1, **config}
        return disturbed(hf.LlamaForCausalLM(hf.LlamaConfig(**given)))


def bart(**config: Any) -> Any:
    import transformers as hf

    given = {"vocab_size": SIZE, "d_model": 32, "encoder_layers": 4, "decoder_layers": 4, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "pad_token_id": 0,
             "eos_token_id": 1, "bos_token_id": 1, "decoder_start_token_id": 1, "forced_eos_token_id": None,
             "max_position_embeddings": 64}  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return disturbed(hf.BartForConditionalGeneration(hf.BartConfig(**{**given, **config})))


def batch(rows: int = 3, pad: int = 0) -> dict[str, torch.Tensor]:
    """Rows of 6, 4 and 2 tokens with labels 0, 1 and 1."""
    noise = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 23, (rows, 6), generator=noise)
    mask = (torch.arange(6) < torch.tensor([[6], [4], [2]])).long()
    tail = torch.zeros(rows, pad, dtype=torch.long)
    return {"input_ids": torch.cat([ids * mask, tail], 1), "attention_mask": torch.cat([mask, tail], 1),
            "labels": torch.tensor([0, 1, 1])}  # fmt: skip


def lm_batch(pad: int = 0) -> dict[str, torch.Tensor]:
    """The same rows, every token trained."""
    made = batch(pad=pad)
    return made | {"labels": made["input_ids"].masked_fill(made["attention_mask"] == 0, -100)}


def prompts() -> list[dict[str, str]]:
    """Prompts of two words and answers of one to three."""
    asked = [f"{WORDS[i % 20]} {WORDS[(i * 3 + 1) % 20]}" for i in range(12)]
    return [{"prompt": p, "completion": " " + " ".join(WORDS[(i + k) % 20] for k in range(1 + i % 3))}
            for i, p in enumerate(asked)]  # fmt: skip


def given(**tensors: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a model takes of a batch."""
    return {k: v for k, v in (tensors or batch()).items() if k != "labels"}


def terms_of(student: Any, teacher: Any, recipe: Any, rows: Any = None, task: Any = YES_NO, **pair: Any) -> Any:
    return Distilled(task, recipe, "", Pair(teacher, **pair)).terms(student, rows or batch())


def loss_of(student: Any, teacher: Any, recipe: Any, rows: Any = None, task: Any = YES_NO, **pair: Any) -> torch.Tensor:
    return Distilled(task, recipe, "", Pair(teacher, **pair)).loss(student, rows or batch())[0]
