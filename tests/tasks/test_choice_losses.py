"""T-Few's losses against numbers worked by hand, and the laws that the reference names."""

from math import log

import pytest
import torch

from featherweight.tasks.choice_losses import (
    language_loss,
    mean_log_p,
    normalized_loss,
    summed_log_p,
    token_log_probabilities,
    unlikelihood_loss,
)

# One row, three choices: the correct one (number 1) has two tokens, the others one and three.
P = [[[0.5, 0.9, 0.9], [0.25, 0.5, 0.9], [0.1, 0.2, 0.4]]]
REAL = torch.tensor([[[1, 0, 0], [1, 1, 0], [1, 1, 1]]]).bool()
LOG_P, LOG_NOT = torch.tensor(P).double().log(), torch.log1p(-torch.tensor(P).double())
ANSWER = torch.tensor([1])


def close(found, expected):
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_language_loss_is_the_mean_over_the_correct_choice():
    close(language_loss(LOG_P, REAL, ANSWER), [(2 * log(2) + log(2)) / 2])  # 1/4 and 1/2: 1.0397208


def test_unlikelihood_is_the_mean_over_all_incorrect_tokens():
    """One token of p = 1/2 and three of 0.1, 0.2, 0.4: four tokens, not two means."""
    close(unlikelihood_loss(LOG_NOT, REAL, ANSWER), [-(log(0.5) + log(0.9) + log(0.8) + log(0.6)) / 4])  # 0.3831139


def test_beta_and_the_length_normalized_loss():
    """exp β are the geometric means: 0.5, sqrt(1/8) and cbrt(0.008) = 0.2."""
    close(mean_log_p(LOG_P, REAL)[0], [log(0.5), log(0.125) / 2, log(0.2)])
    root = 0.125**0.5
    close(normalized_loss(LOG_P, REAL, ANSWER), [-log(root / (0.5 + root + 0.2))])  # 1.0916297
    close(summed_log_p(LOG_P, REAL)[0], [log(0.5), log(0.125), log(0.008)])


def test_unlikelihood_is_zero_where_wrong_choices_are_impossible():
    close(unlikelihood_loss(torch.zeros(1, 3, 3), REAL, ANSWER), [0.0])


def test_equal_scores_cost_the_logarithm_of_their_number():
    close(normalized_loss(torch.full((1, 3, 3), -0.7), REAL, ANSWER), [log(3)])


def test_padding_and_absent_choices_change_nothing():
    wide = torch.full((1, 5, 4), -3.0).double()
    wide[:, :3, :3] = LOG_P
    real = torch.zeros(1, 5, 4, dtype=torch.bool)
    real[:, :3, :3] = REAL
    for loss in (language_loss, normalized_loss):
        close(loss(wide, real, ANSWER), loss(LOG_P, REAL, ANSWER).tolist())
    wide[:, :3, :3] = LOG_NOT
    close(unlikelihood_loss(wide, real, ANSWER), unlikelihood_loss(LOG_NOT, REAL, ANSWER).tolist())


def test_losses_are_finite_with_gradients_beside_absent_choices():
    log_p = torch.randn(2, 3, 4).sub(2).requires_grad_()
    real = torch.tensor([[[1, 1, 0, 0], [1, 0, 0, 0], [0] * 4], [[1] * 4, [1] * 4, [1, 1, 1, 0]]]).bool()
    answer = torch.tensor([1, 2])
    losses = [f(log_p, real, answer) for f in (language_loss, unlikelihood_loss, normalized_loss)]
    torch.stack(losses).sum().backward()
    assert torch.stack(losses).isfinite().all()
    assert log_p.grad.isfinite().all()
    assert not log_p.grad[~real].any()


def test_token_probabilities_are_the_softmax_and_the_rest():
    logits, targets = torch.randn(2, 3, 7), torch.randint(7, (2, 3))
    p = logits.double().softmax(-1).gather(-1, targets[..., None]).squeeze(-1)
    log_p, log_not = token_log_probabilities(logits, targets)
    close(log_p.flatten(), p.log().flatten().tolist())
    close(log_not.flatten(), (1 - p).log().flatten().tolist())


def test_unlikelihood_stays_finite_and_pushes_where_p_rounds_to_one():
    """Logits 100 apart: p is 1 in fp32, log(1 - p) is -100, and its gradient still lowers the logit."""
    logits = torch.tensor([[100.0, 0.0]], requires_grad=True)
    _, log_not = token_log_probabilities(logits, torch.tensor([0]))
    close(log_not.detach(), [-100.0])
    (-log_not).sum().backward()
    close(logits.grad[0], [1.0, -1.0])
