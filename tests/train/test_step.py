"""What one update is: exact under accumulation, audited, guarded."""

import pytest
import torch
from torch import nn

import featherweight as fw
from featherweight.train import NoGradient, NotFinite
from featherweight.train import run as verb


@pytest.fixture
def train(make, tokenizer, split):
    def start(kind, rows, method=None, dev=0, model=None, **values):
        model = model or make(kind)
        method = method or fw.LoRA(rank=4, targets="linear")
        run = verb.train(model, split(rows, dev) if dev else rows, method=method, tokenizer=tokenizer,
                         **{"steps": 4, "batch": 7, "lr": 1e-2, **values})  # fmt: skip
        return run, state(model)

    return start


def state(model):
    from featherweight.core.state import state as core

    return {k: t.clone() for k, t in core(model, "default").items()}


def far(a, b):
    return max(float((a[k] - b[k]).abs().max()) for k in a)


@pytest.mark.parametrize(("optimizer", "lr", "most"), [("sgd", 1.0, 1e-6), ("adamw", 1e-2, 1e-4)])
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_accumulation_is_exact(train, lm_rows, class_rows, kind, optimizer, lr, most):
    """Rows of uneven length, a batch of 7 in 4 micro-batches: the mean over all units, not a mean of means. (AdamW
    divides by the gradient's own size, so where that is rounding alone so is its step: 1 % of one is allowed.)"""
    rows = lm_rows if kind == "llama" else class_rows
    (one, a), (_, b) = (train(kind, rows, optimizer=optimizer, lr=lr, accumulate=n) for n in (1, 4))
    assert far(a, b) < most
    assert max(float(t.abs().max()) for k, t in a.items() if "lora_B" in k) > 1e-3
    assert one.steps == 4


def test_a_mean_of_means_would_differ(train, lm_rows):
    """The check above can fail: with the units of each micro-batch alone the weights are elsewhere."""
    from featherweight.tasks import CausalLM

    class Means(CausalLM):
        def loss(self, model, batch):
            total, units = super().loss(model, batch)
            return total / units, torch.ones(())

    (_, a), (_, b) = (train("llama", lm_rows, task=Means(), optimizer="sgd", lr=1.0, accumulate=n) for n in (1, 4))
    assert far(a, b) > 1e-4


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_recomputing_activations_changes_nothing(train, lm_rows, class_rows, kind):
    rows = lm_rows if kind == "llama" else class_rows
    method = fw.LoRA(rank=4, targets="linear", dropout=0.1)
    (_, a), (_, b) = train(kind, rows, method), train(kind, rows, method, checkpointing=True)
    assert far(a, b) < 1e-7


def test_the_base_stays_bit_for_bit(train, make, lm_rows):
    model, before = make("llama"), make("llama").state_dict()
    train("llama", lm_rows, model=model)
    after = {k: v for k, v in model.state_dict().items() if "adapters" not in k}
    assert after.keys() == before.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not model.training


def test_packing_gives_the_same_gradient(train, lm_rows):
    """One step over all rows, packed and not: the mean over the same tokens."""
    options = {"steps": 1, "batch": 48, "optimizer": "sgd", "warmup": 0, "clip": None, "lr": 1.0}
    (plain, a), (packed, b) = (
        train("llama", lm_rows, **options),
        train("llama", lm_rows, packing=True, length=32, **options),
    )
    assert plain.history[0]["loss"] == pytest.approx(packed.history[0]["loss"], abs=1e-5)
    assert far(a, b) < 1e-5


def test_packing_a_classifier_is_refused(train, class_rows):
    with pytest.raises(fw.InputError, match="packing is for causal language models"):
        train("bert", class_rows, packing=True)


def test_fp16_on_a_cpu_and_tf32_without_cuda_are_refused(train, lm_rows):
    for precision in ("fp16", "tf32"):
        with pytest.raises(fw.InputError, match="precision"):
            train("llama", lm_rows, precision=precision, device="cpu")


def test_a_module_that_is_never_called_is_named(train, make, lm_rows):
    model = make("llama")
    model.model.layers[1].mlp.spare_proj = nn.Linear(32, 32)
    with pytest.raises(NoGradient) as caught:
        train("llama", lm_rows, fw.LoRA(rank=2, targets=r".*(spare_proj|q_proj)"), model=model)
    told = str(caught.value)
    assert "default/model.layers.1.mlp.spare_proj.lora_A.weight" in told
    assert "never called in the first step" in told
    assert "q_proj" not in told


def test_a_cut_graph_is_named(train, make, lm_rows):
    model = make("llama")
    model.model.layers[0].register_forward_hook(lambda module, given, out: out.detach())
    with pytest.raises(NoGradient) as caught:
        train("llama", lm_rows, fw.LoRA(rank=2, targets="query"), model=model)
    told = str(caught.value)
    assert "layers.0.self_attn.q_proj" in told
    assert "the graph was cut" in told
    assert "layers.1" not in told


def test_gradients_that_are_all_zero_are_an_error(train, make, lm_rows):
    model = make("llama")
    model.model.register_forward_hook(
        lambda module, given, out: setattr(out, "last_hidden_state", out.last_hidden_state * 0)
    )
    with pytest.raises(NoGradient, match="every gradient of the first step is zero"):
        train("llama", lm_rows, fw.LoRA(rank=2, targets="query"), model=model)


def poisoned(model, token=5):
    """The model computes NaN for a row that holds the token, and for no other."""

    def hook(module, given, out):
        bad = (given[0] == token).any(-1)[:, None, None]
        return torch.where(bad, torch.full_like(out, float("nan")), out)

    model.get_input_embeddings().register_forward_hook(hook)
    return model


def test_a_row_that_gives_nan_is_named_and_nothing_of_it_is_kept(make, tokenizer, lm_rows, tmp_path):
    from featherweight.train.store import latest

    clean = [r for r in lm_rows if "area" not in r["prompt"] + r["completion"]]
    rows = [*clean[:20], {"prompt": "inn area", "completion": "inn"}, *clean[20:]]
    model = poisoned(make("llama"))
    with pytest.raises(NotFinite) as caught:
        verb.train(model, rows, method=fw.LoRA(rank=4), tokenizer=tokenizer, output=tmp_path, epochs=2, batch=4,
                   lr=1e-2, seed=1, checkpoint_every=1)  # fmt: skip
    error = caught.value
    assert len(error.rows) == 1
    assert error.rows[0].endswith(":21")
    assert f"step {error.step}: the loss is not finite; 1 of the batch's 4 rows give it alone" in str(error)
    assert error.step > 1
    kept = latest(tmp_path / "checkpoints")
    assert kept.step == error.step - 1
    assert all(torch.isfinite(t).all() for f in ("adapter", "optimizer") for t in kept.files[f].values())
    assert all(torch.equal(t, kept.files["adapter"][f"default/{k}"]) for k, t in state(model).items())
    assert not (tmp_path / "adapter_model.safetensors").exists()


def test_a_broken_base_is_told_from_broken_rows(train, make, lm_rows):
    model = make("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("inf")
    with pytest.raises(NotFinite, match=r"weights of the model hold NaN or infinity already .*up_proj"):
        train("llama", lm_rows, model=model)


def test_a_penalty_counts_once_and_every_hook_is_called(train, lm_rows):
    calls = []

    class Watched(fw.LoRA):
        def prepare(self, model, adapters, batches):
            calls.append(("prepare", sum(len(b["input_ids"]) for b in batches)))

        def penalty(self, adapters):
            return sum((a.lora_B.weight.sum() for a in adapters.values()), torch.zeros(()))

        def after_step(self, adapters, step, total):
            calls.append(("after_step", step))

    options = {"steps": 1, "optimizer": "sgd", "warmup": 0, "schedule": "constant", "clip": None, "lr": 1.0}
    _, plain = train("llama", lm_rows, fw.LoRA(targets="query"), **options)
    _, a = train("llama", lm_rows, Watched(targets="query"), accumulate=3, **options)
    moved = {k: (plain[k] - a[k]) for k in plain if "lora_B" in k}
    assert all(torch.allclose(m, torch.ones_like(m), atol=1e-5) for m in moved.values())  # the penalty's gradient is 1
    assert calls == [("prepare", len(lm_rows)), ("after_step", 1)]
