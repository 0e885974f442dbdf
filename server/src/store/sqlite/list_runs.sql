-- Index run_list: the newest of each status that was asked for, then the newest of those.
WITH wanted (status) AS (VALUES (1), (2), (3), (4), (5), (6))
SELECT run.run_id, run.namespace_id, run.workflow_id, run.workflow_type, run.task_queue, run.status,
       run.started_at, run.closed_at, run.wake_at, run.history_events, run.history_bytes, run.memo,
       run.requests
FROM wanted CROSS JOIN run
WHERE ($2 IS NULL OR wanted.status = $2)
  AND run.run_id IN (
    SELECT newest.run_id FROM run AS newest INDEXED BY run_list
    WHERE newest.namespace_id = $1 AND newest.status = wanted.status
      AND (newest.started_at, newest.run_id) < ($3, $4)
    ORDER BY newest.started_at DESC, newest.run_id DESC LIMIT $5)
ORDER BY run.started_at DESC, run.run_id DESC
LIMIT $5
