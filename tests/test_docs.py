"""What the documentation shows works as shown."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.methods import problem
from tilth.backbones.folder import save
from tilth.backbones.patches import Patches
from tilth.contracts import Noise, Sample
from tilth.recipe import Recipe
from tilth.registry import configure

ROOT = Path(__file__).parents[1]


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def test_the_method_of_the_guide_is_a_method(tmp_path):
    [code] = blocks("docs/write-a-method.md", "python")
    exec(compile(code, "capped.py", "exec"), {"__name__": "capped"})  # our own page
    objective, examples = problem("unlearn", "gradient_ascent", tmp_path)
    capped = configure("unlearn", {"capped_ascent": {"floor": 5}}).build(objective.model)
    batch = examples.batch(torch.arange(4).numpy(), Noise(0, torch.arange(4).numpy()))
    assert capped(batch).total.item() == pytest.approx(-5.0)


def test_the_command_line_finds_a_module_of_methods(tmp_path):
    (tmp_path / "capped.py").write_text(blocks("docs/write-a-method.md", "python")[0])
    command = [sys.executable, "-m", "tilth", "methods", "capped_ascent", "--with", "capped"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "floor" in done.stdout and "20" in done.stdout


def test_the_recipe_of_the_concepts_loads(tmp_path):
    [text] = blocks("docs/concepts.md", "yaml")
    recipe = Recipe.load(yaml.safe_load(text))
    assert list(recipe.stages) == ["clean", "words", "model"] and recipe.data["corpus"].where == "year > 1900"


def test_the_five_lines_of_the_readme_train_a_model(tmp_path, monkeypatch):
    [code] = blocks("README.md", "python")
    (tmp_path / "my_texts").mkdir()
    for number in range(40):
        (tmp_path / "my_texts" / f"{number}.txt").write_text(" ".join(f"word{(number * 7 + i * i) % 97}" for i in range(150)))
    monkeypatch.chdir(tmp_path)
    shorter = code.replace(
        'data={"corpus": "my_texts/"}', 'data={"corpus": "my_texts/"}, overrides={"model.pretrain.budget": {"steps": 2}}'
    )
    assert shorter != code
    exec(compile(shorter, "readme.py", "exec"), {})
    assert (tmp_path / "runs/mine/model/model/model.safetensors").exists()


def test_every_command_the_readme_types_exists():
    from typer.main import get_command

    from tilth.cli import app

    known = set(get_command(app).commands)
    typed = set(re.findall(r"^    tilth (\w+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert typed and typed <= known


def test_the_lines_about_an_encoder_work(tmp_path, monkeypatch):
    [code] = blocks("docs/pictures.md", "python")
    torch.manual_seed(0)
    model = Patches(width=24, depth=8, heads=2, patch=4, position="learned", class_token=True).build(Sample(3, (16, 16)))
    save(model, None, tmp_path / "runs/mine/model", {})
    monkeypatch.chdir(tmp_path)
    made = {"pixels": torch.rand(2, 3, 16, 16)}
    exec(compile(code, "pictures.py", "exec"), made)
    assert made["features"].pooled.shape == (2, 24) and (tmp_path / "vit/model.safetensors").exists()
