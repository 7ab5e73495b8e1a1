"""Near-duplicate removal: Tilth, datatrove's MinHash pipeline and Daft's bare `minhash`, on functions of installed source.

    python -m benchmarks.minhash [--documents 100000] [--peer-documents 10000] [--repeats 3]

Notable: ours and datatrove's run from files to files (read, sign, band, connect, filter, write), with 14 bands of 8 hashes
over shingles of 5 words, on all cores; datatrove with its default normalisation and word tokeniser, in a process that has
loaded them before the clock starts, and on fewer documents because it would take minutes. Bare Daft reads the same table,
normalises as we do and collects ids and signatures (`unnormalised`: Daft's defaults on raw text); `deciding` is ours up to
the same point and then banding, components and reasons, so that their ratio is the price of what we add. Precision and
recall are against exact Jaccard similarities of all pairs of a sample.
"""

import argparse
import ast
import json
import shutil
import subprocess
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import daft
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from daft.functions import hash
from scipy.sparse import coo_array

from benchmarks.common import record, timings
from tilth.corpus import Corpus
from tilth.curate import curate
from tilth.curate.lsh import candidate_pairs, collision_probability, estimated_similarity
from tilth.curate.near_dedup import NearDedup
from tilth.curate.shingles import spaced
from tilth.registry import use

CACHE = Path(__file__).parents[1] / "build" / "benchmarks"
BANDS, ROWS, SIZE = 14, 8, 5
SAMPLE = 20_000  # documents whose pairs are all compared exactly
WINDOW = 10**6  # pairs of a whole bucket


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--peer-documents", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.peer:
        print(json.dumps({"seconds": datatrove_pipeline(asked.peer)}))
        return
    documents = functions(asked.documents)
    size = sum(len(text) for text in documents["text"].to_pylist()) / 1e6
    corpus = Corpus.write(CACHE / "functions.lance", documents.to_batches(8192), documents.schema)
    jsonl = CACHE / "peer"
    write_jsonl(documents.slice(0, asked.peer_documents), jsonl)
    step, text = NearDedup(bands=BANDS, rows=ROWS, size=SIZE), daft.col("text")
    nothing = daft.lit(None).cast(daft.DataType.string())
    raw = daft.functions.minhash(text, num_hashes=BANDS * ROWS, ngram_size=SIZE)

    def ours() -> None:
        curate(corpus, [use("curate", "near_dedup", bands=BANDS, rows=ROWS, size=SIZE)], emptied(CACHE / "ours"))

    def deciding() -> None:
        NearDedup(bands=BANDS, rows=ROWS, size=SIZE).fit(corpus.frame().with_column("removed", nothing))

    def bare() -> None:
        corpus.frame().select("id", step.signature(text).alias("signature")).to_arrow()

    def bare_raw() -> None:
        corpus.frame().select("id", raw.alias("signature")).to_arrow()

    ours()  # loads what is loaded once
    seconds = timings(
        {"ours": ours, "deciding": deciding, "bare": bare, "bare_raw": bare_raw, "peer": lambda: peer(jsonl)}, asked.repeats
    )
    rate = {name: asked.documents / median(taken) for name, taken in seconds.items()}
    rate["peer"] = asked.peer_documents / median(seconds["peer"])
    record(
        "minhash_vs_datatrove", rate["ours"], rate["peer"], "datatrove", "documents/s", asked.repeats,
        documents=asked.documents, megabytes=round(size, 1), peer_documents=asked.peer_documents, seconds=seconds,
        bare_daft=rate["bare"], deciding=rate["deciding"], ratio_to_bare_daft=rate["deciding"] / rate["bare"],
        ratio_to_bare_daft_with_writing=rate["ours"] / rate["bare"], bare_daft_unnormalised=rate["bare_raw"],
        ratio_to_bare_daft_unnormalised=rate["deciding"] / rate["bare_raw"],
        **quality(corpus, step),
    )  # fmt: skip


def functions(count: int) -> pa.Table:
    """The first `count` functions of the standard library and installed packages, by path: id, text. Cached."""
    path = CACHE / f"functions-{count}.parquet"
    if not path.exists():
        found = list(zip(range(count), _functions()))
        ids, texts = ([one[part] for _, one in found] for part in (0, 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"id": pa.array(ids), "text": pa.array(texts)}), path)
    return pq.read_table(path)


def _functions() -> Iterator[tuple[str, str]]:
    """(name, source) of every function in files that this Python can parse."""
    warnings.simplefilter("ignore", SyntaxWarning)
    library, packages = (Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib"))
    for root in (library, packages):
        for path in sorted(root.rglob("*.py")):
            if root == library and "site-packages" in path.parts:
                continue
            try:
                source = path.read_text(encoding="utf-8")
                tree = ast.parse(source)
            except (UnicodeDecodeError, SyntaxError, ValueError):  # test data of parsers
                continue
            lines = source.splitlines(keepends=True)
            for number, node in enumerate(ast.walk(tree)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f"{path.relative_to(root)}:{node.name}:{number}", "".join(lines[node.lineno - 1 : node.end_lineno])


def quality(corpus: Corpus, step: NearDedup, threshold: float = 0.8) -> dict[str, object]:
    """Precision and recall of pairs against exact Jaccard similarity, among a sample of documents drawn by hash of id.

    recall: of pairs whose similarity s has 1 - (1 - s**rows)**bands >= 0.95, the share that becomes candidates; expected:
    the mean of that curve over the same pairs. precision: of candidates verified by their signatures to reach `threshold`,
    the share whose exact similarity does. Both also for pairs that are not identical, which are the hard ones.
    """
    text = daft.col("text")
    units = spaced(text, step.unit, lowercase=step.lowercase, punctuation=step.punctuation)
    frame = corpus.frame().select(
        hash(daft.col("id")).alias("draw"), units.alias("units"), step.signature(text).alias("signature")
    )
    table = frame.sort("draw").limit(SAMPLE).to_arrow()
    signatures = table["signature"].combine_chunks().flatten().to_numpy().reshape(-1, BANDS * ROWS)
    left, right, exact = exact_similarities(table["units"].to_pylist())
    count = len(signatures)
    similarity = dict(zip((left * count + right).tolist(), exact.tolist()))

    found_left, found_right = bucket_pairs(signatures)
    found = found_left * count + found_right
    curve = collision_probability(exact, BANDS, ROWS)
    allowed = curve >= 0.95
    hit = np.isin(left * count + right, found)
    found_exact = np.array([similarity.get(code, 0.0) for code in found.tolist()])
    verified = estimated_similarity(signatures, found_left, found_right) >= threshold
    different, found_different = exact < 1, found_exact < 1
    return {
        "pairs": {
            "sample": count, "threshold": threshold, "similarity_the_curve_allows": float(exact[allowed].min()),
            "pairs_allowed": int(allowed.sum()), "pairs_verified": int(verified.sum()),
            "recall": float(hit[allowed].mean()), "expected_recall": float(curve[allowed].mean()),
            "recall_not_identical": float(hit[allowed & different].mean()),
            "expected_recall_not_identical": float(curve[allowed & different].mean()),
            "precision": float((found_exact[verified] >= threshold).mean()),
            "precision_not_identical": float((found_exact[verified & found_different] >= threshold).mean()),
            "precision_within_standard_error": float(
                (found_exact[verified] >= threshold - np.sqrt(threshold * (1 - threshold) / (BANDS * ROWS))).mean()
            ),
        }
    }  # fmt: skip


def exact_similarities(units: list[str], least: float = 0.3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(left, right, Jaccard similarity) of all pairs of documents that reach `least`, by counting common shingles."""
    numbers: dict[tuple[str, ...], int] = {}
    sets = []
    for text in units:
        words = text.split(" ")
        shingles = {tuple(words[place : place + SIZE]) for place in range(max(len(words) - SIZE + 1, 1))} if text else set()
        sets.append([numbers.setdefault(shingle, len(numbers)) for shingle in shingles])
    sizes = np.array([len(one) for one in sets])
    document, shingle = np.repeat(np.arange(len(sets)), sizes), np.array([number for one in sets for number in one])
    matrix = coo_array((np.ones(len(document), np.int32), (document, shingle)), shape=(len(sets), len(numbers))).tocsr()
    parts = []
    for begin in range(0, len(sets), 2000):
        common = (matrix[begin : begin + 2000] @ matrix.T).tocoo()
        left, right = common.row + begin, common.col
        similarity = common.data / (sizes[left] + sizes[right] - common.data)
        chosen = (left < right) & (similarity >= least)
        parts.append((left[chosen].astype(np.int64), right[chosen].astype(np.int64), similarity[chosen]))
    left, right, similarity = (np.concatenate(column) for column in zip(*parts))
    return left, right, similarity


def bucket_pairs(signatures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs that share a band, those of equal signatures included."""
    _, first, back = np.unique(signatures, axis=0, return_index=True, return_inverse=True)
    left, right = candidate_pairs(signatures[first], bands=BANDS, window=WINDOW)
    members = np.split(np.argsort(back, kind="stable"), np.cumsum(np.bincount(back))[:-1])
    pairs = [np.stack(np.meshgrid(members[one], members[other]), -1).reshape(-1, 2) for one, other in zip(left, right)]
    for group in members:
        one, other = np.triu_indices(len(group), 1)
        pairs.append(np.stack([group[one], group[other]], -1))
    joined = np.sort(np.concatenate(pairs), axis=1)
    return joined[:, 0], joined[:, 1]


def write_jsonl(documents: pa.Table, folder: Path) -> None:
    """The documents in two files, one for each of datatrove's workers."""
    rows = documents.to_pylist()
    emptied(folder / "input")
    for part in range(2):
        lines = [json.dumps({"id": row["id"], "text": row["text"]}) for row in rows[part::2]]
        (folder / "input" / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def peer(folder: Path) -> float:
    """Seconds of datatrove's pipeline, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.minhash", "--peer", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise RuntimeError(f"datatrove's pipeline failed:\n{done.stderr[-3000:]}")
    return float(json.loads(done.stdout.strip().splitlines()[-1])["seconds"])


def datatrove_pipeline(folder: Path) -> float:
    """The four steps of its example, two workers each; returns seconds. Everything is imported before the clock starts."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.word_tokenizers import load_word_tokenizer

    load_word_tokenizer("eng_Latn").word_tokenize("Loaded before the clock starts.")
    work, config = emptied(folder / "work"), MinhashConfig(n_grams=SIZE, num_buckets=BANDS, hashes_per_bucket=ROWS)
    steps = [
        ([JsonlReader(str(folder / "input")), MinhashDedupSignature(str(work / "signatures"), config=config)], 2),
        ([MinhashDedupBuckets(str(work / "signatures"), str(work / "buckets"), config=config)], BANDS),
        ([MinhashDedupCluster(str(work / "buckets"), str(work / "remove"), config=config)], 1),
        ([JsonlReader(str(folder / "input")), MinhashDedupFilter(str(work / "remove")), JsonlWriter(str(work / "kept"))], 2),
    ]
    started = time.perf_counter()
    for number, (pipeline, tasks) in enumerate(steps):
        logs = str(work / "logs" / str(number))
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=2, logging_dir=logs, start_method="fork").run()
    return time.perf_counter() - started


def emptied(folder: Path) -> Path:
    """The folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


if __name__ == "__main__":
    main()
