"""Whether transformers saves a model again as its files have it, told by building it without weights.

A run's fine-tuned checkpoint is saved by transformers, and can be merged only with a base that holds the same
tensors under the same names: this is asked before hours of work.
"""

from pathlib import Path

from transformers import AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from workbench.checkpoints import HEAD, CheckpointReader


def check_saved_again(model: Path, trust_remote_code: bool = False) -> None:
    """Raise ValueError, naming a tensor, where what is fine-tuned from a model would be saved in another form."""
    reader = CheckpointReader(model)
    held = {name: entry.shape for name, entry in reader.entries.items()}
    built = AutoModelForCausalLM.from_pretrained(
        model,
        device_map="meta",
        trust_remote_code=trust_remote_code,
        use_safetensors=True,
        ignore_mismatched_sizes=True,
    )
    if HEAD in held and not reader.description.tied and built.config.get_text_config().tie_word_embeddings:
        raise ValueError(
            f"{model} holds {HEAD!r}, and its config.json does not say whether that is tied to the embedding, as it is "
            "in models of its kind; write tie_word_embeddings there: true where the two are the same, else false"
        )
    # As save_pretrained, which cannot be asked: it has no data to write here.
    saved = revert_weight_conversion(built, remove_tied_weights_from_state_dict(built.state_dict(), built))
    for name, shape in held.items():
        if name not in saved:
            raise ValueError(
                f"{model} holds {name!r}, which transformers does not save again under this name, so nothing that is "
                f"fine-tuned from it could be merged; load and save the model once with transformers "
                f"(AutoModelForCausalLM and AutoTokenizer, from_pretrained and save_pretrained) and give that directory"
            )
        if tuple(saved[name].shape) != shape:
            raise ValueError(
                f"{name!r} is {list(shape)} in {model}, but {list(saved[name].shape)} by its config.json; give the "
                "config.json that belongs to these weights"
            )
    if lacking := sorted(saved.keys() - held.keys()):
        raise ValueError(
            f"{model} has no tensor {lacking[0]!r}, with which transformers would begin at random; give a model whose "
            "files are whole, with the config.json that belongs to them"
        )
