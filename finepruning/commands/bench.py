"""`finepruning bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from finepruning.commands.options import Debug
from finepruning.errors import ArgumentError
from finepruning.files import replace_file

DEFAULT_RUN = Path("runs/latest")
STANDARD_OUTPUT = Path("-")


def command(
    model_or_run: Annotated[
        Path | None,
        typer.Argument(help="A model directory or a run.", show_default="runs/latest"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Instead of a stored model: a torchvision classifier with random weights, pruned here.",
            show_default=False,
        ),
    ] = None,
    density: Annotated[
        float | None, typer.Option("--density", help="Kept fraction for --model.", show_default="0.1")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")] = "cpu",
    batch: Annotated[str, typer.Option("--batch", help="Batch sizes, separated by commas.")] = "1,16",
    threads: Annotated[
        int | None, typer.Option("--threads", help="CPU threads of every runtime.", show_default="PyTorch's")
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="float32, float16 or bfloat16.")] = "float32",
    peers: Annotated[
        str | None,
        typer.Option(
            "--peers",
            help="Dense runtimes, separated by commas: torch, torch_channels_last, torch_compile, "
            "onnxruntime, openvino; or none.",
            show_default="all installed but torch_compile",
        ),
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Also time every layer by itself.")] = False,
    memory: Annotated[
        bool, typer.Option(help="Measure peak memory, each runtime in its own process.")
    ] = True,
    seconds: Annotated[float, typer.Option("--seconds", help="Timed seconds wanted a row.")] = 1.0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--json", help="Also write the results to this file; - prints them alone.", show_default=False
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Measure a pruned model against the best dense ways to run it.

    Outputs are compared first; then all runtimes are timed in turns, in one process, with the same input and
    the same number of threads.

    [dim]finepruning bench runs/latest[/dim]
    [dim]finepruning bench --model vgg16 --density 0.1 --batch 1 --threads 2[/dim]
    """
    if model is not None and model_or_run is not None:
        raise ArgumentError(f"give {model_or_run} or --model {model}, not both")
    if model is None and density is not None:
        raise ArgumentError("--density goes with --model; a stored model has its density already")
    batches = _batches(batch)
    names = None if peers is None else () if peers == "none" else tuple(_items(peers))
    if output not in (None, STANDARD_OUTPUT) and not output.absolute().parent.is_dir():
        raise ArgumentError(f"--json {output}: the folder {output.absolute().parent} does not exist")
    if model_or_run is None and model is None:
        if not DEFAULT_RUN.exists():
            raise ArgumentError("give a model directory, a run such as runs/latest, or --model NAME")
        model_or_run = DEFAULT_RUN

    from finepruning.bench import BenchOptions

    options = BenchOptions(
        device=device,
        batches=batches,
        threads=threads,
        dtype=dtype,
        peers=names,
        layers=layers,
        memory=memory,
        seconds=seconds,
    )
    result, report, run = _measure(model_or_run, model, 0.1 if density is None else density, options)
    if output == STANDARD_OUTPUT:
        typer.echo(json.dumps(result, indent=2))
    else:
        _show(result, report, run)
    if run is not None and report is not None:
        _keep(result, report, run)
    if output is not None and output != STANDARD_OUTPUT:
        try:
            replace_file(output, (json.dumps(result, indent=2) + "\n").encode())
        except OSError as error:
            raise ArgumentError(f"--json {output}: cannot be written ({error.strerror})") from error


def _measure(
    path: Path | None, model: str | None, density: float, options: Any
) -> tuple[dict[str, Any], dict[str, Any] | None, Path | None]:
    """(result, the run's report or None, the run directory or None)."""
    import tempfile

    from finepruning.bench import bench
    from finepruning.bench.networks import check_request, prune_random
    from finepruning.bench.runner import check
    from finepruning.report.places import model_directory, read_report

    check(options)  # before the long work of making a model
    if path is not None:
        directory, run = model_directory(path)
        report = read_report(run)
        name = report["model"] if report else directory.resolve().name
        return bench(directory, name, options, say=_say), report, run
    assert model is not None
    check_request(model, density)
    _say(f"pruning {model} with random weights to {density:g}")
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "model"
        prune_random(model, density).save_pretrained(directory)
        return bench(directory, model, options, say=_say), None, None


def _keep(result: dict[str, Any], report: dict[str, Any], run: Path) -> None:
    """Store the result in the run, where its report shows it; a run that cannot be written stays as it is."""
    from finepruning.report import write
    from finepruning.report.writer import BENCH

    try:
        replace_file(run / BENCH, (json.dumps(result, indent=2) + "\n").encode())
        write(run.resolve(), report)
    except OSError as error:
        _say(f"{run} cannot be written ({error.strerror}), so its report stays without these figures")
    except (KeyError, TypeError):
        _say(f"{run} was made by another version, so its report stays without these figures")


def _show(result: dict[str, Any], report: dict[str, Any] | None, run: Path | None) -> None:
    from finepruning.bench.tables import show_bench, show_closing, show_layers
    from finepruning.report.summary import show_places
    from finepruning.report.terminal import make_console

    console = make_console()
    show_bench(result, console)
    if "layers" in result:
        show_layers(result["layers"], console)
    if report is not None and run is not None:
        console.print()
        show_closing(result, report, console)
        show_places(run, console)


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _batches(text: str) -> tuple[int, ...]:
    try:
        batches = tuple(dict.fromkeys(int(item) for item in _items(text)))
    except ValueError:
        batches = ()
    if not batches or min(batches) < 1:
        raise ArgumentError(f"--batch: {text!r} must be sizes of at least 1, such as 1,16")
    return batches
