"""Pretrain the built-in network on the broad texture classes and write the weights that the package ships.

    python scripts/pretrain_texturenet.py --out finepruning/data/texturenet.safetensors

The classes it learns (`texture_broad.BROAD`) have none in common with the demonstration's. The head is
left out of the file, values are stored as float16, and the file's metadata records how it was made. The
same arguments, machine and versions give the same file.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from finepruning.data import Images, Preprocessing
from finepruning.data.texture_broad import BROAD
from finepruning.data.textures import SIDE, draw_set
from finepruning.networks import TEXTURENET_WEIGHTS, TextureNet

HEAD = "classifier.4."


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    network = TextureNet(len(BROAD)).to(memory_format=torch.channels_last)
    train = images(options.images, options.seed)
    held_out = images(40, options.seed + 1)
    started = time.monotonic()
    fit(network, train, held_out, options)
    accuracy = accuracy_on(network, held_out)
    tensors = {
        name: value.to(torch.float16).contiguous()
        for name, value in network.state_dict().items()
        if not name.startswith(HEAD)
    }
    metadata = {
        "format": "pt",
        "network": "finepruning.networks.TextureNet without its head",
        "made_by": "scripts/pretrain_texturenet.py",
        "arguments": json.dumps({key: value for key, value in vars(options).items() if key != "out"}),
        "classes": ", ".join(BROAD),
        "held_out_accuracy": f"{accuracy:.4f}",
        "seconds": f"{time.monotonic() - started:.0f}",
        "torch": torch.__version__,
    }
    save_file(tensors, options.out, metadata)
    print(f"{options.out}: {Path(options.out).stat().st_size} bytes, held-out accuracy {accuracy:.4f}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=600, help="training images of each class")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate (AdamW, one cosine)")
    parser.add_argument("--weight-decay", type=float, default=0.02)
    parser.add_argument(
        "--bfloat16", action="store_true", help="compute in bfloat16 where torch's autocast does"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", default=str(TEXTURENET_WEIGHTS))
    return parser.parse_args()


def images(per_class: int, seed: int) -> Images:
    """Newly drawn images of the broad classes."""
    pixels, labels = draw_set(BROAD, per_class, seed)
    preprocessing = Preprocessing(SIDE, SIDE, TextureNet.mean, TextureNet.std)
    return Images(
        pixels, torch.arange(len(labels)), torch.tensor(labels), preprocessing, augmentation="dihedral"
    )


def fit(network: TextureNet, train: Images, held_out: Images, options: argparse.Namespace) -> None:
    """Train in place and print one line an epoch."""
    steps_per_epoch = math.ceil(len(train) / options.batch_size)
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_cosine(steps_per_epoch, options.epochs))
    for epoch in range(options.epochs):
        network.train()
        started, total = time.monotonic(), 0.0
        for inputs, labels in train.batches(
            options.batch_size, shuffle=options.seed * 1000 + epoch, augment=True
        ):
            with torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16):
                loss = F.cross_entropy(forward(network, inputs), labels, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(labels)
        print(
            f"epoch {epoch + 1}/{options.epochs}: loss {total / len(train):.3f}, "
            f"held out {accuracy_on(network, held_out):.4f}, {time.monotonic() - started:.0f} s",
            flush=True,
        )


def warm_cosine(steps_per_epoch: int, epochs: int):
    """Learning rate factor of a step: half an epoch of linear rise, then a cosine to 0."""
    rise, total = steps_per_epoch / 2, steps_per_epoch * epochs
    return lambda step: min(1.0, (step + 1) / rise) * 0.5 * (1 + math.cos(math.pi * step / total))


def forward(network: TextureNet, inputs: Tensor) -> Tensor:
    return network(inputs.contiguous(memory_format=torch.channels_last))


def accuracy_on(network: TextureNet, held_out: Images) -> float:
    network.eval()
    with torch.no_grad():
        right = sum(int((forward(network, x).argmax(1) == y).sum()) for x, y in held_out.batches(256))
    return right / len(held_out)


if __name__ == "__main__":
    main()
