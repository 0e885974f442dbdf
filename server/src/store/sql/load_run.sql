-- Reads one run whole in one snapshot: its row (kind 0), its journal (1), its pending rows (2).
-- The same text serves both dialects. Each part walks a primary key that starts with run_id.
SELECT CAST(0 AS smallint) AS kind, CAST(0 AS bigint) AS place, CAST(NULL AS bytea) AS data,
       run_id, namespace_id, workflow_id, workflow_type, task_queue, status, started_at, closed_at,
       wake_at, history_events, history_bytes, memo, requests
FROM run WHERE run_id = $1
UNION ALL
SELECT CAST(1 AS smallint), CAST(seq AS bigint), records,
       NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
FROM journal WHERE run_id = $1
UNION ALL
SELECT CAST(2 AS smallint), CAST(number AS bigint), data,
       NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
FROM pending WHERE run_id = $1
