"""RoMA: causality from block to block, what is compared with what, and which tokens know that they were turned."""

import pytest
import torch

from tilth.backbones.patches import Patches
from tilth.batches.images.rotation_crop import turned
from tilth.batches.patches.patchify import normalised, patchify, unpatchify
from tilth.batches.patches.regroup import block_numbers, block_order, regroup
from tilth.contracts import Batch, Sample, use
from tilth.errors import TilthError
from tilth.pretrain.images.roma import RoMA

NONE = use("views", "none")
PICTURE = Sample(3, (48, 48), (0.4, 0.5, 0.6), (0.3, 0.2, 0.1))


def encoder(sample=PICTURE, patch=4, **settings):
    torch.manual_seed(0)
    given = {"width": 16, "depth": 3, "heads": 2, "mlp": "swiglu", "mlp_ratio": 2.667, "mixer": "mamba", **settings}
    return Patches(patch=patch, **given).build(sample)


def objective(sample=PICTURE, patch=4, **settings):
    model = encoder(sample, patch)
    made = RoMA(model, **{"taps": (1, 2, 3), "decoder_width": 16, "decoder_heads": 2, "views": NONE, **settings})
    torch.manual_seed(1)
    with torch.no_grad():  # away from the start, where biases are zero
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made.eval()


def batch(sample=PICTURE, count=4):
    generator = torch.Generator().manual_seed(1)
    return Batch(
        pixel_values=torch.rand(count, sample.channels, *sample.size, generator=generator), keys=torch.arange(count) * 3 + 1
    )


def test_counts_of_the_paper():
    made, device = objective(), torch.device("cpu")
    numbers, order, first, seen = made.order((12, 12), device)
    assert (len(order), first, seen) == (144, 16, 128) and numbers.max() == 8
    asked = []
    made.decoder.register_forward_hook(lambda module, inputs, output: asked.append((inputs, output)))
    pixels = batch().pixel_values
    assert made.read(pixels).shape == (4, 128, 48)
    (layers, positions, visible), _ = asked[0]
    assert [layer.shape for layer in layers] == [(4, 128, 16)] * 3 and positions.shape == (1, 128, 16)
    # Rows of block j see the j blocks before it, in 16 x 16 squares, whole.
    squares = visible.float().unflatten(0, (8, 16)).unflatten(2, (8, 16)).mean((1, 3))
    assert torch.equal(squares, torch.ones(8, 8).tril()) and squares.sum(1).tolist() == list(range(1, 9))


@pytest.mark.parametrize(("size", "block"), [((48, 48), 4), ((24, 40), 3), ((20, 28), 2)])
def test_blocks_are_predicted_from_those_before_them_alone(size, block):
    """24 x 40 has 6 x 10 patches, which blocks of 3 do not divide."""
    sample = Sample(1, size)
    made = objective(sample, block=block, coarse=None, degrees=0)
    grid = tuple(extent // 4 for extent in size)
    numbers, order = block_numbers(grid, block), block_order(grid, block)
    first = int((numbers == 0).sum())
    pixels = batch(sample, 1).pixel_values
    with torch.no_grad():
        before = made.read(pixels)
        asked = numbers[order[first:]]
        for changed in range(int(numbers.max()) + 1):
            patches = patchify(pixels, (4, 4)).clone()
            patches[:, numbers == changed] = torch.rand(1, int((numbers == changed).sum()), 16)
            moved = (made.read(unpatchify(patches, grid, (4, 4))) - before).abs().amax((0, 2))
            assert not moved[asked <= changed].any()
            assert moved[asked > changed].all()  # never for the last block, which is not read


def test_gradients_reach_no_later_block_and_the_last_one_not_at_all():
    made = objective(degrees=0)
    pixels = batch(count=1).pixel_values.requires_grad_()
    numbers, order = block_numbers((12, 12), 4), block_order((12, 12), 4)
    predicted = made.read(pixels)
    for block in range(1, 9):
        rows = numbers[order[16:]] == block
        gradient = torch.autograd.grad(predicted[:, rows].square().sum(), pixels, retain_graph=True)[0]
        reached = patchify(gradient, (4, 4)).abs().sum(-1)[0]
        assert not reached[numbers >= block].any() and reached[numbers < block].all()


def test_a_perfect_prediction_has_no_loss_and_another_order_has():
    made, given = objective(), batch()
    patches = normalised(patchify(made.model.embedding(given.pixel_values).standardised(given.pixel_values), (4, 4)))
    numbers, order = block_numbers((12, 12), 4), block_order((12, 12), 4)
    made.decoder.forward = lambda layers, positions, visible: patches[:, order[16:]]
    loss = made(given)
    assert loss.total.item() < 1e-10 and set(loss.parts) == {"fine", "coarse"} and loss.parts["coarse"].item() < 1e-10
    made.decoder.forward = lambda layers, positions, visible: patches[:, numbers > 0]  # in raster order
    loss = made(given)
    assert loss.parts["fine"] > 0.5 and loss.parts["coarse"] > 0.5


@pytest.mark.parametrize("coarse", [6, 5, 3, 2, 1])
def test_both_scales_against_regrouped_pictures(coarse):
    made, given = objective(coarse=coarse, coarse_weight=0.3, degrees=0), batch()
    predicted = torch.randn(4, 128, 48)
    made.decoder.forward = lambda layers, positions, visible: predicted
    loss = made(given)
    standard = (given.pixel_values - torch.tensor(PICTURE.mean)[:, None, None]) / torch.tensor(PICTURE.std)[:, None, None]
    raw = patchify(standard, (4, 4))
    target = (raw - raw.mean(-1, keepdim=True)) / (raw.var(-1, correction=1, keepdim=True) + 1e-6).sqrt()
    # The predictions back on the grid, block 0 filled with zeros.
    whole = torch.zeros(4, 144, 48)
    whole[:, block_order((12, 12), 4)[16:]] = predicted
    fine = (regroup(whole, (12, 12), 4) - regroup(target, (12, 12), 4))[:, 16:].square().mean()
    numbers = block_numbers((12, 12), coarse)
    touched = numbers[block_numbers((12, 12), 4) == 0].unique()
    kept = ~torch.isin(numbers.sort().values, touched)
    larger = (regroup(whole, (12, 12), coarse) - regroup(target, (12, 12), coarse))[:, kept].square().mean()
    if coarse == 6:  # the paper's: the first of four, ceil(16 / 36) = 1
        assert touched.tolist() == [0] and kept.sum() == 108
    assert loss.parts["fine"].item() == pytest.approx(fine.item(), rel=1e-5)
    assert loss.parts["coarse"].item() == pytest.approx(larger.item(), rel=1e-5)
    assert loss.total.item() == pytest.approx(fine.item() + 0.3 * larger.item(), rel=1e-5)


def test_a_token_of_the_square_and_no_other_has_the_angle():
    made, given = objective(), batch(count=6)
    shown, marked = turned(given.pixel_values, given["keys"], (4, 4))
    embedded = []
    made.model.blocks[0].register_forward_pre_hook(lambda module, inputs: embedded.append(inputs[0]))
    with torch.no_grad():
        made(given)
        made.model(shown, kept=block_order((12, 12), 4)[:128].expand(6, -1))
    difference = embedded[0] - embedded[1]
    expected = marked[:, block_order((12, 12), 4)[:128], None] * made.angle.detach()
    torch.testing.assert_close(difference, expected, rtol=0, atol=1e-5)
    assert expected.any()


@pytest.mark.parametrize("target", ["original", "rotated"])
def test_the_target_is_the_picture_before_or_after_it_is_turned(target):
    made, given = objective(target=target), batch()
    shown, _ = turned(given.pixel_values, given["keys"], (4, 4))
    wanted = {"original": given.pixel_values, "rotated": shown}
    seen = []
    made.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    loss = {}
    for name, pixels in wanted.items():
        patches = normalised(patchify(made.model.embedding(pixels).standardised(pixels), (4, 4)))
        made.decoder.forward = lambda layers, positions, visible, p=patches: p[:, block_order((12, 12), 4)[16:]]
        loss[name] = made(given).total.item()
    assert torch.equal(seen[0], shown)
    assert loss.pop(target) < 1e-8 and next(iter(loss.values())) > 0.01


def test_every_weight_learns_and_batches_do_not_depend_on_their_company():
    made, whole = objective().train(), batch()
    loss = made(whole)
    loss.total.backward()
    idle = {name for name, parameter in made.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    assert idle == {"model.norm.weight", "model.norm.bias"}  # of the last layer's tap the decoder has a norm of its own
    halves = [Batch(pixel_values=whole.pixel_values[i : i + 2], keys=whole["keys"][i : i + 2]) for i in (0, 2)]
    assert loss.count == 4 and loss.total.item() == pytest.approx(sum(made(half).total.item() for half in halves) / 2, rel=1e-5)
    assert "angle" not in dict(objective(degrees=0).named_parameters())


def test_it_learns_from_bytes_at_another_size_too():
    made = objective().train()
    optimiser = torch.optim.AdamW(made.parameters(), 3e-3)
    pixels = torch.zeros(8, 3, 32, 64, dtype=torch.uint8)
    pixels[..., 10:20] = 200
    losses = []
    for step in range(20):
        loss = made(Batch(pixel_values=pixels, keys=torch.arange(8) + 8 * step)).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_what_cannot_be_is_told():
    for settings in ({"mixer": "attention"}, {"directions": ["forward", "backward"]}, {"class_token": True}):
        with pytest.raises(TilthError, match="causal encoder"):
            RoMA(encoder(**settings), taps=(1,))
    with pytest.raises(TilthError, match="pictures"):
        RoMA(encoder(groups=[[0], [1, 2]], width=24), taps=(1,))
    for taps in ((), (2, 4)):
        with pytest.raises(TilthError, match="has no taps"):
            RoMA(encoder(), taps=taps)
    with pytest.raises(TilthError, match="no size"):
        RoMA(encoder(), taps=(1,), sizes=())
    with pytest.raises(TilthError, match="no next one"):
        objective(block=12)(batch())
    for coarse, block in ((12, 4), (8, 7)):
        with pytest.raises(TilthError, match="lies beyond"):
            objective(coarse=coarse, block=block)(batch()) if coarse == 12 else objective(
                Sample(3, (56, 56)), coarse=coarse, block=9
            )(batch(Sample(3, (56, 56))))
