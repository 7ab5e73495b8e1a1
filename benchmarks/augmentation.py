"""SimCLR's two views at 32x32: ours for whole batches against one picture at a time in Pillow, and as a share of a training step.

Run: python -m benchmarks.augmentation [--threads 2 --batch 256 --strength 0.5 --repeats 7]
Both sides start from uint8 pixels in memory and end with two float32 views in [0, 1]: resized crop of 0.08 to 1, flip, colour
jitter in random order with probability 0.8, grey with 0.2 (arXiv 2002.05709, appendix B.9). The peer does what torchvision's
transforms do to a PIL image, in as many processes as our side has threads, each writing into memory shared with the first;
`lean` is the same with ToTensor replaced by one NumPy call. A training step is the augmentation, transformers' ResNet-18 on
both views, NT-Xent on its pooled features, and AdamW.
"""

import argparse
import math
import multiprocessing
import random
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from transformers import ResNetConfig, ResNetModel

from benchmarks.common import record, timings
from tilth.contracts import Noise, use

SIZE = 32
ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def pillow_view(picture: Image.Image, strength: float) -> Image.Image:
    """RandomResizedCrop, RandomHorizontalFlip, RandomApply(ColorJitter, 0.8), RandomGrayscale(0.2), as torchvision does them."""
    box = None
    for _ in range(10):
        area = picture.width * picture.height * random.uniform(0.08, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= picture.width and 0 < height <= picture.height:
            left, top = random.randint(0, picture.width - width), random.randint(0, picture.height - height)
            box = (left, top, left + width, top + height)
            break
    picture = picture.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box)
    if random.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if random.random() < 0.8:
        for operation in random.sample(range(4), 4):
            if operation < 3:
                factor = random.uniform(1 - 0.8 * strength, 1 + 0.8 * strength)
                picture = ENHANCERS[operation](picture).enhance(factor)
            else:
                hue, saturation, value = picture.convert("HSV").split()
                turn = np.uint8(int(random.uniform(-0.2 * strength, 0.2 * strength) * 255) % 256)
                turned = Image.fromarray(np.asarray(hue) + turn)
                picture = Image.merge("HSV", (turned, saturation, value)).convert("RGB")
    if random.random() < 0.2:
        picture = ImageOps.grayscale(picture).convert("RGB")
    return picture


def pillow_part(pixels: np.ndarray, out: Tensor, strength: float, lean: bool, part: tuple[int, int]) -> None:
    """Both views of pictures part[0] to part[1], (height, width, channels) each, into out (2, pictures, channels, height, width).

    lean: NumPy scales straight into the batch; else ToTensor makes a tensor of each view, which is copied into the batch.
    """
    arrays = out.numpy()
    for i in range(*part):
        picture = Image.fromarray(pixels[i])
        for view, array in zip(out, arrays, strict=True):
            made = np.array(pillow_view(picture, strength))
            if lean:
                np.multiply(made.transpose(2, 0, 1), np.float32(1 / 255), out=array[i])
            else:
                view[i] = torch.from_numpy(made).permute(2, 0, 1).contiguous().float().div(255)


def contrastive(features: Tensor) -> Tensor:
    """NT-Xent of two halves of one batch, temperature 0.5."""
    z = normalize(features)
    similarity = (z @ z.T / 0.5).fill_diagonal_(-torch.inf)
    return cross_entropy(similarity, torch.arange(len(z)).roll(len(z) // 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"threads": torch.get_num_threads(), "batch": 256, "repeats": 7}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--strength", type=float, default=0.5)
    given = parser.parse_args()
    batch, threads = given.batch, given.threads
    small = np.random.default_rng(0).integers(0, 256, (batch, 8, 8, 3), dtype=np.uint8)
    pixels = np.stack([np.asarray(Image.fromarray(picture).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for picture in small])
    out = torch.empty(2, batch, 3, SIZE, SIZE).share_memory_()
    parts = [(batch * i // threads, batch * (i + 1) // threads) for i in range(threads)]
    # Forked before PyTorch has threads of its own.
    with multiprocessing.get_context("fork").Pool(threads, torch.set_num_threads, (1,)) as pool:
        works = {name: partial(pillow_part, pixels, out, given.strength, name == "lean") for name in ("peer", "lean")}
        torch.set_num_threads(threads)
        peers = {name: lambda work=work: pool.map(work, parts, chunksize=1) for name, work in works.items()}
        measure(given, torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), peers)


def measure(given: argparse.Namespace, pixels: Tensor, peers: dict[str, Callable[[], object]]) -> None:
    views, counter = use("views", "simclr", strength=given.strength).build(), iter(range(10**9))

    def ours() -> list[Tensor]:
        positions = np.arange(given.batch) + given.batch * next(counter)
        return views(pixels.float().div_(255), torch.from_numpy(Noise(0, positions).keys()))

    model = ResNetModel(ResNetConfig(layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512]))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    augmenting: list[float] = []

    def step() -> None:
        started = time.perf_counter()
        pair = ours()
        augmenting.append(time.perf_counter() - started)
        contrastive(model(torch.cat(pair)).pooler_output.flatten(1)).backward()
        optimiser.step()
        optimiser.zero_grad()

    for function in (step, ours, *peers.values()):
        function()
    augmenting.clear()
    steps = timings({"step": step}, given.repeats)["step"]
    share = [part / whole for part, whole in zip(augmenting, steps, strict=True)]
    record(
        "augmentation_share_of_step", median(augmenting), median(steps), "whole SimCLR step, ResNet-18", "seconds", given.repeats,
        share=median(share), threads=given.threads, batch=given.batch, seconds={"augmentation": augmenting, "step": steps},
    )  # fmt: skip
    seconds = timings({"ours": ours, **peers}, given.repeats * 4)
    rates = {name: [given.batch / one for one in values] for name, values in seconds.items()}
    record(
        "augmentation_vs_pil", median(rates["ours"]), median(rates["peer"]), "Pillow, one picture at a time",
        "pictures/s (two views each)", given.repeats * 4, threads=given.threads, batch=given.batch, strength=given.strength,
        lean={"rate": median(rates["lean"]), "ratio": median(rates["ours"]) / median(rates["lean"])}, rates=rates,
    )  # fmt: skip


if __name__ == "__main__":
    main()
