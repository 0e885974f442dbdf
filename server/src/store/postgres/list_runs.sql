-- Index run_list: the newest of each status that was asked for, then the newest of those.
SELECT newest.*
FROM unnest($2::smallint[]) AS wanted (status)
CROSS JOIN LATERAL (
    SELECT run_id, namespace_id, workflow_id, workflow_type, task_queue, status, started_at,
           closed_at, wake_at, history_events, history_bytes, memo, requests
    FROM run
    WHERE run.namespace_id = $1 AND run.status = wanted.status
      AND run.started_at <= $3 AND (run.started_at, run.run_id) < ($3, $4)
    ORDER BY run.started_at DESC, run.run_id DESC
    LIMIT $5
) AS newest
ORDER BY newest.started_at DESC, newest.run_id DESC
LIMIT $5
