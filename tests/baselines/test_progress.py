"""What a comparison says while it runs, and what is kept when it does not come to its end."""

import json
from pathlib import Path

import pytest

from featherweight.baselines import contenders
from featherweight.baselines.compare import compare
from featherweight.cli.main import main
from featherweight.data.types import Example, Turn
from featherweight.evaluate.progress import Progress
from featherweight.tasks import CausalLM, Choices

T5 = Path(__file__).parents[2] / "models" / "tiny-t5"
ROWS = [{"text": f"{w} food", "label": "yes" if i % 2 else "no"} for i, w in enumerate(("good", "bad", "cheap") * 4)]


def test_every_contender_is_announced_and_told(llama):
    said, made = [], []
    found = compare(llama, ROWS, ROWS[:5], shots=(0, 2), say=said.append, made=made.append, seed=1)
    assert said[0] == "2 contenders over 5 rows: zero-shot, 2-shot, random"
    assert [line for line in said if line.endswith("…")] == ["1/2 zero-shot …", "2/2 2-shot, random …"]
    assert said[-1].startswith("2-shot, random: accuracy ")
    assert [len(part.lines) for part in made] == [2, 3]  # with the most frequent answer
    assert made[-1].to_dict() == found.to_dict()


def test_rows_are_told_between_times(monkeypatch):
    said, now = [], [0.0]
    monkeypatch.setattr("featherweight.evaluate.progress.monotonic", lambda: now[0])
    told = Progress(said.append, 3, every=5).begin("zero-shot")
    for done, clock in ((10, 2.0), (20, 6.0), (30, 8.0), (40, 12.0), (100, 30.0)):
        now[0] = clock
        told(done, 100)
    assert said == [
        "1/3 zero-shot …",
        "1/3 zero-shot: 20 of 100 rows, about 24 s left",
        "1/3 zero-shot: 40 of 100 rows, about 18 s left",
    ]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_was_made_is_shown_and_kept(llama, tmp_path, monkeypatch, capsys, error):
    place, rows, out = tmp_path / "model", tmp_path / "rows.jsonl", tmp_path / "found.json"
    llama.save_pretrained(place)
    llama.tokenizer.save_pretrained(place)
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    whole = contenders.prompted

    def broken(*given, **options):
        if options["shots"]:
            raise error("stopped")
        return whole(*given, **options)

    monkeypatch.setattr(contenders, "prompted", broken)
    words = ["compare", str(place), str(rows), str(rows), "--shots", "0,2", "--rows", "4", "--output", str(out)]
    assert main(words) == (130 if error is KeyboardInterrupt else 1)
    said = capsys.readouterr().err
    assert "not all of it, but what there is so far" in said
    assert "zero-shot" in said.split("so far")[1]
    kept = json.loads(out.read_text())
    assert kept["complete"] is False
    assert [line["name"] for line in kept["lines"]] == ["most frequent", "zero-shot"]
    monkeypatch.setattr(contenders, "prompted", whole)
    assert main(words) == 0
    assert json.loads(out.read_text())["complete"] is True


def test_texts_are_bounded_by_the_longest_answer_and_end_before_the_next_example(llama):
    words = llama.tokenizer
    task = contenders.bounded(CausalLM(), ["good", "good " * 40], words, None)
    assert task.max_new_tokens == 50
    assert contenders.bounded(CausalLM(max_new_tokens=7), ["good " * 40], words, None).max_new_tokens == 7
    assert contenders.bounded(CausalLM(), ["good"], words, 9).max_new_tokens == 9
    assert contenders.bounded(Choices(), ["good"], words, 9) == Choices()
    plain = [Example("", turns=(Turn("q\n", False), Turn("a", True)))]
    apart = [Example("", turns=(Turn("q\n", False), Turn("a\n\nb", True)))]
    assert contenders.ended(CausalLM(), plain, "\n\n").stop == "\n\n"
    assert contenders.ended(CausalLM(), apart, "\n\n").stop == ""


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_text_ends_in_front_of_its_stop_and_is_written_no_further(kind, request, monkeypatch):
    from featherweight.evaluate import predict
    from featherweight.interop import load_base
    from featherweight.tasks import Seq2Seq, generation

    model = load_base(T5, Seq2Seq()) if kind == "t5" else request.getfixturevalue(kind)
    made = {"llama": CausalLM, "t5": Seq2Seq}[kind]
    row = [Example("", turns=(Turn("think good\n", False), Turn("bad", True)))]
    (whole,) = predict(model, row, made(max_new_tokens=12))
    stop = " ".join(whole["text"].split()[1:3])
    seen, run = [], generation.decoded  # how much is written
    monkeypatch.setattr(generation, "decoded", lambda ids, words: seen.append(ids.shape[1]) or run(ids, words))
    (cut,) = predict(model, row, made(max_new_tokens=12, stop=stop))
    assert cut["text"] == whole["text"].partition(stop)[0].rstrip() != whole["text"]
    assert seen[0] < 12
