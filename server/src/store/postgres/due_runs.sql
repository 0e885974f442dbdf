-- Index run_wake, one range for each slot: the cost follows what is due, not what sleeps.
SELECT due.wake_at, due.run_id
FROM generate_series($1::integer, $2::integer - 1) AS wanted (slot)
CROSS JOIN LATERAL (
    SELECT wake_at, run_id FROM run
    WHERE run.slot = wanted.slot::smallint AND run.wake_at >= $3 AND run.wake_at <= $4
    ORDER BY run.wake_at, run.run_id
    LIMIT $5
) AS due
ORDER BY wanted.slot, due.wake_at, due.run_id
