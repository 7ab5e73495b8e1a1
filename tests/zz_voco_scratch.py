import tests.methods as m
m.OF_PATCHES["voco"]=(m.SMALL, {"crop": 4, "grid": 2, **m.HEADS})
from tests.test_methods import *
import tests.test_methods as t
import pytest
P=pytest.mark.parametrize(("kind","name"),[("pretrain","voco")])
def strip(f): f.pytestmark=[]; return f
test_a=P(strip(t.test_training_lowers_the_loss)); test_b=P(strip(t.test_the_same_seed_gives_the_same_bits_and_another_does_not)); test_c=P(strip(t.test_the_state_round_trips)); test_d=P(strip(t.test_every_row_of_an_example_is_a_row_of_the_corpus_and_batches_do_not_depend_on_their_company))
