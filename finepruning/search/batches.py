"""Trials in batches: proposed together, evaluated at the same time where there are several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from finepruning.search.trial import Proposal, Search, Trial
from finepruning.training.distributed import Ranks


def batch_at(done: int, starts: int, size: int) -> tuple[int, int]:
    """First trial of the batch that trial ``done`` is in, and the one after its last.

    Batches have ``size`` trials, except that none holds both a given start and a proposal that depends on
    what came before. They are a function of the number of the trial alone: a search that was stopped within a
    batch goes on with the same proposals.
    """
    if done < starts:
        begin = done - done % size
        return begin, min(begin + size, starts)
    begin = done - (done - starts) % size
    return begin, begin + size


def new_trials(
    search: Search,
    evaluate: Callable[[Proposal, int], Trial],
    history: Sequence[Trial],
    total: int,
    size: int,
    ranks: Ranks,
) -> Iterator[Trial]:
    """Go on after ``history`` up to ``total`` trials.

    Rank 0 proposes ``size`` candidates at a time, jointly; each rank evaluates one of them, and all ranks get
    all trials, in the order of their index.

    Args:
        evaluate: a proposal and its index -> the trial.
    """
    trials = list(history)
    while len(trials) < total:
        begin, end = batch_at(len(trials), search.starts, size)
        end = min(end, total)
        before = trials[:begin]
        proposals = ranks.share(lambda before=before, count=end - begin: search.propose(before, count))  # type: ignore[misc]
        while len(trials) < end:
            mine = len(trials) + ranks.rank
            found = ranks.gather(evaluate(proposals[mine - begin], mine) if mine < end else None)
            for trial in found:
                if trial is not None:
                    trials.append(trial)
                    yield trial
