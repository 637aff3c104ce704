"""Networks that no config names go through find → analyze → allocate → quantize as they come from timm."""

import pytest
import timm
import torch

import hawq
from hawq.unquantized import unquantized

SMALL = {  # name → (side, what makes it tiny, something that stays float)
    "vgg11": (32, {"mlp_ratio": 0.01}, None),
    "densenet121": (32, {"growth_rate": 4, "block_config": (2, 2)}, None),
    "mobilenetv3_small_050": (32, {}, None),
    "convnext_atto": (32, {"depths": (1, 1, 1, 1), "dims": (4, 8, 8, 8)}, None),
    "vit_tiny_patch16_224": (32, {"img_size": 32, "depth": 2, "embed_dim": 24}, "blocks.1.attn"),
}


@pytest.mark.parametrize("name", SMALL)
def test_all_stages_of_the_library(name):
    side, options, stays_float = SMALL[name]
    model = timm.create_model(name, num_classes=4, **options).eval()
    images, labels = torch.randn(4, 3, side, side), torch.arange(4)
    blocks = hawq.find_blocks(model, images[:1])
    assert sum(block.macs for block in blocks) > 0
    solver, quantizer = hawq.PowerIteration(max_iterations=1), hawq.Uniform("minmax", "minmax")
    sensitivity = hawq.analyze(model, blocks, [(images, labels)], solver=solver, quantizer=quantizer)
    plan = hawq.allocate(sensitivity, hawq.IntegerProgram(target=8))
    assert plan.cost.w_comp >= 8
    network = hawq.quantize(model, blocks, plan, [images], quantizer)
    assert network(images).isfinite().all()
    assert not torch.equal(network(images), model(images))
    listed = {part.name for part in unquantized(model, blocks, images)}
    assert (stays_float in listed) if stays_float else not any("attn" in part for part in listed)
