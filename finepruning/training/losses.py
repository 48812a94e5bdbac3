"""The training loss: cross entropy, optionally mixed with the dense teacher's soft targets."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def training_loss(
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor | None = None,
    *,
    distillation: float = 0.0,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """``(1 - a) * cross entropy + a * T^2 * KL(teacher || student)`` at temperature T (Hinton et al., 2015).

    Args:
        logits: float32 [b, classes]. labels: int64 [b]. teacher_logits: [b, classes] or None.
        distillation: the weight a; ignored without a teacher.

    Returns:
        Scalar mean over the batch.
    """
    loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    if teacher_logits is None or distillation == 0.0:
        return loss
    soft = F.kl_div(
        F.log_softmax(logits / temperature, dim=1),
        F.log_softmax(teacher_logits / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return (1.0 - distillation) * loss + distillation * temperature**2 * soft
