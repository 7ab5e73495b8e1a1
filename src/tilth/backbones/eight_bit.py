"""Models in 8 bit: a quarter of float32 for the matrices that are most of a model, to train adapters over or learn a guard from.

Notable: bitsandbytes (LLM.int8(), arXiv 2208.07339) does the arithmetic, transformers puts it in while it reads the weights,
peft prepares for training; all three are imported only when a model is asked for in 8 bit. What lies on disk stays as it is.
"""

from __future__ import annotations

import logging
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING

from tilth.errors import TilthError

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel

# Said of every layer at every step (what is rounded to 8 bits is cast to float16 first), and, whenever peft is imported,
# that a kernel for 4 bit is not there.
for _name in ("bitsandbytes.autograd._functions", "bitsandbytes.backends.cpu.ops"):
    logging.getLogger(_name).setLevel(logging.ERROR)


def check_installed() -> None:
    """Raise TilthError where bitsandbytes is missing; imports nothing."""
    if find_spec("bitsandbytes") is None:
        raise TilthError("a model in 8 bit needs the package bitsandbytes", hint="pip install 'tilth[quantised]'")


def quantisation() -> BitsAndBytesConfig:
    """What `from_pretrained` must be told: every linear layer but the output layer in 8 bit, one scale for each output.

    In products, inputs are rounded to 8 bits too, but for features beyond 6; on the CPU only in evaluation mode.
    """
    check_installed()
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True)


def prepare_for_adapters(model: PreTrainedModel) -> None:
    """Make ready for training through an adapter, in place, by peft: every weight frozen, those not in 8 bit in float32, and
    activations of blocks computed again in the backward pass instead of kept.
    """
    from peft import prepare_model_for_kbit_training

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft calls transformers by a name it is giving up
        prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})
