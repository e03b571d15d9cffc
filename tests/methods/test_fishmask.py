"""FishMask: the choice by hand, its count, what it may touch, its file."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import disturb, inputs, logits, tiny
from torch import Tensor, nn
from torch.nn import functional as F

import featherweight as fw
from featherweight.core.prepare import Batches
from featherweight.core.state import adapters, state


class Line(nn.Module):
    """y = W x + b, with a loss of its own: half the squared error, so that ∂/∂W = (y − t) xᵀ by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor, labels: Tensor) -> Any:
        loss = 0.5 * (self.fc(self.drop(x)) - labels).square().sum()
        return type("Output", (), {"loss": loss})()


X = torch.tensor([[0.7, 2.0, 0.0], [-1.0, 1.0, 3.0]])
T = torch.tensor([[0.5, -1.0], [2.0, 0.0]])


def by_hand(model: Line) -> tuple[Tensor, Tensor]:
    """F̂ of W (2, 3) and b (2,), row by row."""
    error = X @ model.fc.weight.detach().T + model.fc.bias.detach() - T
    return (error.square()[:, :, None] * X.square()[:, None, :]).mean(0), error.square().mean(0)


def line() -> Line:
    torch.manual_seed(0)
    return Line().train()


@pytest.mark.parametrize(
    "batches", [[{"x": X, "labels": T}], [{"x": X[:1], "labels": T[:1]}, {"x": X[1:], "labels": T[1:]}]]
)
def test_chooses_the_largest_mean_square_of_single_gradients(batches: list[dict[str, Tensor]]) -> None:
    model = line()
    W, b = by_hand(model)
    fw.attach(model, fw.FishMask(density=0.5), head=False)
    fw.prepare(model, batches)
    best = torch.cat([W.flatten(), b]).topk(4).indices
    found = state(model, "default")
    assert sorted(best[best < 6].tolist()) == found["fc.weight.indices"].tolist()
    assert sorted((best[best >= 6] - 6).tolist()) == found["fc.bias.indices"].tolist()
    assert model.drop.training, "dropout was off for the measurement, and is on again"


def test_a_batch_would_have_squared_a_mean() -> None:
    """Two rows whose gradients cancel: the mean gradient is zero everywhere, the Fisher information is not."""
    model = line()
    y = model.fc(X[:1]).detach()
    rows = {"x": X[:1].expand(2, 3), "labels": torch.cat([y + 1, y - 1])}
    model.eval()
    model(**rows).loss.backward()
    assert model.fc.bias.grad is not None
    assert model.fc.bias.grad.abs().max() < 1e-6
    model.zero_grad()
    fw.attach(model, fw.FishMask(density=0.5), head=False)
    fw.prepare(model, [rows])
    # the gradient to W is ±x per row, x = (0.7, 2, 0): F̂ is 0.49, 4, 0 in each row of W and 1 for each bias
    assert state(model, "default")["fc.weight.indices"].tolist() == [1, 4]
    assert state(model, "default")["fc.bias.indices"].tolist() == [0, 1]


def test_samples_bounds_the_rows_that_are_read() -> None:
    one, two = line(), line()
    fw.attach(one, fw.FishMask(density=0.5, samples=1), head=False)
    fw.prepare(one, [{"x": X, "labels": T}])
    fw.attach(two, fw.FishMask(density=0.5), head=False)
    fw.prepare(two, [{"x": X[:1], "labels": T[:1]}])
    assert all(
        torch.equal(a, b) for a, b in zip(state(one, "default").values(), state(two, "default").values(), strict=True)
    )


def test_only_the_chosen_values_move_whatever_the_optimizer() -> None:
    """Adam with decay for ten steps, momentum and all: every other weight is bit for bit what it was."""
    model = line()
    before = model.fc.weight.detach().clone()
    fw.attach(model, method := fw.FishMask(density=0.25), head=False)
    fw.prepare(model, [{"x": X, "labels": T}])
    groups = method.groups(adapters(model, "default"), 0.1)
    assert sum(p.numel() for g in groups for p in g["params"]) == 2
    optimizer = torch.optim.AdamW(groups, weight_decay=0.5)
    for _ in range(10):
        optimizer.zero_grad()
        model(X, T).loss.backward()
        optimizer.step()
    chosen = set(state(model, "default")["fc.weight.indices"].tolist())
    assert chosen
    after = fw.merge(copy.deepcopy(model)).fc.weight
    assert {int(i) for i in (after != before).flatten().nonzero()} == chosen
    with fw.switch(model, None):
        assert torch.equal(model.fc.weight, before)


def test_a_step_is_full_fine_tuning_times_the_mask() -> None:
    model, whole = line().eval(), line().eval()
    whole(X, T).loss.backward()
    fw.attach(model, fw.FishMask(density=0.5), head=False)
    fw.prepare(model, [{"x": X, "labels": T}])
    model(X, T).loss.backward()
    found = adapters(model, "default")["fc"]
    for name in ("weight", "bias"):
        c = found.chosen[name]
        if len(c.values) == 0:
            assert name == "bias"
            continue
        torch.testing.assert_close(c.values.grad, getattr(whole.fc, name).grad.flatten()[c.indices.long()])


def test_counts_are_the_floor_of_density_before_and_after() -> None:
    model = tiny("llama")
    n = sum(p.numel() for p in model.parameters())
    for density in (0.002, 0.01, 0.29, 1.0):
        model = fw.attach(tiny("llama"), fw.FishMask(density=density))
        told = fw.trainable(model)
        assert (told.trainable, told.total) == (int(round(density * 1000) * n // 1000), n)
        batch = inputs("llama")
        fw.prepare(model, [batch | {"labels": batch["input_ids"]}])
        assert fw.trainable(model).trainable == told.trainable


@pytest.mark.parametrize(("density", "printed"), [(0.002, 5_699_514), (0.0002, 569_951)])
def test_t_few_counts(density: float, printed: int) -> None:
    """T-Few, appendix D: 6M and 600K of T0-3B's 2,849,757,184."""
    import transformers

    config = transformers.T5Config(d_model=2048, d_ff=5120, num_layers=24, num_decoder_layers=24, num_heads=32, d_kv=64,
                                   vocab_size=32128, feed_forward_proj="gated-gelu")  # fmt: skip
    with torch.device("meta"):
        model = transformers.T5ForConditionalGeneration(config)
        model.lm_head.weight = nn.Parameter(torch.empty(32128, 2048))  # T0's is untied
    fw.attach(model, fw.FishMask(density=density))
    assert fw.trainable(model).trainable == printed


def test_tied_tensors_are_chosen_once() -> None:
    model = tiny("gpt2")
    assert model.lm_head.weight is model.transformer.wte.weight
    fw.attach(model, fw.FishMask(density=0.5))
    own = adapters(model, "default")
    assert own["lm_head"].chosen["weight"] is own["transformer.wte"].chosen["weight"]
    batch = inputs("gpt2")
    fw.prepare(model, [batch | {"labels": batch["input_ids"]}])
    disturb(model)
    before = logits(model, batch)
    assert torch.equal(logits(fw.merge(model), batch), before)
    assert model.lm_head.weight is model.transformer.wte.weight


def test_saved_with_the_places_the_data_chose(tmp_path: Path) -> None:
    model = fw.attach(tiny("bert"), fw.FishMask(density=0.02), "a")
    fw.prepare(model, [inputs("bert") | {"labels": torch.tensor([0, 2])}], "a")
    disturb(model)
    fw.save(model, tmp_path, name="a")
    back = fw.load(tiny("bert"), tmp_path, train=True)
    assert torch.equal(logits(back, inputs("bert")), logits(model, inputs("bert")))
    assert fw.trainable(back).trainable == fw.trainable(model).trainable
    kept = state(back, "default")
    assert sum(t.numel() for k, t in kept.items() if k.endswith(".indices")) == int(0.02 * 21_408)
    file = load_file(tmp_path / "adapter_model.safetensors")
    assert {t.dtype for k, t in file.items() if k.endswith("indices")} == {torch.int32}
    fw.prepare(back, [inputs("bert") | {"labels": torch.tensor([1, 1])}])
    assert all(torch.equal(t, state(back, "default")[k]) for k, t in kept.items()), "what was trained keeps its places"


@pytest.mark.parametrize("damage", ["order", "range", "number", "dtype"])
def test_damaged_places_are_an_error(damage: str, tmp_path: Path) -> None:
    fw.save(fw.attach(tiny("llama"), fw.FishMask(density=0.02)), tmp_path)
    from safetensors import safe_open

    path = tmp_path / "adapter_model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    key = "featherweight.model.layers.0.self_attn.q_proj.weight.indices"
    tensors[key] = {"order": tensors[key].flip(0), "range": tensors[key] + 1024, "number": tensors[key][1:],
                    "dtype": tensors[key].short()}[damage].contiguous()  # fmt: skip
    save_file(tensors, path, metadata)
    with pytest.raises(fw.InputError, match=r"places|dtype"):
        fw.load(tiny("llama"), tmp_path)


def test_trains_in_the_loop_on_the_tasks_own_loss() -> None:
    """Summed over tokens, whatever the model's own loss would have been: `Batches.loss` is used."""
    model = line()
    fw.attach(model, fw.FishMask(density=0.5), head=False)
    asked = []

    def loss(m: nn.Module, batch: Any) -> Tensor:
        asked.append(len(batch["x"]))
        return F.l1_loss(m.fc(batch["x"]), batch["labels"], reduction="sum")

    own = adapters(model, "default")
    fw.FishMask(density=0.5).prepare(model, own, Batches(lambda: [{"x": X, "labels": T}], loss))
    assert asked == [1, 1]
    # the gradient of |error| is ±x: F̂ = mean x² = (0.745, 2.5, 4.5) in both rows of W, 1 for the biases
    assert state(model, "default")["fc.weight.indices"].tolist() == [1, 2, 4, 5]


@pytest.mark.parametrize(
    ("method", "word"),
    [(fw.FishMask(density=0), "density"), (fw.FishMask(density=1.5), "density"), (fw.FishMask(samples=0), "samples"),
     (fw.FishMask(density=1e-9), "no parameter")],
)  # fmt: skip
def test_bad_fields(method: fw.FishMask, word: str) -> None:
    with pytest.raises(fw.InputError, match=word):
        fw.attach(line(), method, head=False)


def test_bad_batches() -> None:
    model = fw.attach(tiny("llama"), fw.FishMask())
    with pytest.raises(fw.InputError, match="no row"):
        fw.prepare(model, [])
    with pytest.raises(fw.InputError, match="no loss"):
        fw.prepare(model, [inputs("llama")])
    packed = inputs("llama") | {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 3]] * 2)}
    with pytest.raises(fw.InputError, match="packed"):
        fw.prepare(model, [packed | {"labels": packed["input_ids"]}])
    fw.switch(model, None)
    batch = inputs("llama")
    with pytest.raises(fw.FeatherweightError, match="switch it on"):
        fw.prepare(model, [batch | {"labels": batch["input_ids"]}])


def test_a_few_steps_lower_the_loss() -> None:
    model, batch = tiny("llama"), inputs("llama")
    batch |= {"labels": batch["input_ids"]}
    fw.attach(model, method := fw.FishMask(density=0.05))
    fw.prepare(model, [batch])
    optimizer = torch.optim.AdamW(method.groups(adapters(model, "default"), 1e-2))
    losses = []
    for _ in range(15):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
