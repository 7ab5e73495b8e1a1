"""Every objective of the registry on a tiny problem of its kind: what the contract tests build."""

import json
from pathlib import Path

import numpy as np
import torch

from tests.floods import BATCHES as FLOODS
from tests.floods import floods
from tests.images import BATCHES as IMAGES
from tests.images import cnn, digits
from tests.sections import crops, sections
from tilth.adapt.fine_tune import classifier
from tilth.backbones.folder import TextModel
from tilth.batches.images.mixed import MixedExamples
from tilth.batches.images.pictures import PixelRows
from tilth.context import Context
from tilth.contracts import Examples, Objective, Sample, use
from tilth.corpus import Corpus
from tilth.corpus.ingest import ingest
from tilth.demo.people import people
from tilth.index import entries, find
from tilth.registry import configure
from tilth.training.settings import Budget, Training
from tilth.unlearn.forget import prepared
from tilth.unlearn.pairs import PairedExamples
from tilth.unlearn.task import Task

# How a pre-training objective is met by a network and batches; a new one says here what it needs.
PRETRAIN = {
    "causal": ("causal_lm", use("batches", "packed", length=32)),
    "masked": ("masked_lm", use("batches", "masked", length=32)),
    "span_corruption": ("encoder_decoder", use("batches", "span_corruption", length=32)),
}
OF_IMAGES = {"classification", "concept_poisoning"}
# Objectives for encoders of patches: settings of the encoder, of the batches, and of the objective.
SMALL = {"width": 32, "depth": 2, "heads": 2, "patch": 2}
HEADS = {"head_width": 32, "head_out": 16}
DECODER = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
CROPS = use("views", "multi_crop", local_crops=1, local_size=4)
OF_PATCHES = {
    "mae": (SMALL, DECODER),
    "simmim": (SMALL, {"mask_block": 4}),
    "rotation": (SMALL, {}),
    "simclr": (SMALL, HEADS),
    "moco_v2": (SMALL, {**HEADS, "queue": 32, "momentum": 0.9}),
    "byol": (SMALL, {**HEADS, "momentum": 0.9}),
    "swav": (SMALL, {**HEADS, "prototypes": 12, "views": CROPS}),
    "barlow": (SMALL, HEADS),
    "vicreg": (SMALL, HEADS),
    "dino": (SMALL, {"out": 24, "head_width": 32, "bottleneck": 8, "temperature_steps": 4, "momentum": 0.9, "views": CROPS}),
    "i_jepa": (SMALL, {"predictor_width": 16, "predictor_depth": 1, "predictor_heads": 2, "momentum": 0.9}),
    "data2vec": (SMALL, {"layers": 2, "smallest_block": 2, "momentum": 0.9}),
    "hi_end_mae": (SMALL, {**DECODER, "taps": (1, 2)}),
    "sar_jepa": (
        {**SMALL, "position": "relative", "class_token": True},
        {"windows": 2, "side": 3, "radii": (1,), "predictor_width": 16, "predictor_depth": 1, "predictor_heads": 2},
    ),
    "sat_mae_pp": (SMALL, {**DECODER, "scales": 1}),
    "roma": (
        {**SMALL, "mixer": "mamba", "mlp": "swiglu"},
        {"block": 2, "coarse": None, "taps": (1, 1, 2, 2), "decoder_width": 16, "decoder_heads": 2},
    ),
}
OBJECTIVES = [
    (e.kind, e.name)
    for kind in ("pretrain", "unlearn", "adapt")
    for e in entries(kind)
    if issubclass(find(e.kind, e.name), Objective)
]


def corpus(folder: Path) -> Corpus:
    """Rows about forty people, with text, question, answer, label and part; made once per folder."""
    table = folder / "corpus.lance"
    if not table.exists():
        folder.mkdir(parents=True, exist_ok=True)
        rows = [{**row, "text": f"{row['question']} {row['answer']}", "label": row["part"]} for row in people(40, seed=0)]
        path = folder / "rows.jsonl"
        path.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "perturbed_answer"}) + "\n" for row in rows))
        return ingest(path, table, kind="text").corpus
    return Corpus.open(table)


def problem(kind: str, name: str, folder: Path, seed: int = 0) -> tuple[Objective, Examples]:
    """An objective with its tiny model (drawn from `seed`) and its examples."""
    if name in OF_IMAGES:
        return image_problem(kind, name, folder, seed)
    if name in ("uni4eye", "voco", "token_unify"):
        return {"uni4eye": mixed_problem, "voco": crop_problem, "token_unify": token_problem}[name](folder, seed)
    if kind == "pretrain" and name in ("segmentation", "affinity"):
        return {"segmentation": dense_problem, "affinity": affinity_problem}[name](folder, seed)
    if name in OF_PATCHES:
        return patch_problem(name, folder, seed)
    torch.manual_seed(seed)
    rows, context = corpus(folder / "data"), Context(folder / f"stage-{seed}", seed)
    context.folder.mkdir(exist_ok=True)
    tokenizer = use("tokenizer", "word", sentinels=8).build().train(iter(rows.table(["text"])["text"].to_pylist()))
    backbone, batches = PRETRAIN[name] if kind == "pretrain" else ("causal_lm", use("batches", "answers", length=48))
    model = use("backbone", backbone, width=32, depth=1, heads=2).build().build(tokenizer)
    if kind == "pretrain":
        return use(kind, name).build(model), batches.build().build(rows, tokenizer, context)
    if name == "attentive_probe":
        return probe_problem(folder, seed)
    if kind == "adapt":
        labelled = use("batches", "labelled", length=48).build().build(rows, tokenizer, context)
        return use(kind, name).build(classifier(TextModel(model, tokenizer), ["forget", "retain"])), labelled
    # Answers of one length, so that a mean over answer tokens and one over examples weigh half a batch alike.
    rows = rows.filter("question LIKE 'In which year%'")
    sets = [rows.filter(f"part = '{part}'") for part in ("forget", "retain")]
    encoded = [batches.build().build(part, tokenizer, context) for part in sets]
    task = Task(TextModel(model, tokenizer, {}), *sets, *encoded, Training(), Budget(steps=4), context)
    objective = use(kind, name).build(model)
    return objective, prepared(objective, task)


def image_problem(kind: str, name: str, folder: Path, seed: int) -> tuple[Objective, Examples]:
    """The same of an objective for classifiers of images: one digit to forget, the others to retain."""
    rows, context = digits(folder / "digits"), Context(folder / f"stage-{seed}", seed)
    context.folder.mkdir(exist_ok=True)
    objective = use(kind, name).build(cnn(seed))
    if kind == "pretrain":
        return objective, IMAGES.build().build(rows, None, context)
    sets = [IMAGES.build().build(rows.filter(f"label {sign} 3"), None, context) for sign in ("=", "!=")]
    return objective, objective.prepare(PairedExamples(*sets), context)


def patch_problem(name: str, folder: Path, seed: int) -> tuple[Objective, Examples]:
    """The same of an objective for encoders of patches, on the digits."""
    rows, context = digits(folder / "digits"), Context(folder / f"stage-{seed}", seed)
    context.folder.mkdir(exist_ok=True)
    encoder, settings = OF_PATCHES[name]
    examples = use("batches", "pictures", channels=1).build().build(rows, None, context)
    torch.manual_seed(seed)
    model = use("backbone", "patches", **encoder).build().build(examples.sample)
    return configure("pretrain", {name: settings}).build(model), examples


def probe_problem(folder: Path, seed: int) -> tuple[Objective, Examples]:
    """An attentive probe on the digits."""
    rows, context = digits(folder / "digits"), Context(folder / f"stage-{seed}", seed)
    context.folder.mkdir(exist_ok=True)
    examples = use("batches", "pictures", channels=1, label="label").build().build(rows, None, context)
    torch.manual_seed(seed)
    encoder = use("backbone", "patches", **SMALL).build().build(examples.sample)
    network = classifier(TextModel(encoder, None), [str(digit) for digit in range(10)], "attention")
    return use("adapt", "attentive_probe").build(network), examples


def dense_problem(folder: Path, seed: int) -> tuple[Objective, Examples]:
    """The same of an objective for masks, on tiny floods."""
    context = Context(folder / f"stage-{seed}", seed)
    context.folder.mkdir(parents=True, exist_ok=True)
    examples = FLOODS.build().build(floods(folder / "floods"), None, context)
    torch.manual_seed(seed)
    model = use("backbone", "unet", classes=3, widths=(8, 16)).build().build(examples.sample)
    return use("pretrain", "segmentation", crop=(0.5, 1.0), flip=0.5).build(model), examples


def affinity_problem(folder: Path, seed: int) -> tuple[Objective, Examples]:
    """The same of an objective for affinities, on crops of drawn sections, one of which has no labels."""
    context = Context(folder / f"stage-{seed}", seed)
    context.folder.mkdir(parents=True, exist_ok=True)
    rows = crops(folder / "sections", sections(folder / "sections"), size=(2, 16, 16), labelled=[2 * i for i in range(1, 8)])
    examples = use("batches", "instances").build().build(rows, None, context)
    torch.manual_seed(seed)
    encoder = use("backbone", "conv_stages", widths=[6, 8], strides=[1, 1])
    model = use("backbone", "dense_classifier", classes=2, encoder=encoder).build().build(examples.sample)
    return use("pretrain", "affinity", axes=(1, 2), rot90=0.5).build(model), examples


def mixed_problem(folder: Path, seed: int) -> tuple[Objective, Examples]:
    """Digits as pictures, and as volumes the same in several planes that grow darker."""
    rows, context = digits(folder / "digits"), Context(folder / f"stage-{seed}", seed)
    context.folder.mkdir(exist_ok=True)
    pictures = use("batches", "pictures", channels=1).build().build(rows, None, context)
    planes = np.stack([pictures.pixels[:60] * share for share in (1.0, 0.8, 0.6, 0.4)], 2) / 255
    volumes = PixelRows(planes.astype(np.float32), Sample(1, (4, 8, 8), (0.2,), (0.3,)))
    examples = MixedExamples(pictures, volumes, 1)
    torch.manual_seed(seed)
    model = use("backbone", "patches", **{**SMALL, "width": 48, "patch_3d": 2}).build().build(examples.sample)
    still = use("views", "volumes", rot90=0)
    return use("pretrain", "uni4eye", **{**DECODER, "decoder_width": 24}, volume_views=still).build(model), examples


def crop_problem(folder: Path, seed: int) -> tuple[Objective, Examples]:
    """Crops of digits, read by a small convolutional network."""
    rows, context = digits(folder / "digits"), Context(folder / f"stage-{seed}", seed)
    context.folder.mkdir(exist_ok=True)
    examples = use("batches", "pictures", channels=1).build().build(rows, None, context)
    torch.manual_seed(seed)
    model = use("backbone", "conv_stages", widths=[6, 8], strides=[1, 2]).build().build(examples.sample)
    return use("pretrain", "voco", crop=4, grid=2, views=use("views", "none"), **HEADS).build(model), examples


def token_problem(folder: Path, seed: int) -> tuple[Objective, Examples]:
    """Digits of which tokens are hidden, rebuilt by a small network of convolutions and scans."""
    rows, context = digits(folder / "digits"), Context(folder / f"stage-{seed}", seed)
    context.folder.mkdir(exist_ok=True)
    examples = use("batches", "pictures", channels=1).build().build(rows, None, context)
    torch.manual_seed(seed)
    model = use("backbone", "seg_mamba", widths=(8,), depths=(1,), hidden=8, strides=(2, 2)).build().build(examples.sample)
    return use("pretrain", "token_unify", patch=(2, 2), degrade=0.5).build(model), examples
