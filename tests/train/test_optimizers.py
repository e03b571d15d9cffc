import pytest
import torch
from torch import nn

from featherweight.core.errors import InputError
from featherweight.methods import LoRA
from featherweight.train import optimizers


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.matrix, self.vector = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4))


def step(opt, module, seed):
    torch.manual_seed(seed)
    for p in module.parameters():
        p.grad = torch.randn_like(p)
    opt.step()


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_the_state_comes_back_bit_for_bit(name):
    ours, other = Two(), Two()
    names = [{id(p): n for n, p in m.named_parameters()} for m in (ours, other)]
    first, second = (optimizers.optimizer(name, [(LoRA(), {"": m})], 1e-2, 0.1) for m in (ours, other))
    for s in range(3):
        step(first, ours, s)
    other.load_state_dict(ours.state_dict())
    optimizers.load_state(second, names[1], optimizers.state_of(first, names[0]))
    for s in range(3, 6):
        step(first, ours, s)
        step(second, other, s)
    assert torch.equal(ours.matrix, other.matrix)
    assert torch.equal(ours.vector, other.vector)


def test_vectors_are_not_decayed_and_matrices_are():
    module = Two()
    opt = optimizers.optimizer("adamw", [(LoRA(), {"": module})], 1e-2, 0.1)
    decay = {id(p): g["weight_decay"] for g in opt.param_groups for p in g["params"]}
    assert decay == {id(module.matrix): 0.1, id(module.vector): 0.0}


def test_the_rate_is_the_methods_own_unless_given_and_a_shared_tensor_is_trained_once():
    module = Two()
    opt = optimizers.optimizer("sgd", [(LoRA(), {"": module}), (LoRA(rank=2), {"": module})], None, 0.0)
    assert [p.shape for p in optimizers.parameters(opt)] == [(6, 4), (4,)]
    optimizers.scale_rates(opt, 0.5)
    assert {g["lr"] for g in opt.param_groups} == {LoRA.lr / 2}


def test_nothing_to_train_is_an_error():
    with pytest.raises(InputError, match="nothing to train"):
        optimizers.optimizer("adamw", [(LoRA(), {})], 1e-2, 0.0)


def test_state_of_an_unknown_parameter_is_refused():
    module = Two()
    opt = optimizers.optimizer("adamw", [(LoRA(), {"": module})], 1e-2, 0.0)
    with pytest.raises(InputError, match="not trained now"):
        optimizers.load_state(opt, {id(p): n for n, p in module.named_parameters()}, {"other::exp_avg": torch.zeros(1)})
