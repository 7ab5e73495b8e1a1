"""Execute a recipe: every stage once, in order, found again if it was done before, continued if it was cut off.

Notable: a stage's key is a digest of its resolved settings, the keys of its inputs, the seed (if it uses one) and the
source code it runs; its folder in the store is named by that key, so arms, runs and processes share what they can.
Under torchrun the first process runs everything, the others take part in stages that train and wait for the rest.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from tilth import __version__
from tilth.context import Context, Progress
from tilth.corpus import Corpus, catalogue
from tilth.corpus.ingest import ingest
from tilth.environment import commit, hardware, versions
from tilth.errors import TilthError
from tilth.index import find, sources
from tilth.recipe import DataSpec, Recipe
from tilth.registry import Configured, Reference, plain, rebuilt, references, walk
from tilth.store import digest, write_json


@dataclass(frozen=True)
class Run:
    """What a recipe gave. folder: the run's own folder, with run.json; stages: name -> folder in the store."""

    folder: Path
    record: dict[str, Any]
    stages: Mapping[str, Path]

    @property
    def metrics(self) -> dict[str, float]:
        """'stage.metric' -> number, over all stages."""
        return {f"{stage['name']}.{key}": value for stage in self.record["stages"] for key, value in stage["metrics"].items()}

    def model(self, stage: str) -> Path:
        """The model folder of a stage."""
        return self.stages[stage] / "model"


def store_path(given: Path | None = None) -> Path:
    """Where stages are kept: the argument, $TILTH_STORE, or ~/.cache/tilth."""
    if given:
        return given
    return Path(os.environ.get("TILTH_STORE") or Path.home() / ".cache" / "tilth")


def execute(
    recipe: Recipe, *, seed: int = 0, out: Path, store: Path | None = None, progress: Progress | None = None, scale: str = "cpu"
) -> Run:
    """Run all stages of `recipe` and leave run.json and a link per stage in `out`. Raises what a stage raises."""
    runner = _Runner(recipe, seed, out, store_path(store), progress or Progress(), scale)
    return runner.run()


def code_digest(*methods: Configured) -> str:
    """A digest of every source file of this package that the methods' modules import."""
    files = sorted({path for method in methods for path in sources(find(method.kind, method.name).__module__)})
    return digest([digest(path.read_text(encoding="utf-8")) for path in files])


class _Runner:
    def __init__(self, recipe: Recipe, seed: int, out: Path, store: Path, progress: Progress, scale: str) -> None:
        self.recipe, self.seed, self.out, self.store, self.progress = recipe, seed, out, store, progress
        self.rank = int(os.environ.get("RANK", "0"))
        self.corpora: dict[str, Corpus] = {}
        self.folders: dict[str, Path] = {}
        self.keys: dict[str, str] = {}
        self.record: dict[str, Any] = {
            "tilth": __version__,
            "recipe": recipe.name,
            "file": str(recipe.file) if recipe.file else None,
            "system": recipe.system,
            "summary": recipe.summary,
            "seed": seed,
            "scale": scale,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "finished": None,
            "failed": None,
            "seconds": 0.0,
            "hardware": hardware(),
            "versions": versions(),
            "commit": commit(),
            "tree": plain(recipe.tree),
            "data": [],
            "stages": [],
        }

    def run(self) -> Run:
        self.out.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        name = "data"
        try:
            check_run(self.recipe)
            for name, spec in self.recipe.data.items():
                self.read(name, spec)
            for name, stage in self.recipe.stages.items():
                self.stage(name, stage)
            self.record["finished"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        except BaseException as error:
            self.record["failed"] = {"stage": name, "what": str(error) or type(error).__name__}
            raise
        finally:
            self.record["seconds"] = round(time.monotonic() - started, 3)
            self.save()
        return Run(self.out, self.record, dict(self.folders))

    def save(self) -> None:
        if self.rank == 0:
            write_json(self.out / "run.json", self.record)

    def read(self, name: str, spec: DataSpec) -> None:
        """Bring an entry of `data:` to rest as a corpus in the store, once for equal content."""
        base = self.recipe.file.parent if self.recipe.file else None
        source = catalogue.resolve(spec.source, base=base)
        code = digest([path.read_text(encoding="utf-8") for path in sorted(sources("tilth.corpus.ingest"))])
        content = catalogue.fingerprint(source.path)
        asked = {"columns": plain(spec.columns), "kind": spec.kind, "reader": plain(spec.reader) if spec.reader else None}
        key = digest({"content": content, "source": spec.source, "code": code, **asked})
        folder = self.store / f"data-{key}"
        if self.rank:
            wait_for(folder)
        elif not folder.exists():
            self.store.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not folder.exists():
                    partial = folder.with_name(folder.name + ".partial")
                    _empty(partial)
                    table = partial / "corpus.lance"
                    read = ingest(
                        spec.source, table,
                        kind=spec.kind, columns=spec.columns, reader=spec.reader, base=base, progress=self.progress,
                    )  # fmt: skip
                    if read.skipped_count:
                        self.progress.say(f"{name}: {read.skipped_count} items could not be read, see {folder / 'skipped.jsonl'}")
                    partial.replace(folder)
        corpus = Corpus.open(folder / "corpus.lance", where=spec.where)
        rows = corpus.count()
        if not rows:
            raise TilthError(f"data '{name}' has no rows" + (f" where {spec.where}" if spec.where else ""), where=spec.source)
        self.corpora[name] = corpus
        self.keys[name] = corpus.fingerprint
        entry = {"name": name, "source": spec.source, "where": spec.where, "rows": rows, "fingerprint": corpus.fingerprint}
        entry["version"] = corpus.version
        self.record["data"].append({**entry, "licence": source.licence, "folder": str(folder)})

    def key_of(self, mark: Reference, target: str) -> str:
        """What a reference contributes to a key: the key of a stage, or a fingerprint of a place on disk."""
        if target not in self.keys:
            self.keys[target] = catalogue.fingerprint(Path(target)) if Path(target).exists() else f"hub:{target}"
        return self.keys[target]

    def stage(self, name: str, stage: Configured) -> None:
        """Run one stage or find it done."""
        cls: Any = stage.cls
        parts = {
            "stage": stage.name,
            "settings": plain(rebuilt(stage, self.key_of)),
            "seed": self.seed if cls.seeded else None,
            "code": code_digest(*walk(stage)),
        }
        key = digest(parts)
        folder = self.store / f"{stage.name}-{key}"
        started = time.monotonic()
        cached = folder.exists()
        if (folder / "tainted.json").exists():
            raise TilthError(
                f"stage '{name}' was made from rows that have since been forgotten",
                where=str(folder),
                hint="Its source still holds these rows: remove them there, or delete this folder to make the stage again with them.",
            )
        if self.rank:
            if cls.trains and not cached:
                partial = wait_for(folder.with_name(folder.name + ".partial"))
                stage.build().run(self.context(stage, partial, first=False))
            wait_for(folder)
        elif not cached:
            self.progress.say(f"{name}: {stage.name}")
            with FileLock(f"{folder}.lock"):
                if not folder.exists():
                    self.make(name, stage, key, folder)
        self.keys[name], self.folders[name] = key, folder
        if cls.gives == "corpus":
            self.corpora[name] = Corpus.open(folder / "corpus.lance")
        done = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
        seconds = round(time.monotonic() - started, 3)
        # `name` is this run's; the store's copy may have been made under another.
        entry = {**done, "name": name, "folder": str(folder), "cached": cached, "waited": seconds}
        self.record["stages"].append(entry | ({"version": self.corpora[name].version} if cls.gives == "corpus" else {}))
        if self.rank == 0:
            self.link(name, folder)
            if cached:
                self.progress.say(f"{name}: {stage.name}, done before")
            self.save()

    def link(self, name: str, folder: Path) -> None:
        """out/name -> the stage's folder in the store."""
        link = self.out / name
        if link.is_symlink():
            link.unlink()
        if not link.exists():
            link.symlink_to(folder.absolute(), target_is_directory=True)

    def make(self, name: str, stage: Configured, key: str, folder: Path) -> None:
        partial = folder.with_name(folder.name + ".partial")
        partial.mkdir(parents=True, exist_ok=True)
        (partial / "exhibits.jsonl").unlink(missing_ok=True)
        context = self.context(stage, partial)
        elapsed = _elapsed(partial)
        started = time.monotonic()
        try:
            with nullcontext() if stage.cls.trains else alone():  # type: ignore[attr-defined]
                metrics = stage.build().run(context)
        finally:
            seconds = elapsed + time.monotonic() - started
            if partial.exists():
                (partial / "elapsed").write_text(str(seconds))
        done = {
            "name": name,
            "kind": stage.name,
            "gives": stage.cls.gives,  # type: ignore[attr-defined]
            "settings": plain(stage)[stage.name],
            "key": key,
            "seed": self.seed,
            "seconds": round(seconds, 3),
            "metrics": metrics,
        }
        write_json(partial / "stage.json", done)
        partial.replace(folder)

    def context(self, stage: Configured, folder: Path, *, first: bool = True) -> Context:
        inputs = {}
        for mark, target in references(stage):
            if target in self.folders and mark.gives in ("model", "tokenizer"):
                made = self.folders[target]
                inputs[target] = made / ("tokenizer" if (made / "tokenizer").exists() else "model")
        return Context(
            folder, self.seed, inputs, dict(self.corpora), self.progress, self.store / "shared", dict(self.keys), first
        )


def context_of(run_folder: Path, stage: str) -> tuple[Configured, Context]:
    """A finished run's stage and the context it ran in, its folder read-only by convention; for tracing and reports."""
    record = read_run(run_folder)
    recipe = Recipe.load({key: value for key, value in record["tree"].items() if key != "name"})
    done = {entry["name"]: entry for entry in record["stages"]}
    if stage not in done:
        raise TilthError(f"this run has no finished stage '{stage}'", where=str(run_folder), hint="It has: " + ", ".join(done))
    runner = _Runner(recipe, record["seed"], run_folder, store_path(), Progress(), record["scale"])
    for entry in record["data"]:
        runner.corpora[entry["name"]] = Corpus.open(
            Path(entry["folder"]) / "corpus.lance", where=entry["where"], version=entry.get("version")
        )
        runner.keys[entry["name"]] = entry["fingerprint"]
    for name, entry in done.items():
        runner.folders[name], runner.keys[name] = Path(entry["folder"]), entry["key"]
        if entry["gives"] == "corpus":
            runner.corpora[name] = Corpus.open(Path(entry["folder"]) / "corpus.lance", version=entry.get("version"))
    return recipe.stages[stage], runner.context(recipe.stages[stage], runner.folders[stage])


def read_run(folder: Path) -> dict[str, Any]:
    """run.json of a run's folder."""
    path = folder / "run.json"
    if not path.exists():
        raise TilthError(
            f"'{folder}' is not the folder of a run: it has no run.json", hint="Give the --out of an earlier 'tilth run'."
        )
    return json.loads(path.read_text(encoding="utf-8"))


def check_run(recipe: Recipe) -> None:
    """Raise TilthError for what is known to be wrong before anything is computed: data that is not there, stages' own checks."""
    for spec in recipe.data.values():
        catalogue.resolve(spec.source, base=recipe.file.parent if recipe.file else None)
    for name, stage in recipe.stages.items():
        try:
            stage.build().check()
        except TilthError as error:
            raise TilthError(error.what, where=error.where or f"stage '{name}'", hint=error.hint) from None


@contextmanager
def alone() -> Iterator[None]:
    """Within, training (a probe, an attack) is this process's own affair: the others torchrun started are not in this stage."""
    size = os.environ.pop("WORLD_SIZE", None)
    try:
        yield
    finally:
        if size is not None:
            os.environ["WORLD_SIZE"] = size


def wait_for(folder: Path) -> Path:
    """Another process of this run makes `folder`; torchrun ends this one if that fails."""
    while not folder.exists():
        time.sleep(0.05)
    return folder


def _elapsed(folder: Path) -> float:
    path = folder / "elapsed"
    return float(path.read_text()) if path.exists() else 0.0


def _empty(folder: Path) -> None:
    from tilth.store import discard

    discard(folder)
    folder.mkdir(parents=True)
