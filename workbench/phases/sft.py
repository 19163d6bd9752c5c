"""Phase `sft`: fine-tuning on the solutions, of all weights or of LoRA adapters, with the Hugging Face Trainer.

Loss on response tokens only, each weight learned in bf16 with an fp32 master copy, in fp32 on a CPU without bf16. A
killed phase continues from its last optimizer checkpoint. With DeepSpeed this module is every process of it; only
the first one speaks. CUDA, and several machines, were not run yet.
"""

import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, Trainer

from workbench import cluster
from workbench.checkpoints import describe
from workbench.events import Emit
from workbench.jobs import SftJob
from workbench.phases.process import main
from workbench.phases.trainer import COMPUTE, make_trainer, zero_stage
from workbench.phases.training_data import Example, too_few_worked, training_examples
from workbench.rundir import PhaseDir, last_complete, read_json, write_json

logger = logging.getLogger(__name__)
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""As safetensors names them."""
DTYPE = str(COMPUTE).removeprefix("torch.")


def run(job: SftJob, place: PhaseDir, emit: Emit) -> dict[str, Any]:
    """Fine-tune and write `checkpoint/`, with LoRA also `adapter/`; return counts and the last loss."""
    started = time.time()
    tokenizer = AutoTokenizer.from_pretrained(job.start.path, trust_remote_code=job.trust_remote_code)
    examples, counts = training_examples(job, tokenizer)
    if shortfall := too_few_worked(job, counts):
        emit("note", text=shortfall)
    if cluster.here():
        from workbench.cluster.training import fine_tune_on_nodes as train
    else:
        train = fine_tune
    trained = train(job, place, emit, examples)
    num_tokens = sum(len(e["input_ids"]) for e in examples) * job.sft.epochs
    return counts | trained | {"num_tokens": num_tokens, "seconds": time.time() - started}


def fine_tune(job: SftJob, place: PhaseDir, emit: Emit, examples: Sequence[Example]) -> dict[str, Any]:
    """One process of the training, or the only one, from the last optimizer checkpoint on.

    The first writes `checkpoint/` and alone has something to return: steps, last loss, how it was spread, sizes.
    """
    torch.set_num_threads(max(1, job.threads // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    trainer = make_trainer(job, place, emit, examples)
    scratch = place.path / "trainer"
    if trainer.is_world_process_zero():
        forget_other_training(scratch, job, trainer.args.world_size)
    trainer.accelerator.wait_for_everyone()
    trainer.train(resume_from_checkpoint=begin_from(scratch, clear=trainer.is_world_process_zero()))
    weights = trained_weights(trainer)
    is_first = trainer.is_world_process_zero()
    if is_first:
        tokenizer = AutoTokenizer.from_pretrained(job.start.path, trust_remote_code=job.trust_remote_code)
        save(job, trainer, weights, tokenizer, place)
        remove(scratch)
    trainer.accelerator.wait_for_everyone()
    if not is_first:
        return {}  # on another node the checkpoint may not be seen
    written = describe(place.checkpoint)
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "num_steps": trainer.state.global_step,
        "loss": history[-1] if history else None,
        "num_processes": trainer.args.world_size,
        "dtype": DTYPE,
        "zero_stage": zero_stage(trainer),
        "num_parameters": written.num_parameters,
        "bytes": written.bytes,
    }


def forget_other_training(scratch: Path, job: SftJob, processes: int) -> None:
    """Remove the optimizer checkpoints that another job has left, as one with other settings; note whose come now."""
    mine = {"job": job.model_dump(mode="json", exclude={"threads"}), "processes": processes, "dtype": DTYPE}
    noted = scratch / "training.json"
    if last_complete(scratch) and read_json(noted) != mine:
        logger.warning("its settings have changed since it was interrupted: fine-tuning begins anew")
        remove(scratch)
    write_json(noted, mine)


def begin_from(scratch: Path, *, clear: bool) -> str | None:
    """The newest optimizer checkpoint that was written to the end; where asked, the others go: they only take room."""
    newest = last_complete(scratch)
    for path in scratch.glob("checkpoint-*") if clear else ():
        if path != newest:
            remove(path)
    return str(newest) if newest else None


def remove(folder: Path) -> None:
    """Delete a directory so that no moment of it can be taken for a whole one."""
    doomed = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(doomed, ignore_errors=True)
    if folder.exists():
        folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def trained_weights(trainer: Trainer) -> dict[str, Tensor] | None:
    """The weights as DeepSpeed has them, put together on the first process; without it the optimizer's masters.

    Every process must ask: with ZeRO-3 each holds a part.
    """
    if trainer.is_deepspeed_enabled:
        return trainer.accelerator.get_state_dict(trainer.model_wrapped)
    optimizer = trainer.optimizer.optimizer
    with torch.no_grad():
        for weight, master in zip(optimizer.params, optimizer.masters, strict=True):
            weight.data = master
    return None


def save(
    job: SftJob,
    trainer: Trainer,
    weights: dict[str, Tensor] | None,
    tokenizer: PreTrainedTokenizerBase,
    place: PhaseDir,
) -> None:
    """Write the checkpoint in the start's dtype, and the adapter; each directory appears when complete."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    dtype = DTYPES[describe(Path(job.start.path)).dtype]
    if job.sft.lora:
        adapter = place.path / "adapter"
        with _appearing(adapter) as scratch:
            model.save_pretrained(scratch, state_dict=weights)
        model, weights = folded(Path(job.start.path), adapter, job.trust_remote_code), None
    if weights is not None:
        tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
        weights = {name: weight.to(dtype) for name, weight in weights.items() if name not in tied}
    model.to(dtype).config.use_cache = True
    with _appearing(place.checkpoint) as scratch:
        model.save_pretrained(scratch, state_dict=weights)
        tokenizer.save_pretrained(scratch)


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A directory to write into, put in place when it is whole."""
    scratch = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    yield scratch
    shutil.rmtree(out, ignore_errors=True)
    scratch.rename(out)


def folded(start: Path, adapter: Path, trust_remote_code: bool = False) -> torch.nn.Module:
    """The start with the adapter's changes in its weights, added in float32."""
    model = AutoModelForCausalLM.from_pretrained(
        start, dtype=torch.float32, trust_remote_code=trust_remote_code, use_safetensors=True
    )
    return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()


if __name__ == "__main__":
    main(SftJob, run)
