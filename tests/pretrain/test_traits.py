"""The catalogue of methods that need no labels: it is whole, and says of each method what the method does."""

import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.methods import problem
from tilth.cli import app
from tilth.cli.inspecting import describe
from tilth.contracts import Noise
from tilth.errors import TilthError
from tilth.index import entries, find
from tilth.pretrain.teacher import Teacher

LABELLED = {"affinity", "classification", "segmentation"}
OF_PICTURES = sorted(e.name for e in entries("pretrain") if ".images." in e.module and e.name not in LABELLED)
every_method = pytest.mark.parametrize("name", OF_PICTURES)


def traits(name: str):
    return find("pretrain", name).traits


def test_every_method_for_pictures_without_labels_has_traits_and_no_other_has():
    assert len(OF_PICTURES) == 19
    assert [e.name for e in entries("pretrain") if find("pretrain", e.name).traits] == OF_PICTURES


@every_method
def test_a_teacher_and_a_queue_are_where_they_are_said_to_be(name, tmp_path):
    objective, _ = problem("pretrain", name, tmp_path)
    assert any(isinstance(module, Teacher) for module in objective.modules()) == traits(name).teacher
    assert any("queue" in buffer for buffer, _ in objective.named_buffers()) == traits(name).queue


@every_method
def test_views_are_compared_where_there_are_positives_and_tokens_spared_where_hidden_patches_are_not_encoded(name, tmp_path):
    objective, examples = problem("pretrain", name, tmp_path)
    batch = examples.batch(torch.arange(4).numpy(), Noise(0, torch.arange(4).numpy()))
    views, kept = [], []
    if callable(getattr(objective, "views", None)):  # of several kinds of input each has its own: one view
        drawn = objective.views
        objective.views = lambda pixels, keys: views.append(made := drawn(pixels, keys)) or made
    objective.model.register_forward_pre_hook(lambda _, args, given: kept.append(given.get("kept")), with_kwargs=True)
    torch.manual_seed(0)
    objective(batch).total.backward()
    said = traits(name)
    assert (max(map(len, views), default=1) > 1) == ("view" in said.positives)
    spared = "not encoded" in said.masking or said.masking == "causal"  # the last block of a causal one is never read
    assert any(seen is not None for seen in kept) == spared
    assert any(parameter.grad is not None for parameter in objective.model.parameters())


def test_the_command_line_shows_families():
    def shown(*given: str):
        return CliRunner().invoke(app, ["methods", *given])

    table = shown("--family", "contrastive").output
    assert "moco_v2" in table and "simclr" in table and "mae" not in table.split()
    assert "queue: yes" in shown("moco_v2").output and "teacher" not in shown("simclr").output
    for given, hint in (("contrast", "contrastive"), ("nonsense", "joint-embedding prediction")):
        wrong = shown("--family", given)
        assert wrong.exit_code and hint in str(wrong.exception)


def test_the_catalogue_of_the_guide_is_that_of_the_registry():
    page = Path("docs/pictures.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| ([a-z -]+) \| (`.*?`) \| (.*) \| ([a-z ]*?) ?\|$", page, re.MULTILINE)
    told = {name: (family, guard, needs) for family, names, guard, needs in found for name in re.findall(r"`(\w+)`", names)}
    for name in OF_PICTURES:
        said = describe("pretrain", name)["traits"]
        needs = " and ".join(need for need in ("teacher", "queue") if said[need])
        assert told[name] == (said["family"], said["guard"], needs), name


@pytest.mark.parametrize("name", [name for name in OF_PICTURES if "view" not in traits(name).positives])
def test_a_second_view_is_refused_where_none_is_compared(name, tmp_path):
    objective, examples = problem("pretrain", name, tmp_path)
    batch = examples.batch(torch.arange(2).numpy(), Noise(0, torch.arange(2).numpy()))
    twice = lambda pixels, keys: [pixels, pixels]
    objective.views = twice if callable(objective.views) else dict.fromkeys(objective.views, twice)
    with pytest.raises(TilthError, match="one view, but 2"):
        objective(batch)
