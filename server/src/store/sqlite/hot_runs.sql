-- Index run_wake, one equality for each slot: cold runs cost nothing.
WITH RECURSIVE wanted (slot) AS (
    SELECT $1 WHERE $1 < $2
    UNION ALL
    SELECT slot + 1 FROM wanted WHERE slot + 1 < $2
)
SELECT run.run_id
FROM wanted CROSS JOIN run INDEXED BY run_wake
WHERE run.slot = wanted.slot AND run.wake_at = -9223372036854775808 AND run.run_id > $3
ORDER BY run.run_id
LIMIT $4
