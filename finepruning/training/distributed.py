"""The processes that train one network together: one a rank, started by torchrun.

Every rank holds the whole network and goes through the same steps with its share of each batch. Gradients,
BatchNorm statistics and losses are those of the whole batch, so that all ranks stay equal and the result is
the one of a single process, up to rounding.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from finepruning.errors import FinepruningError, JobError
from finepruning.training.batch_layers import batch_layers

Item = TypeVar("Item")

PATIENCE = timedelta(hours=1)
"""How long a rank waits for another one that is alive; one that has ended is noticed at once."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of its job. Every method has to be called by all ranks, in the same order.

    Attributes:
        rank: from 0, which decides, writes and prints. count: of processes; 1 for a process of its own.
    """

    rank: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        return self.rank == 0

    @property
    def part(self) -> tuple[int, int]:
        """This rank and their number, for `finepruning.data.Images.batches`."""
        return self.rank, self.count

    def share(self, make: Callable[[], Item]) -> Item:
        """What ``make`` gives on rank 0, on all ranks. Its errors of our own are raised on all of them."""
        if self.count == 1:
            return make()
        outcome: list[Any] = [None, None]
        if self.main:
            try:
                outcome[0] = make()
            except FinepruningError as error:
                outcome[1] = error
        with _talking():
            dist.broadcast_object_list(outcome, 0)
        if outcome[1] is not None:
            raise outcome[1]
        result: Item = outcome[0]
        return result

    def gather(self, item: Item) -> list[Item]:
        """The items of all ranks, in their order."""
        if self.count == 1:
            return [item]
        items: list[Any] = [None] * self.count
        with _talking():
            dist.all_gather_object(items, item)
        return items

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Inside comes first one process a machine, then, when it has left, the others: for downloads."""
        if self.count > 1 and local_rank() > 0:
            self.gather(None)
        yield
        if self.count > 1 and local_rank() == 0:
            self.gather(None)

    def align(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite every tensor with that of rank 0."""
        if self.count == 1:
            return
        for tensor in tensors:
            # Any layout and any type: what travels is bytes.
            content = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
            with _talking():
                dist.broadcast(content, 0)
            tensor.data.copy_(content.view(tensor.dtype).view(tensor.shape))

    def backward(self, loss: Tensor, module: nn.Module, images: int) -> float:
        """Gradients of the mean loss over the whole batch.

        Args:
            loss: scalar, mean over this rank's ``images``.

        Returns:
            The mean loss over the images of all ranks.
        """
        if self.count == 1:
            torch.autograd.backward(loss)
            return float(loss.detach())
        with _talking():
            torch.autograd.backward(loss * images)
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            own = torch.stack([loss.detach().float() * images, loss.new_tensor(images, dtype=torch.float32)])
            flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), own])
            dist.all_reduce(flat)
            total, count = flat[-2:].tolist()
        flat /= count
        parts = torch.split(flat, [*(gradient.numel() for gradient in gradients), 2])
        for gradient, mean in zip(gradients, parts, strict=False):
            gradient.copy_(mean.view(gradient.shape))
        return float(total / count)

    @contextmanager
    def whole_batch(self, module: nn.Module) -> Iterator[None]:
        """Inside, layers that look at a whole batch (BatchNorm, dropout) see that of all ranks."""
        if self.count == 1:
            yield
        else:
            with _talking(), batch_layers(module, self.rank, self.count):
                yield


ALONE = Ranks()
_current = ALONE


@contextmanager
def joined() -> Iterator[Ranks]:
    """Inside, this process takes part in the job that torchrun described in the environment, if there is one.

    Raises:
        JobError: the other processes cannot be reached.
    """
    global _current
    described = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))
    if not described or os.environ["WORLD_SIZE"] == "1" or dist.is_initialized():
        yield _current
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    with _talking():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE
        )
    _current = Ranks(dist.get_rank(), dist.get_world_size())
    try:
        yield _current
    except BaseException:
        _current = ALONE
        raise  # leaving in order needs the others
    _current = ALONE
    dist.destroy_process_group()


def current() -> Ranks:
    """This process among those of its job, inside `joined`; otherwise one of its own."""
    return _current


def local_rank() -> int:
    """Number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def processes_here() -> int:
    """Processes of the job on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextmanager
def _talking() -> Iterator[None]:
    """Turns whatever a backend raises when another rank is gone into a `JobError`."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if isinstance(error, dist.DistError) or any(word in text for word in ("gloo", "NCCL", "peer")):
            raise JobError("another process of this job has ended or does not answer") from error
        raise
