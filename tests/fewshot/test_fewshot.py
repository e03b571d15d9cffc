"""Suites: what is trained on and answered, figures by hand, runs that can be resumed, submissions, bad rows."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import featherweight as fw
from featherweight.core.errors import InputError
from featherweight.data.raft import numbers_beside
from featherweight.data.read import read
from featherweight.fewshot import RAFT, TFew
from featherweight.fewshot import fewshot as package
from featherweight.fewshot.fewshot import fewshot
from featherweight.fewshot.figures import Answers, Figures, most_frequent, of_seed, of_task
from featherweight.fewshot.part import Bench
from featherweight.fewshot.raft import deal
from featherweight.train import run as verb


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    monkeypatch.setattr(verb, "curve", lambda *_: [])


def test_figures_by_hand():
    """Two folds of a seed, pooled: 5 rows, labels 0 0 1 1 1."""
    a = Answers([0, 0], [0, 1], {"x": [0, 0], "y": [1, 1]}, [1, 1], [0, 0, 1])
    b = Answers([1, 1, 1], [1, 1, 0], {"x": [1, 1, 1], "y": [0, 0, 0]}, [1, 0, 0], [1, 1, 0])
    found = of_seed([a, b])
    assert found["most frequent"] == 1.0  # each fold's own commonest label happens to be right
    assert found["before"] == pytest.approx(1 / 5)
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["F1"] == pytest.approx((2 / 4 + 4 / 6) / 2)  # class 0: tp 1, fp 1, fn 1; class 1: tp 2, fp 1, fn 1
    assert found["by template"] == pytest.approx((5 / 5 + 0 / 5) / 2)
    assert most_frequent([2, 1, 2, 1, 0]) == 1


def test_the_spread_over_seeds_and_the_mean_over_tasks(tmp_path):
    seeds = [
        [Answers([0] * 10, [0] * right + [1] * (10 - right), {"x": [0] * 10}, [0] * 10, [0])] for right in (2, 4, 9)
    ]
    task = of_task("t", seeds)
    accuracy = task.figures["accuracy"]
    assert (accuracy.lower, accuracy.median, accuracy.upper) == pytest.approx(
        np.percentile([0.2, 0.4, 0.9], [25, 50, 75])
    )
    other = of_task("u", seeds[:1])
    assert Figures(tmp_path, [task, other]).means["accuracy"] == pytest.approx((0.4 + 0.2) / 2)
    assert (task.test, task.seeds, other.figures["accuracy"].iqr) == (10, 3, 0.0)


def test_folds_answer_every_row_once_by_a_run_without_it(raft):
    folder = raft / "twitter_complaints"
    rows = read(folder / "train.csv")
    for folds in (2, 5, 12):
        parts = RAFT(folds).parts({folder / "train.csv": rows}, folder, seed=3)
        answered = [row.where for part in parts for row in part.test]
        assert sorted(answered) == sorted(row.where for row in rows)
        for part in parts:
            assert len(part.train) + len(part.test) == 12
            assert not {row.where for row in part.train} & {row.where for row in part.test}
    spread = [sum(rows[i].fields["Label"] == "complaint" for i, f in enumerate(deal(rows, 4, 0)) if f == fold)
              for fold in range(4)]  # fmt: skip
    assert spread == [2, 2, 2, 2]  # 8 complaints of 12 rows
    assert deal(rows, 4, 0) != deal(rows, 4, 1)


def test_folds_that_cannot_be(raft):
    with pytest.raises(InputError, match="no cross-validation"):
        RAFT(1)
    with pytest.raises(InputError, match="more folds than rows; expected at most 12; got 13"):
        fewshot("m", RAFT(13), raft, output=raft / "out", tasks=["twitter_complaints"])


def test_a_draw_is_scored_on_the_other_draws_rows(draws):
    suite, folder = TFew(), draws / "rte"
    (part,) = suite.parts({path: read(path) for path in suite.files(folder)}, folder, 0)
    assert (len(part.train), len(part.test)) == (6, 4)  # two of the other six are its own, under other numbers
    own = {(row.fields["premise"], row.fields["hypothesis"]) for row in part.train}
    assert not own & {(row.fields["premise"], row.fields["hypothesis"]) for row in part.test}
    with pytest.raises(InputError, match="no draw of this seed; expected one of 0, 42; got 1"):
        fewshot("m", "tfew", draws, output=draws / "out", seeds=[1])


def test_a_table_of_what_was_trained(t5, fewglue, tmp_path, capsys):
    """Each accuracy is what the saved adapter scores by itself; results.json holds what is returned."""
    out = tmp_path / "out"
    found = fw.fewshot(str(t5), "fewglue", fewglue, output=out, seeds=(0, 1), steps=3)
    assert [task.name for task in found.tasks] == ["copa", "rte"]
    alone = []
    for seed in (0, 1):
        model = fw.load_model(out / "rte" / f"seed-{seed}")
        alone.append(fw.averaged(model, fewglue / "RTE" / "val.jsonl", "rte"))
    rte = found.tasks[1].figures
    assert rte["accuracy"].median == pytest.approx(np.median([s["accuracy"] for s in alone]))
    assert rte["by template"].median == pytest.approx(np.median([s["median"] for s in alone]))
    base = fw.averaged(fw.load_base(t5), fewglue / "RTE" / "val.jsonl", "rte", fw.Seq2SeqChoices())
    assert rte["before"].median == base["accuracy"]
    assert json.loads((out / "results.json").read_text()) == found.to_dict()
    record = (out / "rte" / "seed-1" / "run.toml").read_text()
    assert 'recipe = "tfew"' in record
    assert 'template = "rte"' in record
    assert f'data = "{fewglue}/RTE/train.jsonl"' in record
    assert "recipe tfew (Liu et al. 2022)" in capsys.readouterr().err


def test_the_base_is_itself_again_after_each_run(t5, fewglue, tmp_path):
    model = fw.load_base(t5, fw.Seq2SeqChoices())
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    bench = Bench(model, fw.Seq2SeqChoices(), {"recipe": "tfew", "steps": 2})
    asked = bench.tuned(
        str(fewglue / "RTE" / "train.jsonl"), "rte", tmp_path / "a", 0, lambda: bench.model.state_dict()
    )
    assert len(asked) > len(before)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in before.items())


def test_runs_that_are_over_are_read_and_the_cut_one_goes_on(t5, fewglue, tmp_path, monkeypatch):
    given = {"output": tmp_path / "out", "seeds": (0, 1), "tasks": ["rte"], "steps": 3, "checkpoint_every": 1}
    whole = fewshot(str(t5), "fewglue", fewglue, **given | {"output": tmp_path / "whole"})
    real, trained = Bench.train, []

    def dying(self, rows, template, folder, seed):
        if seed == 1 and "cut" not in trained:
            trained.append("cut")
            raise KeyboardInterrupt
        trained.append(seed)
        return real(self, rows, template, folder, seed)

    monkeypatch.setattr(Bench, "train", dying)
    with pytest.raises(KeyboardInterrupt):
        fewshot(str(t5), "fewglue", fewglue, **given)
    trained[:] = ["cut"]
    again = fewshot(str(t5), "fewglue", fewglue, **given, resume=True)
    assert trained == ["cut", 1]
    assert again.to_dict()["tasks"] == whole.to_dict()["tasks"]
    with pytest.raises(InputError, match="steps: changed since it began; expected 3; got 4"):
        fewshot(str(t5), "fewglue", fewglue, **given | {"steps": 4}, resume=True)
    with pytest.raises(InputError, match="the output folder is not empty"):
        fewshot(str(t5), "fewglue", fewglue, **given)


def test_every_run_goes_on_with_the_adapter_of_a_mixture(t5, fewglue, tmp_path):
    """As T-Few does: (IA)³ of one data set is where each task starts, and what "before" asks."""
    rows = fewglue / "COPA" / "train.jsonl"
    fw.train(str(t5), rows, recipe="tfew", template="copa", steps=8, lr=0.5, warmup=0, output=tmp_path / "first")
    given = {"seeds": (0,), "tasks": ["rte"], "start": tmp_path / "first"}
    found = fewshot(str(t5), "fewglue", fewglue, output=tmp_path / "out", steps=1, lr=1e-9, **given)
    alone = fw.averaged(fw.load_model(tmp_path / "first"), fewglue / "RTE" / "val.jsonl", "rte")
    figures = found.tasks[0].figures
    assert figures["before"].median == figures["accuracy"].median == alone["accuracy"]
    first, one = (load_file(tmp_path / f / "adapter_model.safetensors") for f in ("first", "out/rte/seed-0"))
    assert first.keys() == one.keys()
    assert all(torch.allclose(tensor, one[key], atol=1e-6) for key, tensor in first.items())
    assert any(float((tensor - 1).abs().max()) > 0.1 for tensor in first.values())
    with pytest.raises(InputError, match="keeps its method"):
        fewshot(str(t5), "fewglue", fewglue, output=tmp_path / "b", method=fw.LoRA(), **given)


def test_a_submission(t5, raft, tmp_path):
    """ID and Label, as the leaderboard wants them; the answers are those of a run on all labelled rows."""
    out = tmp_path / "out"
    found = fewshot(str(t5), RAFT(folds=2), raft, output=out, steps=2, submit="test_unlabeled.csv")
    file = out / "submission" / "data" / "twitter_complaints" / "predictions.csv"
    assert found.submissions == {"twitter_complaints": file}
    head, *lines = file.read_text().splitlines()
    model = fw.load_model(out / "twitter_complaints" / "seed-0" / "all")
    from featherweight.evaluate.averaged import answers

    made = answers(model, raft / "twitter_complaints" / "test_unlabeled.csv", "twitter_complaints")
    assert head == "ID,Label"
    assert lines == [f"{i},{answer['label']}" for i, answer in zip((50, 51), made, strict=True)]
    assert found.tasks[0].test == 12
    elsewhere = tmp_path / "rows.csv"
    elsewhere.write_text("Tweet text,ID\nthe dog runs,7\n")
    found = fewshot(str(t5), RAFT(folds=0), raft, output=tmp_path / "b", steps=2, submit=str(elsewhere))
    assert found.tasks == []
    assert found.submissions["twitter_complaints"].read_text().splitlines()[1].startswith("7,")


def test_bad_rows_of_all_tasks_are_named_together_before_anything_is_trained(fewglue, tmp_path):
    rte, copa = fewglue / "RTE" / "train.jsonl", fewglue / "COPA" / "val.jsonl"
    rte.write_text('{"premise": "", "hypothesis": "wet", "label": "entailment"}\n'
                   '{"premise": "rain", "hypothesis": "wet", "label": "perhaps"}\n')  # fmt: skip
    copa.write_text('{"premise": "a", "choice1": "b", "question": "cause", "label": 0}\n'
                    '{"premise": "a", "choice1": "b", "choice2": "c", "question": "cause", "label": 2}\n')  # fmt: skip
    (fewglue / "COPA" / "train.jsonl").unlink()
    with pytest.raises(InputError) as error:
        fewshot("nowhere", "fewglue", fewglue, output=tmp_path / "out", seeds=(0, 1))
    said = [str(p) for p in error.value.problems]
    assert any(f"{rte}:1:premise: empty text" in p for p in said)
    assert any(f"{rte}:2:label: no such label; expected one of entailment, not_entailment" in p for p in said)
    assert any(f"{copa}:1:choice2: missing field" in p for p in said)
    assert any(f"{copa}:2:label: no such choice; expected 0 to 1" in p for p in said)
    assert any("train.jsonl: no such file" in p for p in said)
    assert len(said) == len(set(said)) == 5
    assert not (tmp_path / "out").exists()


def test_bad_rows_of_raft(raft, tmp_path):
    folder = raft / "twitter_complaints"
    (folder / "train.csv").write_text("Tweet text,Label,ID\nlate,complaint,0\n,no complaint,1\nfine,praise,2\n")
    (folder / "test_unlabeled.csv").write_text("Tweet text,ID\nlate,5\n ,x\nfine,5\n")
    with pytest.raises(InputError) as error:
        fewshot("nowhere", RAFT(folds=2), raft, output=tmp_path / "out", submit="test_unlabeled.csv")
    said = "\n".join(str(p) for p in error.value.problems)
    assert "train.csv:3:Tweet text: empty text" in said
    assert "train.csv:4:Label: no such label; expected one of complaint, no complaint; got 'praise'" in said
    assert "test_unlabeled.csv:3:Tweet text: empty text" in said
    assert "test_unlabeled.csv:3:ID: not an ID; expected a whole number, each once; got 'x'" in said
    assert "test_unlabeled.csv:4:ID: an ID that comes twice" in said
    (folder / "task.json").write_text("{}")
    with pytest.raises(InputError, match=r"task.json: no classes in it"):
        numbers_beside(folder / "train.csv")
    assert numbers_beside(tmp_path / "train.csv") is None


def test_calls_that_cannot_be(fewglue, t5, tmp_path):
    with pytest.raises(InputError, match="unknown suite; got 'fewglu'; did you mean 'fewglue'"):
        fewshot("m", "fewglu", fewglue, output=tmp_path / "out")
    with pytest.raises(InputError, match="no such task; got 'rtee'; did you mean 'rte'"):
        fewshot("m", "fewglue", fewglue, output=tmp_path / "out", tasks=["rtee"])
    with pytest.raises(InputError, match="no folder of the task"):
        fewshot("m", "fewglue", fewglue, output=tmp_path / "out", tasks=["rte", "wsc"])
    with pytest.raises(InputError) as error:
        fewshot(fw.load_base(t5), "fewglue", fewglue, output=tmp_path / "out", seeds=(), rows=0)
    assert len(error.value.problems) == 3
    with pytest.raises(InputError, match="no task of the suite is there"):
        fewshot("m", "raft", fewglue, output=tmp_path / "out")
    with pytest.raises(InputError, match="no submission for this task"):
        fewshot("m", "fewglue", fewglue, output=tmp_path / "out", submit="x.csv")


def test_fewer_rows_to_answer_are_the_same_each_time(fewglue):
    from featherweight.fewshot.jobs import prepared, suite_of

    jobs = [prepared(suite_of("fewglue"), fewglue, (0, 1), ["rte"], 5, None)[0] for _ in range(2)]
    drawn = [[row.where for row in parts[0].test] for job in jobs for parts in job.seeds.values()]
    assert len(drawn[0]) == 5
    assert all(one == drawn[0] for one in drawn)


@pytest.mark.parametrize("suite", ["fewglue", "raft", "tfew"])
def test_every_task_of_the_real_suites_is_read(suite, data_dir):
    """All files as they are, all templates over all rows."""
    from featherweight.fewshot.jobs import prepared, suite_of

    chosen = suite_of(suite)
    jobs = prepared(chosen, data_dir / {"tfew": "tfew_fewshot"}.get(suite, suite), (0, 42), (), 20, None)
    assert [job.name for job in jobs] == list(chosen.templates)
    assert {"fewglue": 6, "raft": 11, "tfew": 12}[suite] == len(jobs)
    assert all(0 < len(part.test) <= 20 for job in jobs for parts in job.seeds.values() for part in parts)


def test_rafts_tasks_have_the_published_numbers_of_classes(data_dir):
    """Alex et al. 2021, table 1, as T-Few's paper and the lectures have it; 50 labelled rows each."""
    classes = dict(zip(RAFT.templates, (2, 77, 2, 3, 2, 3, 2, 2, 2, 2, 2), strict=True))
    for task, count in classes.items():
        assert len(numbers_beside(data_dir / "raft" / task / "train.csv")) == count
        assert len(read(data_dir / "raft" / task / "train.csv")) == 50


def test_the_package_is_the_verb():
    assert callable(package)
    assert callable(fw.fewshot)
