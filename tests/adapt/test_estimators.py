import json

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from tilth.adapt.estimators import load, save
from tilth.adapt.knn import KNN
from tilth.adapt.linear_probe import LinearProbe
from tilth.errors import TilthError


@parametrize_with_checks([LinearProbe(), KNN(), KNN(standardise=True)])
def test_scikit_learns_contract(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:600], y[:600], X[600:900], y[600:900]


def test_the_probe_is_a_pipeline_of_scikit_learn(digits):
    X, y, test, _ = digits
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=1000)).fit(X, y)
    ours = LinearProbe(C=0.3).fit(X, y)
    np.testing.assert_allclose(ours.predict_proba(test), theirs.predict_proba(test), atol=1e-9)
    two = y < 2
    theirs = LogisticRegression(C=0.3, max_iter=1000).fit(X[two], y[two])
    ours = LinearProbe(C=0.3, standardise=False).fit(X[two], y[two])
    np.testing.assert_allclose(ours.predict_proba(test), theirs.predict_proba(test), atol=1e-9)
    np.testing.assert_allclose(ours.decision_function(test), theirs.decision_function(test), atol=1e-9)


def test_c_is_chosen_by_cross_validation(digits):
    X, y, *_ = digits
    X, y = X[:120], y[:120]
    standard = StandardScaler().fit_transform(X)
    scores = [
        cross_val_score(LogisticRegression(C=C, max_iter=1000), standard, y, cv=StratifiedKFold(5)).mean()
        for C in np.logspace(-4, 4, 9)
    ]
    chosen = LinearProbe(C=None).fit(X, y)
    assert chosen.C_ == np.logspace(-4, 4, 9)[int(np.argmax(scores))] != 1e-4
    np.testing.assert_array_equal(chosen.coef_, LinearProbe(C=chosen.C_).fit(X, y).coef_)


def test_rare_classes_take_fewer_folds_and_single_examples_are_refused():
    X, y = np.random.default_rng(0).normal(size=(12, 3)), np.array([0] * 10 + [1] * 2)
    LinearProbe(C=None).fit(X, y)
    with pytest.raises(ValueError, match="single example"):
        LinearProbe(C=None).fit(X[:11], y[:11])


def test_one_neighbour_is_scikit_learns_by_cosine(digits):
    X, y, test, _ = digits
    theirs = KNeighborsClassifier(1, metric="cosine").fit(X, y)
    assert (KNN(k=1).fit(X, y).predict(test) == theirs.predict(test)).all()


def test_votes_are_weighted_by_cosine():
    X, y = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), np.array(["a", "b", "b"])
    query = np.array([[2.0, 0.0]])
    cosine = np.array([1.0, 0.0, np.sqrt(0.5)])
    weights = np.exp(cosine / 0.5)
    votes = KNN(k=3, temperature=0.5).fit(X, y).predict_proba(query)[0]
    assert votes.tolist() == pytest.approx([weights[0] / weights.sum(), weights[1:].sum() / weights.sum()])
    assert KNN(k=2, temperature=0.5).fit(X, y).predict_proba(query)[0, 1] == pytest.approx(weights[2] / (weights[0] + weights[2]))


def test_standardised_neighbours_are_those_behind_scikit_learns_scaler():
    draws = np.random.default_rng(0)
    X, y, test = draws.normal(size=(300, 8)), draws.integers(0, 4, 300), draws.normal(size=(100, 8))
    X[:, 0] = test[:, 0] = 1.1  # does not vary
    X, test = X * np.geomspace(0.01, 100, 8) + 3, test * np.geomspace(0.01, 100, 8) + 3
    scaler = StandardScaler().fit(X)
    wanted = KNN().fit(scaler.transform(X), y).predict_proba(scaler.transform(test))
    np.testing.assert_allclose(KNN(standardise=True).fit(X, y).predict_proba(test), wanted, atol=1e-9)
    assert not np.allclose(KNN().fit(X, y).predict_proba(test), wanted, atol=0.05)


def test_length_of_features_does_not_matter_to_neighbours(digits):
    X, y, test, truth = digits
    estimator = KNN().fit(X, y)
    scaled = KNN().fit(X * np.linspace(0.1, 9, len(X))[:, None], y)
    np.testing.assert_allclose(estimator.predict_proba(test), scaled.predict_proba(5 * test))
    assert (estimator.predict(test) == truth).mean() > 0.9


def test_chunks_change_nothing(digits, monkeypatch):
    X, y, test, _ = digits
    whole = KNN().fit(X, y).predict_proba(test)
    monkeypatch.setattr("tilth.adapt.knn._CELLS", 7 * len(X))
    np.testing.assert_allclose(KNN().fit(X, y).predict_proba(test), whole, rtol=1e-9)


def test_more_neighbours_than_examples_are_refused():
    with pytest.raises(ValueError, match="k = 5 neighbours"):
        KNN().fit(np.eye(4), np.arange(4))


@pytest.mark.parametrize(
    "estimator", [LinearProbe(C=0.5), LinearProbe(standardise=False), KNN(k=3), KNN(standardise=True)], ids=repr
)
@pytest.mark.parametrize("names", [None, "names"])
def test_saved_and_loaded_it_predicts_the_same(estimator, names, digits, tmp_path):
    X, y, test, _ = digits
    y = y if names is None else np.array([f"digit {label}" for label in y])
    save(estimator.fit(X, y), tmp_path / "e")
    again = load(tmp_path / "e")
    assert again.get_params() == estimator.get_params() and type(again) is type(estimator)
    assert (again.predict(test) == estimator.predict(test)).all()
    np.testing.assert_array_equal(again.predict_proba(test), estimator.predict_proba(test))
    assert {path.suffix for path in (tmp_path / "e").iterdir()} == {".json", ".safetensors"}


def test_missing_and_damaged_estimators_are_named(digits, tmp_path):
    X, y, *_ = digits
    with pytest.raises(TilthError, match=r"estimator\.json is missing"):
        load(tmp_path)
    save(KNN().fit(X, y), tmp_path)
    said = json.loads((tmp_path / "estimator.json").read_text())
    (tmp_path / "estimator.json").write_text(json.dumps({**said, "method": "knm"}))
    with pytest.raises(TilthError, match="no adapt method 'knm'"):
        load(tmp_path)
    (tmp_path / "estimator.json").write_text(json.dumps(said))
    (tmp_path / "estimator.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(TilthError, match="damaged"):
        load(tmp_path)
