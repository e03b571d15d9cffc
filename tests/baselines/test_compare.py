"""The comparison: rows alike for all, figures that others confirm, sentences that the figures bear out."""

from math import inf

import pytest
from support.choices import rows

import featherweight as fw
from featherweight.baselines.comparison import CONTEXT, FROZEN, RULE, TUNED, Comparison, Line, pays_back
from featherweight.core.errors import InputError
from featherweight.data.types import Example, Turn


def line(name, kind, right, rows=100, training=0.0, query=0.0):
    return Line(name, kind, tuple([1.0] * right + [0.0] * (rows - right)), training, query)


RULED, SHOWN = line("most frequent", RULE, 50), line("4-shot, random", CONTEXT, 60, query=10.0)


def test_tuning_that_helps():
    found = Comparison((RULED, SHOWN, line("tuned: a", TUNED, 90, training=1000.0, query=2.0)), "accuracy")
    assert found.advice() == (
        "Tuning helps on these rows: tuned: a beats 4-shot, random (+30.0 points, 95 % interval +21.0 to +39.0).",
        "The best of each side was picked on these very rows, which flatters it: confirm on other rows.",
        "In FLOPs tuned: a is cheaper than 4-shot, random from query 126 on.",
    )


def test_rows_that_do_not_tell():
    """Two rows of a hundred, right with one and wrong with the other: the interval holds 0, and it says so."""
    found = Comparison((SHOWN, line("tuned: a", TUNED, 62, training=9.0, query=10.0)), "accuracy")
    first, last = found.advice()
    assert first.startswith("These 100 rows do not tell tuned: a from 4-shot, random (+2.0 points")
    assert "which holds 0" in first
    assert "never pays back" in last


def test_tuning_that_does_not_help():
    found = Comparison((RULED, line("frozen", FROZEN, 90), line("tuned: a", TUNED, 70)), "accuracy")
    assert "Tuning does not help on these rows: frozen beats tuned: a (-20.0 points" in found.advice()[0]


def test_nothing_better_than_the_rule():
    found = Comparison((RULED, line("zero-shot", CONTEXT, 51)), "accuracy").advice()
    assert found[0] == "Nothing here is surely better than most frequent (50.0%)."
    assert "Nothing tuned is among them" in found[-1]


def test_pays_back():
    tuned, shown = line("t", TUNED, 1, training=100.0, query=1.0), line("s", CONTEXT, 1, training=1.0, query=10.0)
    assert pays_back(tuned, shown) == 12  # 99 / 9 = 11 queries cost the same
    assert pays_back(line("t", TUNED, 1, training=100.0, query=10.0), shown) == inf
    assert pays_back(line("t", TUNED, 1, query=1.0), shown) == 0
    assert pays_back(line("t", TUNED, 1, training=None), shown) is None


TRAIN = [{"text": f"{a} {b}", "label": "good" if a in "abcd" else "bad"} for a in "abcdefgh" for b in "xyz"]
TEST = [{"text": f"{a} {b} .", "label": "good" if a in "abcd" else "bad"} for a in "abcdefgh" for b in "xy"]


def test_lines_are_what_the_verbs_say(llama, bert):
    """Each score again, by evaluate over the same rows."""
    found = fw.compare(llama, TRAIN, TEST, shots=[0, 3], select=["random", "nearest"], embedder=bert)
    assert [x.name for x in found.lines] == ["most frequent", "zero-shot", "3-shot, random", "3-shot, nearest",
                                             "frozen + regression"]  # fmt: skip
    assert {x.kind for x in found.lines} == {RULE, CONTEXT, FROZEN}
    assert found["most frequent"].score == 0.5
    pool, test = (fw.as_choices([Example(f"r:{i}", r["text"], label=r["label"]) for i, r in enumerate(part)])
                  for part in (TRAIN, TEST))  # fmt: skip
    assert found["zero-shot"].score == fw.evaluate(llama, test, fw.Choices())["accuracy"]
    for way in ("random", "nearest"):
        made = fw.in_context(llama, test, pool, 3, select=way, embedder=bert, task=fw.Choices())
        assert found[f"3-shot, {way}"].score == fw.evaluate(llama, made, fw.Choices())["accuracy"]
    assert found["frozen + regression"].score == fw.evaluate(fw.frozen(bert, TRAIN), TEST)["accuracy"]
    assert found["frozen + regression"].trained == 2 * 16 + 2
    assert found["3-shot, random"].query > 2 * found["zero-shot"].query > 0
    assert found["3-shot, random"].disk == 4 * 3 * 5  # a shot: two words, "Label", ":", its label
    assert found["3-shot, nearest"].disk == 4 * 24 * 5 + 4 * 24 * 16
    assert found["3-shot, nearest"].query > found["3-shot, random"].query
    assert found["zero-shot"].training == found["zero-shot"].disk == 0
    assert fw.compare(llama, TRAIN, TEST, shots=[3]).lines[1].values == found["3-shot, random"].values


def test_an_adapter_beside_them(bert, llama, tmp_path):
    base = tmp_path / "bert"
    bert.save_pretrained(base)
    bert.tokenizer.save_pretrained(base)
    fw.train(str(base), TRAIN, fw.Classification(pool="mean"), method=fw.LoRA(rank=4), output=tmp_path / "run",
             steps=30, lr=3e-2, batch=8)  # fmt: skip
    found = fw.compare(llama, TRAIN, TEST, adapters=[tmp_path / "run"], shots=[2])
    mine = found["tuned: run"]
    assert mine.score == fw.evaluate(fw.load_model(tmp_path / "run"), TEST)["accuracy"]
    assert mine.disk == (tmp_path / "run" / "adapter_model.safetensors").stat().st_size
    assert mine.trained == 2 * 2 * 4 * (16 + 16) + 2 * 16 + 2  # query and value of two layers, and the head
    a_row = mine.query * 2 / 3  # two words, where those asked have three
    assert 30 * 8 * 1.5 * a_row < mine.training < 30 * 8 * 2.2 * a_row
    assert found.to_dict()["lines"][-1]["pays_back"] == found.back(mine)
    assert "tuned: run" in found.advice()[0]
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in (tmp_path / "run").glob("adapter_*"):
        (bare / file.name).write_bytes(file.read_bytes())
    unknown = fw.compare(llama, TRAIN, TEST, adapters={bare: base}, shots=[0])["tuned: bare"]
    assert unknown.values == mine.values
    assert unknown.training is None
    assert "its training is unknown" in unknown.notes[0]


def text(name, question, answer):
    return Example(name, turns=(Turn(question + "\n", False), Turn(answer, True)))


def test_texts_are_scored_row_by_row(llama):
    pool, test = [text("p:1", "a", "x # 1"), text("p:2", "b", "y # 2")], [text("t:1", "c", "z # 3")]
    found = fw.compare(llama, pool, test, shots=[0, 1], metric="rouge", length=20)
    assert found.measure == "rougeL"
    assert [x.name for x in found.lines] == ["zero-shot", "1-shot, random"]
    assert all(0 <= x.score <= 1 for x in found.lines)
    with pytest.raises(InputError, match="no answer behind the mark"):
        fw.compare(llama, pool, test, shots=[1], reasoning=True)


def test_choices_of_their_own(t5):
    found = fw.compare(t5, rows(*"abcdef"), rows("g", "h"), shots=[0, 2], select=["balanced"])
    assert [x.name for x in found.lines] == ["most frequent", "zero-shot", "2-shot, balanced"]
    assert found.rows == 2


def test_templates_write_both_sets(llama, tmp_path):
    """Ours or one's own; the figures are those of the rows written by hand."""
    (tmp_path / "labels.json").write_text('{"no": 0, "yes": 1}', encoding="utf-8")
    (tmp_path / "said.jinja").write_text("{% set choices = ['bad', 'good'] %}{{ word }} :", encoding="utf-8")
    made = [[{"word": w, "label": "yes" if w in "aceg" else "no"} for w in part] for part in ("abcdef", "ghxy")]
    found = fw.compare(llama, *made, template=str(tmp_path), shots=[0, 2])
    plain = [rows(*(f"{w} :" for w in part), answers="".join(str(int(w in "aceg")) for w in part))
             for part in ("abcdef", "ghxy")]  # fmt: skip
    by_hand = fw.compare(llama, *plain, shots=[0, 2])
    assert [x.values for x in found.lines] == [x.values for x in by_hand.lines]
    assert found["2-shot, random"].query == by_hand["2-shot, random"].query


def test_rows_are_drawn_by_seed(llama):
    made = [fw.compare(llama, TRAIN, TEST, shots=[0], rows=5, seed=s).lines[0].values for s in (1, *range(1, 9))]
    assert made[0] == made[1]
    assert len(set(made)) > 1
    assert len(made[0]) == 5


BAD = {
    "shots of an encoder": (lambda m, e: fw.compare(e, TRAIN, TEST, shots=[0]), "the model writes nothing"),
    "nearest without": (lambda m, e: fw.compare(m, TRAIN, TEST, select=["nearest"]), "nearest examples by"),
    "shots below none": (lambda m, e: fw.compare(m, TRAIN, TEST, shots=[-1]), "no such number of shots"),
    "metric": (lambda m, e: fw.compare(m, TRAIN, TEST, metric="rogue"), "did you mean 'rouge'"),
    "unlike sets": (lambda m, e: fw.compare(m, TRAIN, [{"prompt": "a", "completion": "b"}]), "unlike shapes"),
    "scores": (lambda m, e: fw.compare(m, [{"text": "a", "score": 0.5}], [{"text": "a", "score": 0.5}]),
               "nothing to compare by"),
    "too many shots": (lambda m, e: fw.compare(m, TRAIN[::8], TEST, shots=[4]), "more shots than the pool has rows"),
    "no rows": (lambda m, e: fw.compare(m, TRAIN, TEST, rows=0), "no rows to compare on"),
    "new label": (lambda m, e: fw.compare(m, TRAIN, [{"text": "a", "label": "new"}], shots=[0]), "label unseen"),
    "nothing": (lambda m, e: fw.compare(e, [text("p:1", "a", "b")], [text("t:1", "a", "b")]), "nothing to compare"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(llama, bert, name):
    call, said = BAD[name]
    with pytest.raises(InputError) as error:
        call(llama, bert)
    assert said in str(error.value)


def test_a_task_of_another_kind(llama, tmp_path):
    base = tmp_path / "llama"
    llama.save_pretrained(base)
    llama.tokenizer.save_pretrained(base)
    fw.train(
        str(base), [{"prompt": "a", "completion": "b"}] * 4, method=fw.LoRA(rank=2), output=tmp_path / "run", steps=1
    )
    with pytest.raises(InputError, match="the rows are not of the task of"):
        fw.compare(llama, TRAIN, TEST, adapters=[tmp_path / "run"], shots=[0])
