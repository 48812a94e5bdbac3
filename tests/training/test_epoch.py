from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from finepruning.errors import TrainingError
from finepruning.pruning import Surgery, prunable_layers
from finepruning.training import Recipe, cosine, resolve_precision, train_epoch, training_loss

CPU = torch.device("cpu")


def batches(count: int = 20) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    result = []
    for _ in range(count):
        labels = torch.randint(2, (16,), generator=generator)
        x = torch.randn(16, 3, 4, 4, generator=generator)
        x[:, 0] += 2.0 * labels.reshape(-1, 1, 1)
        result.append((x, labels))
    return result


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_a_masked_network_lowers_the_loss_and_keeps_the_masks(precision: str) -> None:
    net = network()
    surgery = Surgery(prunable_layers(net))
    surgery.cut([0.0, 0.0], 60)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    recipe = Recipe(CPU, precision)
    losses = [
        train_epoch(net, optimizer, batches(), recipe, lambda step: 0.05, surgery=surgery) for _ in range(3)
    ]
    assert losses[-1] < 0.5 * losses[0]
    assert sum(int(torch.count_nonzero(w)) for w in prunable_layers(net).values()) == 60


def test_a_loss_that_is_no_number_stops_training_with_the_step_and_rate() -> None:
    net = network()
    data = batches(3)
    data[2][0][0, 0, 0, 0] = math.nan
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(TrainingError, match=r"became nan at step 2, learning rate 0\.1"):
        train_epoch(net, optimizer, data, Recipe(CPU, "float32"), lambda step: 0.1)
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_gradients_are_scaled_to_the_norm() -> None:
    net = network()
    before = torch.cat([p.detach().flatten().clone() for p in net.parameters()])
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    train_epoch(net, optimizer, batches(1), Recipe(CPU, "float32", max_grad_norm=0.01), lambda step: 1.0)
    after = torch.cat([p.detach().flatten() for p in net.parameters()])
    assert float((after - before).norm()) == pytest.approx(0.01, rel=1e-3)


def test_dropped_weights_do_not_count_in_the_gradient_norm() -> None:
    net = network()
    surgery = Surgery(prunable_layers(net))
    surgery.cut([0.0, 0.0], 60)
    before = torch.cat([p.detach().flatten().clone() for p in net.parameters()])
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    recipe = Recipe(CPU, "float32", max_grad_norm=0.01)
    train_epoch(net, optimizer, batches(1), recipe, lambda step: 1.0, surgery=surgery)
    after = torch.cat([p.detach().flatten() for p in net.parameters()])
    assert float((after - before).norm()) == pytest.approx(0.01, rel=1e-3)


def test_distillation_pulls_towards_the_teacher() -> None:
    logits = torch.tensor([[0.0, 0.0]], requires_grad=True)
    labels, teacher = torch.tensor([0]), torch.tensor([[0.0, 5.0]])
    training_loss(logits, labels, teacher, distillation=1.0, temperature=2.0).backward()
    assert logits.grad is not None
    assert logits.grad[0, 0] > 0 > logits.grad[0, 1]


def test_distillation_is_zero_for_a_student_like_its_teacher() -> None:
    logits = torch.randn(4, 3)
    loss = training_loss(logits, torch.zeros(4, dtype=torch.long), logits, distillation=1.0, temperature=3.0)
    assert float(loss) == pytest.approx(0.0, abs=1e-6)


def test_without_distillation_it_is_cross_entropy() -> None:
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    expected = nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    assert torch.equal(training_loss(logits, labels, label_smoothing=0.1), expected)


def test_cosine_rises_and_falls() -> None:
    rates = [cosine(step, 110, 0.2, warmup_steps=10) for step in range(110)]
    assert rates[0] == pytest.approx(0.02)
    assert max(rates) == pytest.approx(0.2)
    assert rates[60] == pytest.approx(0.1)
    assert rates[-1] < 0.001
    assert cosine(0, 10, 0.5) == 0.5


def test_precision_is_resolved_for_the_machine() -> None:
    assert resolve_precision("auto", CPU) in ("float32", "bfloat16")
    assert resolve_precision("float32", CPU) == "float32"
