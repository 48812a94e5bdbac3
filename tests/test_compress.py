from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from tiny_run import CLASSES, tiny_config, tiny_runs

from finepruning import SparseModel, data
from finepruning.compress import Interrupted, compress, dry_run
from finepruning.config import CompressConfig
from finepruning.errors import ArgumentError, DeviceError, RunError, TrainingError
from finepruning.phases import budget
from finepruning.progress import NoProgress
from finepruning.run import RunDirectory


@pytest.fixture(autouse=True)
def _small() -> Iterator[None]:
    with tiny_runs():
        yield


class Recorder(NoProgress):
    """Notes what a run says, and interrupts it after a number of units."""

    def __init__(self, interrupt_after: int | None = None) -> None:
        self.phases: list[tuple[str, int]] = []
        self.done: dict[str, int] = {}
        self.messages: list[str] = []
        self._left = interrupt_after
        self._phase = ""

    def plan(self, phases: Any) -> None:
        self.phases = list(phases)

    def start(self, phase: str) -> None:
        self._phase = phase

    def advance(self, units: int = 1, **metrics: float) -> None:
        self.done[self._phase] = self.done.get(self._phase, 0) + units
        if self._left is not None and units:
            self._left -= units
            if self._left < 0:
                raise KeyboardInterrupt

    def message(self, text: str) -> None:
        self.messages.append(text)


def model_bytes(run: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((run / "model").iterdir())}


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("finished") / "runs" / "one"
    with tiny_runs():
        compress(tiny_config(images, out))
    return out


def test_a_run_leaves_model_report_trials_and_configuration(finished: Path, images: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    total = 3 * 6 * 9 + 96 * 3
    kept = sum(layer["nnz"] for layer in report["layers"])
    assert kept == round(0.2 * total)
    assert report["density"] == kept / total
    assert [layer["name"] for layer in report["layers"]] == ["0", "6"]
    assert [entry["density"] for entry in report["rounds"]] == pytest.approx([0.3, 0.2], abs=1 / total)
    assert report["accuracy"] == report["sparse_accuracy"] >= 0.6
    assert report["dense_accuracy"] >= 0.6
    assert report["classes"] == list(CLASSES)
    assert {point["kind"] for point in report["pareto"]} == {"dense", "trial", "round", "final"}
    assert len(report["history"]) == 2 + 2 * 2 + 2
    assert report["seconds"]["total"] > 0
    trials = [json.loads(line) for line in (finished / "trials.jsonl").read_text().splitlines()]
    assert [(t["round"], t["index"]) for t in trials] == [(r, i) for r in (1, 2) for i in range(5)]
    assert all(entry["best_loss"] <= entry["baseline_loss"] for entry in report["rounds"])
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["model"] == "tiny"
    assert config["data"] == str(images)
    assert config["prune_lr"] == 0.01
    matrix = report["confusion"]["matrix"]
    assert sum(map(sum, matrix)) == report["images"]["test"]
    assert sum(matrix[i][i] for i in range(3)) == round(report["sparse_accuracy"] * report["images"]["test"])
    for name in (
        "environment.json",
        "report.md",
        "report.html",
        "pareto.png",
        "checkpoints/dense.safetensors",
    ):
        assert (finished / name).stat().st_size > 0
    assert (finished.parent / "latest").resolve() == finished.resolve()


def test_the_saved_model_is_the_one_that_was_tested(finished: Path, images: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    model = SparseModel.from_pretrained(finished / "model")
    splits = data.load(str(images), image_size=16, mean=(0.5,) * 3, std=(0.25,) * 3, seed=0)
    hits = [(model(x).argmax(1) == y).float() for x, y in splits.test.batches(4)]
    assert float(torch.cat(hits).mean()) == pytest.approx(report["sparse_accuracy"])


@pytest.mark.parametrize("units", [0, 10, 15, 24, 36, 39])
def test_an_interrupted_and_resumed_run_ends_with_the_same_file(
    units: int, finished: Path, images: Path, tmp_path: Path
) -> None:
    """The interruptions fall into the dense phase, searches, fine-tuning, the final phase and the export."""
    out = tmp_path / "run"
    with pytest.raises(Interrupted) as stop:
        compress(tiny_config(images, out), progress=Recorder(interrupt_after=units))
    assert stop.value.run_dir == out
    torch.rand(7)  # the caller's random numbers must not matter
    compress(CompressConfig(), resume=out)
    assert model_bytes(out) == model_bytes(finished)
    strip = ("seconds",)
    for mine, theirs in zip(
        (out / "trials.jsonl").read_text().splitlines(),
        (finished / "trials.jsonl").read_text().splitlines(),
        strict=True,
    ):
        a, b = json.loads(mine), json.loads(theirs)
        assert {k: v for k, v in a.items() if k not in strip} == {
            k: v for k, v in b.items() if k not in strip
        }


def test_progress_announces_what_then_happens(images: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    compress(tiny_config(images, tmp_path / "run", search="none", distillation=0.0), progress=recorder)
    assert dict(recorder.phases) == recorder.done


def test_a_finished_run_says_so(finished: Path) -> None:
    recorder = Recorder()
    before = (finished / "report.json").stat().st_mtime_ns
    report = compress(CompressConfig(), progress=recorder, resume=finished)
    assert "finished already" in recorder.messages[0]
    assert report == json.loads((finished / "report.json").read_text())
    assert (finished / "report.json").stat().st_mtime_ns == before


def test_the_callers_random_numbers_are_left_alone(images: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    compress(tiny_config(images, tmp_path / "run", search="none", rounds=1, epochs=1))
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"search": "paper"},
        {"search": "random"},
        {"search": "none", "allocation": "erk"},
        {"search": "none", "allocation": "global", "splicing": False},
        {"dense_epochs": 0, "final_epochs": 0},
        {"saliency": "magnitude", "l2_sp": 0.0, "ema": 0.0},
        {"lr_schedule": "rise", "density_schedule": "geometric"},
        {"optimizer": "adam", "lr": 0.001, "look_ahead": 2},
        {"target_density": 1.0},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_every_kind_of_run_ends_at_its_density(options: dict[str, Any], images: Path, tmp_path: Path) -> None:
    config = tiny_config(images, tmp_path / "run", **{"epochs": 1, "trials": 5, **options})
    report = compress(config)
    total = sum(layer["size"] for layer in report["layers"])
    assert sum(layer["nnz"] for layer in report["layers"]) == round(config.target_density * total)
    assert report["accuracy"] == report["sparse_accuracy"]


def test_without_splicing_no_weight_comes_back(images: Path, tmp_path: Path) -> None:
    report = compress(tiny_config(images, tmp_path / "run", search="none", splicing=False, prune_lr=0.05))
    assert [entry["spliced"] for entry in report["rounds"]] == [0, 0]


def test_budgets_cool_to_the_target_in_equal_ratios() -> None:
    config = CompressConfig(target_density=0.01, rounds=4, density_schedule="geometric")
    densities = [budget(config, number) for number in range(1, 5)]
    assert densities == pytest.approx([10**-0.5, 0.1, 10**-1.5, 0.01])


def test_cubic_budgets_fall_fast_and_end_slowly_at_the_target() -> None:
    config = CompressConfig(target_density=0.1, rounds=5, density_schedule="cubic")
    densities = [budget(config, number) for number in range(6)]
    falls = [before - after for before, after in itertools.pairwise(densities)]
    assert densities[0] == 1.0
    assert densities[-1] == pytest.approx(0.1)
    assert falls == sorted(falls, reverse=True)


def test_rounds_can_hold_the_learning_rate(images: Path, tmp_path: Path) -> None:
    options = {"lr_schedule": "hold", "prune_lr": 0.02, "search": "none", "final_epochs": 2}
    history = compress(tiny_config(images, tmp_path / "run", **options))["history"]
    assert [entry["lr"] for entry in history if entry["phase"] == "round"] == [0.02] * 4
    first, second = [entry["lr"] for entry in history if entry["phase"] == "final"]
    assert first == 0.02 > second


def test_dropout_can_be_another_while_pruning(images: Path, tmp_path: Path) -> None:
    losses = []
    for dropout in (0.0, 0.9):
        options = {"prune_dropout": dropout, "search": "none", "distillation": 0.0}
        history = compress(tiny_config(images, tmp_path / str(dropout), **options))["history"]
        losses.append([entry["train_loss"] for entry in history])
    assert losses[0][:2] == losses[1][:2]  # dense fine-tuning keeps the network's own
    assert losses[0][2] < losses[1][2]


def test_the_mean_of_the_weights_is_what_is_tested_and_written(images: Path, tmp_path: Path) -> None:
    options = {"search": "none", "final_epochs": 2}
    reports = [compress(tiny_config(images, tmp_path / str(ema), ema=ema, **options)) for ema in (0.0, 0.9)]
    last, averaged = [report["history"][-1] for report in reports]
    assert averaged["train_loss"] == last["train_loss"]  # training itself is the same
    assert averaged["validation_loss"] != last["validation_loss"]
    assert reports[1]["accuracy"] == reports[1]["sparse_accuracy"]
    assert model_bytes(tmp_path / "0.0") != model_bytes(tmp_path / "0.9")


def test_dry_run_tells_the_plan_and_writes_nothing(images: Path, tmp_path: Path) -> None:
    plan = dry_run(tiny_config(images, tmp_path / "run"))
    assert plan["classes"] == list(CLASSES)
    assert sum(plan["images"].values()) == 48
    assert [layer["size"] for layer in plan["layers"]] == [162, 288]
    assert plan["rounds"][-1] == {"round": 2, "budget": pytest.approx(0.2), "weights": 90}
    assert plan["estimate_seconds"] > 0
    assert list(tmp_path.iterdir()) == []


def test_density_below_one_weight_a_layer_is_refused_before_anything_is_written(
    images: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError, match="fewer than one in each of the 2 layers"):
        compress(tiny_config(images, tmp_path / "run", target_density=0.001))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("density", [0, -0.1, 1.5, float("nan")])
def test_impossible_densities_are_refused(density: float) -> None:
    with pytest.raises(ArgumentError, match=r"target_density is .*above 0 and at most 1"):
        CompressConfig(target_density=density)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("search", "magic"),
        ("allocation", "best"),
        ("rounds", 0),
        ("epochs", 0),
        ("dense_epochs", -1),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("momentum", 1.0),
        ("distillation", 1.5),
        ("weight_decay", -1.0),
        ("batch_size", 0),
        ("ema", 1.0),
        ("look_ahead", -1),
        ("prune_dropout", 1.0),
        ("optimizer", "newton"),
        ("saliency", "age"),
        ("l2_sp", -1.0),
        ("prune_max_grad_norm", float("inf")),
        ("lr_schedule", "steps"),
        ("density_schedule", "linear"),
    ],
)
def test_impossible_options_are_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=option):
        CompressConfig(**{option: value})


def test_unknown_devices_are_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="warp"):
        compress(tiny_config(images, tmp_path / "run", device="warp"))


def test_a_loss_that_is_no_number_keeps_the_last_good_state(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(
        TrainingError, match=r"dense fine-tuning, epoch 1.*--resume .* --lr 2.5e\+29 --max-grad-norm 1"
    ):
        compress(tiny_config(images, out, lr=1e30, max_grad_norm=0.0, warmup=0.0))
    assert not (out / "model").exists()


def test_an_occupied_directory_is_refused(finished: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="--resume"):
        compress(tiny_config(images, finished))
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="is not empty"):
        compress(tiny_config(images, tmp_path))
    with pytest.raises(RunError, match="is a file"):
        compress(tiny_config(images, tmp_path / "file"))
    with pytest.raises(RunError, match="is no folder"):
        compress(tiny_config(images, tmp_path / "file" / "run"))


def test_a_directory_whose_run_was_killed_before_it_began_is_used_again(
    finished: Path, images: Path, tmp_path: Path
) -> None:
    """The configuration is what is written last there; without it nothing can be resumed."""
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    for name in ("lock", "environment.json", "config.yaml.tmp"):
        (out / name).touch()
    compress(tiny_config(images, out))
    assert model_bytes(out) == model_bytes(finished)


def test_resuming_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"not a run directory: it has no config\.yaml"):
        compress(CompressConfig(), resume=tmp_path)
    with pytest.raises(RunError, match="there is no such folder"):
        compress(CompressConfig(), resume=tmp_path / "nowhere")


@pytest.mark.parametrize("change", ["new class", "other name", "one image less"])
def test_resuming_on_other_data_is_refused(change: str, images: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(images, tmp_path / "images"))
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        compress(tiny_config(folder, out), progress=Recorder(interrupt_after=8))
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    if change == "new class":
        shutil.copytree(folder / "dark", folder / "zebra")
        for file in (folder / "zebra").iterdir():
            Image.open(file).rotate(90).save(file)
        named = "3 classes then, 4 now; new: zebra"
    elif change == "other name":
        (folder / "dark").rename(folder / "black")
        named = "3 classes then, 3 now; gone: dark; new: black"
    else:
        (folder / "dark" / "3.png").unlink()
        named = "images then"
    with pytest.raises(RunError, match=f"has changed since the run .*{named}"):
        compress(CompressConfig(), resume=out)
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


def test_a_second_process_is_refused(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        compress(tiny_config(images, out), progress=Recorder(interrupt_after=3))
    with RunDirectory.open(out), pytest.raises(RunError, match="in use by another process"):
        compress(CompressConfig(), resume=out)


def test_a_damaged_checkpoint_is_one_clear_error(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        compress(tiny_config(images, out), progress=Recorder(interrupt_after=8))
    state = out / "checkpoints/state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(RunError, match=r"state\.safetensors is damaged"):
        compress(CompressConfig(), resume=out)


def test_a_trial_cut_short_by_a_kill_is_repeated(finished: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        compress(tiny_config(images, out), progress=Recorder(interrupt_after=11))
    with (out / "trials.jsonl").open("a") as file:
        file.write('{"round": 1, "index": 1, "ki')
    compress(CompressConfig(), resume=out)
    assert model_bytes(out) == model_bytes(finished)


def test_a_mixture_with_the_first_weights_is_never_worse_on_validation_images(
    images: Path, tmp_path: Path
) -> None:
    options = {"search": "none", "ema": 0.0}
    plain, mixed = (
        compress(tiny_config(images, tmp_path / str(wise_ft), wise_ft=wise_ft, **options))
        for wise_ft in (False, True)
    )
    assert plain["wise_ft_alpha"] is None
    assert 0.0 <= mixed["wise_ft_alpha"] <= 1.0
    assert mixed["pareto"][-1]["loss"] <= plain["pareto"][-1]["loss"] + 1e-6
    assert mixed["density"] == plain["density"]
    assert mixed["accuracy"] == mixed["sparse_accuracy"]
    out = tmp_path / "resumed"
    with pytest.raises(Interrupted):
        compress(tiny_config(images, out, wise_ft=True, **options), progress=Recorder(interrupt_after=18))
    compress(CompressConfig(), resume=out)
    assert model_bytes(out) == model_bytes(tmp_path / "True")


def test_training_against_attacks_reports_robust_accuracy(images: Path, tmp_path: Path) -> None:
    options = {"search": "none", "adversarial_epsilon": 8.0, "adversarial_steps": 2}
    report = compress(tiny_config(images, tmp_path / "run", **options))
    robust = report["robust"]
    assert (robust["epsilon"], robust["steps"]) == (8.0, 8)
    assert 0.0 <= robust["accuracy"] <= report["accuracy"]
    assert 0.0 <= robust["dense_accuracy"] <= report["dense_accuracy"]
    text = (tmp_path / "run" / "report.md").read_text()
    assert "test accuracy, images changed by 8 of 255 (PGD, 8 steps)" in text
    plain = compress(tiny_config(images, tmp_path / "plain", search="none"))
    assert plain["robust"] is None
    assert plain["history"][0]["train_loss"] < report["history"][0]["train_loss"]
