"""Results in files of the user's choosing: a curated corpus, embeddings."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tilth.context import Progress


def export_corpus(stage: Path, out: Path) -> tuple[Path, Path]:
    """Copy a stage's corpus to `out` (folder: Lance table; .parquet; .jsonl) and its removed rows beside it."""
    from tilth.corpus import Corpus

    folder = out.with_suffix(".run") if out.suffix else out
    removed = folder / "removed.parquet"
    if (stage / "removed.parquet").exists():
        shutil.copyfile(stage / "removed.parquet", removed)
    corpus = Corpus.open(stage / "corpus.lance")
    if not out.suffix:
        target = out / "corpus.lance"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(stage / "corpus.lance", target)
        return target, removed
    partial = out.with_name(out.name + ".partial")
    if out.suffix == ".parquet":
        with pq.ParquetWriter(partial, corpus.schema, compression="zstd") as writer:
            for batch in corpus.scan():
                writer.write_batch(batch)
    else:
        with partial.open("w", encoding="utf-8") as file:
            for batch in corpus.scan():
                file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in batch.to_pylist())
    partial.replace(out)
    return out, removed


def embed_corpus(model: str, data: dict[str, Any], out: Path, batch_size: int, progress: Progress) -> tuple[int, int]:
    """Embed every row of `data` and stream (id, embedding) into `out`; returns rows and width."""
    from tilth.backbones.folder import load
    from tilth.corpus import Corpus
    from tilth.corpus.ingest import ingest

    text_model = load(model)
    rows = width = 0
    partial = out.with_name(out.name + ".partial")
    with tempfile.TemporaryDirectory(prefix="tilth-") as folder:
        ingest(data["source"], Path(folder) / "corpus.lance", progress=progress)
        corpus = Corpus.open(Path(folder) / "corpus.lance", where=data.get("where"))
        progress.start("embedding", corpus.count(), "rows")
        writer: pq.ParquetWriter | None = None
        for ids, vectors in _embedded(text_model, corpus, batch_size, Path(folder)):
            width = vectors.shape[1]
            table = pa.table({"id": ids, "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), width)})
            writer = writer or pq.ParquetWriter(partial, table.schema, compression="zstd")
            writer.write_table(table)
            rows += len(vectors)
            progress.update(rows)
        progress.end()
        if writer:
            writer.close()
    partial.replace(out)
    return rows, width


def _embedded(text_model: Any, corpus: Any, batch_size: int, folder: Path) -> Iterator[tuple[Any, Any]]:
    """(ids, features) of some rows at a time."""
    from tilth.backbones.features import embed
    from tilth.backbones.picture_features import picture_features
    from tilth.batches.examples import Chosen, reading
    from tilth.context import Context
    from tilth.stages.tokenizer import text_columns

    columns = text_columns(corpus) if text_model.tokenizer is not None else []
    examples = None if columns else reading(text_model.model, corpus).build().build(corpus, None, Context(folder))
    start = 0
    for batch in corpus.scan(["id", *columns], batch_size=batch_size * 16):
        if examples is None:
            texts = [" ".join(str(row[column]) for column in columns) for row in batch.to_pylist()]
            yield batch["id"], embed(text_model, texts, batch_size=batch_size)
        else:
            chosen = Chosen(examples, np.arange(start, start + batch.num_rows))
            yield batch["id"], picture_features(text_model.model, chosen, batch_size=batch_size)
        start += batch.num_rows
