-- Reads runs whole in one snapshot: each one's row (kind 0; nulls if there is none), its journal
-- (1) and its pending rows (2), in the order asked. Runs behind the one that reaches most_bytes of
-- journal have no rows. Rows that only fill the statement up have no run id.
WITH asked (n, run_id, most_bytes) AS (VALUES {rows}),
sized AS (
    SELECT n, run_id, most_bytes, coalesce(
        (SELECT sum(length(records)) FROM journal WHERE journal.run_id = asked.run_id), 0) AS bytes
    FROM asked WHERE run_id IS NOT NULL
), summed AS (
    SELECT n, run_id, most_bytes, sum(bytes) OVER (ORDER BY n) - bytes AS before FROM sized
), taken AS MATERIALIZED (
    SELECT n, run_id FROM summed WHERE n = 1 OR before < most_bytes
)
SELECT taken.n, 0 AS kind, 0 AS place, NULL AS data,
       run.run_id, namespace_id, workflow_id, workflow_type, task_queue, status, started_at,
       closed_at, wake_at, history_events, history_bytes, memo, requests
FROM taken LEFT JOIN run ON run.run_id = taken.run_id
UNION ALL
SELECT taken.n, 1, journal.seq, journal.records,
       NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
FROM taken CROSS JOIN journal WHERE journal.run_id = taken.run_id
UNION ALL
SELECT taken.n, 2, pending.number, pending.data,
       NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
FROM taken CROSS JOIN pending WHERE pending.run_id = taken.run_id
