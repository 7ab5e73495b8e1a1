"""What every network for the change between two dates must do."""

import pytest
import torch
from torch.nn import functional as F

from tests.backbones.segmenters import ODD, SAMPLE, SIZE, pixels, with_history
from tilth.backbones.folder import load, save
from tilth.contracts import Sample
from tilth.errors import TilthError
from tilth.registry import configure


def made(name, settings, sample=SAMPLE, **more):
    torch.manual_seed(0)
    return configure("backbone", {name: {"classes": 3, **settings, **more}}).build().build(sample)


def check_sizes_and_examples(network):
    with_history(network)
    for size in (SIZE, ODD):
        values = pixels(3, size)
        logits = network(pixel_values=values).logits
        assert logits.shape == (3, 3, *size) and logits.std((2, 3)).min() > 1e-3
        assert torch.allclose(network(values[1:2]).logits[0], logits[1], atol=1e-5)


def check_folder(network, folder):
    values = pixels(3, ODD)
    save(with_history(network), None, folder, {"history": []})
    again = load(folder)
    assert again.tokenizer is None and type(again.model) is type(network) and again.model.config.num_labels == 3
    state = again.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    # Weights that are read from a file lie at odd addresses, where vectorised kernels round otherwise.
    for part in (*again.model.parameters(), *again.model.buffers()):
        part.data = part.data.clone()
    assert torch.equal(again.model(values).logits, network(values).logits)


def check_standardised_inside(network, plain):
    """plain: the same made for channels without mean and deviation."""
    with_history(network)
    plain.eval().load_state_dict({**network.state_dict(), "standardise.mean": torch.zeros(4), "standardise.std": torch.ones(4)})
    standard = (pixels() - torch.tensor(SAMPLE.mean).reshape(-1, 1, 1)) / torch.tensor(SAMPLE.std).reshape(-1, 1, 1)
    assert torch.allclose(network(pixels()).logits, plain(standard).logits, atol=1e-5)


def check_gradients(network):
    network(pixels(4, (64, 64))).logits.square().mean().backward()
    assert not [n for n, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()]


def check_learns(network, steps=30):
    """Where the second date is brighter and where darker than the first, in patches that lie elsewhere in every example."""
    generator = torch.Generator().manual_seed(3)
    before = torch.randn(8, 2, *SIZE, generator=generator)
    field = F.avg_pool2d(torch.randn(8, SIZE[0] + 4, SIZE[1] + 4, generator=generator), 5, 1)
    change = (field > 0.2).long() + 2 * (field < -0.2)
    assert change.flatten().bincount().min() > 200
    values = torch.cat([before, before + torch.tensor([0.0, 2.0, -2.0])[change][:, None]], 1)
    optimiser = torch.optim.AdamW(network.train().parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        losses.append(F.cross_entropy(network(values).logits, change))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.6 * losses[0]


def check_shared_channels(name, settings, place):
    """place: the module that reads both dates, one behind the other in the batch."""
    sample = Sample(5, SIZE)
    network, values = with_history(made(name, settings, sample, shared=1)), pixels(2, SIZE, sample)
    seen = []
    network.get_submodule(place).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    assert network(values).logits.shape == (2, 3, *SIZE)
    assert len(seen) == 1 and torch.equal(seen[0], torch.cat([values[:, [0, 1, 4]], values[:, [2, 3, 4]]]))


def swap_halves(layer):
    """Make a convolution of both dates' maps side by side read them in the other order."""
    with torch.no_grad():
        layer.weight.copy_(layer.weight.roll(layer.in_channels // 2, 1))


def check_order(network, unswapped):
    """The order of dates matters; unswapped(network) changes only what reads both, so that swapped dates mean the same."""
    with_history(network)
    values = torch.randn(2, 4, *ODD, generator=torch.Generator().manual_seed(4))
    logits, swapped = network(values).logits, values[:, [2, 3, 0, 1]]
    assert not torch.allclose(network(swapped).logits, logits, atol=1e-3)
    unswapped(network)
    assert torch.allclose(network(swapped).logits, logits, atol=1e-5)


def check_refusals(name, settings, smallest):
    for sample, message in (
        (Sample(4, (16, 16, 8)), "reads pictures"),
        (Sample(5, SIZE), "not two dates"),
        (Sample(4, (smallest - 1, 64)), f"too small, of {smallest} needed"),
    ):
        with pytest.raises(TilthError, match=message):
            made(name, settings, sample)
    network = made(name, settings).eval()
    assert network(pixels(1, (smallest, smallest + 1))).logits.shape == (1, 3, smallest, smallest + 1)
    with pytest.raises(TilthError, match=f"too small, of {smallest} needed"):
        network(pixels(1, (64, smallest - 1)))
