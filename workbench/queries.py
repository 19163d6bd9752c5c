"""What page SQL asks: one query under limits, the schema in words, and queries to begin with."""

import re
import threading
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pandas
from pandas import DataFrame

from workbench import store
from workbench.recording import mended
from workbench.storefile import QUERY_S, is_damage

MAX_ROWS = 10_000
MAX_MIB = 64
TIMEOUT_S = QUERY_S
NO_DISK = "temp_directory = ''"
EXAMPLES = {
    "Accuracy by checkpoint": """\
-- of the newest run: per cent, with the 95 % Wilson interval and n
SELECT CASE kind WHEN 'base' THEN 'Base'
                 WHEN 'sft' THEN 'SFT ' || iteration
                 WHEN 'merged' THEN 'Merge ' || iteration
                 ELSE kind END AS checkpoint,
       domain, task, 100 * accuracy AS accuracy,
       100 * ci_low AS ci_low, 100 * ci_high AS ci_high,
       num_questions AS n
FROM evals
WHERE run_id = (SELECT max(run_id) FROM runs)
ORDER BY iteration, kind = 'merged', domain, task""",
    "Share kept": """\
-- of the newest run's samples: per cent, with n and a 95 % Wilson
-- interval as if each were drawn by itself
WITH shares AS (
    SELECT iteration, temperature, count(*) AS n, avg(kept::INT) AS p,
           1.96 AS z, z * z / n AS zz
    FROM solutions
    WHERE run_id = (SELECT max(run_id) FROM runs)
    GROUP BY ALL
), wilson AS (
    SELECT *, (p + zz / 2) / (1 + zz) AS middle,
           z * sqrt(p * (1 - p) / n + zz / n / 4) / (1 + zz) AS half
    FROM shares
)
SELECT iteration, temperature, 100 * p AS kept,
       greatest(0, 100 * (middle - half)) AS ci_low,
       100 * (middle + half) AS ci_high, n
FROM wilson ORDER BY iteration, temperature""",
    "Slowest phases": """\
-- seconds: every attempt counts; rate: over the latest progress
SELECT run_id, iteration, phase, status,
       (cost->>'seconds')::DOUBLE AS seconds, done, unit, rate
FROM phases
WHERE cost IS NOT NULL
ORDER BY seconds DESC LIMIT 30""",
    "Unlearned": """\
-- of the n questions that a run's base answers, those that a later
-- checkpoint does not
SELECT later.run_id, later.iteration, e.kind, e.domain, task,
       count(*) FILTER (NOT later.is_correct) AS unlearned, count(*) AS n
FROM outcomes later
JOIN evals e USING (run_id, checkpoint_id, task)
JOIN outcomes base USING (run_id, task, question_id)
WHERE base.checkpoint_id LIKE '%/0/base' AND base.is_correct
  AND base.sample = 0 AND later.sample = 0 AND e.kind <> 'base'
GROUP BY ALL
ORDER BY later.run_id DESC, later.iteration, e.kind DESC, domain, task""",
    "Alerts": """\
SELECT ts, run_id, iteration, phase, text
FROM notes
WHERE kind = 'alert'
ORDER BY ts DESC""",
}
"""By name."""


@dataclass(frozen=True)
class Column:
    """One column of a table, as schema.sql has it."""

    name: str
    kind: str
    comment: str


def schema() -> dict[str, list[Column]]:
    """The store's tables with their columns, from schema.sql."""
    tables: dict[str, list[Column]] = {}
    for name, body in re.findall(r"CREATE TABLE IF NOT EXISTS (\w+) \(\n(.*?)\n\);", store.SCHEMA, re.DOTALL):
        rows = re.findall(r"^    ([a-z]\w*) +([A-Z]+(?:\[\])?)[^,\n]*?,? *(?:-- (.*))?$", body, re.MULTILINE)
        tables[name] = [Column(*row) for row in rows]
    return tables


def ask(db: Path, sql: str) -> tuple[DataFrame, bool]:
    """The first rows of one SELECT, and whether there were more.

    Raises:
        ValueError: it cannot be answered, in one sentence.
    """
    try:
        found, more = query_limited(db, sql.strip().rstrip(";"), MAX_ROWS, TIMEOUT_S)
    except ValueError as error:
        raise ValueError(sentence(str(error))) from error
    if (size := found.memory_usage(deep=True).sum() / 2**20) > MAX_MIB:
        raise ValueError(f"the result has {size:.0f} MiB, and {MAX_MIB} are shown; choose fewer columns or rows")
    return found, more


def query_limited(db: Path, sql: str, max_rows: int, timeout_s: float) -> tuple[DataFrame, bool]:
    """The first rows of one SELECT that a person wrote, and whether there were more.

    It reads the store and nothing else, is given up after `timeout_s`, and uses bounded memory and no disk.

    Raises:
        ValueError: not valid SQL, or not one SELECT, or it took too long or too much memory.
        StoreBusy: the store cannot be had now; the message says why.
    """
    return mended(db, lambda: _query_limited(db, sql, max_rows, timeout_s))


def _query_limited(db: Path, sql: str, max_rows: int, timeout_s: float) -> tuple[DataFrame, bool]:
    with store.look(db, NO_DISK) as connection:
        late = threading.Event()
        timer = threading.Timer(timeout_s, lambda: (late.set(), connection.interrupt()))
        try:
            kinds = [statement.type for statement in connection.extract_statements(sql)]
            if kinds not in ([duckdb.StatementType.SELECT], [duckdb.StatementType.EXPLAIN]):
                raise ValueError("the store answers one SELECT at a time (or EXPLAIN, DESCRIBE, SHOW, SUMMARIZE)")
            timer.start()
            return _first_rows(connection.execute(sql), max_rows)
        except duckdb.Error as error:
            if is_damage(error):
                raise
            if late.is_set():
                raise ValueError(
                    f"the query was given up after {timeout_s:g} s; ask for less, with WHERE or a smaller join"
                ) from error
            raise ValueError(str(error)) from error
        finally:
            timer.cancel()
            if timer.is_alive():
                timer.join()


def _first_rows(result: duckdb.DuckDBPyConnection, max_rows: int) -> tuple[DataFrame, bool]:
    """Up to `max_rows` rows of a result, and whether there are more; the rest is not fetched."""
    chunks = [result.fetch_df_chunk()]
    count = len(chunks[0])
    while count <= max_rows and len(chunk := result.fetch_df_chunk()):
        chunks.append(chunk)
        count += len(chunk)
    return pandas.concat(chunks, ignore_index=True).head(max_rows), count > max_rows


def sentence(error: str) -> str:
    """DuckDB's words without the kind of error and the picture of the place, which it names in a line below."""
    words, _, place = error.partition("\nLINE ")
    words = re.sub(r"^[A-Z][A-Za-z ]+ Error: ", "", " ".join(words.split()))
    return f"{words} (line {place.split(':')[0]})" if place else words
