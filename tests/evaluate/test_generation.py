import pytest

from tests.evaluate.tiny import corpus, learnt, llama, people, tokenizer
from tilth.backbones.folder import save
from tilth.context import Context, exhibits
from tilth.errors import TilthError
from tilth.evaluate.generation import Generation


@pytest.fixture
def bed(tmp_path):
    (tmp_path / "stage").mkdir()
    rows = corpus(tmp_path / "people.lance", people("Mara"))
    tokens = tokenizer()
    folders = {
        "knows": save(learnt(tokens, people("Mara")), tokens, tmp_path / "knows"),
        "guesses": save(llama(len(tokens)), tokens, tmp_path / "guesses"),
    }
    return Context(folder=tmp_path / "stage", corpora={"people": rows}, inputs=folders)


def test_answers_and_their_scores(bed):
    knows = Generation(data="people", max_new_tokens=10)(bed.model("knows"), bed)
    assert knows.metrics == {"rouge": 1.0, "rouge_f1": 1.0, "exact_match": 1.0}
    assert knows.details["generated"] == [row["answer"] for row in people("Mara")]
    guesses = Generation(data="people", max_new_tokens=10, before="knows")(bed.model("guesses"), bed)
    assert guesses.metrics["exact_match"] == 0.0 and guesses.metrics["rouge_f1"] < 0.5
    shown = exhibits(bed.folder)[-1]
    assert shown["columns"] == ["question", "right answer", "before", "now"]
    assert all(row[1] == row[2] != row[3] for row in shown["rows"])


def test_a_missing_column_is_named(bed):
    with pytest.raises(TilthError, match="no column 'reply'"):
        Generation(data="people", answer="reply")(bed.model("knows"), bed)
