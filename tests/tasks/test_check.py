"""What a model can take is found out before it fails: vocabulary, positions, padding."""

import pytest

from featherweight.core.errors import InputError


class Words:
    """A tokenizer as far as the checks look at it."""

    pad_token_id = None
    eos_token_id = None

    def __init__(self, size):
        self.size = size

    def get_vocab(self):
        return {f"w{i}": i for i in range(self.size)}


@pytest.fixture(scope="module")
def roberta():
    from transformers import RobertaConfig, RobertaForSequenceClassification

    return RobertaForSequenceClassification(
        RobertaConfig(vocab_size=40, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
                      max_position_embeddings=20, pad_token_id=1, type_vocab_size=1)
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(vocab_size=40, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    )


def test_vocabulary(roberta):
    from featherweight.tasks.check import check_vocabulary

    check_vocabulary(roberta, Words(40))
    with pytest.raises(InputError, match=r"ids below 40.*2 tokens beyond it, the first 'w40' = 40"):
        check_vocabulary(roberta, Words(42))


def test_real_tokenizer_of_another_model(stories, minilm_tokenizer, stories_tokenizer):
    from featherweight.tasks.check import check_vocabulary

    check_vocabulary(stories, stories_tokenizer)
    with pytest.raises(InputError, match="the tokenizer does not belong to this model"):
        check_vocabulary(stories, minilm_tokenizer)


def test_roberta_has_two_positions_less_than_its_table(roberta):
    import torch

    from featherweight.tasks.check import check_length, position_limit

    limit = position_limit(roberta)
    assert limit == 18
    roberta(input_ids=torch.full((1, limit), 5))
    with pytest.raises((IndexError, RuntimeError)):
        roberta(input_ids=torch.full((1, limit + 1), 5))
    assert check_length(roberta, None) == 18
    assert check_length(roberta, 7) == 7
    with pytest.raises(InputError, match="expected 1 to 18; got 19"):
        check_length(roberta, 19)


def test_positions_of_others(stories, t5):
    from featherweight.tasks.check import check_length, position_limit

    assert position_limit(stories) == 512
    assert position_limit(t5) is None
    assert check_length(t5, 100_000) == 100_000
    assert check_length(t5, None) is None
    with pytest.raises(InputError, match="at least 1"):
        check_length(t5, 0)


def test_pad_falls_back(roberta, t5):
    from featherweight.tasks.check import pad_id

    known = Words(40)
    assert pad_id(roberta, known) == 1
    known.pad_token_id = 7
    assert pad_id(roberta, known) == 7
    assert roberta.config.pad_token_id == 1


def test_a_model_that_sees_what_it_is_to_predict_is_refused():
    import torch
    import transformers as t

    from featherweight.tasks.check import check_causal

    small = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 11,
    }
    torch.manual_seed(0)
    encoder = t.BertLMHeadModel(t.BertConfig(**small, pad_token_id=0))
    with pytest.raises(InputError, match=r"sees the tokens that it is to predict.*BertLMHeadModel"):
        check_causal(encoder)
    assert encoder.training
    check_causal(t.BertLMHeadModel(t.BertConfig(**small, pad_token_id=0, is_decoder=True)))
    llama = t.LlamaForCausalLM(t.LlamaConfig(**small, pad_token_id=0)).eval()
    for dtype in (torch.float32, torch.bfloat16):
        check_causal(llama.to(dtype))
    assert not llama.training


def test_the_limit_of_a_stored_model_is_read_without_its_weights(tmp_path):
    import transformers as t

    from featherweight.tasks.check import stored_limit

    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    t.RobertaConfig(**small, max_position_embeddings=66, pad_token_id=1).save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
    assert stored_limit(str(tmp_path)) == 64
    (tmp_path / "config.json").unlink()
    assert stored_limit(str(tmp_path)) is None


def test_what_several_tasks_share_is_no_task():
    """Every task that files and flags may name has a model class of transformers'."""
    import transformers

    from featherweight.tasks import Task

    assert "writing" not in Task.known
    assert {"causallm", "seq2seq"} <= set(Task.known)
    assert all(hasattr(transformers, kind.auto) for kind in Task.known.values())
