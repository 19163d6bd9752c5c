-- The store: an index over the run directories, made again by `workbench store rebuild`.
-- Accuracies and intervals are fractions. ts, started_at and ended_at are UTC.

CREATE TABLE IF NOT EXISTS runs (
    run_id        VARCHAR PRIMARY KEY,
    method        VARCHAR NOT NULL,              -- vanilla, imm
    model         VARCHAR NOT NULL,              -- the base: directory or hub name
    train_task    VARCHAR NOT NULL,
    eval_tasks    VARCHAR[] NOT NULL,            -- OOD tasks
    iterations    INTEGER NOT NULL,
    alpha         DOUBLE,
    drop_rate     DOUBLE,
    seed          BIGINT NOT NULL,
    config        JSON NOT NULL,
    created_at    TIMESTAMP NOT NULL,
    status        VARCHAR NOT NULL,              -- queued, running, done, failed, stopped
    status_since  TIMESTAMP NOT NULL,
    iteration     INTEGER,                       -- where the run is
    phase         VARCHAR,
    error         VARCHAR                        -- why it failed and what to do
);

CREATE TABLE IF NOT EXISTS phases (
    run_id        VARCHAR NOT NULL,
    iteration     INTEGER NOT NULL,
    phase         VARCHAR NOT NULL,              -- sample, sft, merge, evaluate, analyze
    status        VARCHAR NOT NULL,
    started_at    TIMESTAMP,
    ended_at      TIMESTAMP,
    done          BIGINT,                        -- progress, in `unit`s
    total         BIGINT,
    unit          VARCHAR,
    rate          DOUBLE,                        -- units per second, over the latest progress
    summary       JSON,                          -- the phase's result
    cost          JSON,                          -- seconds, attempts, memory, bytes, tokens; unfinished: seconds
    PRIMARY KEY (run_id, iteration, phase)
);

CREATE TABLE IF NOT EXISTS checkpoints (
    checkpoint_id VARCHAR PRIMARY KEY,           -- <run_id>/<iteration>/<kind>
    run_id        VARCHAR NOT NULL,
    iteration     INTEGER NOT NULL,
    kind          VARCHAR NOT NULL,              -- base, sft, merged
    path          VARCHAR NOT NULL,
    start_id      VARCHAR,                       -- the checkpoint it was made from
    num_parameters BIGINT,
    bytes         BIGINT,
    details       JSON                           -- e.g. alpha, drop rate and the merge report
);

CREATE TABLE IF NOT EXISTS metrics (
    run_id        VARCHAR NOT NULL,
    iteration     INTEGER NOT NULL,
    phase         VARCHAR NOT NULL,
    name          VARCHAR NOT NULL,
    step          BIGINT NOT NULL,
    value         DOUBLE,
    ts            TIMESTAMP NOT NULL,
    PRIMARY KEY (run_id, iteration, phase, name, step)
);

CREATE TABLE IF NOT EXISTS solutions (
    run_id        VARCHAR NOT NULL,
    iteration     INTEGER NOT NULL,
    question_id   VARCHAR NOT NULL,
    sample        INTEGER NOT NULL,              -- over temperatures and repeats
    temperature   DOUBLE NOT NULL,
    question      VARCHAR NOT NULL,
    reference     VARCHAR NOT NULL,
    text          VARCHAR NOT NULL,
    answer        VARCHAR,                       -- null: none found
    is_correct    BOOLEAN NOT NULL,
    kept          BOOLEAN NOT NULL,              -- correct, not cut off, and the first of its text
    num_tokens    INTEGER NOT NULL,
    finished      BOOLEAN,                       -- false: cut off at the longest length; null: not recorded
    PRIMARY KEY (run_id, iteration, question_id, sample)
);

CREATE TABLE IF NOT EXISTS outcomes (
    run_id        VARCHAR NOT NULL,
    checkpoint_id VARCHAR NOT NULL,
    iteration     INTEGER NOT NULL,
    task          VARCHAR NOT NULL,
    question_id   VARCHAR NOT NULL,
    sample        INTEGER NOT NULL,              -- 0: greedy; from 1 on: sampled for pass@k
    question      VARCHAR NOT NULL,
    reference     VARCHAR NOT NULL,
    text          VARCHAR NOT NULL,
    answer        VARCHAR,
    is_correct    BOOLEAN NOT NULL,
    num_tokens    INTEGER NOT NULL,
    finished      BOOLEAN,                       -- false: cut off at the longest length; null: not recorded
    PRIMARY KEY (run_id, checkpoint_id, task, question_id, sample)
);

CREATE TABLE IF NOT EXISTS evals (
    run_id        VARCHAR NOT NULL,
    checkpoint_id VARCHAR NOT NULL,
    iteration     INTEGER NOT NULL,
    kind          VARCHAR NOT NULL,              -- base, sft, merged
    task          VARCHAR NOT NULL,
    domain        VARCHAR NOT NULL,              -- ID, OOD
    num_questions INTEGER NOT NULL,
    num_correct   INTEGER NOT NULL,
    accuracy      DOUBLE NOT NULL,
    ci_low        DOUBLE NOT NULL,               -- Wilson, 95 %
    ci_high       DOUBLE NOT NULL,
    ts            TIMESTAMP NOT NULL,
    PRIMARY KEY (run_id, checkpoint_id, task)
);

CREATE TABLE IF NOT EXISTS pass_at_k (
    run_id        VARCHAR NOT NULL,
    checkpoint_id VARCHAR NOT NULL,
    iteration     INTEGER NOT NULL,
    kind          VARCHAR NOT NULL,
    task          VARCHAR NOT NULL,
    domain        VARCHAR NOT NULL,
    k             INTEGER NOT NULL,
    num_samples   INTEGER NOT NULL,              -- sampled answers per question (M)
    num_questions INTEGER NOT NULL,
    pass_at_k     DOUBLE NOT NULL,               -- unbiased, mean over questions
    ci_low        DOUBLE NOT NULL,               -- bootstrap over questions, 95 %
    ci_high       DOUBLE NOT NULL,
    PRIMARY KEY (run_id, checkpoint_id, task, k)
);

CREATE TABLE IF NOT EXISTS contamination (
    run_id        VARCHAR NOT NULL,
    iteration     INTEGER NOT NULL,
    source        VARCHAR NOT NULL,              -- train question, kept solution
    task          VARCHAR NOT NULL,              -- whose test split
    question_id   VARCHAR NOT NULL,              -- the test question
    train_id      VARCHAR NOT NULL,              -- where it was found
    kind          VARCHAR NOT NULL,              -- exact, near, run
    similarity    DOUBLE NOT NULL,
    PRIMARY KEY (run_id, iteration, task, question_id)
);

CREATE TABLE IF NOT EXISTS notes (
    run_id        VARCHAR NOT NULL,
    iteration     INTEGER NOT NULL,
    phase         VARCHAR NOT NULL,
    kind          VARCHAR NOT NULL,              -- note, alert
    text          VARCHAR NOT NULL,
    ts            TIMESTAMP NOT NULL,
    PRIMARY KEY (run_id, iteration, phase, text)
);

CREATE TABLE IF NOT EXISTS regrades (
    run_id        VARCHAR NOT NULL,
    iteration     INTEGER NOT NULL,
    phase         VARCHAR NOT NULL,              -- sample, evaluate
    checkpoint_id VARCHAR NOT NULL,              -- '' for sampled solutions
    task          VARCHAR NOT NULL,
    question_id   VARCHAR NOT NULL,
    sample        INTEGER NOT NULL,
    was_answer    VARCHAR,
    was_correct   BOOLEAN NOT NULL,
    answer        VARCHAR,
    is_correct    BOOLEAN NOT NULL,
    rule          VARCHAR NOT NULL,
    grader        VARCHAR NOT NULL,              -- version of the grader
    ts            TIMESTAMP NOT NULL,
    PRIMARY KEY (run_id, iteration, phase, checkpoint_id, task, question_id, sample)
);

CREATE TABLE IF NOT EXISTS importance (
    run_id        VARCHAR NOT NULL,
    iteration     INTEGER NOT NULL,
    checkpoint_id VARCHAR NOT NULL,              -- whose layers these are: the iteration's start
    text_set      VARCHAR NOT NULL,              -- reasoning, plain
    layer         INTEGER NOT NULL,              -- from 0
    module        VARCHAR NOT NULL,              -- all: the whole layer
    importance    DOUBLE NOT NULL,               -- sum over weights of |g W| (paper, Eq. 3)
    ci_low        DOUBLE NOT NULL,               -- bootstrap over examples, 95 %
    ci_high       DOUBLE NOT NULL,
    share         DOUBLE NOT NULL,               -- of the module's sum over layers
    share_low     DOUBLE NOT NULL,
    share_high    DOUBLE NOT NULL,
    num_examples  INTEGER NOT NULL,
    PRIMARY KEY (run_id, iteration, text_set, layer, module)
);

CREATE TABLE IF NOT EXISTS weight_change (
    run_id        VARCHAR NOT NULL,
    iteration     INTEGER NOT NULL,
    checkpoint_id VARCHAR NOT NULL,
    kind          VARCHAR NOT NULL,              -- sft, merged
    compared_to   VARCHAR NOT NULL,              -- base, start
    layer         INTEGER NOT NULL,              -- from 0; -1: embeddings, norms, biases, head
    module        VARCHAR NOT NULL,              -- all: the whole layer
    change        DOUBLE NOT NULL,               -- Frobenius, summed over weights (paper, Eq. 4)
    norm          DOUBLE NOT NULL,               -- the same of what it is compared to
    PRIMARY KEY (run_id, checkpoint_id, compared_to, layer, module)
);

CREATE TABLE IF NOT EXISTS superficiality (
    run_id        VARCHAR NOT NULL,
    iteration     INTEGER NOT NULL,
    checkpoint_id VARCHAR NOT NULL,
    kind          VARCHAR NOT NULL,
    compared_to   VARCHAR NOT NULL,
    text_set      VARCHAR NOT NULL,
    value         DOUBLE,                        -- rank correlation of importance and change over layers
    ci_low        DOUBLE,                        -- bootstrap over examples and layers, 95 %
    ci_high       DOUBLE,
    p_value       DOUBLE,                        -- permutation of layers, two-sided
    num_layers    INTEGER NOT NULL,
    num_examples  INTEGER,
    is_sure       BOOLEAN NOT NULL,              -- the interval leaves zero out, and p < 0.05
    verdict       VARCHAR NOT NULL,              -- in plain words
    PRIMARY KEY (run_id, checkpoint_id, compared_to, text_set)
);

CREATE TABLE IF NOT EXISTS labs (
    lab_id        VARCHAR PRIMARY KEY,
    run_id        VARCHAR,                       -- null: opened on directories
    iteration     INTEGER,
    base          VARCHAR NOT NULL,
    start         VARCHAR NOT NULL,
    sft           VARCHAR NOT NULL,
    config        JSON NOT NULL,
    created_at    TIMESTAMP NOT NULL
);

CREATE TABLE IF NOT EXISTS merge_evals (
    lab_id        VARCHAR NOT NULL,
    point_id      VARCHAR NOT NULL,              -- one merge: its settings and seed
    alpha         DOUBLE NOT NULL,
    drop_rate     DOUBLE NOT NULL,
    seed          BIGINT NOT NULL,
    label         VARCHAR NOT NULL,              -- the settings in words
    merge         JSON NOT NULL,
    split         VARCHAR NOT NULL,              -- validation, test
    task          VARCHAR NOT NULL,
    domain        VARCHAR NOT NULL,              -- ID, OOD
    num_questions INTEGER NOT NULL,
    num_correct   INTEGER NOT NULL,
    accuracy      DOUBLE NOT NULL,
    ci_low        DOUBLE NOT NULL,               -- Wilson, 95 %
    ci_high       DOUBLE NOT NULL,
    ts            TIMESTAMP NOT NULL,
    PRIMARY KEY (lab_id, point_id, split, task)
);

CREATE TABLE IF NOT EXISTS merge_outcomes (
    lab_id        VARCHAR NOT NULL,
    point_id      VARCHAR NOT NULL,
    split         VARCHAR NOT NULL,
    task          VARCHAR NOT NULL,
    question_id   VARCHAR NOT NULL,
    question      VARCHAR NOT NULL,
    reference     VARCHAR NOT NULL,
    text          VARCHAR NOT NULL,
    answer        VARCHAR,
    is_correct    BOOLEAN NOT NULL,
    num_tokens    INTEGER NOT NULL,
    finished      BOOLEAN,                       -- false: cut off at the longest length; null: not recorded
    PRIMARY KEY (lab_id, point_id, split, task, question_id)
);

CREATE TABLE IF NOT EXISTS about_store (
    version       INTEGER NOT NULL,              -- of this schema (storefile.VERSION)
    store_id      BIGINT NOT NULL                -- another one after each rebuild: runners then record all again
);
