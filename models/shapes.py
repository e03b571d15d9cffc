"""The tokenizers and the shapes of the two models, small enough for 8 MB in 16 bits."""

from pathlib import Path

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

WIDTH, PLACES = 192, 128
SENTINELS = 32  # <extra_id_0> … : enough for texts of 600 tokens
Words = transformers.PreTrainedTokenizerFast
Model = transformers.PreTrainedModel


def wordpiece(documents: list[str]) -> Words:
    """6,144 pieces of lower-case words, as BERT's."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(documents, trainers.WordPieceTrainer(
        vocab_size=6144, special_tokens=special, limit_alphabet=200, show_progress=False))  # fmt: skip
    ids = [(t, special.index(t)) for t in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ids)
    return Words(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=PLACES,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def unigram(documents: list[str]) -> Words:
    """4,096 pieces with their case, sentinels among them, as T5's."""
    marks = [f"<extra_id_{i}>" for i in range(SENTINELS)]
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "),
                                            normalizers.Strip()])  # fmt: skip
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(documents, trainers.UnigramTrainer(
        vocab_size=4096 - SENTINELS, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>",
        max_piece_length=12, show_progress=False))  # fmt: skip
    made.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    return Words(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", extra_special_tokens=marks,
        model_max_length=512, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def bert(vocabulary: int) -> Model:
    """Positions begin as waves (Vaswani et al. 2017): neighbors are alike from the start, and need not be discovered
    place by place."""
    config = transformers.BertConfig(
        vocab_size=vocabulary, hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=6, intermediate_size=768,
        max_position_embeddings=PLACES, initializer_range=0.04, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0)  # fmt: skip
    model = transformers.BertForMaskedLM(config)
    table = model.bert.embeddings.position_embeddings.weight
    place, rate = torch.arange(PLACES)[:, None], 10000 ** (-torch.arange(0, WIDTH, 2) / WIDTH)
    with torch.no_grad():
        table.copy_(torch.cat([(place * rate).sin(), (place * rate).cos()], 1) * 0.04 * 2**0.5)
    return model


def t5(vocabulary: int) -> Model:
    config = transformers.T5Config(
        vocab_size=vocabulary, d_model=WIDTH, d_kv=32, num_heads=6, d_ff=384, num_layers=4, num_decoder_layers=3,
        feed_forward_proj="gated-gelu", dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
        tie_word_embeddings=True)  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def load(folder: Path) -> tuple[Model, Words]:
    """A model of this folder as it was saved, and its tokenizer."""
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = getattr(transformers, config.architectures[0])
    return kind.from_pretrained(folder), Words.from_pretrained(folder)
