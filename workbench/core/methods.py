"""What each method does in an iteration, what it learns from, and which checkpoint the next one starts from.

vanilla (STaR)   sample, sft, evaluate, analyze, and start again from the fine-tuned checkpoint
mixture          the same, and sft learns from a share of the earlier iterations' kept solutions too
accumulation     the same, from all of them
imm              sample, sft, merge, evaluate, analyze, and start again from the merged checkpoint (paper, Eq. 5-6)
"""

TUNED = ("sample", "sft", "evaluate", "analyze")
PHASES = {
    "vanilla": TUNED,
    "mixture": TUNED,
    "accumulation": TUNED,
    "imm": ("sample", "sft", "merge", "evaluate", "analyze"),
}
MADE_BY = {"sft": "sft", "merge": "merged"}
"""The kind of checkpoint that a phase makes."""


def kinds_made(method: str) -> tuple[str, ...]:
    """The kinds of checkpoint an iteration makes, in order; the last one starts the next iteration."""
    return tuple(MADE_BY[phase] for phase in PHASES[method] if phase in MADE_BY)


def checkpoints_kept(method: str, iterations: int, keep: str) -> int:
    """How many checkpoints a run has on disk at most; with keep = needed no more than two of its merges."""
    kinds = kinds_made(method)
    gone = max(0, iterations - 2) if keep == "needed" and "merged" in kinds else 0
    return iterations * len(kinds) - gone


def start_of(method: str, iteration: int) -> tuple[int, str]:
    """(iteration, kind) of the checkpoint that iteration 1, 2, ... samples from and fine-tunes."""
    return (0, "base") if iteration == 1 else (iteration - 1, kinds_made(method)[-1])


def earlier_share(method: str, mixture_share: float) -> float:
    """Share of the earlier iterations' kept solutions that a method learns from again."""
    return {"mixture": mixture_share, "accumulation": 1.0}.get(method, 0.0)


def arm_name(method: str, real_share: float, teacher: str | None) -> str:
    """Method, and what it learned from where that is not its own samples."""
    if real_share == 1:
        return "real" if method == "vanilla" else f"{method}, real"
    words = method if not real_share else f"{method}, {100 * real_share:g} % real"
    return f"{words}, taught" if teacher else words
