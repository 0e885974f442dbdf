-- Index run_wake, one equality for each slot: cold runs cost nothing. OFFSET 0 keeps the planner
-- from walking all runs in the order of the result instead.
SELECT hot.run_id
FROM generate_series($1::integer, $2::integer - 1) AS wanted (slot)
CROSS JOIN LATERAL (
    SELECT run_id FROM run
    WHERE run.slot = wanted.slot::smallint AND run.wake_at = (-9223372036854775808)::bigint
    OFFSET 0
) AS hot
WHERE hot.run_id > $3
ORDER BY hot.run_id
LIMIT $4
