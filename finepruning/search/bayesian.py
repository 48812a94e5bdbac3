"""Bayesian optimization with BoTorch: global for few layers, in a trust region for many."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from finepruning.search.space import Space
from finepruning.search.trial import Proposal, Trial
from finepruning.seeding import derive_seed

MAX_GLOBAL_DIMENSIONS = 24
"""With more layers than this, proposals stay in a trust region around the best trial (TuRBO)."""

MAX_JOINT_POINTS = 4
"""Proposals of a batch are optimized jointly up to this number."""

_DIGITS = 3
"""Decimals that the Gaussian process sees: below them is float noise, which proposals would amplify."""

_LOWEST_LOSS = 1e-3
"""Losses below are equal: their logarithms would be far from all others and tell nothing."""

_CANDIDATES = 1024
_FIRST_LENGTH, _SHORTEST, _LONGEST = 0.4, 0.02, 1.0
_SUCCESSES_TO_GROW, _FAILURES_TO_SHRINK = 2, 3


class BayesianSearch:
    """Gaussian process over the unit cube, fitted anew to the history before each batch of proposals.

    "budget" models log(loss) with BoTorch's `SingleTaskGP` and maximises qLogNEI, over all points of a batch
    jointly; "paper" models the objective with an ARD Matern-5/2 kernel and maximises LogEI, or qLogEI for a
    batch.
    """

    def __init__(self, space: Space, seed: int, previous: Sequence[float] | None = None) -> None:
        self._space = space
        self._seed = seed
        self._starts = space.starts(previous)

    @property
    def starts(self) -> int:
        return len(self._starts)

    def propose(self, history: Sequence[Trial], count: int) -> list[Proposal]:
        index = len(history)
        if index < len(self._starts):
            return self._starts[index : index + count]
        from botorch.utils.sampling import manual_seed

        with warnings.catch_warnings(), manual_seed(derive_seed(self._seed, "bayesian", index) % (1 << 32)):
            warnings.simplefilter("ignore")
            points = self._best_candidates(history, count)
        return [Proposal(self._space.canonical(x.tolist()), "search") for x in points]

    def _best_candidates(self, history: Sequence[Trial], count: int) -> Tensor:
        from botorch.exceptions.errors import ModelFittingError
        from botorch.fit import fit_gpytorch_mll
        from botorch.optim.optimize import optimize_acqf, optimize_acqf_discrete
        from gpytorch.mlls import ExactMarginalLogLikelihood

        X = torch.tensor([trial.x for trial in history], dtype=torch.float64)
        Y = -torch.tensor([[self._target(trial)] for trial in history], dtype=torch.float64)
        model = self._model(X, Y)
        try:
            fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        except ModelFittingError:  # no covariance is positive definite: points too near each other
            model = self._model(X, Y)
            model.eval()
        acquisition = self._acquisition(model, X, Y, count)
        if self._space.dimensions <= MAX_GLOBAL_DIMENSIONS:
            bounds = torch.stack([torch.zeros_like(X[0]), torch.ones_like(X[0])])
            # Beyond a few points their joint optimum has too many dimensions: one point after the other then.
            x, _ = optimize_acqf(
                acquisition,
                bounds,
                q=count,
                num_restarts=4,
                raw_samples=128,
                sequential=count > MAX_JOINT_POINTS,
            )
        else:
            choices = self._trust_region(X, Y, model)
            x, _ = optimize_acqf_discrete(acquisition, q=count, choices=choices, max_batch_size=256)
        return x.detach()

    def _target(self, trial: Trial) -> float:
        if self._space.name == "paper":
            return round(trial.objective, _DIGITS)
        return round(math.log(max(trial.objective, _LOWEST_LOSS)), _DIGITS)

    def _model(self, X: Tensor, Y: Tensor):  # type: ignore[no-untyped-def]
        from botorch.models import SingleTaskGP
        from botorch.models.transforms import Standardize
        from gpytorch.kernels import MaternKernel, ScaleKernel

        kernel = None
        if self._space.name == "paper":
            kernel = ScaleKernel(MaternKernel(nu=2.5, ard_num_dims=X.shape[1]))
        return SingleTaskGP(X, Y, covar_module=kernel, outcome_transform=Standardize(m=1))

    def _acquisition(self, model, X: Tensor, Y: Tensor, count: int):  # type: ignore[no-untyped-def]
        from botorch.acquisition.analytic import LogExpectedImprovement
        from botorch.acquisition.logei import qLogExpectedImprovement, qLogNoisyExpectedImprovement

        if self._space.name == "paper" and count > 1:
            return qLogExpectedImprovement(model, best_f=Y.max())
        if self._space.name == "paper":
            return LogExpectedImprovement(model, best_f=Y.max())
        return qLogNoisyExpectedImprovement(model, X_baseline=X, prune_baseline=True)

    def _trust_region(self, X: Tensor, Y: Tensor, model) -> Tensor:  # type: ignore[no-untyped-def]
        """Candidates around the best point, changing about 20 coordinates each (Eriksson et al., 2019)."""
        from torch.quasirandom import SobolEngine

        dimensions = X.shape[1]
        center = X[int(Y.argmax())]
        length = trust_region_length(Y.squeeze(1).tolist(), len(self._starts))
        scale = _relative_lengthscales(model, dimensions)
        low = (center - length * scale / 2).clamp(0, 1)
        high = (center + length * scale / 2).clamp(0, 1)
        seed = int(torch.randint(1 << 31, (1,)))
        engine = SobolEngine(dimensions, scramble=True, seed=seed)  # type: ignore[no-untyped-call]
        sobol = engine.draw(_CANDIDATES, dtype=torch.float64)
        change = torch.rand(_CANDIDATES, dimensions) < min(1.0, 20.0 / dimensions)
        change[torch.arange(_CANDIDATES), torch.randint(dimensions, (_CANDIDATES,))] = True
        return torch.where(change, low + (high - low) * sobol, center)


def trust_region_length(values: Sequence[float], starts: int) -> float:
    """Side of the trust region after the trials so far, of which the first ``starts`` were given.

    It doubles after successes in a row and halves after failures in a row; values are maximised.
    """
    length, successes, failures = _FIRST_LENGTH, 0, 0
    top = max(values[:starts])
    for value in values[starts:]:
        if value > top + 1e-3 * abs(top):
            successes, failures = successes + 1, 0
        else:
            successes, failures = 0, failures + 1
        top = max(top, value)
        if successes == _SUCCESSES_TO_GROW:
            length, successes = min(2 * length, _LONGEST), 0
        elif failures == _FAILURES_TO_SHRINK:
            length, failures = length / 2, 0
        if length < _SHORTEST:
            length = _FIRST_LENGTH
    return length


def _relative_lengthscales(model, dimensions: int) -> Tensor:  # type: ignore[no-untyped-def]
    kernel = model.covar_module
    lengthscale = getattr(kernel, "base_kernel", kernel).lengthscale.detach().reshape(-1)
    scale: Tensor = torch.ones(dimensions, dtype=torch.float64) * lengthscale
    return torch.clamp(scale / scale.log().mean().exp(), 0.25, 4.0)
