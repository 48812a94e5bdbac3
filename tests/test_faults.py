"""What goes wrong around a run: no space, no permission, no memory, damaged images, a clock that jumps."""

from __future__ import annotations

import errno
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import tiny_config, tiny_runs
from torch import Tensor, nn

from finepruning import SparseModel, data, models
from finepruning.cli import run as command
from finepruning.compress import Interrupted, compress
from finepruning.config import CompressConfig
from finepruning.errors import (
    ArgumentError,
    DataError,
    DeviceError,
    ModelFileError,
    RunError,
    TrainingError,
)
from finepruning.export import export
from finepruning.files import replace_file
from finepruning.progress import NoProgress
from finepruning.sparse import storage


@pytest.fixture(autouse=True)
def _small() -> Iterator[None]:
    with tiny_runs():
        yield


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "one"
    with tiny_runs():
        compress(quick(images, out))
    return out


def quick(images: Path, out: Path, **options: Any) -> CompressConfig:
    return tiny_config(images, out, **{"search": "none", "allocation": "global", **options})


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def model_bytes(run: Path) -> dict[str, bytes]:
    return content(run / "model")


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """The system refuses to let a file of this process grow further, as it does when a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class AtUnit(NoProgress):
    """Calls ``act`` when a run has done ``units`` steps, or when it starts ``phase``."""

    def __init__(self, act: Callable[[], None], units: int = -1, phase: str = "") -> None:
        self._act, self._left, self._phase = act, units, phase

    def start(self, phase: str) -> None:
        if phase == self._phase:
            self._act()

    def advance(self, units: int = 1, **metrics: float) -> None:
        for _ in range(units):
            self._left -= 1
            if self._left == 0:
                self._act()


# --- no space -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 400])
def test_no_space_at_the_start_leaves_an_empty_folder(size: int, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with files_no_larger_than(size), pytest.raises(RunError, match=r"run cannot be written.*--out"):
        compress(quick(images, out))
    assert content(out) == {}
    compress(quick(images, out))  # the same command, when there is room


@pytest.mark.parametrize("size", [100, 3000, 5000, 20_000])
@pytest.mark.parametrize("moment", ["training", "export and test"])
def test_no_space_in_a_run_keeps_what_was_saved(
    moment: str, size: int, finished: Path, images: Path, tmp_path: Path
) -> None:
    """The limits fall into checkpoints, the model's two files, the pictures and the report."""
    out = tmp_path / "run"

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    progress = AtUnit(full, units=6) if moment == "training" else AtUnit(full, phase=moment)
    with (
        files_no_larger_than(resource.RLIM_INFINITY),
        pytest.raises(RunError, match="File too large") as raised,
    ):
        compress(quick(images, out), progress=progress)
    assert f"--resume {out}" in str(raised.value)
    assert not [name for name in content(out) if ".tmp" in name or ".model" in name]
    assert not (out / "report.json").exists()
    compress(CompressConfig(), resume=out)
    assert model_bytes(out) == model_bytes(finished)


@pytest.mark.parametrize("size", [0, 300, 900])
@pytest.mark.parametrize("new", [True, False])
def test_no_space_for_a_model_leaves_the_old_one_or_none(
    new: bool, size: int, finished: Path, tmp_path: Path
) -> None:
    model = SparseModel.from_pretrained(finished / "model")
    target = tmp_path / "model"
    if not new:
        model.save_pretrained(target)
    before = content(tmp_path)
    with (
        files_no_larger_than(size),
        pytest.raises(ArgumentError, match="model cannot be written: File too large"),
    ):
        model.save_pretrained(target)
    assert content(tmp_path) == before
    assert new != target.exists()


@pytest.mark.parametrize("to", ["torch", "state_dict", "onnx"])
def test_no_space_for_an_export_leaves_no_file(to: str, finished: Path, tmp_path: Path) -> None:
    if to == "onnx":
        pytest.importorskip("onnxscript")
    with files_no_larger_than(800), pytest.raises(ArgumentError, match=r"out: cannot be written"):
        export(finished / "model", to, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_no_space_for_a_report_keeps_the_old_one(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(finished)
    with files_no_larger_than(1000):
        code = command(["report", str(finished)])
    assert code == 2
    assert "cannot be written: File too large" in capsys.readouterr().err
    assert content(finished) == before


# --- no permission --------------------------------------------------------------------------------


def test_where_nobody_can_write_nothing_is_begun(images: Path, finished: Path, tmp_path: Path) -> None:
    """/proc takes no new files, not even from root."""
    nowhere = Path("/proc/nowhere")
    with pytest.raises(RunError, match=r"/proc/nowhere cannot be (created|written).*--out"):
        compress(quick(images, nowhere))
    with pytest.raises(ArgumentError, match="/proc/nowhere cannot be written"):
        SparseModel.from_pretrained(finished / "model").save_pretrained(nowhere)
    with pytest.raises(ArgumentError, match=r"/proc/nowhere: cannot be written"):
        export(finished / "model", "state_dict", nowhere)


def test_a_run_that_turns_read_only_can_be_continued_later(
    images: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch, pytest.raises(RunError, match=r"Read-only file system.*--resume"):
        compress(quick(images, out), progress=AtUnit(lambda: patch.setattr(os, "fsync", refuse), units=6))
    compress(CompressConfig(), resume=out)
    assert model_bytes(out) == model_bytes(finished)


# --- killed while saving --------------------------------------------------------------------------


def killed_at(step: int, work: Callable[[], None]) -> bool:
    """Run ``work`` in a child that kills itself before its ``step``th sync or rename; whether it did."""
    pid = os.fork()
    if pid == 0:
        left = step

        def dying(name: str) -> Callable[..., Any]:
            real = getattr(os, name)

            def call(*arguments: Any, **more: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **more)

            return call

        try:
            for name in ("fsync", "rename", "replace"):
                setattr(os, name, dying(name))
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


def test_a_model_killed_while_it_is_saved_is_whole_or_refused(finished: Path, tmp_path: Path) -> None:
    model = SparseModel.from_pretrained(finished / "model")
    other = SparseModel.from_dense(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.zeros(1, 3, 2, 2))
    new, old = tmp_path / "new", tmp_path / "old"
    kills = 0
    for step in range(8):
        other.save_pretrained(old)
        kills += killed_at(step, lambda: model.save_pretrained(new))
        if new.exists():
            assert content(new) == model_bytes(finished)
        killed_at(step, lambda: model.save_pretrained(old))
        try:
            shape = storage.load(old).graph.input_shape
            assert shape in ((3, 2, 2), (3, 16, 16))
        except ModelFileError:
            pass  # between the two files: refused, never a mixture
    assert 3 <= kills < 8
    assert new.exists()


def test_a_file_killed_while_it_is_replaced_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    file = tmp_path / "file"
    seen = []
    for step in range(4):
        file.write_bytes(b"old")
        killed_at(step, lambda: replace_file(file, b"new"))
        seen.append(file.read_bytes())
    assert seen == [b"old", b"old", b"new", b"new"]


# --- no memory ------------------------------------------------------------------------------------


class Hungry(nn.Module):
    """Wants more memory than there is at its ``turn``th call."""

    def __init__(self, turn: int) -> None:
        super().__init__()
        self._left = turn

    def forward(self, x: Tensor) -> Tensor:
        self._left -= 1
        return x + torch.empty(1 << 50) if self._left == 0 else x


def test_no_memory_ends_a_run_that_can_be_continued(
    images: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    create = models.create

    def hungry(*arguments: Any, **more: Any) -> models.Network:
        network = create(*arguments, **more)
        network.module[4].register_forward_pre_hook(lambda _, inputs: eat(inputs[0]))
        return network

    eat = Hungry(turn=9)
    with monkeypatch.context() as patch:
        patch.setattr(models, "create", hungry)
        with pytest.raises(DeviceError, match=r"out of memory.*can't allocate.*--resume.*--batch-size"):
            compress(quick(images, out))
    compress(CompressConfig(), resume=out)
    assert model_bytes(out) == model_bytes(finished)


def test_no_memory_in_any_command_is_one_line(
    finished: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(SparseModel, "from_pretrained", exhausted)
    assert command(["predict", str(finished), str(images / "dark" / "0.png")]) == 2
    assert capsys.readouterr().err.startswith("error: out of memory; ")


# --- images, losses, clocks -----------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_damaged_in_mid_training_is_named(
    workers: int, images: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a data set too large for memory is read again after the check at the start."""
    monkeypatch.setattr(data.loading, "CACHE_LIMIT", 0)
    load = data.load
    monkeypatch.setattr(data, "load", lambda *args, **more: load(*args, **{**more, "cache_limit": 0}))
    victim = images / "dark" / "3.png"
    intact = victim.read_bytes()
    out = tmp_path / "run"
    progress = AtUnit(lambda: victim.write_bytes(intact[:60]) and None, units=6)
    try:
        with pytest.raises(DataError) as raised:
            compress(quick(images, out, workers=workers), progress=progress)
    finally:
        victim.write_bytes(intact)
    message = str(raised.value)
    assert message.startswith(f"{victim}: damaged image")
    assert message.endswith(f"restore it and continue with --resume {out}")
    assert "\n" not in message
    compress(CompressConfig(), resume=out)
    assert model_bytes(out) == model_bytes(finished)


@pytest.mark.parametrize("where", ["loss", "weights"])
def test_a_run_goes_on_with_a_lower_rate_after_its_loss_was_no_number(
    where: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    broken: list[nn.Module] = []
    create = models.create

    def fragile(*arguments: Any, **more: Any) -> models.Network:
        network = create(*arguments, **more)
        broken.append(network.module)
        return network

    def break_it() -> None:
        with torch.no_grad():
            next(broken[0].parameters()).fill_(float("nan"))

    monkeypatch.setattr(models, "create", fragile)
    # 4 steps an epoch: in the middle of the second one, or by its very last step
    progress = AtUnit(break_it, units={"loss": 6, "weights": 8}[where])
    with pytest.raises(TrainingError) as raised:
        compress(quick(images, out, max_grad_norm=0.0), progress=progress)
    message = str(raised.value)
    assert "epoch 2" in message
    assert {"loss": "training loss", "weights": "validation loss"}[where] in message
    assert f"--resume {out} --lr 0.0025 --max-grad-norm 1" in message
    report = compress(CompressConfig(), resume=out, changes={"lr": 0.0025, "max_grad_norm": 1.0})
    assert [entry["epoch"] for entry in report["history"][:2]] == [1, 2]
    assert report["config"]["lr"] == report["config"]["prune_lr"] == 0.0025
    assert report["config"]["max_grad_norm"] == 1.0
    assert report["accuracy"] == report["sparse_accuracy"]


def test_other_options_of_a_run_cannot_change(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        compress(quick(images, out), progress=AtUnit(stop, units=6))
    with pytest.raises(ArgumentError, match="own rounds; only lr, prune_lr"):
        compress(CompressConfig(), resume=out, changes={"rounds": 3})
    assert command(["compress", "--resume", str(out), "--lr", "0.001", "--rounds", "3"]) == 2
    assert "leave out --rounds" in capsys.readouterr().err
    assert command(["compress", "--resume", str(out), "--lr", "0.001"]) == 0
    assert "lr: 0.001" in (out / "config.yaml").read_text()


def test_a_clock_that_jumps_back_changes_nothing(
    images: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    now = [time.time()]

    def falling() -> float:
        now[0] -= 3600.0
        return now[0]

    monkeypatch.setattr(time, "time", falling)
    report = compress(quick(images, out))
    assert all(seconds >= 0 for seconds in report["seconds"].values())
    assert 0 < report["seconds"]["total"] < 600
    assert all(entry["seconds"] >= 0 for entry in report["history"])
    assert model_bytes(out) == model_bytes(finished)
