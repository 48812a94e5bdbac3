"""The fine-pruning loop: dense fine-tuning, rounds of search and fine-tuning, a final phase.

The loop is a fixed list of phases, each of a known number of steps (epochs or trials). After every step
its state goes to disk; a resumed loop starts at the step after the last one saved.
"""

from __future__ import annotations

import functools
import math
import random
import time
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from finepruning import search_images
from finepruning.config import CompressConfig
from finepruning.data import Splits
from finepruning.errors import RunError, TrainingError
from finepruning.good_state import GoodState, dense_network
from finepruning.loop_state import LoopState, from_tensors, live_tensors, to_tensors
from finepruning.phases import Facts, Phase, attack, gentler, learning_rate, phases, recipe
from finepruning.progress import Progress
from finepruning.pruning import (
    ALLOCATION_RULES,
    Surgery,
    kept,
    prunable_layers,
    theta_for,
    update_probability,
)
from finepruning.run import DENSE, STATE, RunDirectory
from finepruning.search import (
    BayesianSearch,
    BudgetSpace,
    LookAhead,
    Objective,
    PaperSpace,
    RandomSearch,
    Search,
    Space,
    Trial,
    best,
    new_trials,
)
from finepruning.seeding import derive_seed
from finepruning.targets import Recut, Target
from finepruning.tensorboard_log import TensorBoardLog
from finepruning.training import (
    Evaluation,
    StartingPoint,
    WeightAverage,
    distributed,
    ensemble,
    evaluate,
    make_optimizer,
    remembered_by,
    sensitivities,
    set_dropout,
    train_epoch,
)


class Loop:
    """Runs the phases on one network; see `run`."""

    def __init__(
        self,
        config: CompressConfig,
        module: nn.Module,
        splits: Splits,
        run: RunDirectory,
        progress: Progress,
        target: Target,
    ) -> None:
        """``config`` is resolved. ``module`` is trained in place. State found in ``run`` is taken up."""
        assert config.device is not None
        self.config = config
        self.splits = splits
        self.module = module
        self.layers = prunable_layers(module)
        self._target = target
        self._run = run
        self._progress = progress
        self._phases = phases(config)
        self._device = torch.device(config.device)
        self._ranks = distributed.current()
        self._state = LoopState()
        self._teacher: nn.Module | None = None
        self._start = StartingPoint(module, config.l2_sp) if config.l2_sp > 0 else None
        self._origin = {n: v.clone() for n, v in module.state_dict().items()} if config.wise_ft else None
        self._attack = attack(config, splits)
        self._good = GoodState(run, module, self.layers, self._device)
        self.facts = Facts(target=target.state)
        self._restore()
        if self.facts.from_run is not None:
            target.start = self.facts.from_run["density"]
        self._board = TensorBoardLog(run.path) if config.tensorboard and self._ranks.main else None

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch; an incomplete last one is left out."""
        return max(1, len(self.splits.train) // self.config.batch_size)

    def plan(self) -> list[tuple[str, int]]:
        """Phases and their number of units, for `Progress.plan`."""
        trials = 1 if self.config.search == "none" else self.config.trials
        return [
            (phase.title, trials if phase.kind == "search" else phase.epochs * self.steps_per_epoch)
            for phase in self._phases
        ]

    def run(self) -> None:
        """Run what is left of the phases. Ends with the pruned network in ``module``."""
        while self.facts.phase < len(self._phases):
            phase = self._phases[self.facts.phase]
            self._progress.start(phase.title)
            if phase.kind == "search":
                self._choose(phase)
            else:
                self._tune(phase)
            self.facts.phase, self.facts.step = self.facts.phase + 1, 0
            self._state.optimizer = {}
            self._save()
            self._good.forget_before(self._target.state.get("good", 0))
        if self._board is not None:
            self._board.close()

    # --- choosing where to prune ---------------------------------------------------------------

    def _choose(self, phase: Phase) -> None:
        started = time.perf_counter()
        if self._state.surgery is None:
            self._state.surgery = Surgery(self.layers)
        surgery, facts = self._state.surgery, self.facts
        if self.config.saliency == "fisher":
            images = search_images.fisher(self.config, self.splits, phase.round)
            surgery.sensitivity = sensitivities(
                self.module, self.layers, images, recipe(self.config, phase, self._device)
            )
        self._target.begin(phase.round, surgery.saliency())
        entry: dict[str, Any] = {
            "round": phase.round,
            "budget": self._target.density,
            "search": self.config.search,
            "trials": 0,
            "best_loss": None,
            "baseline_loss": None,
        }
        first = None
        if self.config.search == "none" and self.config.allocation == "kept":
            assert facts.previous is not None
            facts.theta, first = facts.previous, surgery.masks
            self._progress.advance()
        elif self.config.search == "none":
            saliency = surgery.saliency()
            counts = ALLOCATION_RULES[self.config.allocation](saliency, kept(self._target.keep, saliency))
            facts.theta = theta_for(saliency, counts)
            self._progress.advance()
        else:
            trials = self._search(phase, surgery)
            chosen = best(trials)
            facts.theta = list(chosen.theta)
            entry |= {
                "trials": len(trials),
                "best_loss": chosen.loss,
                "baseline_loss": trials[0].loss,
            }
            self._progress.message(
                f"{phase.title}: {len(trials)} trials, validation loss {trials[0].loss:.3f} (global) -> "
                f"{chosen.loss:.3f} ({chosen.kind})"
            )
        cut = functools.partial(surgery.cut, facts.theta, first=first)
        cut(self._target.keep)
        if phase.round == self.config.rounds:
            self._target.state |= self._ranks.share(functools.partial(self._settle, cut))
        if self._board is not None:
            masks = zip(self.layers, surgery.masks, strict=True)
            self._board.round(phase.round, {name: float(mask.float().mean()) for name, mask in masks})
        facts.rounds.append(entry)
        facts.spliced = 0
        facts.seconds["search"] += time.perf_counter() - started

    def _settle(self, cut: Recut) -> dict[str, Any]:
        self._target.settle(self.module, cut)
        return self._target.state

    def _search(self, phase: Phase, surgery: Surgery) -> list[Trial]:
        config, saliency, keep = self.config, surgery.saliency(), self._target.keep
        space: Space
        if config.search == "paper":
            trade_off = config.paper_lambda * phase.round / config.rounds
            space = PaperSpace(saliency, kept(keep, saliency), trade_off)
        else:
            space = BudgetSpace(saliency, keep, config.theta_bound)
        seed = derive_seed(config.seed, "search", phase.round)
        make = RandomSearch if config.search == "random" else BayesianSearch
        search: Search = make(space, seed, self.facts.previous)
        objective = Objective(
            self.module,
            surgery,
            space,
            search_images.scoring(config, self.splits),
            search_images.calibration(config, self.splits, self.module),
            recipe(self.config, phase, self._device),
            self._look_ahead(phase),
        )
        trials = [trial for trial in self._run.trials() if trial.round == phase.round]
        self._progress.advance(len(trials))
        judge = functools.partial(objective, phase.round)
        size = config.proposals or 1
        for trial in new_trials(search, judge, trials, config.trials, size, self._ranks):
            self._run.append_trial(trial)
            if self._board is not None:
                self._board.trial((phase.round - 1) * config.trials + len(trials) + 1, trial)
            trials.append(trial)
            self._progress.advance(loss=trial.loss, best=best(trials).loss)
        return trials

    def _look_ahead(self, phase: Phase) -> LookAhead | None:
        if self.config.look_ahead == 0:
            return None
        self._need_teacher()
        return search_images.look_ahead(self.config, self.splits, phase.round, self._teacher)

    # --- fine-tuning ---------------------------------------------------------------------------

    def _tune(self, phase: Phase) -> None:
        self._begin(phase)
        optimizer = self._optimizer(phase)
        for epoch in range(self.facts.step, phase.epochs):
            self._epoch(phase, epoch, optimizer)
            self.facts.step = epoch + 1
            self._state.optimizer = remembered_by(optimizer)
            if self.facts.step < phase.epochs:
                self._save()
        self._end(phase)

    def _begin(self, phase: Phase) -> None:
        surgery = self._state.surgery
        if surgery is not None and (phase.kind == "final" or not self.config.splicing):
            surgery.freeze()
        if phase.kind != "dense":
            self._need_teacher()
            if self.config.prune_dropout is not None:
                set_dropout(self.module, self.config.prune_dropout)
        if phase.kind == "final" and self.config.ema > 0 and self._state.average is None:
            self._state.average = WeightAverage(self.module, self.config.ema)
        self._progress.advance(self.facts.step * self.steps_per_epoch)
        self._ranks.align(live_tensors(self.module, self._state))

    def _epoch(self, phase: Phase, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        started = time.perf_counter()
        config, steps, surgery = self.config, self.steps_per_epoch, self._state.surgery
        place = (phase.kind, phase.round, epoch)
        torch.manual_seed(derive_seed(config.seed, "network", *place))  # dropout draws from the global one
        draw = random.Random(derive_seed(config.seed, "surgery", *place))
        rate = learning_rate(config, phase, epoch, steps)

        def after_step(step: int, loss: float) -> None:
            if phase.kind == "round" and config.splicing:
                chance = update_probability(epoch * steps + step, config.surgery_gamma, config.surgery_power)
                if draw.random() < chance:
                    assert surgery is not None
                    self.facts.spliced += surgery.update(self.facts.theta, self._target.keep)
                    self._ranks.align(live_tensors(self.module, self._state))
            if self._state.average is not None:
                self._state.average.update()
            self._progress.advance(loss=loss)

        try:
            loss = train_epoch(
                self.module,
                optimizer,
                self.splits.train.batches(
                    config.batch_size,
                    shuffle=derive_seed(config.seed, "images", *place),
                    augment=True,
                    drop_last=True,
                    part=self._ranks.part,
                ),
                recipe(self.config, phase, self._device),
                rate,
                surgery=surgery,
                teacher=self._teacher,
                start=self._start,
                attack=self._attack,
                after_step=after_step,
                ranks=self._ranks,
            )
            result = self._validate()
            if not math.isfinite(result.loss):
                raise TrainingError(f"the validation loss became {result.loss}")
        except TrainingError as error:
            raise TrainingError(
                f"{phase.title}, epoch {epoch + 1}: {error}. The last good state is kept: continue from it "
                f"with --resume {self._run.path} {gentler(config, phase)}"
            ) from None
        seconds = time.perf_counter() - started
        self._record(phase, epoch, loss, result, rate(0), seconds)

    def _record(
        self, phase: Phase, epoch: int, loss: float, result: Evaluation, rate: float, seconds: float
    ) -> None:
        key = {"dense": "dense", "round": "fine_tune", "final": "final"}[phase.kind]
        self.facts.seconds[key] += seconds
        self.facts.history.append(
            {
                "phase": phase.kind,
                "round": phase.round,
                "epoch": epoch + 1,
                "train_loss": loss,
                "validation_loss": result.loss,
                "validation_accuracy": result.accuracy,
                "lr": rate,
                "density": self._density(),
                "seconds": seconds,
            }
        )
        if self._board is not None:
            self._board.epoch(len(self.facts.history), self.facts.history[-1])
        self._progress.message(
            f"{phase.title}, epoch {epoch + 1}/{phase.epochs}: train loss {loss:.3f}, validation loss "
            f"{result.loss:.3f}, accuracy {result.accuracy:.3f}"
        )

    def _end(self, phase: Phase) -> None:
        """Note how the phase ended; without an epoch in it, the network is validated as it is."""
        if phase.kind == "final":
            surgery = self._state.surgery
            assert surgery is not None
            with surgery.dense():
                if self._state.average is not None:
                    self._state.average.apply()
                    self._state.average = None
                if self._origin is not None:
                    found = ensemble(
                        self.module, self._origin, surgery.mask_of, lambda: self._validate().loss
                    )
                    self.facts.alpha = found
            if phase.epochs and self.config.max_accuracy_drop is not None:
                self._judge(phase.round + 1, self._validate().accuracy)
            return
        if phase.epochs:
            last = self.facts.history[-1]
            figures = {key: last[key] for key in ("validation_loss", "validation_accuracy")}
        else:
            result = self._validate()
            figures = {"validation_loss": result.loss, "validation_accuracy": result.accuracy}
        if phase.kind == "dense":
            self.facts.dense = figures
            self._run.write_tensors(DENSE, self.module.state_dict(), figures)
            self._judge(0, figures["validation_accuracy"])
            return
        self.facts.rounds[-1] |= {**figures, "density": self._density(), "spliced": self.facts.spliced}
        self.facts.previous = self.facts.theta
        self.facts.rounds[-1]["held"] = self._judge(phase.round, figures["validation_accuracy"])

    def _judge(self, number: int, accuracy: float) -> bool | None:
        """Remember the state after this round, or go back to the last one remembered, as the target says."""
        wanted = self._target.judge(number, accuracy, self._density())
        if wanted:
            self._good.keep(number, self._state)
        elif wanted is not None:
            self._state = self._good.restore(self._target.state["good"])
        return wanted

    def _validate(self) -> Evaluation:
        batches = self.splits.validation.batches(self.config.batch_size)
        with self._state.average.applied() if self._state.average is not None else nullcontext():
            return evaluate(self.module, batches, self._device, self.config.precision, self._ranks)

    def _density(self) -> float:
        if self._state.surgery is None:
            return 1.0
        return self._state.surgery.kept / sum(weight.numel() for weight in self.layers.values())

    def _optimizer(self, phase: Phase) -> torch.optim.Optimizer:
        """The phase's optimizer, in the state it was saved in."""
        config = self.config
        return make_optimizer(
            config.optimizer,
            list(self.module.parameters()),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            remembered=self._state.optimizer,
        )

    def _need_teacher(self) -> None:
        if self.config.distillation > 0 and self._teacher is None:
            self._teacher = dense_network(self._run, self.module).eval().requires_grad_(False)

    # --- state ---------------------------------------------------------------------------------

    def _save(self) -> None:
        average = self._state.average
        self.facts.averaged = 0 if average is None else average.updates
        tensors = to_tensors(self.module, self.layers, self._state)
        self._run.write_tensors(STATE, tensors, vars(self.facts))

    def _restore(self) -> None:
        stored = self._run.read_tensors(STATE)
        if stored is None:
            return
        tensors, facts = stored
        self.facts = Facts(**facts)
        if self.facts.target:
            self._target.state = self.facts.target
        else:  # the beginning of a run that starts from another
            self.facts.target = self._target.state
        try:
            self._state = from_tensors(
                tensors,
                self.module,
                self.layers,
                self._device,
                ema=self.config.ema,
                averaged=self.facts.averaged,
            )
        except RuntimeError:
            raise RunError(
                f"{self._run.path / STATE} holds another network than this run's data and model give now "
                "(did the number of classes change?); restore the data, or start a new run"
            ) from None
