"""What an encoder sees, for the eye: nearest neighbours, a map of its features, where it attends; and signs of collapse."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from tilth.backbones.blocks import Attention
from tilth.backbones.folder import load
from tilth.backbones.patches import PatchEncoder
from tilth.backbones.picture_features import picture_features
from tilth.batches.examples import Chosen, reading
from tilth.batches.images.pictures import natural
from tilth.batches.images.sheet import sheet
from tilth.contracts import Benchmark, Configured, CorpusRef, Kind, Noise, Scores, method
from tilth.errors import TilthError, nearest
from tilth.evaluate.representation import signs_of_collapse
from tilth.noise import hashed_uniform
from tilth.registry import PositiveInt

if TYPE_CHECKING:
    from tilth.context import Context
    from tilth.corpus import Corpus

_COLOURS = 10


@method("benchmark", "gallery", systems=[88])
class Gallery(Benchmark):
    """Exhibits: rows of pictures with their nearest neighbours, a 2-D map (t-SNE of the features), the last block's attention.

    data: rows, labels not needed. colour: a column the map is coloured by, None: 'label' where there is one. examples: most rows that
    are looked at. queries: pictures whose neighbours and attention are shown. batches: None: as the model was built for. Metrics:
    effective_rank, uniformity; neither of a single row.
    """

    def __init__(
        self,
        *,
        data: CorpusRef,
        colour: str | None = None,
        examples: PositiveInt = 1000,
        queries: PositiveInt = 8,
        batches: Annotated[Configured, Kind("batches")] | None = None,
    ) -> None:
        self.data, self.colour, self.examples, self.queries, self.batches = data, colour, examples, queries, batches

    def __call__(self, model: Path, context: Context) -> Scores:
        network, corpus = load(model).model, context.corpus(self.data)
        rows = (self.batches or reading(network, corpus)).build().build(corpus, None, context)
        chosen = np.sort(np.argsort(hashed_uniform(context.seed, "gallery", np.arange(len(rows))))[: self.examples])
        some = Chosen(rows, chosen)
        features = picture_features(network, some)
        pictures = natural(some.batch(np.arange(len(chosen)), Noise(0, chosen)).pixel_values).numpy()
        low, high = np.nanpercentile(pictures[: self.queries], (1, 99))
        shown = pictures if low >= 0 and high <= 1 else (pictures - low) / max(high - low, 1e-9)
        asked = np.linspace(0, len(chosen) - 1, min(self.queries, len(chosen))).astype(int)
        near = neighbours(features, asked, 6)
        context.exhibit(
            "picture", "Nearest neighbours", png=sheet([[shown[q], *shown[n]] for q, n in zip(asked, near, strict=True)]),
            note=f"Left: a picture; beside it the most similar of {len(chosen):,} by the cosine of their features.",
        )  # fmt: skip
        context.exhibit("picture", "Map of the features", **self._map(features, corpus, chosen))
        if maps := attention(network, torch.from_numpy(pictures[asked]).to(network.device)):
            context.exhibit(
                "picture", "Attention", png=sheet([[shown[q], *heads] for q, heads in zip(asked, maps, strict=True)]),
                note="Where each head of the last block looks: brighter is more; from the class token where there is one, else on average.",
            )  # fmt: skip
        return Scores(signs_of_collapse(features))

    def _map(self, features: NDArray[np.float32], corpus: Corpus, chosen: NDArray[np.int64]) -> dict[str, str]:
        column = self.colour or ("label" if "label" in corpus.columns else None)
        if column is not None and column not in corpus.columns:
            raise TilthError(f"the corpus has no column '{column}'", where=corpus.uri, hint=nearest(column, corpus.columns))
        values = corpus.take(chosen, [column]).column(column).to_pylist() if column else None
        reduced = PCA(min(30, *features.shape), random_state=0).fit_transform(features) if min(features.shape) > 2 else features
        few = len(features) < 12  # too few for neighbourhoods
        places = reduced[:, :2] if few else TSNE(perplexity=min(30, len(features) / 4), random_state=0).fit_transform(reduced)
        note = "Rows whose features are alike lie near each other; distances between groups mean little (t-SNE)."
        return {"png": _scatter(places, values), "note": f"{note} Coloured by {column}." if column else note}


def neighbours(features: NDArray[np.float32], asked: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Numbers of the `count` rows most similar to each asked row by cosine, itself left out: (asked, count), nearest first."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    cosines = unit[asked] @ unit.T
    cosines[np.arange(len(asked)), asked] = -np.inf
    return np.argsort(-cosines, axis=1, kind="stable")[:, : min(count, len(features) - 1)]


@torch.inference_mode()
def attention(encoder: Any, pixels: torch.Tensor) -> list[list[NDArray[np.float32]]]:
    """Of every picture, for each head of the last block, where it attends: (1, height, width) in [0, 1]. Empty without attention."""
    mixer = encoder.blocks[-1].mixer if isinstance(encoder, PatchEncoder) else None
    if not isinstance(mixer, Attention):
        return []
    seen: list[torch.Tensor] = []
    hook = mixer.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    try:
        encoder(pixels)
    finally:
        hook.remove()
    q, k, _ = mixer.qkv(seen[0]).unflatten(-1, (3, mixer.heads, -1)).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    told = weights[:, :, 0, 1:] if encoder.config.class_token else weights.mean(2)
    embedding = encoder.embedding(pixels)
    told = told[..., : int(np.prod(embedding.grid))]  # of several groups of channels the first
    told = told / told.amax(-1, keepdim=True)
    grids = told.unflatten(-1, embedding.grid)
    for axis, edge in enumerate(embedding.patch):
        grids = grids.repeat_interleave(edge, 2 + axis)
    return [[head.numpy()[None] for head in picture] for picture in grids.float().cpu()]


def _scatter(places: NDArray[np.float32], values: list[Any] | None) -> str:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4.0), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if values is None:
        axes.scatter(places[:, 0], places[:, 1], s=6, color="#2a78d6")
    elif all(isinstance(value, (int, float)) for value in values) and len(set(values)) > _COLOURS:
        figure.colorbar(axes.scatter(places[:, 0], places[:, 1], s=6, c=values, cmap="viridis"))
    else:
        names = sorted(set(map(str, values)), key=lambda name: -sum(str(value) == name for value in values))
        for number, name in enumerate(names[:_COLOURS]):
            inside = [str(value) == name for value in values]
            axes.scatter(places[inside, 0], places[inside, 1], s=6, color=f"C{number}", label=name)
        if len(names) > _COLOURS:
            inside = [str(value) not in names[:_COLOURS] for value in values]
            axes.scatter(places[inside, 0], places[inside, 1], s=6, color="lightgrey", label="others")
        axes.legend(fontsize=7, markerscale=2, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_axis_off()
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight", facecolor="white")
    return base64.b64encode(file.getvalue()).decode("ascii")
