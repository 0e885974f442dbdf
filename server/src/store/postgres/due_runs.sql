-- Index run_wake, one range for each slot: the cost follows what is due, not what sleeps. Hot runs,
-- which have the smallest value, are not in it.
SELECT due.wake_at, due.run_id
FROM generate_series($1::integer, $2::integer - 1) AS wanted (slot)
CROSS JOIN LATERAL (
    SELECT wake_at, run_id FROM run
    WHERE run.slot = wanted.slot::smallint AND run.wake_at > -9223372036854775808
      AND (run.wake_at, run.run_id) > ($3, $4) AND run.wake_at <= $5
    ORDER BY run.wake_at, run.run_id
    LIMIT $6
) AS due
ORDER BY wanted.slot, due.wake_at, due.run_id
