"""Networks for two dates: what holds for each, whatever it is made of."""

import pytest

from tests.backbones import change_networks as check
from tests.backbones import test_adhr_cd_net as adhr_cd_net
from tests.backbones import test_hfa_net as hfa_net
from tests.backbones import test_trans_unet_cd as trans_unet_cd
from tests.backbones.segmenters import SIZE
from tilth.contracts import Sample

NETWORKS = [
    pytest.param(adhr_cd_net.made, {}, id="adhr_cd_net"),
    pytest.param(adhr_cd_net.made, {"widths": [4, 8, 8, 16]}, id="adhr_cd_net of four branches"),
    pytest.param(hfa_net.made, {}, id="hfa_net"),
    pytest.param(trans_unet_cd.made, {}, id="trans_unet_cd"),
    pytest.param(trans_unet_cd.made, {"layer": "bottleneck"}, id="trans_unet_cd of bottlenecks"),
]
each = pytest.mark.parametrize(("made", "settings"), NETWORKS)


@each
def test_any_size_has_logits_of_its_own_and_examples_stay_apart(made, settings):
    check.check_sizes_and_examples(made(**settings))


@each
def test_a_folder_gives_the_same(made, settings, tmp_path):
    check.check_folder(made(**settings), tmp_path / "model")


@each
def test_inputs_are_standardised_inside(made, settings):
    check.check_standardised_inside(made(**settings), made(Sample(4, SIZE), **settings))


@each
def test_every_weight_has_a_gradient(made, settings):
    check.check_gradients(made(**settings, **({"widths": [16, 32, 32]} if made is hfa_net.made else {})))
