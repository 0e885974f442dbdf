SELECT run_id, namespace_id, workflow_id, workflow_type, task_queue, status, started_at, closed_at,
       wake_at, history_events, history_bytes, memo, requests
FROM run WHERE run_id = $1
