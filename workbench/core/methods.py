"""What each method does in an iteration, and which checkpoint the next one starts from.

vanilla (STaR)   sample, sft, evaluate, analyze, and start again from the fine-tuned checkpoint
imm              sample, sft, merge, evaluate, analyze, and start again from the merged checkpoint (paper, Eq. 5-6)
"""

PHASES = {
    "vanilla": ("sample", "sft", "evaluate", "analyze"),
    "imm": ("sample", "sft", "merge", "evaluate", "analyze"),
}
MADE_BY = {"sft": "sft", "merge": "merged"}
"""The kind of checkpoint that a phase makes."""


def kinds_made(method: str) -> tuple[str, ...]:
    """The kinds of checkpoint an iteration makes, in order; the last one starts the next iteration."""
    return tuple(MADE_BY[phase] for phase in PHASES[method] if phase in MADE_BY)


def start_of(method: str, iteration: int) -> tuple[int, str]:
    """(iteration, kind) of the checkpoint that iteration 1, 2, ... samples from and fine-tunes."""
    return (0, "base") if iteration == 1 else (iteration - 1, kinds_made(method)[-1])
