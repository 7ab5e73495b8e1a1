"""The token store: what is on disk is what direct tokenisation gives, whatever happens on the way."""

import numpy as np
import pytest

from tests.batches.texts import context_in, corpus_of, sentences, tokenizer_of
from tilth.batches.text import store as module
from tilth.batches.text.store import TokenStore, token_store
from tilth.context import Progress
from tilth.errors import TilthError

TEXTS = [*sentences(150), "", None, "the end </s> of it", ""]
TOKENIZER = tokenizer_of(sentences(150))


def directly(text):
    return [*TOKENIZER(text, split_special_tokens=True)["input_ids"], TOKENIZER.eos_token_id] if text else []


def test_documents_are_the_corpus_s_rows_each_with_its_end(tmp_path):
    store = TokenStore.build(corpus_of(tmp_path, TEXTS), TOKENIZER, tmp_path / "tokens")
    assert len(store) == len(TEXTS)
    assert [store.document(row).tolist() for row in range(len(store))] == [directly(text) for text in TEXTS]
    assert isinstance(store.tokens, np.memmap) and store.tokens.dtype == np.uint16
    assert store.about["empty"] == sum(not text for text in TEXTS)


def test_rows_of_a_stretch_of_tokens_leave_out_empty_documents(tmp_path):
    store = TokenStore.build(corpus_of(tmp_path, ["a b", "", "c", None, "d e f"]), TOKENIZER, tmp_path / "tokens")
    ends = store.offsets[1:]
    assert store.rows(0, int(ends[0])).tolist() == [0]
    assert store.rows(int(ends[0]) - 1, int(ends[2]) + 1).tolist() == [0, 2, 4]
    assert store.rows(int(ends[2]), int(ends[4])).tolist() == [4]


class Killed(Exception):
    pass


class KilledAfter(Progress):
    """Stops a build after some pieces, as a kill would between two of them."""

    def __init__(self, pieces):
        self.left = pieces

    def update(self, done, **shown):
        self.left -= 1
        if not self.left:
            raise Killed


@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_an_interrupted_build_goes_on_where_it_was(tmp_path, monkeypatch, pieces):
    monkeypatch.setattr(module, "_ROWS", 32)
    corpus, folder = corpus_of(tmp_path, TEXTS), tmp_path / "tokens"
    whole = TokenStore.build(corpus, TOKENIZER, tmp_path / "whole")
    with pytest.raises(Killed):
        TokenStore.build(corpus, TOKENIZER, folder, progress=KilledAfter(pieces))
    with pytest.raises(TilthError, match="no finished"):
        TokenStore.open(folder)
    with (folder / "tokens.bin").open("ab") as file:  # written but not recorded when the kill came
        file.write(b"half a piece")
    encoded = []
    original = module.Encoder.__call__
    monkeypatch.setattr(module.Encoder, "__call__", lambda self, texts: (encoded.extend(texts), original(self, texts))[1])
    store = TokenStore.build(corpus, TOKENIZER, folder)
    assert np.array_equal(store.tokens, whole.tokens) and np.array_equal(store.offsets, whole.offsets)
    assert store.about == whole.about and len(encoded) == len(TEXTS) - 32 * pieces
    assert sorted(path.name for path in folder.iterdir()) == ["offsets.bin", "store.json", "tokens.bin"]


def test_what_an_interrupted_build_of_other_text_left_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_ROWS", 32)
    folder = tmp_path / "tokens"
    with pytest.raises(Killed):
        TokenStore.build(corpus_of(tmp_path / "a", sentences(90, seed=1)), TOKENIZER, folder, progress=KilledAfter(2))
    store = TokenStore.build(corpus_of(tmp_path / "b", ["one", "two"]), TOKENIZER, folder)
    assert [store.document(row).tolist() for row in (0, 1)] == [directly("one"), directly("two")]


def test_long_texts_are_encoded_in_pieces_of_bounded_size(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_CHARACTERS", 300)
    sizes = []
    original = module.Encoder.__call__
    monkeypatch.setattr(
        module.Encoder, "__call__", lambda self, texts: (sizes.append(sum(map(len, texts[1:]))), original(self, texts))[1]
    )
    store = TokenStore.build(corpus_of(tmp_path, TEXTS), TOKENIZER, tmp_path / "tokens")
    assert max(sizes) <= 300 and len(sizes) > 20
    assert store.document(3).tolist() == directly(TEXTS[3]) and len(store) == len(TEXTS)


def test_vocabularies_beyond_16_bits_get_32(tmp_path):
    tokenizer = tokenizer_of(sentences(20))
    tokenizer.add_tokens([f"word{n}x" for n in range(2**16)])
    store = TokenStore.build(corpus_of(tmp_path, ["word65500x"]), tokenizer, tmp_path / "tokens")
    assert store.tokens.dtype == np.uint32 and store.tokens.max() > 2**16


def test_a_folder_of_another_corpus_is_not_overwritten(tmp_path):
    TokenStore.build(corpus_of(tmp_path / "a", ["one"]), TOKENIZER, tmp_path / "tokens")
    with pytest.raises(TilthError, match="another corpus"):
        TokenStore.build(corpus_of(tmp_path / "b", ["two"]), TOKENIZER, tmp_path / "tokens")


def test_the_store_is_built_once_for_equal_corpora_and_anew_for_a_part(tmp_path):
    context = context_in(tmp_path)
    first = token_store(corpus_of(tmp_path / "a", TEXTS), TOKENIZER, context, "text")
    again = token_store(corpus_of(tmp_path / "b", TEXTS), TOKENIZER, context, "text")
    part = token_store(corpus_of(tmp_path / "c", TEXTS).filter("id < '2'"), TOKENIZER, context, "text")
    assert first.folder == again.folder != part.folder and len(part) < len(first)


def test_a_corpus_without_text_or_without_the_column_is_refused(tmp_path):
    corpus = corpus_of(tmp_path, ["", None])
    with pytest.raises(TilthError, match="no text"):
        token_store(corpus, TOKENIZER, context_in(tmp_path), "text")
    with pytest.raises(TilthError, match="no column 'body'"):
        token_store(corpus, TOKENIZER, context_in(tmp_path), "body")
