import pytest
import torch

from tests.evaluate.tiny import corpus, gpt2, learnt, llama, people, tokenizer
from tilth.backbones.fingerprint import fingerprint
from tilth.backbones.folder import load, save
from tilth.backbones.locations import linear_names
from tilth.context import Context, exhibits
from tilth.errors import TilthError
from tilth.evaluate.quantisation import Quantisation, changed_share, matrix, quantise, round_to_nearest


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group", [None, 16])
def test_every_weight_is_within_half_a_step_and_codes_fit_the_bits(bits, group):
    weight = torch.randn(8, 40, generator=torch.Generator().manual_seed(0))
    rounded = round_to_nearest(weight, bits, group)
    assert ((rounded.weight - weight).abs() <= rounded.step / 2 + 1e-6).all()
    assert rounded.codes.abs().max() == 2 ** (bits - 1) - 1
    assert len(rounded.step[0].unique()) == (1 if group is None else 3)  # 40 inputs: 16, 16, 8


def test_one_large_weight_coarsens_its_own_channel_or_group_only():
    weight = torch.full((2, 32), 0.01)
    weight[0, 0] = 100.0
    whole, grouped = round_to_nearest(weight, 8).weight, round_to_nearest(weight, 8, 16).weight
    assert (whole[0, 1:] == 0).all() and torch.allclose(whole[1], weight[1])
    assert (grouped[0, 1:16] == 0).all() and torch.allclose(grouped[0, 16:], weight[0, 16:])


def test_a_channel_of_zeros_stays_and_a_grid_is_kept():
    assert (round_to_nearest(torch.zeros(2, 4), 4).weight == 0).all()
    grid = torch.arange(-7, 8).float().unsqueeze(0) * 0.5
    assert torch.equal(round_to_nearest(grid, 4).weight, grid)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_all_linear_modules_are_rounded_per_output_and_nothing_else(make):
    model, untouched = make(50), make(50)
    quantise(model, 4)
    before, rounded = dict(untouched.named_modules()), set(linear_names(model))
    for name, module in model.named_modules():
        if name in rounded:
            assert all(len(row.unique()) <= 15 for row in matrix(module))
            assert not torch.equal(matrix(module), matrix(before[name]))
    rest = {name for name, _ in model.named_parameters() if name.removesuffix(".weight") not in rounded}
    same, other = dict(model.named_parameters()), dict(untouched.named_parameters())
    assert rest and all(torch.equal(same[name], other[name]) for name in rest)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_share_of_changed_buckets_is_the_size_of_the_change_in_steps(make):
    """A change smaller than half a step moves a weight into the next bucket with probability |change| / step."""
    before, after = make(50), make(50)
    assert changed_share(after, before, 4) == 0.0
    generator = torch.Generator().manual_seed(1)
    modules, total = dict(after.named_modules()), 0
    for name in linear_names(after):
        weight = matrix(modules[name])
        step = round_to_nearest(weight, 4).step
        sign = torch.randint(0, 2, weight.shape, generator=generator) * 2 - 1
        largest = weight.abs() >= weight.abs().amax(1, keepdim=True)  # which would move the grid itself
        weight.add_(torch.where(largest, 0.0, 0.1 * step * sign))
        total += weight.numel()
    assert changed_share(after, before, 4) == pytest.approx(0.1, abs=0.02)
    quantise(before, 4)
    assert changed_share(after, before, 8) > 0


@pytest.fixture
def bed(tmp_path):
    (tmp_path / "stage").mkdir()
    tokens = tokenizer()
    models = {
        "knows": learnt(tokens, [*people("Mara"), *people("Odo")]),
        "gold": learnt(tokens, people("Odo")),
        "other": llama(len(tokens)),
    }
    return Context(
        folder=tmp_path / "stage",
        corpora={name: corpus(tmp_path / f"{name}.lance", people(who)) for name, who in (("forget", "Mara"), ("retain", "Odo"))},
        inputs={name: save(model, tokens, tmp_path / name) for name, model in models.items()},
        shared=tmp_path / "shared",
    )


def test_a_tiny_unlearning_step_is_undone_by_rounding(bed):
    """Weights pushed inside their buckets: another model at full precision, the model before once rounded."""
    text_model = load(bed.model("knows"))
    modules = dict(text_model.model.named_modules())
    for name in linear_names(text_model.model):
        weight = matrix(modules[name])
        rounded = round_to_nearest(weight, 4)
        room = (rounded.weight - weight) * 0.9  # towards the middle of the bucket
        weight.add_(torch.where(weight.abs() >= weight.abs().amax(1, keepdim=True), 0.0, room))
    bed.inputs["pushed"] = save(text_model.model, text_model.tokenizer, bed.folder / "pushed")
    bench = Quantisation(forget="forget", retain="retain", before="knows")
    found, same = bench(bed.model("pushed"), bed).metrics, bench(bed.model("knows"), bed).metrics
    assert found["changed_4_bits"] == 0.0 and found["changed_8_bits"] > 0.1
    assert found["forget_probability"] != same["forget_probability"]
    assert found["forget_probability_4_bits"] == pytest.approx(same["forget_probability_4_bits"], rel=1e-5)
    assert same["forget_kept"] == 1.0 and same["forget_rouge"] == 1.0 and same["retain_probability"] > 0.9


def test_the_model_on_disk_is_left_alone_and_each_precision_has_its_row(bed):
    before = fingerprint(load(bed.model("gold")).model)
    scores = Quantisation(forget="forget", before="knows", bits=(8, 4, 2))(bed.model("gold"), bed)
    assert fingerprint(load(bed.model("gold")).model) == before
    assert len(scores.details["probability_2_bits"]) == 4 and scores.metrics["forget_kept"] < 0.5
    [table] = exhibits(bed.folder)
    assert [row[0] for row in table["rows"]] == ["as it is", "8 bits", "4 bits", "2 bits"]


def test_models_built_otherwise_and_one_bit_are_refused(bed):
    with pytest.raises(TilthError, match="not built alike"):
        Quantisation(forget="forget", before="other")(bed.model("knows"), bed)
    with pytest.raises(TilthError, match="2 or more"):
        Quantisation(forget="forget", bits=(1,))
