"""Other networks as deployed files: bytes, layers in integers, speed against float, as a table in Markdown.

    python scripts/benchmark_deploy_networks.py mobilenetv3_small_100:96 resnet50:96 vit_tiny_patch16_224:224

A network is a name of timm (or squeezenext, ours), and the side of its inputs. Weights are random,
batch norms have seen random images, and every block has 4-bit weights and activations: bytes, kernels and speed do not
depend on what the weights are.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from hawq import find_blocks
from hawq.costs import plan_cost
from hawq.deployment import Deployed, available, deploy
from hawq.models import ModelSpec
from hawq.quantization import quantize
from hawq.quantization.batch_norm import reestimate_batch_norm
from hawq.records import BitPlan, Precision

_IMAGES, _CLASSES, _BITS = 8, 1000, 4
COLUMNS = "| network | side | profile | bytes | of float | layers in integers | speed, batch 1 |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", help="name:side")
    parser.add_argument("--folder", default="outputs/benchmark_deploy", help="of the files")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{COLUMNS}\n|{'---|' * (COLUMNS.count('|') - 1)}")
    try:
        for named in given.networks:
            name, _, side = named.partition(":")
            if not (side or "224").isdecimal():
                raise ValueError(f"{named}: the side of its inputs is no whole number: give name:side, say {name}:224")
            for row in rows(name, int(side or 224), given.folder):
                print(row, flush=True)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def rows(name: str, side: int, folder: str) -> list[str]:
    """One row per profile; a refusal is a row as well."""
    torch.manual_seed(0)
    images = torch.randn(_IMAGES, 3, side, side)
    network = prepared(name, images)
    found = []
    for profile in ("exact", "integer"):
        path = f"{folder}/{name}/{profile}/model.onnx"
        runtimes = [one for one in available() if one.name in ("onnxruntime", "openvino")]
        try:
            one = deploy(
                network, path, images, profile=profile, calibration=[images], runtimes=runtimes, timed_batches=(1,)
            )  # fmt: skip
        except ValueError as refusal:
            found.append(f"| {name} | {side} | {profile} | refused: {refusal} | | | |")
            continue
        found.append(f"| {name} | {side} | {profile} | {cells(one)} |")
    return found


def prepared(name: str, images: Tensor) -> nn.Module:
    """The network at 4 bits, its ranges from the images."""
    network = ModelSpec(name).build(_CLASSES).network.eval()
    reestimate_batch_norm(network, [images])
    blocks = find_blocks(network, images[:1])
    precisions = {block.name: Precision(_BITS, _BITS) for block in blocks}
    return quantize(network, blocks, BitPlan(precisions, "uniform", plan_cost(blocks, precisions)), [images])


def cells(found: Deployed) -> str:
    """Bytes, their share of float's, layers in integers and speed in each runtime."""
    layers = ", ".join(f"{one.runtime} {one.integer_layers} of {one.num_layers}" for one in found.runtimes)
    speeds = ", ".join(f"{one.runtime} {one.milliseconds['1']['speedup']:.2f}" for one in found.runtimes)
    share = found.size_bytes / found.float_size_bytes
    return f"{found.size_bytes:,} | {share:.3f} | {layers} | {speeds}"


if __name__ == "__main__":
    main()
