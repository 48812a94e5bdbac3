"""torchvision classifiers with random weights, pruned by magnitude, whose output depends on every layer."""

from __future__ import annotations

import re

import torch
import torchvision
from torch import Tensor, nn

MAX_PARAMETERS = 200_000_000
PREPARATIONS = ("calibrated", "random", "near_dead")
VARIANCE_FLOOR = 0.1  # of "calibrated" norms, as a share of the layer's mean


def candidates() -> dict[str, int]:
    """Classifier -> number of parameters, as torchvision states it with its published weights."""
    sizes = {}
    for name in torchvision.models.list_models(module=torchvision.models):
        sizes[name] = max(
            weights.meta["num_params"] for weights in torchvision.models.get_model_weights(name)
        )
    small = {name: size for name, size in sizes.items() if size <= MAX_PARAMETERS}
    return dict(sorted(small.items(), key=lambda item: item[1]))


def family(name: str) -> str:
    """ "resnet" for "resnet18", "swin_v2" for "swin_v2_t"."""
    stem = re.sub(r"^(wide_resnet|resnext)", "resnet_", name)
    return re.match(r"(swin_v2|efficientnet_v2|shufflenet_v2|mobilenet_v\d|regnet_[xy]|[a-z]+)", stem)[0]  # type: ignore[index]


def has_norms(name: str) -> bool:
    """Whether the network has BatchNorms."""
    return re.match(r"alexnet|convnext|squeezenet|swin|vit|vgg\d+$", name) is None


def prepared(name: str, preparation: str, density: float, size: int) -> nn.Module:
    """A network in evaluation mode.

    Weights are He-normal and pruned, biases normal(0, 0.1). BatchNorms are

    - "calibrated": with the statistics of four random images, as training leaves them. Pruning at random
      makes channels that hardly vary; training would not divide by such a variance, so it is kept above
      a share of the layer's mean.
    - "random": with statistics and weights drawn at random. They normalise nothing: activations grow, and
      where gates look at them (squeeze-and-excitation) small differences become large ones.
    - "near_dead": calibrated without that floor, so that many norms amplify rounding errors 316 times.
    """
    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    module: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            if key.endswith("layer_scale"):
                parameter.normal_(1, 0.1)  # 1e-6 would hide the whole block
            elif key.endswith("bias"):
                parameter.normal_(0, 0.1)
        norms = []
        for layer in module.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                prune(layer.weight, density)
            elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
                norms.append(layer)
                layer.weight.uniform_(0.5, 1.5)
                layer.running_mean.normal_(0, 0.1)
                layer.running_var.uniform_(0.5, 1.5)
        module.eval()
        if preparation != "random":
            calibrate(module, norms, size, VARIANCE_FLOOR if preparation == "calibrated" else 0.0)
    return module


def prune(weight: Tensor, density: float) -> None:
    """He-normal values of which the largest stay, scaled to the energy of all of them."""
    nn.init.kaiming_normal_(weight, nonlinearity="relu")
    energy = weight.square().sum()
    magnitude = weight.abs().flatten()
    keep = max(1, round(density * magnitude.numel()))
    threshold = magnitude.kthvalue(magnitude.numel() - keep + 1).values
    weight[weight.abs() < threshold] = 0
    weight *= (energy / weight.square().sum()).sqrt()


def calibrate(module: nn.Module, norms: list[nn.Module], size: int, floor: float) -> None:
    """Set running statistics from a random batch, layer after layer."""

    def estimate(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        variance, mean = torch.var_mean(inputs[0].transpose(0, 1).flatten(1), dim=1)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance.clamp_min(floor * float(variance.mean())))

    hooks = [norm.register_forward_pre_hook(estimate) for norm in norms]
    module(torch.randn(4, 3, size, size))
    for hook in hooks:
        hook.remove()
