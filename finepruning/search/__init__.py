"""Search for the layers' pruning parameters."""

from finepruning.search.batches import new_trials
from finepruning.search.bayesian import BayesianSearch, trust_region_length
from finepruning.search.objective import LookAhead, Objective
from finepruning.search.random_search import RandomSearch
from finepruning.search.space import BudgetSpace, PaperSpace, Space
from finepruning.search.trial import Proposal, Search, Trial, best

__all__ = [
    "BayesianSearch",
    "BudgetSpace",
    "LookAhead",
    "Objective",
    "PaperSpace",
    "Proposal",
    "RandomSearch",
    "Search",
    "Space",
    "Trial",
    "best",
    "new_trials",
    "trust_region_length",
]
