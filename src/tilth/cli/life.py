"""Commands of a model's life on the user's own data: pretrain, curate, adapt, unlearn, evaluate, generate, embed.

Notable: each but the last two is a recipe made on the spot, so it is cached, resumable and reported like any other.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tilth.cli.options import Json, Out, Quiet, Seed, Set, With, data_entry, import_methods, model_reference, pairs, values
from tilth.cli.running import go
from tilth.errors import TilthError

if TYPE_CHECKING:
    from tilth.run import Run

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model folder, a stage of a run, or a Hub id (owner/name).")
]
DataArgument = Annotated[str, typer.Argument(metavar="DATA", help="A file, a folder, a catalogue name, hf:owner/name; 'X where CONDITION' filters.")]  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (pretrain, curate, adapt, unlearn, evaluate, generate, embed):
        app.command()(command)


def pretrain(
    data: DataArgument,
    recipe: Annotated[
        str | None, typer.Option(help="A recipe with data called 'corpus'. [default: by the kind of data]", show_default=False)
    ] = None,
    minutes: Annotated[float, typer.Option(help="Time for training; picks the size of the model.", min=0.05)] = 5.0,
    purpose: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="USE",
            help="Of pictures, what the encoder is for: frozen (probes, search), tuned or dense; picks the objective.",
            show_default=False,
        ),
    ] = None,
    set_: Set = None,
    seed: Seed = 0,
    out: Out = None,
    with_: With = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make a model of your own data: looks what kind it is, picks a recipe and a size, says why."""
    import_methods(with_)
    from tilth.cli.choosing import choose
    from tilth.cli.output import say

    chosen = choose(data_entry(data), recipe=recipe, minutes=minutes, overrides=values(set_), purpose=purpose)
    for line in chosen.why:
        say(line)
    folder = out or Path("runs") / f"pretrain-{Path(data).stem}"
    done = go(chosen.recipe, out=folder, seed=seed, quiet=quiet, as_json=as_json)
    stage = list(chosen.recipe.stages)[-1] if "model" not in chosen.recipe.stages else "model"
    model = _keep(done, stage, folder)
    reads_text = (model / "tokenizer_config.json").exists()
    say(f"Model:  {model}")
    say(f'Next:   tilth generate {model} "Once"' if reads_text else f"Next:   tilth embed {model} {data} features.parquet")


def curate(
    data: DataArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder, or a file ending in .parquet or .jsonl.")],
    recipe: Annotated[
        str, typer.Option(help="A recipe with data called 'corpus' and a stage that gives a corpus.")
    ] = "curate-text",
    set_: Set = None,
    with_: With = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Clean a corpus; what was removed is kept beside it, with the reason."""
    import_methods(with_)
    from tilth.cli.export import export_corpus
    from tilth.cli.output import say
    from tilth.recipe import Recipe

    loaded = _with_data(Recipe.load(recipe, overrides=values(set_)).tree, data_entry(data))
    folder = out if out.suffix not in (".parquet", ".jsonl") else out.with_suffix(".run")
    done = go(loaded, out=folder, seed=0, quiet=quiet, as_json=as_json)
    stage = [name for name, made in loaded.stages.items() if made.cls.gives == "corpus"][-1]  # type: ignore[attr-defined]
    kept, removed = export_corpus(done.stages[stage], out)
    say(f"Kept:    {kept}\nRemoved: {removed}")


def adapt(
    model: ModelArgument,
    data: DataArgument,
    test: Annotated[str | None, typer.Option(help="Labelled data that is only scored.", show_default=False)] = None,
    label: Annotated[str, typer.Option(help="The column of the class.")] = "label",
    method: Annotated[str, typer.Option(help="linear_probe, knn or fine_tune.")] = "linear_probe",
    set_: Set = None,
    seed: Seed = 0,
    out: Out = None,
    with_: With = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Fit a model to labelled data: a probe on frozen features, or the whole model."""
    import_methods(with_)
    from tilth.cli.output import say

    stage: dict[str, Any] = {"model": model_reference(model), "data": "data", "label": label, "method": method}
    sources = {"data": data_entry(data)}
    if test:
        sources["test"], stage["test"] = data_entry(test), "test"
    done, folder = _one("adapted", "adapt", stage, sources, set_, seed, out, quiet, as_json)
    say(f"Model: {_keep(done, 'adapted', folder)}")


def unlearn(
    model: ModelArgument,
    forget: Annotated[str, typer.Option(help="What is to go: data as for DATA.")],
    retain: Annotated[str | None, typer.Option(help="What is to stay.", show_default=False)] = None,
    method: Annotated[str, typer.Option(help="See: tilth methods --kind unlearn")] = "npo",
    epochs: Annotated[float, typer.Option(help="Passes over the forget set.")] = 10,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-5,
    set_: Set = None,
    seed: Seed = 0,
    out: Out = None,
    with_: With = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Take something out of a model: a Tilth model folder or any transformers causal LM."""
    import_methods(with_)
    from tilth.cli.output import say

    stage: dict[str, Any] = {
        "model": model_reference(model), "forget": "forget", "method": method, "budget": {"epochs": epochs}, "training": {"lr": lr},
    }  # fmt: skip
    sources = {"forget": data_entry(forget)}
    if retain:
        sources["retain"], stage["retain"] = data_entry(retain), "retain"
    done, folder = _one("unlearned", "unlearn", stage, sources, set_, seed, out, quiet, as_json)
    say(f"Model: {_keep(done, 'unlearned', folder)}")


def evaluate(
    model: ModelArgument,
    benchmark: Annotated[str, typer.Option(help="See: tilth methods --kind benchmark")],
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="NAME=DATA", help="Data a setting names; repeatable.", show_default=False),
    ] = None,
    set_: Set = None,
    seed: Seed = 0,
    out: Out = None,
    with_: With = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure a model. Data settings of the benchmark are given as --data SETTING=PATH."""
    import_methods(with_)
    sources = {name: data_entry(text) for name, text in pairs(data, "--data").items()}
    settings = {**{name: name for name in sources}, **values(set_)}
    if isinstance(settings.get("gold"), str):
        settings["gold"] = model_reference(settings["gold"])
    stage = {"model": model_reference(model), "benchmark": {benchmark: settings}}
    _one("scores", "evaluate", stage, sources, None, seed, out, quiet, as_json)


def generate(
    model: ModelArgument,
    prompt: Annotated[list[str], typer.Argument(help="One or more prompts.")],
    tokens: Annotated[int, typer.Option(help="At most this many new tokens.", min=1)] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0)] = 0.0,
    seed: Seed = 0,
    question: Annotated[bool, typer.Option("--question", help="Put the prompt into the model's question template.")] = False,
    as_json: Json = False,
) -> None:
    """Let a model go on from a prompt."""
    from tilth.backbones.folder import load
    from tilth.evaluate.generate import generate as answer

    text_model = load(model_reference(model))
    form = (text_model.about.get("template") or {}).get("prompt", "{question}") if question else "{question}"
    prompts = [form.replace("{question}", text) for text in prompt]
    answers = answer(text_model, prompts, max_new_tokens=tokens, temperature=temperature, seed=seed)
    if as_json:
        print(
            json.dumps([{"prompt": p, "answer": a} for p, a in zip(prompt, answers, strict=True)], ensure_ascii=False, indent=1)
        )
        return
    for text, continued in zip(prompts, answers, strict=True):
        print(continued if question else text + continued)


def embed(
    model: ModelArgument,
    data: DataArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT.parquet")],
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    quiet: Quiet = False,
) -> None:
    """Write one vector per row: 'id' and 'embedding', as Parquet."""
    from tilth.cli.export import embed_corpus
    from tilth.cli.progress import progress

    if out.suffix != ".parquet":
        raise TilthError(f"'{out}' does not end in .parquet", hint="Embeddings are written as one Parquet file.")
    rows, width = embed_corpus(model_reference(model), data_entry(data), out, batch_size, progress(quiet=quiet))
    print(f"{rows} rows of {width} numbers: {out}")


def _with_data(tree: Any, entry: dict[str, Any]) -> Any:
    """A recipe tree whose data 'corpus' is the user's."""
    from tilth.recipe import Recipe

    if "corpus" not in (tree.get("data") or {}):
        raise TilthError("this recipe has no data called 'corpus' to put yours in", hint="See: tilth recipe show curate-text")
    return Recipe.load({**tree, "data": {**tree["data"], "corpus": entry}})


def _one(
    name: str, kind: str, stage: dict[str, Any], data: dict[str, Any], set_: list[str] | None,
    seed: int, out: Path | None, quiet: bool, as_json: bool,
) -> tuple[Run, Path]:  # fmt: skip
    """Run a recipe of one stage; --set paths start at the stage's settings."""
    from tilth.recipe import Recipe

    overrides = {f"stages.{name}.{kind}.{path}": value for path, value in values(set_).items()}
    recipe = Recipe.load({"name": kind, "data": data, "stages": {name: {kind: stage}}}, overrides=overrides)
    folder = out or Path("runs") / kind
    return go(recipe, out=folder, seed=seed, quiet=quiet, as_json=as_json), folder


def _keep(done: Run, stage: str, folder: Path) -> Path:
    """Copy a stage's model into the user's own folder: the store is a cache and may be emptied."""
    target = folder / "model"
    if target.is_symlink():
        target.unlink()
    partial = folder / "model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(done.model(stage), partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.replace(target)
    return target
