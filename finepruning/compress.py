"""`finepruning compress`: from a data set and a network to a run directory with a sparse model in it."""

from __future__ import annotations

import dataclasses
import sys
import time
import types
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from finepruning import continuation, data, models, tensorboard_log
from finepruning.config import CHANGEABLE, DEFAULT_DENSITY, TARGETS, CompressConfig
from finepruning.environment import describe_environment
from finepruning.errors import ArgumentError, DataError, DeviceError, FinepruningError, RunError
from finepruning.job import check_job, job
from finepruning.loop import Loop
from finepruning.memory import memory_errors
from finepruning.outcome import finish, sparse_model, split_sizes
from finepruning.phases import Phase, phases
from finepruning.progress import NoProgress, Progress
from finepruning.pruning import kept, prunable_layers
from finepruning.ranked_run import create_run, open_run
from finepruning.run import DATA, DENSE, REPORT, STATE, RunDirectory, check_new, default_path
from finepruning.targets import Target, choose
from finepruning.training import distributed, resolve_precision

if TYPE_CHECKING:
    from finepruning.sparse.storage import StoredModel

EXPORT = "export and test"
_MORE_MEMORY = (
    "what was saved is intact: free memory and continue with --resume, or start again with a smaller "
    "--batch-size, --image-size or --workers"
)


class Interrupted(FinepruningError):  # noqa: N818  (it is no failure)
    """The run was interrupted by the user; it can be resumed from ``run_dir``."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(f"interrupted; continue with --resume {run_dir}")
        self.run_dir = run_dir


def compress(
    config: CompressConfig,
    *,
    progress: Progress | None = None,
    resume: Path | None = None,
    changes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Fine-tune and prune a network, and write the run directory.

    Args:
        config: what to do. With ``resume`` the run's own ``config.yaml`` decides, and this is ignored.
        progress: is told what happens.
        resume: a run directory to continue after the last epoch or trial it completed. On the CPU, with
            the same number of threads, the result is the one an uninterrupted run would have had. A
            finished run is left as it is.
        changes: with ``resume``, options of `CHANGEABLE` that the run goes on with and keeps.

    Returns:
        The report, as in ``report.json``.

    Raises:
        ArgumentError, ModelFileError: before anything is written.
        DataError: also where an image can no longer be read.
        DeviceError: there is no such device, or memory does not suffice.
        RunError: the run directory cannot be written, read or taken up.
        TrainingError: the loss became NaN or infinite.
        Interrupted: on KeyboardInterrupt, once there is a run to resume.
    """
    with distributed.joined() as ranks, _own_random_numbers(), memory_errors(_MORE_MEMORY):
        progress = progress if progress is not None and ranks.main else NoProgress()
        if resume is not None:
            return _resume(Path(resume), progress, changes or {})
        resolved = ranks.share(lambda: resolve(config))
        assert resolved.out is not None
        assert resolved.device is not None
        ranks.share(lambda: check_new(Path(resolved.out or "")))
        splits, network = _prepare_new(resolved, progress)
        target = _target(resolved, splits, network, progress)
        with create_run(ranks, resolved, describe_environment(resolved.device)) as run:
            run.write_json(DATA, _content(splits))
            return _run(resolved, splits, network, target, run, progress)


def dry_run(config: CompressConfig) -> dict[str, Any]:
    """What `compress` would do, without doing or writing it.

    Returns:
        ``config`` (resolved), ``from_run`` (as in the report), ``classes``, ``images`` a split,
        ``messages``, ``layers`` (name, shape, size), ``rounds`` (round, budget, weights) and
        ``estimate_seconds`` (from timing two training steps).
    """
    resolved = resolve(config)
    with torch.random.fork_rng(devices=[]):
        splits, network = _prepare_new(resolved, NoProgress())
        layers = prunable_layers(network.module)
        target = _target(resolved, splits, network, NoProgress())
        begun = None
        if resolved.from_run is not None:
            begun = continuation.read(Path(resolved.from_run)).facts.from_run
            target.start = begun["density"] if begun is not None else 1.0
        sizes = [{"name": n, "shape": list(w.shape), "size": w.numel()} for n, w in layers.items()]
        return {
            "config": dataclasses.asdict(resolved),
            "from_run": begun,
            "classes": list(splits.classes),
            "images": split_sizes(splits),
            "messages": [*splits.messages, *network.messages],
            "layers": sizes,
            "rounds": _planned_rounds(resolved, target, layers),
            "estimate_seconds": _estimate(resolved, splits, network.module),
        }


def _planned_rounds(
    config: CompressConfig, target: Target, layers: dict[str, nn.Parameter]
) -> list[dict[str, Any]]:
    """What each round keeps if the weights stay as they are and accuracy always holds."""
    rounds = []
    magnitudes = [weight.detach().abs() for weight in layers.values()]
    target.judge(0, 1.0, 1.0)
    for number in range(1, config.rounds + 1):
        target.begin(number, magnitudes)
        weights = kept(target.keep, magnitudes)
        rounds.append({"round": number, "budget": target.density, "weights": weights})
        target.judge(number, 1.0, target.density)
    return rounds


def resolve(config: CompressConfig) -> CompressConfig:
    """Replace every None and "auto" by what it means here, and paths by absolute ones.

    Raises:
        ArgumentError: unknown model, options that are not those of ``from_run``, no TensorBoard.
        DeviceError: there is no such device. RunError: ``from_run`` is no finished run.
    """
    name = models.resolve(config.model)
    device = _device(config.device)
    source = None if config.from_run is None else str(Path(config.from_run).expanduser().resolve())
    folder = config.data is not None and not config.data.lower().startswith("torchvision:")
    in_file = config.weights not in ("default", "none")
    targeted = any(getattr(config, name) is not None for name in TARGETS)
    resolved = dataclasses.replace(
        config,
        from_run=source,  # not a link such as runs/latest, which will point elsewhere soon
        target_density=config.target_density if targeted else DEFAULT_DENSITY,
        data=str(Path(config.data).expanduser().absolute()) if folder and config.data else config.data,
        model=name,
        weights=str(Path(config.weights).expanduser().absolute()) if in_file else config.weights,
        prune_lr=config.lr if config.prune_lr is None else config.prune_lr,
        prune_max_grad_norm=(
            config.max_grad_norm if config.prune_max_grad_norm is None else config.prune_max_grad_norm
        ),
        precision=resolve_precision(config.precision, device),
        proposals=config.proposals or distributed.current().count,
        image_size=config.image_size or models.input_spec(name).image_size,
        device=str(device),
        out=str((Path(config.out) if config.out else default_path(name)).expanduser().absolute()),
    )
    if source is not None:
        continuation.check(resolved)
    if config.tensorboard:
        tensorboard_log.check_installed()
    return resolved


def _own_random_numbers() -> AbstractContextManager[None]:
    """Inside, random numbers are drawn without a change to the caller's."""
    return torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else [])


def _resume(path: Path, progress: Progress, changes: Mapping[str, Any]) -> dict[str, Any]:
    ranks = distributed.current()
    with open_run(ranks, path) as run:
        report = run.report()
        if report is not None:
            progress.message(f"{run.path} is finished already; its report is {run.path / REPORT}")
            return report
        config = _changed(dataclasses.replace(run.config(), out=str(run.path)), changes)
        _device(config.device)
        threads = run.environment().get("threads")
        if threads != torch.get_num_threads():
            progress.message(
                f"this run began with {threads} threads and goes on with {torch.get_num_threads()}: "
                "the result can differ in rounding"
            )
        own = run.path / DENSE
        copied = config.from_run is not None and config.weights != "none" and own.exists()
        # The run that this one started from may be gone by now.
        splits, network = _prepare(
            dataclasses.replace(config, weights=str(own)) if copied else config, progress
        )
        _check_unchanged(run, splits)
        if changes:
            run.write_config(config)
            progress.message(f"goes on with {', '.join(f'{n} {getattr(config, n):g}' for n in changes)}")
        return _run(config, splits, network, _target(config, splits, network, progress), run, progress)


def _changed(config: CompressConfig, changes: Mapping[str, Any]) -> CompressConfig:
    if unknown := [name for name in changes if name not in CHANGEABLE]:
        raise ArgumentError(
            f"a run goes on with its own {', '.join(unknown)}; only {', '.join(CHANGEABLE)} can change"
        )
    values = dict(changes)
    for name, of_pruning in (("lr", "prune_lr"), ("max_grad_norm", "prune_max_grad_norm")):
        if name in values and getattr(config, name) == getattr(config, of_pruning):
            values.setdefault(of_pruning, values[name])  # it was left to follow
    return dataclasses.replace(config, **values)


def _content(splits: data.Splits) -> dict[str, Any]:
    return {"name": splits.name, "classes": list(splits.classes), "images": split_sizes(splits)}


def _check_unchanged(run: RunDirectory, splits: data.Splits) -> None:
    """Raise RunError where the data is not what the run was started on."""
    then, now = run.data(), _content(splits)
    if then is None or then == now:
        return
    if then["classes"] != now["classes"]:
        gone = [name for name in then["classes"] if name not in now["classes"]]
        new = [name for name in now["classes"] if name not in then["classes"]]
        change = f"{len(then['classes'])} classes then, {len(now['classes'])} now" + "".join(
            f"; {word}: {', '.join(names[:3])}" for word, names in (("gone", gone), ("new", new)) if names
        )
    else:
        change = f"images then {then['images']}, now {now['images']}"
    raise RunError(
        f"{splits.name} has changed since the run {run.path} began ({change}); restore it, or start a new run"
    )


def _prepare_new(config: CompressConfig, progress: Progress) -> tuple[data.Splits, models.Network]:
    splits, network = _prepare(config, progress)
    if config.from_run is not None:
        _check_unchanged(RunDirectory.peek(Path(config.from_run)), splits)
    return splits, network


def _prepare(config: CompressConfig, progress: Progress) -> tuple[data.Splits, models.Network]:
    spec = models.input_spec(config.model)
    assert config.image_size is not None
    check_job(config)
    with distributed.current().in_turn():
        splits = data.load(
            config.data,
            image_size=config.image_size,
            mean=spec.mean,
            std=spec.std,
            seed=config.seed,
            workers=config.workers,
            augmentation=config.augmentation,
            cache_limit=data.CACHE_LIMIT // distributed.processes_here(),
        )
    network = models.create(
        config.model, len(splits.classes), config.weights, config.seed, image_size=config.image_size
    )
    for message in [*splits.messages, *network.messages]:
        progress.message(message)
    network.module.to(torch.device(config.device or "cpu"), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return splits, network


def _run(
    config: CompressConfig,
    splits: data.Splits,
    network: models.Network,
    target: Target,
    run: RunDirectory,
    progress: Progress,
) -> dict[str, Any]:
    try:

        def end() -> dict[str, Any]:
            target.trim(network.module)
            with run.on_main().writing():
                return finish(config, splits, network, target, run.on_main(), loop, progress)

        with job(run.path):
            ranks = distributed.current()
            if config.from_run is not None and run.read_tensors(STATE) is None:
                ranks.share(lambda: continuation.begin(config, run.on_main()))
            loop = Loop(config, network.module, splits, run, progress, target)
            progress.plan([*loop.plan(), (EXPORT, 3)])
            loop.run()
            progress.start(EXPORT)
            return ranks.share(end)
    except KeyboardInterrupt:
        raise Interrupted(run.path) from None
    except DataError as error:  # every image was intact when the run began
        raise DataError(f"{error}; restore it and continue with --resume {run.path}") from error


def _target(
    config: CompressConfig, splits: data.Splits, network: models.Network, progress: Progress
) -> Target:
    def capture(module: nn.Module) -> StoredModel:
        return sparse_model(config, splits, network).stored

    with distributed.current().in_turn():  # a measurement disturbs another; later ones find its result
        return choose(config, network.module, capture, progress.message)


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"device {name!r} is unknown; use cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"device {name!r} is not supported; use cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise DeviceError(f"device {name!r}: this machine has {found} CUDA devices; use --device cpu")
    return device


def _estimate(config: CompressConfig, splits: data.Splits, module: nn.Module) -> float:
    """Seconds of training and searching, from the second of two training steps."""
    device = torch.device(config.device or "cpu")
    x, y = next(splits.train.batches(config.batch_size, shuffle=0))
    x, y = x.to(device, memory_format=torch.channels_last), y.to(device)
    module.train()
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            logits: Tensor = module(x)
        torch.autograd.backward(nn.functional.cross_entropy(logits.float(), y))
        seconds = time.perf_counter() - started
    planned: list[Phase] = phases(config)
    images = sum(phase.epochs for phase in planned) * (len(splits.train) + len(splits.validation) / 3)
    trials = 0 if config.search == "none" else config.rounds * config.trials
    images += trials * min(config.search_images, len(splits.validation)) / 3
    return seconds * images / len(y)


class _Callable(types.ModuleType):
    """Lets ``finepruning.compress(config)`` mean the function, whoever imported this module first."""

    __call__ = staticmethod(compress)


sys.modules[__name__].__class__ = _Callable
