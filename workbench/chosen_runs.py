"""Which runs are looked at: kept in the session, and named in the address of every page.

The address wins, so that a link, a reload and Back show what they name. An id that is not here is said in a sentence,
and no other run is shown in its place.
"""

import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from pathlib import Path

import streamlit as st

from workbench.rundir import RunDir, all_runs

PAGES = Path(__file__).parents[1] / "pages"
KEPT = "chosen_runs"
BOX = "chosen_run"
NEAREST = 3


def ids() -> list[str]:
    """The ids that the address names, else those chosen before in this session."""
    address = st.query_params.get("runs") or st.query_params.get("run") or ""
    if named := [run_id for run_id in address.split(",") if run_id]:
        st.session_state[KEPT] = list(dict.fromkeys(named))
    return st.session_state.get(KEPT, [])


def choose(run_ids: Sequence[str]) -> None:
    """Look at these runs from here on; an address that names others is put right."""
    st.session_state[KEPT] = list(run_ids)
    address = st.query_params
    if "run" in address or "runs" in address:
        others = {name: address.get_all(name) for name in address if name not in ("run", "runs")}
        address.from_dict(others | query())


def query() -> dict[str, str]:
    """How an address names the chosen runs."""
    chosen = st.session_state.get(KEPT, [])
    return {"run" if len(chosen) == 1 else "runs": ",".join(chosen)} if chosen else {}


def watch(run_ids: Sequence[str], page: str = "live") -> None:
    """Go to a page and look at these runs there."""
    st.session_state[KEPT] = list(run_ids)
    st.switch_page(PAGES / f"{page}.py", query_params=query())


def pick_run(home: Path) -> RunDir | None:
    """The run to show: the first of the chosen ones, the newest where none is; a box in the side bar to choose another.

    None, after saying why, where there is no run, or none of that name.
    """
    known = {run.run_id: run for run in reversed(all_runs(home))}
    if not known:
        st.info("There is no run yet. Start one on the page *Runs* or *New run*.")
        return None
    if not ids():
        choose([next(iter(known))])
    wanted = ids()[0]
    state = st.session_state
    state[BOX] = wanted if wanted in known else None
    st.sidebar.selectbox(
        "Run", list(known), key=BOX, placeholder="Choose a run", on_change=lambda: choose([state[BOX] or wanted])
    )
    say_unknown([run_id for run_id in ids() if run_id not in known], known, "the box *Run* in the side bar")
    return known.get(wanted)


def say_unknown(run_ids: Sequence[str], known: Collection[str], where: str) -> None:
    """Of each, that there is no such run, and which ones are named most like it; `where` all can be chosen."""
    for run_id in run_ids[:NEAREST]:
        name = re.sub(r"[^\w.-]", "?", run_id[:80])  # an address is anybody's text
        nearest = " or ".join(f"`{other}`" for other in get_close_matches(run_id[:80], known, NEAREST, cutoff=0.0))
        st.error(f"There is no run `{name}` here. Nearest by name: {nearest}; {where} has them all.")
