"""Block curvature against explicit float64 matrices."""

from functools import cache

import pytest
import torch
from networks import NETWORKS, build, cut, explicit_gauss_newton, explicit_hessian, samples
from torch import nn
from torch.nn import functional as F

from hawq.blocks import find_blocks
from hawq.curvature import OPERATORS
from hawq.sensitivity import block_weights

NUM_SAMPLES = 7


EXPLICIT = {"hessian": explicit_hessian, "ggn": explicit_gauss_newton}


def operator_of(kind, model, batches, loss=F.cross_entropy):
    return OPERATORS[kind](model, {b.name: block_weights(model, b) for b in find_blocks(model)}, batches, loss)


def hessian_of(model, batches, loss=F.cross_entropy):
    return operator_of("hessian", model, batches, loss)


def random_vectors(operator, model):
    generator = torch.Generator().manual_seed(3)
    return {block.name: operator.random_vector(block.name, generator) for block in find_blocks(model)}


@cache
def explicit_matrices(kind, name):
    model, batch = build(name), samples(NUM_SAMPLES)
    return {block.name: EXPLICIT[kind](model, block, batch, F.cross_entropy) for block in find_blocks(model)}


@pytest.mark.parametrize("sizes", [(7,), (4, 3), (3, 3, 1)], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", OPERATORS)
def test_products_are_those_of_the_explicit_matrix(kind, name, sizes):
    model, batch = build(name), samples(NUM_SAMPLES)
    operator = operator_of(kind, model, cut(batch, sizes))
    vectors = random_vectors(operator, model)
    for _ in range(2):  # a single batch keeps its graph for the second time
        products = operator.products(vectors)
    for block, dense in explicit_matrices(kind, name).items():
        torch.testing.assert_close(products[block], dense @ vectors[block], rtol=1e-9, atol=1e-12)
    assert operator.mean_loss == pytest.approx(F.cross_entropy(model(batch[0]), batch[1]).item(), rel=1e-12)
    assert operator.num_samples == NUM_SAMPLES


@pytest.mark.parametrize("name", NETWORKS)
def test_the_gauss_newton_matrix_has_no_negative_direction(name):
    """It is the Hessian for a single layer of a network that is linear between its kinks, and only there."""
    same = []
    for block, dense in explicit_matrices("ggn", name).items():
        spectrum = torch.linalg.eigvalsh(dense)
        assert spectrum[0] >= -1e-12 * spectrum[-1]
        same.append(torch.allclose(dense, explicit_matrices("hessian", name)[block], rtol=1e-9, atol=1e-12))
    assert all(same) == (name == "depthwise")


def per_sample_gradients(model, batch):
    """Block → (N, n_i), one ordinary backward a sample."""
    rows = {block.name: [] for block in find_blocks(model)}
    for image, target in zip(*batch, strict=True):
        for block in find_blocks(model):
            loss = F.cross_entropy(model(image[None]), target[None])
            parts = torch.autograd.grad(loss, block_weights(model, block))
            rows[block.name].append(torch.cat([part.reshape(-1) for part in parts]))
    return {name: torch.stack(gradients) for name, gradients in rows.items()}


@pytest.mark.parametrize("sizes", [(7,), (3, 3, 1)], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_and_sketches_are_made_of_those_of_the_samples(name, sizes):
    """A sketch is Σ ±g_n / √N: solved for its signs, they are all ±1, and each draw has others."""
    model, batch = build(name), samples(NUM_SAMPLES)
    operator, signs = hessian_of(model, cut(batch, sizes)), []
    expected, gradients = per_sample_gradients(model, batch), operator.gradients()
    for block, rows in expected.items():
        torch.testing.assert_close(gradients[block], rows.mean(0))
    (block, rows) = max(expected.items(), key=lambda item: item[1].shape[1])
    for draw in range(8):
        sketch = operator.sketches(draw)[block]
        signs.append(torch.linalg.lstsq(rows.T, NUM_SAMPLES**0.5 * sketch[:, None]).solution[:, 0])
    torch.testing.assert_close(torch.stack(signs).abs(), torch.ones(8, NUM_SAMPLES, dtype=torch.float64))
    assert len({tuple(row.sign().tolist()) for row in signs}) > 4


def test_the_mean_square_of_sketches_is_the_trace_of_the_fisher_matrix():
    model, batch = build("residual"), samples(NUM_SAMPLES)
    operator = hessian_of(model, [batch])
    draws = {name: [] for name in operator.names}
    for draw in range(400):
        for name, sketch in operator.sketches(draw).items():
            draws[name].append(sketch.square().sum())
    for name, rows in per_sample_gradients(model, batch).items():
        values, trace = torch.stack(draws[name]), rows.square().sum() / NUM_SAMPLES
        assert abs(values.mean() - trace) < 4 * values.std() / 400**0.5


@pytest.mark.parametrize("sizes", [(12,), (5, 5, 2)], ids=str)
def test_a_subset_holds_the_samples_whose_loss_is_most_curved(sizes):
    """All samples but two have logits so far apart that p(1 − p) is nearly zero."""
    model, (images, targets) = nn.Sequential(nn.Flatten(), nn.Linear(108, 3)).double(), samples(12)
    curved = [3, 10]
    images *= torch.tensor([1e-2 if index in curved else 1e3 for index in range(12)])[:, None, None, None]
    operator, alone = (
        hessian_of(model, cut((images, targets), sizes)),
        hessian_of(model, [(images[curved], targets[curved])]),
    )
    vectors = random_vectors(alone, model)
    small = operator.subset(1 / 6)
    assert small.num_samples == 2
    torch.testing.assert_close(small.products(vectors), alone.products(vectors))


def test_a_subset_does_not_depend_on_how_samples_are_batched():
    model, batch = build("residual"), samples(40)
    losses = [hessian_of(model, cut(batch, sizes)).subset(0.2).mean_loss for sizes in ((40,), (32, 8), (7, 20, 13))]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-12)


def test_the_users_loss_is_used():
    model, batch = build("residual"), samples(NUM_SAMPLES)

    def loss(outputs, targets):
        return F.cross_entropy(outputs, targets, label_smoothing=0.2) + outputs.square().mean()

    hessian = hessian_of(model, [batch], loss)
    vectors = random_vectors(hessian, model)
    (head,) = [block for block in find_blocks(model) if block.name == "head"]
    expected = explicit_hessian(model, head, batch, loss) @ vectors["head"]
    torch.testing.assert_close(hessian.products({"head": vectors["head"]})["head"], expected)


@pytest.mark.parametrize("sizes", [(7,), (4, 3)], ids=str)
def test_a_linear_loss_of_a_linear_network_is_flat(sizes):
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3)).double()
    hessian = hessian_of(model, cut(samples(NUM_SAMPLES), sizes), lambda outputs, targets: outputs.mean())
    assert not hessian.products({"1": torch.ones(324, dtype=torch.float64)})["1"].any()


@pytest.fixture
def tf32():
    """PyTorch's switches, both on."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    yield torch.backends
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("sizes", [(7,), (4, 3)], ids=str)
@pytest.mark.parametrize("kind", OPERATORS)
def test_the_model_is_left_as_it_was(kind, sizes, tf32):
    model = build("residual").train()
    layouts = {name: (tensor.data_ptr(), tensor.stride()) for name, tensor in model.state_dict().items()}
    model.unit.bn2.eval()
    model.stem.weight.requires_grad_(False)
    model.head.weight.grad = torch.full_like(model.head.weight, 7.0)
    modes = {name: module.training for name, module in model.named_modules()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    operator = operator_of(kind, model, cut(samples(NUM_SAMPLES), sizes))
    vectors = random_vectors(operator, model)
    first, second = operator.products(vectors), operator.products(vectors)
    operator.gradients(), operator.sketches(0), operator.subset(0.5).products(vectors)
    assert tf32.cuda.matmul.allow_tf32 and tf32.cudnn.allow_tf32
    assert {name: (t.data_ptr(), t.stride()) for name, t in model.state_dict().items()} == layouts
    assert all(torch.equal(first[name], second[name]) for name in vectors)
    assert first["stem"].any()  # frozen for training, not for the analysis
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["stem.weight"]
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {"head.weight"}
    assert (model.head.weight.grad == 7).all()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_is_refused(value):
    with pytest.raises(ValueError, match="Hessian needs a finite"):
        hessian_of(build("mlp"), [samples(2)], lambda outputs, targets: outputs.sum() * 0 + value)


def test_no_batches_are_refused():
    with pytest.raises(ValueError, match="at least one batch"):
        hessian_of(build("mlp"), [])


def test_start_vectors_come_from_the_generator_alone():
    hessian = hessian_of(build("mlp"), [samples(2)])
    draws = [hessian.random_vector("3", torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)]
    assert draws[0].shape == (20,)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


class Flattened(nn.Module):
    """Old code: `view` on what a convolution made, which needs it in the order of its axes."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 2, 3)
        self.head = nn.Linear(32, 3)

    def forward(self, x):
        return self.head(self.stem(x).tanh().view(x.size(0), -1))


class Unnormalised(nn.Module):
    """An in-place ReLU straight after a convolution without bias."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, bias=False)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.act(self.stem(x)).mean(dim=(2, 3)))


@pytest.mark.parametrize("network", [Flattened, Unnormalised])
@pytest.mark.parametrize("kind", OPERATORS)
def test_networks_that_pytorch_can_differentiate_are_taken_as_they_are(kind, network):
    model, batch = network().double().eval(), samples(NUM_SAMPLES)
    operator = operator_of(kind, model, [batch])
    vectors = random_vectors(operator, model)
    for block in find_blocks(model):
        expected = EXPLICIT[kind](model, block, batch, F.cross_entropy) @ vectors[block.name]
        torch.testing.assert_close(operator.products(vectors)[block.name], expected, rtol=1e-9, atol=1e-12)
