"""What stays float is listed: position embeddings, attention products, weights of unusual modules."""

import pytest
import timm
import torch
from networks import NETWORKS, SIDE, build
from torch import Tensor, nn
from torch.nn import functional as F

from hawq.blocks import find_blocks
from hawq.records import FloatPart
from hawq.unquantized import unquantized

TOKENS, WIDTH = 5, 4


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, TOKENS, WIDTH))
        self.scale = nn.Parameter(torch.randn(WIDTH))  # a vector
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.qkv(x + self.position) * self.scale.repeat(3)).chunk(3, dim=-1)
        return self.mix(q, k, v)


class Plain(Attention):
    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT).softmax(-1) @ v


class Fused(Attention):
    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class Own(nn.Module):
    """A weight that multiplies, in no layer of its own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.body = nn.ModuleList([inner])  # a container that is never called itself
        self.mixing = nn.Parameter(torch.randn(WIDTH, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.body[0](x) @ self.mixing


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("num_samples", [1, 3])
@pytest.mark.parametrize("kind", [Plain, Fused])
def test_attention_by_hand(kind, num_samples, device):
    with torch.device(device):
        model, x = kind(), torch.randn(num_samples, TOKENS, WIDTH)
        wrapped = Own(kind())
    position = FloatPart("position", num_weights=TOKENS * WIDTH)
    macs = 2 * TOKENS * TOKENS * WIDTH
    assert unquantized(model, find_blocks(model), x) == (position, FloatPart(kind.__name__, macs=macs))
    assert set(unquantized(wrapped, find_blocks(wrapped), x)) == {
        FloatPart("mixing", num_weights=2 * WIDTH),
        FloatPart("body.0.position", num_weights=TOKENS * WIDTH),
        FloatPart("body.0", macs=macs),
        FloatPart("Own", macs=TOKENS * WIDTH * 2),
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_stays_float_in_convolutional_networks(name):
    model = build(name, torch.float32)
    assert unquantized(model, find_blocks(model), torch.randn(2, 3, SIDE, SIDE)) == ()


VIEWS = {
    "expanded": lambda latent, size: latent.expand(size, -1, -1),
    "reshaped": lambda latent, size: latent.reshape(WIDTH).unsqueeze(0).expand(size, -1),
    "indexed": lambda latent, size: latent[0].expand(size, -1),
    "transposed": lambda latent, size: latent.mT.mT.expand(size, 1, WIDTH),
    "the parameter itself": lambda latent, size: latent,
}


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_layer_that_reads_a_view_of_a_parameter(view, trained):
    """As the latent query of a pooling attention; whether it is trained changes nothing and stays as it was."""

    class Latent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.latent = nn.Parameter(torch.randn(1, 1, WIDTH), requires_grad=trained)
            self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            query = self.query(view(self.latent, len(x))).reshape(-1, 1, WIDTH)
            return (query * self.key(x)).sum(1)

    model, x = Latent().train(), torch.randn(3, TOKENS, WIDTH, requires_grad=True)
    blocks = find_blocks(model, x)
    assert [layer for block in blocks for layer in block.layers] == ["query", "key"]
    assert [str(part) for part in unquantized(model, blocks, x)] == ["latent (4 weights)"]
    assert model.training and model.latent.requires_grad == trained and model.query.weight.requires_grad


def test_vision_transformer():
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224")
        parts = unquantized(model, find_blocks(model), torch.randn(1, 3, 224, 224))
    macs = 2 * 197 * 197 * 192
    assert [part.name for part in parts if part.macs] == [f"blocks.{i}.attn" for i in range(12)]
    assert {part.macs for part in parts if part.macs} == {macs}
    assert {str(part) for part in parts if not part.macs} == {"cls_token (192 weights)", "pos_embed (37,824 weights)"}
