"""Networks that no config names go through find → analyze → allocate → quantize as they come from timm."""

import numpy as np
import pytest
import timm
import torch

import hawq
from hawq.data import Digits
from hawq.models import ModelSpec
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


FIXED = {  # the smallest member of each family of timm that takes images of one size → that size
    "vit_tiny_patch16_224": 224,
    "deit_tiny_distilled_patch16_224": 224,
    "test_vit_relpos": 160,
    "eva02_tiny_patch14_224": 224,
    "swin_tiny_patch4_window7_224": 224,
    "swinv2_tiny_window8_256": 256,
    "mixer_s32_224": 224,
    "cait_xxs24_224": 224,
    "coat_lite_tiny": 224,
    "coatnet_nano_rw_224": 224,
    "convit_tiny": 224,
    "crossvit_9_240": 240,
    "efficientformer_l1": 224,
    "efficientformerv2_s0": 224,
    "gcvit_xxtiny": 224,
    "hiera_tiny_224": 224,
    "levit_128s": 224,
    "mvitv2_tiny": 224,
    "nest_tiny": 224,
    "pit_ti_224": 224,
    "tnt_s_patch16_224": 224,
    "twins_svt_small": 224,
    "visformer_tiny": 224,
    "vit_tiny_r_s16_p8_224": 224,
    "vitamin_small_224": 224,
    "volo_d1_224": 224,
    "xcit_nano_12_p16_224": 224,
    "botnet26t_256": 256,
}


def prepared(spec, dataset):
    """A network without memory for its weights, and an image as it is prepared for it."""
    with torch.device("meta"):
        model = spec.build(10)
    image = np.zeros((32, 32, 3), np.uint8)
    return model, dataset.prepare(model.preprocessing, dataset.normalization)(image)[None].to("meta")


@pytest.mark.parametrize("name", FIXED)
def test_networks_of_a_fixed_size_get_images_of_that_size(name):
    """As `python train.py model=timm model.name=...` does with the embedded data set."""
    model, image = prepared(ModelSpec(name), Digits())
    assert image.shape == (1, 3, FIXED[name], FIXED[name])
    model.check_input(image)


@pytest.mark.parametrize(
    ("name", "size"), [("vit_tiny_patch16_224", 32), ("levit_128s", 96), ("swin_tiny_patch4_window7_224", 112)]
)
def test_another_size_can_be_chosen_for_a_network_of_a_fixed_size(name, size):
    model, image = prepared(ModelSpec(name, input_size=size), Digits())
    assert image.shape == (1, 3, size, size)
    model.check_input(image)


@pytest.mark.parametrize("name", ["nest_tiny", "xcit_nano_12_p16_224", "gcvit_xxtiny", "efficientformer_l1"])
def test_a_size_that_a_network_cannot_have_is_refused_in_one_sentence(name):
    refused = rf"(input_size=100 is not possible with {name}|the network \w+ cannot take images of 100×100)"
    with pytest.raises(ValueError, match=rf"^{refused} \([^\n]+\): give "):
        model, image = prepared(ModelSpec(name, input_size=100), Digits())
        model.check_input(image)


@pytest.mark.parametrize(
    ("name", "own"), [("inception_v3", 299), ("inception_resnet_v2", 299), ("eca_halonext26ts", 256), ("csatv2", 512)]
)
def test_images_that_are_too_small_for_a_network_are_refused_in_one_sentence(name, own):
    model, image = prepared(ModelSpec(name), Digits())
    with pytest.raises(ValueError, match=rf"cannot take images of 32×32 \([^\n]+\): give input_size={own}, for which"):
        model.check_input(image)
    fitting, image = prepared(ModelSpec(name, input_size=own), Digits())
    fitting.check_input(image)


def test_images_that_are_not_square_need_another_network():
    with (
        pytest.raises(ValueError, match=r"^name='vit_base_patch16_sapiens2' takes images of 1024×768"),
        torch.device("meta"),
    ):
        ModelSpec("vit_base_patch16_sapiens2").build(10)
