import pytest

from featherweight.core.errors import InputError
from featherweight.data.encode import check_trainable, encode_lm, encode_lm_all, encode_seq2seq, encode_text
from featherweight.data.types import Encoded, Example, Turn

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|{{ m.role }}|>\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}</s>\n{% endfor %}"
)
BARE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
FICKLE = (
    "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}:{% endif %}"
)
TALK = ({"role": "user", "content": "Who is Lily?"}, {"role": "assistant", "content": "A girl."},
        {"role": "user", "content": "And Ben?"}, {"role": "assistant", "content": "A boy."})  # fmt: skip


def trained(item, tokenizer):
    return tokenizer.decode([label for label in item.labels if label != -100])


@pytest.fixture
def chatty(stories):
    from copy import deepcopy

    def make(template):
        tokenizer = deepcopy(stories)
        tokenizer.chat_template = template
        return tokenizer

    return make


def completion(prompt, answer):
    return Example("a:1", turns=(Turn(prompt, False), Turn(answer, True)))


def test_only_the_completion_and_eos_are_trained(stories):
    item = encode_lm(completion("Once upon\n", "a time"), stories, 64)
    assert item.input_ids[0] == stories.bos_token_id
    assert item.labels[-1] == item.input_ids[-1] == stories.eos_token_id
    assert trained(item, stories) == "a time</s>"
    assert stories.decode(item.input_ids) == "<s> Once upon\na time</s>"
    n = sum(label == -100 for label in item.labels)
    assert item.input_ids[:n] == stories("Once upon\n")["input_ids"], "the prompt's ids are those of inference"


def test_a_seam_that_would_change_the_prompt_keeps_it(stories):
    item = encode_lm(completion("mr || ", "There is"), stories, None)
    prompt = stories("mr || ")["input_ids"]
    assert item.input_ids[: len(prompt)] == prompt
    assert item.labels[: len(prompt)] == [-100] * len(prompt)


@pytest.mark.parametrize("length", [4, 8, 16, 28])
def test_cuts_take_the_oldest_context_first(stories, length):
    example = completion("a b c d e f g h i j k l m n\n", "One two three.")
    whole, item = encode_lm(example, stories, None), encode_lm(example, stories, length)
    assert len(item.input_ids) == length
    assert item.truncated == len(whole.input_ids) - length
    assert item.input_ids[0] == stories.bos_token_id
    answer = [label for label in whole.labels if label != -100]
    kept = [label for label in item.labels if label != -100]
    assert kept == answer[: len(kept)]
    assert len(kept) == min(len(answer), length - 1 - length // 4)


def test_text_is_trained_whole_and_batches_equal_singles(stories):
    rows = [Example(f"a:{i}", text=t, turns=(Turn(t, True),)) for i, t in enumerate(["One day.", "Lily ran.", "é"])]
    rows.append(completion("Once\n", "more"))
    assert encode_lm_all(rows, stories, 9) == [encode_lm(r, stories, 9) for r in rows]
    assert trained(encode_lm(rows[0], stories, 9), stories) == "One day.</s>"


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_chat_ids_are_the_tokenizers_own_and_end_tokens_are_trained(chatty, template):
    tokenizer = chatty(template)
    item = encode_lm(Example("a:1", messages=TALK), tokenizer, None)
    assert item.input_ids == tokenizer.apply_chat_template(list(TALK), tokenize=True, return_dict=True)["input_ids"]
    kept = [label for label in item.labels if label != -100]
    assert kept.count(tokenizer.eos_token_id) == 2
    text = tokenizer.decode(kept)
    assert "A girl.</s>" in text
    assert "A boy.</s>" in text
    assert "Lily" not in text


def test_template_without_end_token_gets_a_trained_eos(chatty):
    tokenizer = chatty(BARE)
    item = encode_lm(Example("a:1", messages=TALK), tokenizer, None)
    assert item.labels[-1] == tokenizer.eos_token_id
    assert trained(item, tokenizer).endswith("A boy.</s>")


def test_templates_that_fail_say_so(stories, chatty):
    example = Example("a.jsonl:7", messages=TALK)
    with pytest.raises(InputError, match="no chat template"):
        encode_lm(example, stories, None)
    with pytest.raises(InputError, match=r"a\.jsonl:7:messages\[1\].*rendering only grows.*generation"):
        encode_lm(example, chatty(FICKLE), None)
    with pytest.raises(InputError, match=r"a\.jsonl:7:messages: the chat template refuses the row; got no jokes"):
        encode_lm(example, chatty("{{ raise_exception('no jokes') }}"), None)


def test_seq2seq_and_text(stories):
    item = encode_seq2seq(completion("Once", "a time"), stories, 3)
    assert item.input_ids == stories("Once")["input_ids"][:3]
    assert len(item.labels) == 3
    assert encode_seq2seq(completion("Once", "a"), stories, None).labels[-1] == stories.eos_token_id
    pair = encode_text(Example("a:1", text="One day", pair="Lily"), stories, 5, label=2)
    assert len(pair.input_ids) == 5
    assert pair.labels == 2
    assert pair.truncated == len(stories("One day", "Lily")["input_ids"]) - 5


def test_nothing_to_train_is_refused():
    bare, good = Encoded("a:1", [1, 2], [-100, -100]), Encoded("a:2", [1, 2], [-100, 2])
    assert check_trainable([bare, good]) == ["a:1"]
    with pytest.raises(InputError, match="a:1: no row has a trained token"):
        check_trainable([bare])
    with pytest.raises(InputError, match="no rows"):
        check_trainable([])


def test_no_eos_is_refused(stories):
    from copy import deepcopy

    tokenizer = deepcopy(stories)
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="no end-of-text token"):
        encode_lm(completion("a", "b"), tokenizer, None)
