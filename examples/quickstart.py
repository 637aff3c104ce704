"""A network of your own, from float to a packed file, in under a minute: python examples/quickstart.py."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import hawq


def stage(channels: int, out: int, stride: int = 1) -> nn.Module:
    """A convolution with batch norm, on (N, channels, H, W)."""
    convolution = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out), nn.ReLU())


class DigitNet(nn.Module):
    """Any `nn.Module` with convolution or linear layers will do; nothing in this one knows about HAWQ."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(stage(1, 16), stage(16, 32, stride=2), stage(32, 64), stage(64, 64))
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 1, 8, 8) → (N, 10)."""
        return self.head(self.stages(images).mean((2, 3)))  # type: ignore[no-any-return]


def main() -> None:
    """Trains, analyses, allocates, fine-tunes, packs and loads; prints what each step found."""
    torch.manual_seed(0)
    digits = load_digits()
    order = torch.randperm(len(digits.target))
    images = torch.from_numpy(digits.images).float()[order, None] / 8 - 1  # (1797, 1, 8, 8), −1 … 1
    labels = torch.from_numpy(digits.target)[order]
    train, test = (images[:1437], labels[:1437]), (images[1437:], labels[1437:])
    loader = DataLoader(TensorDataset(*train), batch_size=128, shuffle=True)

    model = DigitNet()
    fit(model, loader, epochs=15)
    print(f"float: {accuracy(model, *test):.1f} % of {len(test[0])} test images")

    # 1. Which parts of the network get bits of their own, and how sharply does the loss curve along each?
    blocks = hawq.find_blocks(model, images[:1])
    batches = [(train[0][:256], train[1][:256])]
    sensitivity = hawq.analyze(model, blocks, batches, F.cross_entropy, scores=("kl",))
    for row in sensitivity.rows:
        found = row.eigenvalue.value if row.eigenvalue else float("nan")
        print(f"  {row.block.name:10} {row.block.num_weights:6,} weights, largest eigenvalue {found:.3g}")

    # 2. The bits that cost least, at 12 times fewer weight bits than float32 and 4-bit activations.
    plan = hawq.allocate(sensitivity, hawq.IntegerProgram(target=12, activations=4))
    print(plan)

    # 3. Quantise block after block, the most sensitive first, and fine-tune.
    settings = hawq.FineTuning(epochs=10, lr=0.02)
    small, _ = hawq.finetune(model, sensitivity, plan, loader, [train[0][:256]], settings)
    print(f"quantised: {accuracy(small, *test):.1f} %")

    # 4. A file with nothing but integer codes, scales and biases; it loads into the float network's class.
    with tempfile.TemporaryDirectory() as folder:
        path = hawq.save(small, Path(folder) / "digits.safetensors")
        packed, whole = path.stat().st_size, 4 * sum(p.numel() for p in model.parameters())
        same = hawq.load(path, DigitNet())
    print(f"packed: {packed:,} bytes, float32: {whole:,}; loaded again: {accuracy(same, *test):.1f} %")


def fit(model: nn.Module, loader: DataLoader[tuple[Tensor, ...]], epochs: int) -> None:
    """Plain PyTorch: SGD on cross-entropy."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Percent of the images (N, 1, 8, 8) whose largest output is at their label."""
    right = (model.eval()(images).argmax(1) == labels).float().mean()
    return 100 * float(right)


if __name__ == "__main__":
    main()
