-- Reads runs whole in one snapshot: each one's row (kind 0; nulls if there is none), its journal
-- (1) and its pending rows (2), in the order asked. Runs behind the one that reaches $2 bytes of
-- journal have no rows. Each part walks a primary key that starts with run_id: the OFFSETs keep it
-- one walk for each run, whatever the planner believes about the tables.
WITH sized AS (
    SELECT asked.run_id, asked.n, coalesce(rows.bytes, 0) AS bytes
    FROM unnest($1::uuid[]) WITH ORDINALITY AS asked (run_id, n)
    CROSS JOIN LATERAL (
        SELECT sum(length(records)) AS bytes FROM journal WHERE run_id = asked.run_id OFFSET 0
    ) AS rows
), summed AS (
    SELECT run_id, n, sum(bytes) OVER (ORDER BY n) - bytes AS before FROM sized
), taken AS MATERIALIZED (
    SELECT run_id, n FROM summed WHERE n = 1 OR before < $2::bigint
)
SELECT taken.n, 0::smallint AS kind, 0::bigint AS place, NULL::bytea AS data,
       run.run_id, namespace_id, workflow_id, workflow_type, task_queue, status, started_at,
       closed_at, wake_at, history_events, history_bytes, memo, requests
FROM taken LEFT JOIN LATERAL (
    SELECT * FROM run WHERE run_id = taken.run_id OFFSET 0
) AS run ON true
UNION ALL
SELECT taken.n, 1::smallint, rows.seq::bigint, rows.records,
       NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
FROM taken CROSS JOIN LATERAL (
    SELECT seq, records FROM journal WHERE run_id = taken.run_id OFFSET 0
) AS rows
UNION ALL
SELECT taken.n, 2::smallint, rows.number::bigint, rows.data,
       NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
FROM taken CROSS JOIN LATERAL (
    SELECT number, data FROM pending WHERE run_id = taken.run_id OFFSET 0
) AS rows
