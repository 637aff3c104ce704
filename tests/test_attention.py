"""Attention: PyTorch's own module, opened so that its projections are quantised along their real path."""

import itertools

import pytest
import torch
from networks import explicit_hessian
from sensitivities import plan_of
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import hawq
from hawq.attention import opened_attention
from hawq.blocks import find_blocks
from hawq.layers import quantizable_layers, weight_of
from hawq.quantization import LSQ, Uniform, activation_errors, input_quantizer, weight_quantizer

WIDTH, HEADS, SAMPLES = 8, 2, 3
BOOLS = (False, True)


def inputs_of(batched, batch_first, length, seed):
    shape = (length, WIDTH) if not batched else (SAMPLES, length, WIDTH) if batch_first else (length, SAMPLES, WIDTH)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def masks_of(batched, queries, keys):
    generator = torch.Generator().manual_seed(5)
    count = HEADS * (SAMPLES if batched else 1)
    hidden = torch.rand(queries, keys, generator=generator) > 0.7
    hidden[:, 0] = False
    yield from (None, hidden, torch.randn(queries, keys, generator=generator))
    yield torch.randn(count, queries, keys, generator=generator)


def paddings_of(batched, keys, mask):
    padding = torch.zeros(SAMPLES, keys, dtype=torch.bool)
    padding[:, -1] = True
    padding = padding if batched else padding[0]
    numbers = mask is not None and mask.dtype != torch.bool
    return (None, torch.zeros(padding.shape).masked_fill(padding, -torch.inf) if numbers else padding)


@pytest.mark.parametrize("training", BOOLS, ids=["eval", "train"])
@pytest.mark.parametrize(("batched", "batch_first"), [(True, True), (True, False), (False, False)])
def test_opened_is_pytorchs(batched, batch_first, training):
    """Self, cross and general attention, all masks, with and without biases and weights."""
    queries, keys = 4, 5
    query, key, value = (inputs_of(batched, batch_first, n, n + i) for i, n in enumerate((queries, keys, keys)))
    for bias, need_weights, average in itertools.product(BOOLS, repeat=3):
        torch.manual_seed(1)
        module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first, bias=bias).train(training)
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.5)
        for given in ((query, query, query), (query, key, key), (query, key, value)):
            length = queries if given[1] is query else keys
            for mask in masks_of(batched, queries, length):
                for padding in paddings_of(batched, length, mask):
                    call = {"attn_mask": mask, "key_padding_mask": padding}
                    call |= {"need_weights": need_weights, "average_attn_weights": average}
                    expected = module(*given, **call)
                    with opened_attention(module):
                        found = module(*given, **call)
                    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert type(module) is nn.MultiheadAttention


class Encoded(nn.Module):
    """Patches, one layer of PyTorch's encoder, a head: nothing else multiplies."""

    def __init__(self, **options):
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 2, 2)
        self.encoder = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, batch_first=True, dropout=0.0, **options)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x):
        return self.head(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def made(kind=Encoded, dtype=torch.float32):
    torch.manual_seed(0)
    images = torch.randn(6, 3, 6, 6, dtype=dtype, generator=torch.Generator().manual_seed(1))
    return kind().to(dtype).eval(), images


@pytest.mark.parametrize("example", BOOLS, ids=["untraced", "traced"])
def test_both_projections_are_layers_and_counted(example):
    model, images = made()
    blocks = find_blocks(model, images[:2] if example else None)
    encoder = next(block for block in blocks if block.name == "encoder")
    assert encoder.layers == (
        "encoder.self_attn", "encoder.self_attn.out_proj", "encoder.linear1", "encoder.linear2"
    )  # fmt: skip
    assert encoder.num_weights == 4 * WIDTH**2 + 2 * WIDTH * 16
    if example:
        tokens = 9
        assert encoder.macs == tokens * encoder.num_weights
        assert encoder.num_activations == tokens * (3 * WIDTH + 16)  # into in_proj, out_proj and the first: WIDTH each


@pytest.mark.parametrize("bits", [2, 8])
def test_both_projections_are_quantised_along_their_real_path(bits, tmp_path):
    model, images = made()
    blocks = find_blocks(model, images[:1])
    network = hawq.quantize(model, blocks, plan_of(blocks, bits, bits), [images])
    attention = network.encoder.self_attn
    seen = []
    attention.out_proj.register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    outputs = network(images)
    assert all(len(row.unique()) <= 2**bits for row in attention.in_proj_weight)
    assert len(seen[0].unique()) <= 2**bits
    assert 0 < (outputs - model(images)).norm() / model(images).norm() < {2: 2, 8: 0.02}[bits]
    with torch.no_grad():  # PyTorch's fused kernel must not bypass the quantisers
        torch.testing.assert_close(network(images), outputs)
    loaded = hawq.load(hawq.save(network, tmp_path / "packed"), made()[0])
    assert torch.equal(loaded(images), network(images))
    assert type(model.encoder.self_attn) is nn.MultiheadAttention


def test_cross_attention_shares_one_grid_and_keeps_identities():
    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.front = nn.Linear(WIDTH, WIDTH)
            self.mix = nn.ModuleList([nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)])

        def forward(self, x):
            memory = 3 * x
            return self.mix[0](query=self.front(x), key=memory, value=memory, need_weights=False)[0]

    torch.manual_seed(0)
    model, x = Cross().eval(), torch.randn(4, 5, WIDTH)
    blocks = find_blocks(model, x)
    network = hawq.quantize(model, blocks, plan_of(blocks, 8, 3), [x], Uniform("minmax", "minmax"))
    grid = input_quantizer(network.mix[0])
    seen = torch.cat([network.front(x), 3 * x])
    assert torch.allclose(grid.fixed_range.reshape(-1), torch.stack([seen.min(), seen.max()]))
    calls = []
    network.mix[0].register_forward_pre_hook(lambda m, a, kwargs: calls.append(kwargs), with_kwargs=True)
    network(x)
    assert calls[0]["key"] is calls[0]["value"]
    assert len(calls[0]["key"].unique()) <= 8


class OwnForward(nn.MultiheadAttention):
    def forward(self, x):
        return self.out_proj(F.linear(x, self.in_proj_weight[:WIDTH]))


CLOSED = {
    "other widths": (lambda: nn.MultiheadAttention(WIDTH, HEADS, kdim=4, vdim=4, batch_first=True), []),
    "biases of keys": (lambda: nn.MultiheadAttention(WIDTH, HEADS, add_bias_kv=True, batch_first=True), []),
    "zero attention": (lambda: nn.MultiheadAttention(WIDTH, HEADS, add_zero_attn=True, batch_first=True), []),
    "a class of its own": (lambda: OwnForward(WIDTH, HEADS, batch_first=True), ["0.out_proj"]),
}


@pytest.mark.parametrize(("make", "expected"), CLOSED.values(), ids=CLOSED)
def test_what_cannot_be_opened_has_no_such_layers(make, expected):
    assert list(quantizable_layers(nn.Sequential(make()))) == expected


def test_what_stays_closed_is_named(caplog):
    class Closed(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.head = nn.MultiheadAttention(WIDTH, HEADS, kdim=4, vdim=4, batch_first=True), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.mix(x, x[..., :4], x[..., :4])[0])

    (block,) = find_blocks(Closed(), torch.randn(2, 5, WIDTH))
    assert block.layers == ("head",)
    for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"):
        assert f"mix.{name}" in caplog.text


def test_curvature_is_that_of_the_explicit_hessian():
    model, images = made(dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    blocks = find_blocks(model, images[:1])
    found = hawq.analyze(model, blocks, [(images, labels)], solver=hawq.Lanczos(tolerance=1e-6, max_iterations=200))
    for block in blocks[1:2]:
        with sdpa_kernel(SDPBackend.MATH):  # fused kernels have no second derivative
            exact = torch.linalg.eigvalsh(explicit_hessian(model, block, (images, labels), F.cross_entropy))[-1]
        assert found.row(block.name).eigenvalue.value == pytest.approx(float(exact), rel=1e-4)


def test_activations_of_both_projections_are_analysed():
    model, images = made()
    blocks = find_blocks(model, images[:1])
    errors = activation_errors(model, blocks, [images], LSQ(), [2, 8])["encoder"]
    assert errors[2] > 10 * errors[8] > 0
    found = hawq.analyze(model, blocks, [(images, torch.zeros(6, dtype=torch.long))], activations=True)
    assert found.row("encoder").activation_trace.value != 0


def test_fine_tuning_reaches_both_projections():
    model, images = made()
    batches = [(images, torch.tensor([0, 1, 2, 0, 1, 2]))] * 2
    sensitivity = hawq.analyze(model, find_blocks(model), batches, solver=hawq.RandomScore())
    plan = hawq.allocate(sensitivity, hawq.UniformBits(4, 4))
    network, _ = hawq.finetune(model, sensitivity, plan, batches, [images], hawq.FineTuning(epochs=2))
    for layer in (network.encoder.self_attn, network.encoder.self_attn.out_proj):
        assert weight_quantizer(layer).enabled and input_quantizer(layer).enabled
        float_layer = model.get_submodule(
            "encoder.self_attn" + (".out_proj" if layer is not network.encoder.self_attn else "")
        )
        assert not torch.allclose(weight_of(layer), weight_of(float_layer), atol=1e-3)


def test_padded_batches_through_pytorchs_encoder():
    """Its nested tensors would bypass hooks; the quantised network gives what the layers give."""

    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, batch_first=True, dropout=0.0)
            self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(WIDTH, 2)

        def forward(self, x):
            hidden = torch.zeros(x.shape[:2], dtype=torch.bool)
            hidden[0, -2:] = True
            return self.head(self.encoder(x, src_key_padding_mask=hidden)[:, 0])

    torch.manual_seed(0)
    model, x = Padded().eval(), torch.randn(3, 5, WIDTH)
    blocks = find_blocks(model, x)
    assert len(blocks) == 3
    network = hawq.quantize(model, blocks, plan_of(blocks, 8, 8), [x])
    with torch.no_grad():
        assert (network(x) - model(x)).norm() / model(x).norm() < 0.05
