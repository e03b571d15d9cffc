"""Tiny models over a vocabulary of words, so that tokens can be counted by hand: a word is a token."""

import pytest
from support.words import word_tokenizer

WORDS = ["think", "good", "bad", "Label", "yes", "no", *"abcdefghxyz123:#."]


@pytest.fixture(scope="session")
def words():
    return word_tokenizer(WORDS)


SIZE = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 40}  # fmt: skip


@pytest.fixture(scope="session")
def llama(words):
    """A decoder of 40 positions."""
    import torch
    import transformers as t

    torch.manual_seed(7)
    model = t.LlamaForCausalLM(t.LlamaConfig(**SIZE, pad_token_id=0, bos_token_id=None, eos_token_id=1)).eval()
    model.tokenizer = words
    return model


@pytest.fixture(scope="session")
def t5(words):
    import torch
    import transformers as t

    torch.manual_seed(7)
    config = t.T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, pad_token_id=0,
                        decoder_start_token_id=0, eos_token_id=1, dropout_rate=0.0)  # fmt: skip
    model = t.T5ForConditionalGeneration(config).eval()
    model.tokenizer = words
    return model


@pytest.fixture(scope="session")
def bert(words):
    """An encoder without a head."""
    import torch
    import transformers as t

    torch.manual_seed(7)
    model = t.BertModel(t.BertConfig(**SIZE, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)).eval()
    model.tokenizer = words
    return model
