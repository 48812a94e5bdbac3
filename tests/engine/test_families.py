"""One network of every torchvision family, pruned, through a model directory, against the dense one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.maxvit import MaxVit
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2
from torchvision.models.vision_transformer import VisionTransformer

from finepruning.engine import SparseModel


def small_vgg() -> nn.Module:
    module = models.vgg11_bn()
    module.classifier = nn.Sequential(nn.Dropout(), nn.Linear(512 * 7 * 7, 32), nn.ReLU(), nn.Linear(32, 10))
    return module


# Deep families in a short version: what is repeated is tested once.
FAMILIES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "alexnet": (models.alexnet, 64),
    "convnext": (lambda: ConvNeXt([CNBlockConfig(24, 48, 2), CNBlockConfig(48, None, 2)]), 32),
    "densenet": (lambda: models.DenseNet(8, (2, 2, 2), 16), 64),
    "efficientnet": (models.efficientnet_b0, 32),
    "googlenet": (partial(models.googlenet, init_weights=False), 64),
    "inception": (partial(models.inception_v3, init_weights=False), 75),
    "maxvit": (lambda: MaxVit((64, 64), 16, 2, [16, 32], [2, 1], 16, 0.1), 64),
    "mnasnet": (models.mnasnet0_5, 64),
    "mobilenet_v2": (models.mobilenet_v2, 64),
    "mobilenet_v3": (models.mobilenet_v3_small, 64),
    "regnet": (models.regnet_y_400mf, 64),
    "resnet": (models.resnet18, 64),
    "resnext": (
        lambda: models.ResNet(models.resnet.Bottleneck, [1, 1, 1, 1], groups=4, width_per_group=16),
        64,
    ),
    "shufflenet": (models.shufflenet_v2_x0_5, 64),
    "squeezenet": (models.squeezenet1_1, 64),
    "swin": (lambda: SwinTransformer([4, 4], 24, [2, 2], [2, 4], [4, 4]), 50),
    "swin_v2": (
        lambda: SwinTransformer(
            [4, 4], 24, [2, 2], [2, 4], [4, 4], block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2
        ),
        50,
    ),
    "vgg": (small_vgg, 32),
    "vit": (lambda: VisionTransformer(32, 8, 2, 2, 32, 64), 32),
}


def prepare(module: nn.Module, size: int) -> nn.Module:
    """A tenth of the weights, scaled to keep activations alive, and norms that fit them."""

    def estimate(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        variance, mean = torch.var_mean(inputs[0].transpose(0, 1).flatten(1), dim=1)
        norm.running_mean.copy_(mean)  # type: ignore[operator, union-attr]
        norm.running_var.copy_(variance.clamp_min(0.1 * float(variance.mean())))  # type: ignore[operator, union-attr]

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("layer_scale"):
                parameter.normal_(0.5, 0.1)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1)
        hooks = []
        for layer in module.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(layer.weight)
                threshold = (
                    layer.weight.abs().flatten().quantile(0.9) if layer.weight.numel() < 1 << 24 else 0
                )
                layer.weight[layer.weight.abs() < threshold] = 0
                layer.weight *= 1.5
            elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
                hooks.append(layer.register_forward_pre_hook(estimate))
        module.eval()(torch.randn(4, 3, size, size))
        for hook in hooks:
            hook.remove()
    return module


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_family(family: str, tmp_path: Path) -> None:
    build, size = FAMILIES[family]
    torch.manual_seed(0)
    module = prepare(build(), size)
    SparseModel.from_dense(module, torch.zeros(1, 3, size, size)).save_pretrained(tmp_path / "model")
    model = SparseModel.from_pretrained(tmp_path / "model")
    for batch in (1, 3):
        x = torch.randn(batch, 3, size, size)
        with torch.no_grad():
            expected = module(x)
        assert float((model(x) - expected).norm() / expected.norm()) < 1e-4
    # Inputs must matter, or the comparison above would be empty.
    assert float((expected[0] - expected[1]).norm() / expected[0].norm()) > 1e-3
