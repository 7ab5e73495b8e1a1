import pytest
import torch

from tilth.backbones.folder import load, save
from tilth.backbones.mamba_transfer import FOUR, four_way
from tilth.backbones.patches import Patches
from tilth.batches.patches.patchify import patchify
from tilth.context import Context
from tilth.contracts import Sample
from tilth.errors import TilthError
from tilth.stages.four_way import FourWay


def encoder(**settings):
    torch.manual_seed(0)
    given = {"width": 16, "depth": 2, "heads": 2, "patch": 4, "mlp": "swiglu", "mixer": "mamba", **settings}
    made = Patches(**given).build(Sample(3, (20, 20), (0.4,) * 3, (0.3,) * 3)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


@pytest.mark.parametrize("class_token", [False, True])
def test_every_weight_is_that_of_the_one_scan(class_token):
    given = encoder()
    before = {name: value.clone() for name, value in given.state_dict().items()}
    made = four_way(given, class_token=class_token)
    assert made.config.directions == list(FOUR) and made.config.class_token == class_token
    state = made.state_dict()
    fresh = {"class_token"} if class_token else set()
    for name, value in state.items():
        if name in fresh:
            continue
        first, found, rest = name.partition(".scans.")
        source = f"{first}.scans.0.{rest.split('.', 1)[1]}" if found else name
        assert torch.equal(value, before[source]), name
    scans = {name.partition(".scans.")[2].split(".", 1)[0] for name in state if ".scans." in name}
    assert scans == {"0", "1", "2", "3"}
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())
    with torch.no_grad():
        made.blocks[0].mixer.scans[3].A_log.zero_()
    assert not torch.equal(given.blocks[0].mixer.scans[0].A_log, made.blocks[0].mixer.scans[3].A_log)


def test_every_patch_knows_of_every_other_now():
    given, pixels = encoder(), torch.rand(1, 3, 20, 20, requires_grad=True)
    for model, expected in ((given, 13), (four_way(given), 25)):
        middle = model(pixels).tokens[:, 12].square().sum()
        reached = patchify(torch.autograd.grad(middle, pixels)[0], (4, 4)).abs().sum(-1)
        assert int((reached > 0).sum()) == expected


def test_a_class_token_stands_in_the_middle_and_for_the_picture():
    made, pixels = four_way(encoder(), class_token=True), torch.rand(2, 3, 20, 20)
    features = made(pixels, layers=(1,))
    assert features.tokens.shape == (2, 25, 16) and torch.equal(features.pooled, features.summary)
    made.class_token.data += 1
    moved = (made(pixels, layers=(1,)).layers[0] - features.layers[0]).abs().sum(-1)
    assert moved.argmax(1).tolist() == [12, 12]
    assert made(torch.rand(1, 3, 16, 24)).tokens.shape == (1, 24, 16)  # another grid


def test_the_stage_writes_a_model_that_is_read_again(tmp_path):
    given = encoder()
    save(given, None, tmp_path / "encoder", {"history": [1]})
    context = Context(tmp_path / "stage", inputs={"m": tmp_path / "encoder"})
    context.folder.mkdir()
    FourWay(model="m").run(context)
    made, pixels = load(tmp_path / "stage/model"), torch.rand(2, 3, 20, 20)
    assert made.about["history"] == [1]
    with torch.no_grad():
        torch.testing.assert_close(made.model(pixels).pooled, four_way(given)(pixels).pooled)


def test_only_a_causal_encoder_of_pictures_can_be_made_so():
    for settings in ({"mixer": "attention"}, {"directions": list(FOUR)}):
        with pytest.raises(TilthError, match="four-way"):
            four_way(encoder(**settings))
    with pytest.raises(TilthError, match="class token"):
        four_way(encoder(class_token=True))
    signal = Patches(width=16, depth=1, heads=2, patch=4, mixer="mamba").build(Sample(2, (32,)))
    with pytest.raises(TilthError, match="four-way"):
        four_way(signal)
