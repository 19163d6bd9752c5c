-- What benchmarks/store.py fills a store with: for every run of the table `made`, as many rows as asked for.

INSERT INTO runs
SELECT run_id, 'imm', 'pocket', $tasks[1], $tasks[2:], 3, 0.5, 0.2, number % 5, $config, ts,
       if(number < $running, 'done', 'running'), ts, 1, 'sft', NULL
FROM (SELECT *, TIMESTAMP '2026-01-01' + to_minutes(10 * number) AS ts FROM made);

INSERT INTO phases
SELECT run_id, t, phase, 'done', ts, ts + INTERVAL 60 SECOND, 10, 10, 'steps', 1.0, '{}',
       '{"seconds": 60, "attempts": 1, "num_tokens": 1000}'
FROM (SELECT *, TIMESTAMP '2026-01-01' + to_minutes(t) AS ts
      FROM made, range(1, 4) r(t), (SELECT unnest(['sample', 'sft', 'merge', 'evaluate']) AS phase));

INSERT INTO metrics
SELECT run_id, 1 + (i // 4) % 3, 'sft', $names[1 + i % 4], i // 12, 1 / (1 + i // 12) + random() / 10,
       TIMESTAMP '2026-01-01' + to_seconds(i)
FROM made, range($metrics) r(i) ORDER BY number, i;

INSERT INTO outcomes
SELECT run_id, run_id || '/' || (c + 1) // 2 || '/' || kind, (c + 1) // 2, $tasks[1 + i % 4], 'q' || i // 28, 0,
       'Ada has ' || i % 97 || ' apples and gives away ' || i % 7 || '. How many are left?', (i % 97)::VARCHAR,
       'She had ' || hash(i + number) || ' and then ' || hash(i * number) || '. The answer is ' || i % 97 || '.',
       (i % 97)::VARCHAR, hash(i, number) % 3 = 0, 40, true
FROM (SELECT *, (i // 4) % 7 AS c, if(c = 0, 'base', if(c % 2 = 1, 'sft', 'merged')) AS kind
      FROM made, range($outcomes) r(i))
ORDER BY number, i;

INSERT INTO evals
SELECT run_id, checkpoint_id, any_value(iteration), split_part(checkpoint_id, '/', 3), task,
       if(task = $tasks[1], 'ID', 'OOD'), count(*), count(*) FILTER (is_correct), avg(is_correct::INT) AS accuracy,
       accuracy - 0.04, accuracy + 0.04, TIMESTAMP '2026-01-01'
FROM outcomes GROUP BY run_id, checkpoint_id, task;

INSERT INTO solutions
SELECT run_id, 1 + i % 3, 'q' || i // 3, 0, 0.4, 'Ada has ' || i || ' apples. How many?', i::VARCHAR,
       'She had ' || hash(i + number) || '. The answer is ' || i, i::VARCHAR, i % 2 = 0, i % 4 = 0, 40, true
FROM made, range(1000) r(i) ORDER BY number, i;
