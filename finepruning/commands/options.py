"""Command-line options made from the fields of `CompressConfig`, and those that several commands share."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from finepruning.config import CompressConfig
from finepruning.units import parse_bytes

Debug = Annotated[bool, typer.Option("--debug", help="Show the full traceback of an error.")]

DEFAULT_RUN = Path("runs/latest")
"""What a command looks at where nothing is named."""

ARGUMENTS = ("data",)  # given by position; every other field is an option

HELP: dict[str, dict[str, str]] = {
    "Options": {
        "data": "A folder of images (one subfolder a class; train/val/test above them are "
        "respected), torchvision:NAME, or nothing for the built-in textures.",
        "model": "A torchvision classifier such as alexnet or resnet50, timm:NAME, or nothing for "
        "the small built-in network.",
        "from_run": "Start from a finished run and take it to another --target-density: with its network, "
        "data and per-layer scales, without a dense phase, in fewer epochs.",
        "weights": "default (the model's published weights), none, or a safetensors or torch file.",
        "device": "cpu, cuda or cuda:N.",
        "seed": "Seeds the splits, the augmentation, the search and the weights.",
        "workers": "Processes that load images.",
        "tensorboard": "Also write the run's figures for TensorBoard, into RUN/tensorboard.",
        "out": "Run directory.",
    },
    "Pruning": {
        "target_density": "Kept fraction of all prunable weights, in (0, 1].",
        "target_bytes": "Largest model directory instead, such as 500kB or 2MiB.",
        "target_latency": "Most milliseconds on the run's device and threads instead.",
        "latency_batch": "Images that --target-latency is for.",
        "max_accuracy_drop": "Percentage points of validation accuracy that may be lost (1: 95 % may become "
        "94 %); finds the smallest network instead.",
        "rounds": "Rounds of search and fine-tuning; the density falls to its target over them.",
        "trials": "Candidates that each search evaluates.",
        "epochs": "Epochs of fine-tuning in each round.",
        "dense_epochs": "Epochs of dense fine-tuning before the first round.",
        "final_epochs": "Epochs after the last round, with frozen masks.",
        "density_schedule": "How the density falls over the rounds: geometric or cubic.",
        "search": "budget (per-layer saliency scales), paper (per-layer thresholds), random, or none.",
        "allocation": "How --search none spreads the weights over layers: global, uniform, erk, lamp, or "
        "kept (as in the run of --from-run).",
        "saliency": "What a weight is worth: magnitude, or fisher (by the loss's gradients too).",
        "search_images": "Validation images a trial is judged by.",
        "proposals": "Candidates that a search proposes at a time.",
        "look_ahead": "Training steps that a candidate gets before it is judged.",
        "theta_bound": "Widest per-layer scale the search may try, as a power of e.",
        "paper_lambda": "Worth of sparsity against error in --search paper.",
        "splicing": "Let dropped weights come back while fine-tuning.",
        "surgery_gamma": "Masks change with probability (1 + gamma * step) ** -power.",
        "surgery_power": "See --surgery-gamma.",
    },
    "Training": {
        "batch_size": "Images per training step.",
        "lr": "Peak learning rate of dense fine-tuning (SGD, cosine).",
        "prune_lr": "Peak learning rate while pruning.",
        "optimizer": "sgd or adam (AdamW).",
        "lr_schedule": "cosine (each phase falls to 0), hold (the rounds do not), or rise (each phase rises, "
        "then falls exponentially).",
        "warmup": "Epochs over which the learning rate of dense fine-tuning rises.",
        "max_grad_norm": "Largest norm of the gradients; 0 leaves them alone.",
        "prune_max_grad_norm": "The same while pruning.",
        "momentum": "Momentum of SGD.",
        "weight_decay": "L2 factor on the weights.",
        "l2_sp": "Pull towards the weights of the beginning; 0 is off.",
        "distillation": "Weight of the dense network's outputs as targets, from 0 (off) to 1.",
        "temperature": "Softens the outputs for --distillation.",
        "prune_dropout": "Probability in the network's dropout layers while pruning.",
        "label_smoothing": "In [0, 1).",
        "ema": "Decay a step of the mean of the weights that the final phase ends with; 0 is off.",
        "wise_ft": "End with the best mixture of the weights and those of the beginning, where kept.",
        "adversarial_epsilon": "Train on images changed against the network by so much, of 255; 0 is off.",
        "adversarial_steps": "Steps of gradient ascent that change an image.",
        "precision": "float32, bfloat16, or auto: bfloat16 where the device has it in hardware.",
        "image_size": "Side of the square input, in pixels.",
        "augmentation": "How training images vary: none, flip, dihedral (flips and quarter turns) or crop.",
    },
}
"""Panel of the help text -> field -> what it says."""

_SHORT = {"from_run": ("--from",)}
"""Other spellings of an option."""

_PARSERS = {"target_bytes": parse_bytes}
_DEFAULTS_IN_WORDS = {
    "target_density": "0.1",
    "prune_lr": "as --lr",
    "image_size": "the model's own",
    "proposals": "one for each process",
    "device": "cuda where there is one",
    "out": "runs/MODEL-TIME",
}


def with_config_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes ``**given`` one option for each field of `CompressConfig`.

    Every option defaults to None, meaning "not given", so that the command can tell what was asked for on
    the line from what a file or the defaults say.
    """
    signature = inspect.signature(command, eval_str=True)  # get_type_hints hides Annotated = None on 3.10
    own = [
        parameter.replace(kind=parameter.KEYWORD_ONLY)
        for parameter in signature.parameters.values()
        if parameter.kind is not parameter.VAR_KEYWORD
    ]
    hints = get_type_hints(CompressConfig)
    parameters = []
    for field in fields(CompressConfig):
        panel, help_text = _described(field.name)
        default = _DEFAULTS_IN_WORDS.get(field.name, field.default)
        if default is not None and default is not MISSING and field.name not in ARGUMENTS:
            help_text += f" [dim]\\[default: {default}][/dim]"
        flag = "--" + field.name.replace("_", "-")
        if field.type in (bool, "bool"):
            flag = f"{flag}/--no-{flag[2:]}"
        marker: Any
        if field.name in ARGUMENTS:
            marker = typer.Argument(help=help_text, show_default=False)
        else:
            marker = typer.Option(
                flag,
                *_SHORT.get(field.name, ()),
                help=help_text,
                parser=_PARSERS.get(field.name),
                metavar="SIZE" if field.name in _PARSERS else None,
                show_default=False,
                rich_help_panel=panel,
            )
        parameters.append(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[hints[field.name] | None, marker],
            )
        )
    command.__signature__ = inspect.Signature([*parameters, *own])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in [*parameters, *own]}
    return command


def _described(name: str) -> tuple[str, str]:
    """(panel, help text) of a field."""
    return next(((panel, texts[name]) for panel, texts in HELP.items() if name in texts), ("Options", ""))


def near(name: str, known: Iterable[str]) -> str:
    """ "; did you mean a or b?" for a misspelt name, or nothing when no known name is near."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""
