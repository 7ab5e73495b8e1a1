"""A network that follows another."""

import pytest
import torch
from torch import nn

from tests.images import digits
from tests.methods import OF_PATCHES
from tilth.backbones.blocks import DropPath
from tilth.backbones.folder import load
from tilth.context import Context
from tilth.contracts import use
from tilth.pretrain.teacher import Teacher, momentum
from tilth.registry import configure
from tilth.stages.pretrain import Pretrain
from tilth.training.settings import Budget, Training


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), DropPath(0.5), nn.Linear(4, 2))


def test_one_step_is_the_weighted_mean_of_weights_and_takes_over_buffers():
    student = network()
    teacher = Teacher(student)
    before = [parameter.clone() for parameter in teacher.parameters()]
    student(torch.randn(8, 3)).square().mean().backward()
    torch.optim.SGD(student.parameters(), 0.5).step()
    teacher.follow(student, 0.9)
    for mine, old, new in zip(teacher.parameters(), before, student.parameters(), strict=True):
        assert torch.allclose(mine, 0.9 * old + 0.1 * new, atol=1e-7)
    assert torch.equal(teacher.network[1].running_mean, student[1].running_mean) and student[1].running_mean.abs().sum() > 0


def test_the_ends_of_momentum_stay_and_copy():
    student, teacher = network(1), Teacher(network(0))
    before = [parameter.clone() for parameter in teacher.parameters()]
    teacher.follow(student, 1.0)
    assert all(map(torch.equal, teacher.parameters(), before))
    teacher.follow(student, 0.0)
    assert all(torch.allclose(mine, theirs) for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True))


def test_no_gradient_reaches_it_even_when_what_it_gives_is_used():
    student = network()
    teacher = Teacher(student)
    given = torch.randn(8, 3, requires_grad=True)
    output = teacher(given)
    assert not output.requires_grad
    (output * student(given)).sum().backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_training_turns_on_batch_norms_and_nothing_that_drops():
    holder = nn.ModuleDict({"teacher": Teacher(network())})
    holder.train()
    teacher = holder["teacher"]
    training = [type(module).__name__ for module in teacher.network.modules() if module.training]
    assert training == ["BatchNorm1d"] and teacher.training
    given = torch.randn(8, 3)
    assert torch.equal(teacher(given), teacher(given))
    holder.eval()
    assert not any(module.training for module in holder.modules())


def test_the_copy_stands_alone_and_its_state_round_trips():
    student = network()
    teacher = Teacher(student)
    with torch.no_grad():
        student[0].weight.zero_()
    assert teacher.network[0].weight.abs().sum() > 0
    other = Teacher(network(1))
    other.load_state_dict(teacher.state_dict())
    given = torch.randn(4, 3)
    assert torch.equal(other.eval()(given), teacher.eval()(given))


def test_momentum_rises_as_half_a_cosine_and_stays():
    assert momentum(0, 100, 0.9) == pytest.approx(0.9)
    assert momentum(50, 100, 0.9) == pytest.approx(0.95)
    assert momentum(25, 100, 0.9) == pytest.approx(1 - 0.1 * (2**-0.5 + 1) / 2)
    assert momentum(100, 100, 0.9) == momentum(500, 100, 0.9) == pytest.approx(1.0)
    assert momentum(100, 100, 0.9, 0.99) == pytest.approx(0.99)
    assert momentum(123, None, 0.9) == 0.9


@pytest.mark.parametrize(("name", "teacher"), [("dino", True), ("i_jepa", True), ("data2vec", False)])
def test_what_is_kept_of_a_run_is_the_teacher_where_the_paper_keeps_it(tmp_path, name, teacher):
    # With a momentum of 1 the teacher stays what the encoder was before the first step, and the student does not.
    encoder, settings = OF_PATCHES[name]
    stage = Pretrain(
        data="digits",
        backbone=use("backbone", "patches", **encoder),
        batches=use("batches", "pictures", channels=1),
        objective=configure("pretrain", {name: {**settings, "momentum": 1.0}}),
        training=Training(batch_size=16, compile=False),
        budget=Budget(steps=2),
    )
    context = Context(tmp_path, corpora={"digits": digits(tmp_path / "digits")})
    torch.manual_seed(0)
    before = stage.model(context).model.state_dict()
    stage.run(context)
    after = load(tmp_path / "model").model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before) == teacher
