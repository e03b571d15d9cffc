"""Extractive answers: losses and pieces against loops over whole windows, SQuAD's metrics by hand, windows by hand."""

import math

import pytest
import torch

import featherweight as fw
from featherweight.core.errors import InputError
from featherweight.data.collate import collate
from featherweight.data.types import Example
from featherweight.tasks import squad

CONTEXT = "Anna baked bread in Rome. Later she sold the old house near the river and moved to Oslo with two cats."


def asked(question, *answers, context=CONTEXT, where="f:1"):
    return Example(where, question, context, tuple((context.index(a), a) for a in answers))


ROWS = [asked("Where did Anna bake?", "Rome"), asked("What did she sell?", "the old house", "house", where="f:2"),
        asked("Who danced?", where="f:3"), asked("With whom?", "two cats", where="f:4")]  # fmt: skip


@pytest.fixture(scope="module")
def model(minilm_dir):
    return fw.load_base(minilm_dir, fw.QuestionAnswering()).eval()


def alone(model, tokenizer, row, length, overlap):
    """Windows made by hand: (ids, first passage token, its place in the passage), and the outputs of each by itself."""
    question = tokenizer(row.text, add_special_tokens=False)["input_ids"]
    whole = tokenizer(row.pair, add_special_tokens=False, return_offsets_mapping=True)
    room = length - len(question) - 3
    step, at, found = room - min(overlap, room // 2), 0, []
    while True:
        part = whole["input_ids"][at : at + room]
        ids = [101, *question, 102, *part, 102]
        kinds = [0] * (len(question) + 2) + [1] * (len(part) + 1)
        with torch.no_grad():
            out = model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([kinds]))
        places = [(None, None)] * (len(question) + 2) + whole["offset_mapping"][at : at + room] + [(None, None)]
        found.append((places, out.start_logits[0].double(), out.end_logits[0].double()))
        if at + room >= len(whole["input_ids"]):
            return found
        at += step


def by_hand(windows, answers, empty):
    """(loss, {(start char, end char): log p}, log p of no answer) by loops."""
    starts, ends, pieces, total = [], [], {}, [0.0, 0.0]
    for places, a, z in windows:
        for i, (b, _) in enumerate(places):
            if b is not None or (empty and i == 0):
                total = [total[0] + math.exp(a[i]), total[1] + math.exp(z[i])]
    for places, a, z in windows:
        for i, (b, _) in enumerate(places):
            if b is None:
                continue
            for j in range(i, len(places) - 1):
                key = (b, places[j][1])
                score = float(a[i] + z[j]) - math.log(total[0]) - math.log(total[1])
                pieces[key] = max(pieces.get(key, -math.inf), score)
        none = [0] if empty and not answers else []
        starts += [math.exp(a[i]) for i in none] + [math.exp(a[i]) for i, (b, e) in enumerate(places) if b is not None
                                                    and any(b <= s < e for s, _ in answers)]  # fmt: skip
        ends += [math.exp(z[i]) for i in none] + [math.exp(z[i]) for i, (b, e) in enumerate(places) if b is not None
                                                  and any(b <= s + len(t) - 1 < e for s, t in answers)]  # fmt: skip
    null = [math.log(sum(math.exp(v[k][0]) for v in windows) / total[k - 1]) for k in (1, 2)]
    return -(math.log(sum(starts) / total[0]) + math.log(sum(ends) / total[1])) / 2, pieces, sum(null)


@pytest.mark.parametrize(("length", "overlap"), [(None, 8), (24, 8), (18, 100)])
@pytest.mark.parametrize("empty", [True, False])
def test_loss_and_piece_are_those_of_a_loop_over_windows(model, minilm_tokenizer, length, overlap, empty):
    task = fw.QuestionAnswering(empty=empty, overlap=overlap)
    rows = [r for r in ROWS if empty or r.label]
    encoded = task.encode_all(rows, minilm_tokenizer, length)
    batch = collate(encoded, 0).tensors
    with torch.no_grad():
        loss, units, made = task.examine(model, batch, minilm_tokenizer)
    wanted = 0.0
    for row, item, piece in zip(rows, encoded, made, strict=True):
        windows = alone(model, minilm_tokenizer, row, length or 512, overlap)
        assert len(windows) == len(item.more["windows"])
        one, pieces, none = by_hand(windows, row.label, empty)
        wanted += one
        best = max(pieces, key=pieces.get)
        assert math.log(piece.probability) == pytest.approx(pieces[best], abs=1e-4)
        assert pieces[piece.start, piece.end] == pytest.approx(pieces[best], abs=1e-4)
        if empty:
            assert piece.margin == pytest.approx(none - pieces[best], abs=1e-4)
    assert int(units) == len(rows)
    assert float(loss) == pytest.approx(wanted, abs=1e-3)


def test_one_window_with_one_answer_is_berts_loss(model, minilm_tokenizer):
    """transformers' own loss of the same positions, its softmax over the passage alone."""
    batch = collate(fw.QuestionAnswering().encode_all(ROWS[:1], minilm_tokenizer, None), 0).tensors
    start, end = int(batch["starts"][0, 0]), int(batch["finals"][0, 0])
    assert minilm_tokenizer.convert_ids_to_tokens(int(batch["input_ids"][0, start])) == "rome"
    inside = batch["begins"][0] >= 0
    with torch.no_grad():
        out = model(input_ids=batch["input_ids"], token_type_ids=batch["token_type_ids"])
        loss, _ = fw.QuestionAnswering().loss(model, batch)
    wanted = [torch.nn.functional.cross_entropy(v[0].masked_fill(~inside, -1e9), torch.tensor(place))
              for v, place in ((out.start_logits, start), (out.end_logits, end))]  # fmt: skip
    assert float(loss) == pytest.approx(float(sum(wanted)) / 2, abs=1e-5)


def test_a_piece_has_at_most_so_many_tokens_and_one_window():
    """Three windows of two tokens; the best start and the best end are in different ones."""
    log_p = torch.full((2, 1, 6), -9.0)
    log_p[0, 0, 1], log_p[1, 0, 2], log_p[1, 0, 0] = 0.0, 0.0, 0.0
    log_p[0, 0, 4], log_p[1, 0, 5] = -3.0, -3.0
    windows = torch.tensor([[0, 0, 1, 1, 2, 2]])
    best, start, more = fw.QuestionAnswering().best_pieces(log_p, windows)
    assert (float(best), int(start), int(more)) == (-6.0, 4, 1)
    best, start, more = fw.QuestionAnswering(most=1).best_pieces(log_p, windows)
    assert (float(best), int(start), int(more)) == (-9.0, 0, 0)
    best, start, more = fw.QuestionAnswering(most=9).best_pieces(log_p, windows * 0)
    assert (float(best), int(start), int(more)) == (0.0, 1, 1)


def test_windows_by_hand(minilm_tokenizer):
    """Nine words of a token each, a question of one, four special and question tokens: rooms of 5, 2 shared."""
    row = Example("f:1", "who", "one two three four five six seven eight nine", ((24, "six"),))
    (item,) = fw.QuestionAnswering(overlap=2).encode_all([row], minilm_tokenizer, 9)
    tokens = minilm_tokenizer.convert_ids_to_tokens(item.input_ids)
    assert item.more["windows"] == [9, 9, 7]
    parts = ("one two three four five", "four five six seven eight", "seven eight nine")
    assert " ".join(tokens) == " ".join(f"[CLS] who [SEP] {part} [SEP]" for part in parts)
    assert item.more["starts"] == item.more["finals"] == [tokens.index("six")]
    assert item.token_type_ids == [0, 0, 0, 1, 1, 1, 1, 1, 1] * 2 + [0, 0, 0, 1, 1, 1, 1]
    with pytest.raises(InputError, match="f:1: the question leaves no room for its context"):
        fw.QuestionAnswering().encode_all([row], minilm_tokenizer, 5)


def test_squads_scores_by_hand():
    """The normalization of the official script: case, punctuation, articles, white space."""
    assert squad.answer_scores("The  Tower!", ["a tower", "towers"]) == (1.0, 1.0)
    assert squad.answer_scores("old stone bridge", ["the stone bridge of Mostar"]) == (0.0, pytest.approx(2 * 2 / 7))
    assert squad.answer_scores("bridge bridge", ["bridge"]) == (0.0, pytest.approx(2 / 3))
    assert squad.answer_scores("", []) == squad.answer_scores("", ["the"]) == (1.0, 1.0)
    assert squad.answer_scores("x", []) == squad.answer_scores("", ["x"]) == (0.0, 0.0)
    assert squad.answers(["a", "Tower"], [["x"], ["tower", "x"]]) == {"exact_match": 0.5, "f1": 0.5}
    some = squad.split_answers(["Tower", "x y", ""], [["tower"], ["x"], []])
    assert some == {"answered_exact_match": 0.5, "answered_f1": pytest.approx((1 + 2 / 3) / 2), "unanswered": 1.0}


def test_the_threshold_that_scores_best():
    """By trying all: rows sorted by margin; the second should not be answered, the third should."""
    texts, golds, margins = ["p", "b", "c", "d"], [["p"], [], ["c"], []], [-2.0, -1.0, 0.5, 3.0]
    tried = {}
    for t in (-9.0, *margins):
        said = [x if m <= t else "" for x, m in zip(texts, margins, strict=True)]
        tried[t] = squad.answers(said, golds)["f1"]
    assert squad.best_threshold(texts, golds, margins) == (-2.0, max(tried.values())) == (-2.0, 0.75)
    assert squad.best_threshold(["x"], [["p"]], [0.0]) == (-1.0, 0.0)
    assert squad.best_threshold(["p", "x"], [["p"], []], [1.0, 1.0]) == (0.0, 0.5)


def test_none_is_answered_above_the_threshold():
    task = fw.QuestionAnswering(empty=True, threshold=1.0)
    row = asked("q", "Rome")
    at = CONTEXT.index("Rome")
    said = task.told((at, at + 4, 0.2, 0.6, math.log(3)), row)
    assert said == {"text": "", "probability": 0.6, "start": None, "end": None, "no_answer": 0.6}
    said = task.told((at, at + 4, 0.4, 0.6, math.log(1.5)), row)
    assert said == {"text": "Rome", "probability": 0.4, "start": at, "end": at + 4, "no_answer": 0.6}
    assert fw.QuestionAnswering().told((at, at + 4, 0.4, 0.0, -math.inf), row)["text"] == "Rome"


def test_what_does_not_fit_is_refused(minilm_tokenizer):
    with pytest.raises(InputError, match="f:3: a row without an answer"):
        fw.QuestionAnswering().check(ROWS) and fw.QuestionAnswering().encode_all(ROWS, minilm_tokenizer, None)
    with pytest.raises(InputError, match=r"^f: no row has a context; expected columns question, context, answers"):
        fw.QuestionAnswering().fit([Example(f"f:{i}", "Who?", label=((0, "A"),)) for i in range(9)])
    with pytest.raises(InputError, match="f:9: a question without a context"):
        fw.QuestionAnswering().ask([Example("f:9", "Where?")], minilm_tokenizer, None)
    assert fw.QuestionAnswering().fit(ROWS).empty is True
    assert fw.QuestionAnswering().fit(ROWS[:2]).empty is False
    with pytest.raises(InputError, match="no answers in a training row"):
        fw.QuestionAnswering().fit([Example("f:1", "q", CONTEXT)])


def test_a_model_made_for_it_needs_no_task(model):
    from transformers import BertConfig, BertForMultipleChoice, BertForTokenClassification

    from featherweight.evaluate.setting import task_of_model

    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = BertConfig(vocab_size=9, **shape)
    assert isinstance(task_of_model(model), fw.QuestionAnswering)
    assert isinstance(task_of_model(BertForTokenClassification(config)), fw.TokenClassification)
    assert isinstance(task_of_model(BertForMultipleChoice(config)), fw.MultipleChoice)
