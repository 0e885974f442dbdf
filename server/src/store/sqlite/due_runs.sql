-- Index run_wake, one range for each slot: the cost follows what is due, not what sleeps. Hot runs,
-- which have the smallest value, are not in it.
WITH RECURSIVE wanted (slot) AS (
    SELECT $1 WHERE $1 < $2
    UNION ALL
    SELECT slot + 1 FROM wanted WHERE slot + 1 < $2
)
SELECT run.wake_at, run.run_id
FROM wanted CROSS JOIN run
WHERE run.run_id IN (
    SELECT due.run_id FROM run AS due INDEXED BY run_wake
    WHERE due.slot = wanted.slot AND due.wake_at > -9223372036854775808
      AND (due.wake_at, due.run_id) > ($3, $4) AND due.wake_at <= $5
    ORDER BY due.wake_at, due.run_id LIMIT $6)
ORDER BY run.slot, run.wake_at, run.run_id
