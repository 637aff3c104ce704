"""The library's verbs on a user's own network, data loader and loss."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import hawq


class Regressor(nn.Module):
    """Nothing in it knows of this project."""

    def __init__(self):
        super().__init__()
        self.convolve = nn.Conv1d(2, 8, 3, padding=1)
        self.towers = nn.ModuleList(nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 2)) for _ in range(2))

    def forward(self, series):  # (N, 2, T)
        features = self.convolve(series).relu().mean(-1)
        return sum(tower(features) for tower in self.towers)


def test_five_lines(tmp_path):
    inputs, targets = torch.randn(24, 2, 9), torch.randn(24, 2)
    model, batches = Regressor(), list(DataLoader(TensorDataset(inputs, targets), batch_size=10))

    blocks = hawq.find_blocks(model)
    sensitivity = hawq.analyze(model, blocks, batches, loss=F.mse_loss)
    plan = hawq.allocate(sensitivity, hawq.IntegerProgram(target=7, activations=8))
    network = hawq.quantize(model, blocks, plan, [inputs for inputs, _ in batches])
    loaded = hawq.load(hawq.save(network, tmp_path / "model.safetensors"), Regressor())

    assert [block.name for block in blocks] == ["convolve", *(f"towers.{i}.{j}" for i in (0, 1) for j in (0, 2))]
    assert plan.cost.w_comp >= 7
    assert torch.equal(loaded(inputs), network.eval()(inputs))
    assert 0 < (network(inputs) - model(inputs)).abs().max() < 1


def test_fine_tuning_with_the_users_loss_and_loader():
    inputs, targets = torch.randn(24, 2, 9), torch.randn(24, 2)
    model, loader = Regressor(), DataLoader(TensorDataset(inputs, targets), batch_size=8)
    blocks = hawq.find_blocks(model)
    sensitivity = hawq.analyze(model, blocks, list(loader), loss=F.mse_loss)
    plan = hawq.allocate(sensitivity, hawq.UniformBits(3, 4))
    settings = hawq.FineTuning(epochs=20, lr=0.02)
    network, history = hawq.finetune(model, sensitivity, plan, loader, [inputs], settings, loss=F.mse_loss)
    before = F.mse_loss(hawq.quantize(model, blocks, plan, [inputs])(inputs), targets)
    assert F.mse_loss(network.eval()(inputs), targets) < before
    assert len(history) == 60
