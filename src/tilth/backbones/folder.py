"""Models at rest: ordinary transformers folders, plus `tilth.json` saying how each was made.

Notable: a folder appears whole or not at all; what could run code when it is read (pickles, code of the model's own) is
refused before anything is opened.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSemanticSegmentation,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ViTModel,
)
from transformers.utils import logging

from tilth.backbones import (
    adhr_cd_net,
    bit_cd,
    change_former,
    classifier,
    conv_lstm,
    conv_stages,
    deeplab_v3_plus,
    dense,
    guards,
    hfa_net,
    images,
    patches,
    seg_mamba,
    siamese,
    snunet,
    swin,
    trans_unet_cd,
    unet,
    unet_plus_plus,
    upernet,
    vit,
)
from tilth.backbones.eight_bit import prepare_for_adapters, quantisation
from tilth.errors import TilthError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from tilth.contracts import Guard

images.register()
patches.register()
swin.register()
classifier.register()
conv_stages.register()
for segmenter in (
    unet, unet_plus_plus, deeplab_v3_plus, upernet, siamese, snunet, bit_cd, change_former, hfa_net, adhr_cd_net,
    trans_unet_cd, conv_lstm, dense, seg_mamba,
):  # fmt: skip
    segmenter.register()
logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # who trains or runs a recipe shows progress
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"}
_SEGMENTERS = (
    "UNet", "UNetPlusPlus", "DeepLabV3Plus", "UPerNetSegmenter", "BitChangeDetector", "ChangeFormer", "HFANet", "ADHRCDNet",
    "TransUNetCD", "ConvLSTM", "DenseClassifier", "SegMamba",
)  # fmt: skip
_HEADS = (
    (("ForImageClassification", "PictureClassifier"), AutoModelForImageClassification),
    (_SEGMENTERS, AutoModelForSemanticSegmentation),
    (("ForSequenceClassification",), AutoModelForSequenceClassification),
    (("ForMaskedLM",), AutoModelForMaskedLM),
    (("ForConditionalGeneration", "ForSeq2SeqLM"), AutoModelForSeq2SeqLM),
    (("ForCausalLM", "LMHeadModel"), AutoModelForCausalLM),
    (("PatchEncoder", "SwinEncoder", "ConvStages", "ViTModel"), AutoModel),
)
_UNTOKENISED = (AutoModelForImageClassification, AutoModelForSemanticSegmentation, AutoModel)


@dataclass
class TextModel:
    """A network, the tokeniser it reads with, what is known of how it came about, and the guard set before it, if any.

    What reads something else than text has no tokeniser: None, which whoever handles texts need not expect.
    as_saved: of a model read in 8 bit, where its weights lie as they were saved.
    """

    model: PreTrainedModel
    tokenizer: Any  # a PreTrainedTokenizerBase
    about: dict[str, Any] = field(default_factory=dict)
    guard: Guard | None = None
    as_saved: str | None = None


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: str | Path,
    about: Mapping[str, Any] | None = None,
    *,
    guard: Guard | None = None,
) -> Path:
    """Write a transformers folder (safetensors) and `tilth.json`; what stood there before is replaced once all is written.

    `AutoModel...from_pretrained(folder)` and `AutoTokenizer.from_pretrained(folder)` read it without Tilth, and then
    without its guard, which lies in 'guard/': whoever has the weights has what they know.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".new", dir=folder.parent))
    try:
        new.chmod(0o755)
        model.save_pretrained(new)
        if tokenizer is not None:
            tokenizer.save_pretrained(new)
        if guard is not None:
            guards.save(guard, new / "guard")
        (new / "tilth.json").write_text(json.dumps(dict(about or {}), indent=1, ensure_ascii=False), encoding="utf-8")
        if folder.exists():
            old = new.with_suffix(".old")
            folder.rename(old)
            new.rename(folder)
            shutil.rmtree(old)
        else:
            new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder


def load(source: str | Path, *, eight_bit: bool = False) -> TextModel:
    """The model in a folder, or of a Hub id such as 'owner/name', in evaluation mode and in the precision it was saved in.

    Which kind of model is read from its configuration. eight_bit: a causal language model with its linear layers in 8 bit, on the
    GPU where there is one, ready to be trained through an adapter; not for saving. Raises TilthError when there is no such folder or
    id, when it is not a text model or a classifier of images with all its weights, when it holds pickles or needs code of its own, or when the tokeniser knows
    more tokens than the model.
    """
    place = str(source)
    folder = Path(source)
    if folder.is_dir():
        _refuse(folder)
    elif folder.exists() or not _looks_like_id(place):
        raise TilthError(
            "there is no model folder here", where=place, hint="Give a folder with config.json, or a Hub id 'owner/name'."
        )
    config = _read(AutoConfig, place, place)
    if getattr(config, "auto_map", None):
        raise TilthError(
            "the model needs code of its own, which is not run", where=place, hint="Convert it to a class of transformers."
        )
    auto = _auto_class(config, place)
    tokenizer = _read(AutoTokenizer, place, place) if auto not in _UNTOKENISED else None
    how: dict[str, Any] = {}
    if eight_bit:
        if auto is not AutoModelForCausalLM:
            raise TilthError("only causal language models are read in 8 bit", where=place)
        how["quantization_config"] = quantisation()
    model, report = _read(auto, place, place, use_safetensors=True, output_loading_info=True, **how)
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise TilthError(
            f"the folder lacks {len(missing)} of the model's weights, such as '{missing[0]}'",
            where=place,
            hint="Save the model again with save_pretrained.",
        )
    if isinstance(model, ViTModel):
        model = vit.from_vit(model, *_standard(folder))
    rows = model.get_input_embeddings().weight.shape[0] if tokenizer is not None else 0
    if tokenizer is not None and len(tokenizer) > rows:
        raise TilthError(
            f"the tokeniser knows {len(tokenizer)} tokens and the model {rows}",
            where=place,
            hint="Use the tokeniser the model was trained with.",
        )
    about = folder / "tilth.json"
    text_model = TextModel(model.eval(), tokenizer, json.loads(about.read_text(encoding="utf-8")) if about.is_file() else {})
    if eight_bit:
        prepare_for_adapters(model)
        text_model.as_saved = place
    if (folder / "guard").is_dir():
        text_model.guard = guards.load(folder / "guard", text_model)
    return text_model


def _refuse(folder: Path) -> None:
    """Raise for what is not a model folder, and for what could run code."""
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix.lower() in _PICKLES)
    if found:
        raise TilthError(
            f"the folder holds {found[0]}, a pickle, which can run code when it is read",
            where=str(folder),
            hint="If you trust it, convert it: load it with transformers, save_pretrained into a new folder. If it is only a "
            "leftover beside model.safetensors, delete it.",
        )
    if not (folder / "config.json").is_file():
        raise TilthError("this is not a model folder: it has no config.json", where=str(folder))
    if not any(folder.glob("*.safetensors")):
        raise TilthError("the folder has no weights (*.safetensors)", where=str(folder))


def _standard(folder: Path) -> tuple[list[float], list[float]]:
    """Mean and deviation that a model's preprocessor standardises pictures with, empty where it says nothing of it."""
    path = folder / "preprocessor_config.json"
    said = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return said.get("image_mean") or [], said.get("image_std") or []


def _looks_like_id(source: str) -> bool:
    """'name' or 'owner/name', as opposed to a path that does not exist."""
    return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", source) is not None


def _auto_class(config: PretrainedConfig, place: str) -> Any:
    names = config.architectures or []
    for endings, auto in _HEADS:
        if any(name.endswith(endings) for name in names):
            return auto
    raise TilthError(
        f"this is not a text model with a head, a classifier of images or an encoder of patches: its architecture is {', '.join(names) or 'not named'}",
        where=place,
        hint="Known: " + ", ".join(ending for endings, _ in _HEADS for ending in endings) + ".",
    )


def _read(auto: Any, source: str, place: str, **settings: Any) -> Any:
    """auto.from_pretrained without code from the folder; what goes wrong with the source becomes a TilthError."""
    try:
        return auto.from_pretrained(source, trust_remote_code=False, **settings)
    except (OSError, ValueError, SafetensorError, RuntimeError) as error:
        if Path(source).is_dir():
            what, hint = f"{type(error).__name__}: {error}".splitlines()[0], "Check that the folder was written completely."
        else:
            what, hint = f"'{source}' is neither a folder nor a model that can be fetched", str(error).splitlines()[0]
        raise TilthError(what, where=place, hint=hint) from error
