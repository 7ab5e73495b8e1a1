"""DINO: the loss and the centre against naive loops, who sees which view, and collapse without its guards."""

import math

import pytest
import torch
from torch.nn import functional as F

from tests.pretrain.images.two_views import drawn, encoder, pictures, without_gradient
from tilth.backbones.patches import Patches
from tilth.contracts import Batch, Sample, use
from tilth.errors import TilthError
from tilth.pretrain.images.dino import DINO, Head

CROPS = use("views", "multi_crop", size=8, local_size=4, local_crops=3)
TINY = {"out": 12, "head_width": 16, "bottleneck": 8, "temperature_steps": 10}


def objective(model=None, **settings):
    torch.manual_seed(1)
    return DINO(encoder() if model is None else model, **{**TINY, "views": CROPS, **settings})


def naive(made, views):
    """The authors' two loops, one view at a time; (loss, centre after it)."""
    outputs = [made.teacher_head(made.teacher(view).pooled) for view in views[:2]]
    student = [made.head(made.model(view).pooled) for view in views]
    total, pairs = 0.0, 0
    for u, teacher in enumerate(outputs):
        probabilities = F.softmax((teacher - made.centre) / made.temperature, dim=-1)
        for v, given in enumerate(student):
            if v == u:
                continue
            total += torch.sum(-probabilities * F.log_softmax(given / made.student_temperature, dim=-1), dim=-1).mean().item()
            pairs += 1
    mean = torch.cat(outputs).sum(0) / sum(map(len, outputs))
    return total / pairs, pairs, made.centre * made.centre_momentum + mean * (1 - made.centre_momentum)


def test_loss_and_centre_are_those_of_a_naive_loop():
    made, given = objective(), pictures(6)
    made.centre += torch.randn(12) * 0.1
    with torch.no_grad():
        for value in made.model.parameters():  # student and teacher apart
            value += 0.1 * torch.randn_like(value)
    views = drawn(made, given)
    assert [tuple(view.shape[2:]) for view in views] == [(8, 8)] * 2 + [(4, 4)] * 3
    expected, pairs, centre = naive(made, views)
    got = made(given)
    assert pairs == 2 * 5 - 2 and got.total.item() == pytest.approx(expected, rel=1e-5) and got.count == 6
    made.after_step(1)
    assert torch.allclose(made.centre, centre, atol=1e-6) and not made.pending.any()


def test_the_teacher_sees_large_views_and_no_view_is_compared_with_itself():
    made, given = objective(), pictures(4)
    seen = {"teacher": [], "student": []}
    made.teacher.network.register_forward_pre_hook(lambda module, args: seen["teacher"].append(args[0].shape))
    made.model.register_forward_pre_hook(lambda module, args: seen["student"].append(args[0].shape))
    made(given)
    assert seen == {"teacher": [(8, 3, 8, 8)], "student": [(8, 3, 8, 8), (12, 3, 4, 4)]}
    # Of two large views alone each is compared with the other: what the student makes of the first meets the second's target.
    made.views = lambda pixels, keys: [pixels, pixels.flip(-1)]
    made.temperature.fill_(1e-3)
    first, second = made.teacher_head(made.teacher(torch.cat(drawn(made, given))).pooled).argmax(1).chunk(2)
    student = made.head(made.model(torch.cat(drawn(made, given))).pooled) / made.student_temperature
    expected = (F.cross_entropy(student[:4], second) + F.cross_entropy(student[4:], first)) / 2
    assert made(given).total.item() == pytest.approx(expected.item(), rel=0.05)


def test_the_centre_is_that_of_a_whole_step_and_held_out_batches_leave_it():
    made, whole = objective(), objective()
    given = pictures(6)
    for part in (slice(0, 2), slice(2, 6)):
        made(Batch(pixel_values=given.pixel_values[part], keys=given["keys"][part]))
    whole(given)
    made.eval()(given)
    for one in (made, whole):
        one.after_step(1)
    assert torch.allclose(made.centre, whole.centre, atol=1e-6) and made.centre.any()


def test_last_layers_have_unit_rows_and_outputs_are_cosines():
    torch.manual_seed(0)
    head = Head(4, 7, hidden=8, bottleneck=5)
    x = torch.randn(3, 4)
    with torch.no_grad():
        expected = F.cosine_similarity(head.layers(x)[:, None], head.last.weight[None], dim=-1)
        assert torch.allclose(head(x), expected, atol=1e-6)
        head.last.weight *= torch.rand(7, 1) + 0.5
        assert torch.allclose(head(x), expected, atol=1e-6)


def test_the_temperature_rises_with_the_steps_and_is_kept_with_the_state():
    made = objective()
    assert made.temperature.item() == pytest.approx(0.04)
    for step in range(1, 6):
        made.after_step(step)
    assert made.temperature.item() == pytest.approx(0.055)
    made.after_step(10_000)
    assert made.temperature.item() == pytest.approx(0.07)
    fresh = objective()
    fresh.load_state_dict(made.state_dict())
    assert fresh.temperature == made.temperature
    assert objective(temperature_steps=0).temperature.item() == pytest.approx(0.07)


def test_teachers_have_no_gradient_and_follow_the_students():
    made, given = objective(momentum=0.9), pictures(4)
    made(given).total.backward()
    assert without_gradient(made.teacher) and without_gradient(made.teacher_head)
    assert all(value.grad is not None for value in [*made.model.parameters(), *made.head.parameters()])
    with torch.no_grad():
        for value in [*made.model.parameters(), *made.head.parameters()]:
            value += torch.randn_like(value)
    pairs = ((made.teacher, made.model), (made.teacher_head, made.head))
    expected = [
        0.9 * old + 0.1 * new
        for teacher, student in pairs
        for old, new in zip(teacher.parameters(), student.parameters(), strict=True)
    ]
    made.after_step(1)
    found = [*made.teacher.parameters(), *made.teacher_head.parameters()]
    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(found, expected, strict=True))


def test_a_single_view_is_refused():
    with pytest.raises(TilthError, match="there is but one"):
        objective(views=use("views", "none"))(pictures(2))


def faint_pictures():
    """Eight kinds of picture, eight noisy ones of each, that a fresh network hardly tells apart."""
    generator = torch.Generator().manual_seed(0)
    kinds = 0.35 * (F.interpolate(torch.rand(8, 3, 2, 2, generator=generator), size=(8, 8), mode="bilinear") - 0.5) + 0.5
    return (kinds.repeat(8, 1, 1, 1) + 0.02 * torch.randn(64, 3, 8, 8, generator=generator)).clamp(0, 1)


def entropies(steps=120, **settings):
    """After training: the mean entropy of the teacher's distributions and that of their mean, as shares of log(out)."""
    torch.manual_seed(0)
    model = Patches(width=32, depth=1, heads=2, patch=4).build(Sample(3, (8, 8), (0.5,) * 3, (0.3,) * 3))
    views = use("views", "simclr", scale=(0.6, 1.0), strength=0.1)
    shape = {"out": 16, "head_width": 64, "bottleneck": 16}
    guards = {"teacher_temperature": 0.04, "temperature_steps": 0, **settings}
    made, pixels = DINO(model, **shape, momentum=0.98, views=views, **guards), faint_pictures()
    optimiser = torch.optim.Adam([value for value in made.parameters() if value.requires_grad], lr=2e-3)
    for step in range(1, steps + 1):
        chosen = torch.randperm(64)[:32]
        made(Batch(pixel_values=pixels[chosen], keys=chosen * 7919 + step * 104729)).total.backward()
        optimiser.step()
        optimiser.zero_grad()
        made.after_step(step)
    with torch.no_grad():
        found = ((made.teacher_head(made.teacher(pixels).pooled) - made.centre) / made.temperature).softmax(-1)
    each, together = (-torch.special.xlogy(p, p).sum(-1).mean().item() / math.log(16) for p in (found, found.mean(0)))
    return each, together


def test_it_collapses_without_centring_or_sharpening_and_not_with_both():
    each, together = entropies()
    assert each < 0.6 and together > 0.75  # pictures are told apart, and by most of the prototypes
    each, together = entropies(teacher_temperature=0.2)  # no sharper than the student
    assert each > 0.99  # all prototypes for every picture: log(out)
    each, together = entropies(centre_momentum=1.0)  # the centre stays at zero
    assert each < 0.1 and together < 0.25  # the same one or two prototypes for all: 0
