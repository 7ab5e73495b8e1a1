"""Text as it grows, and tokens as they are drawn."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.batches.texts import sentences, tokenizer_of
from tilth.serve.answer import Answer, pieces
from tilth.serve.sampling import Sampler, Sampling, draw


def letters(ids: list[int]) -> str:
    return "".join(chr(id) for id in ids)


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_what_is_given_out_is_the_text_before_the_first_stop_string(text, stop):
    answer, out = Answer(letters, stop), ""
    for letter in text:
        out += answer.push(ord(letter))
        assert not any(word in out for word in stop)
        if answer.stopped:
            break
    out += answer.end()
    # The one completed first ends it; of those completed by the same letter, the one that began first.
    ends = [text.find(word) + len(word) for word in stop if word in text]
    expected = text
    if ends:
        seen = text[: min(ends)]
        expected = seen[: min(seen.find(word) for word in stop if word in seen)]
    assert out == expected and answer.stopped == bool(ends)


def test_characters_of_several_tokens_come_whole():
    tokens = tokenizer_of(sentences(20))
    text = "naïve größe 麦 😀 end"
    ids = tokens(text)["input_ids"]
    assert len(ids) > len(text.split())
    answer = Answer(lambda some: tokens.decode(some, skip_special_tokens=True))
    out = [answer.push(id) for id in ids] + [answer.end()]
    assert "".join(out) == text and not any("\N{REPLACEMENT CHARACTER}" in piece for piece in out)


def test_the_pieces_of_a_text_are_the_text():
    for text in ("I do not know.", " two  spaces ", "", "line\nline\n"):
        assert "".join(pieces(text)) == text


def test_draws_follow_the_distribution_within_top_p():
    logits = torch.log(torch.tensor([0.15, 0.5, 0.05, 0.3]))
    uniform = torch.linspace(0, 1, 10001)[:-1, None]
    rows = logits.expand(len(uniform), -1)
    one = torch.ones_like(uniform)
    shares = torch.bincount(draw(rows, one, one, uniform)[:, 0], minlength=4) / len(uniform)
    assert torch.allclose(shares, torch.tensor([0.15, 0.5, 0.05, 0.3]), atol=1e-3)
    shares = torch.bincount(draw(rows, one, 0.7 * one, uniform)[:, 0], minlength=4) / len(uniform)
    assert torch.allclose(shares, torch.tensor([0, 0.625, 0, 0.375]), atol=1e-3)  # 0.5 alone has not 0.7 yet
    sharp = torch.tensor([0.15, 0.5, 0.05, 0.3]) ** 2
    shares = torch.bincount(draw(rows, 0.5 * one, one, uniform)[:, 0], minlength=4) / len(uniform)
    assert torch.allclose(shares, sharp / sharp.sum(), atol=1e-3)
    assert (draw(rows, one, 1e-9 * one, uniform) == 1).all()


def test_greedy_rows_are_not_touched_and_drawn_rows_do_not_depend_on_their_company():
    scores = torch.randn(3, 11, generator=torch.Generator().manual_seed(0))
    hot = Sampling(temperature=1.0, top_p=0.9, seed=5, index=2)
    draws = [0.0, *hot.uniforms(1).tolist(), 0.0]
    together = Sampler([Sampling(), hot, Sampling()], lambda: draws)(torch.zeros(3, 0), scores)
    assert torch.equal(together[[0, 2]], scores[[0, 2]])
    alone = Sampler([hot], lambda: hot.uniforms(1).tolist())(torch.zeros(1, 0), scores[1:2])
    assert torch.equal(together[1:2], alone) and alone.isfinite().sum() == 1


@pytest.mark.parametrize("other", [Sampling(1, 1, 6, 2), Sampling(1, 1, 5, 3)])
def test_seed_and_place_give_other_numbers(other):
    first = Sampling(1, 1, 5, 2).uniforms(20)
    assert np.array_equal(first, Sampling(1, 1, 5, 2).uniforms(20)) and not np.array_equal(first, other.uniforms(20))
