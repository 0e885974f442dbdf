-- The open run of a workflow id is its newest; else the closed one with the highest run id is.
-- Rows that only fill the statement up have no workflow id.
WITH asked (n, namespace_id, workflow_id) AS (VALUES {rows})
SELECT asked.n, run.run_id, run.status, run.requests
FROM asked CROSS JOIN run
WHERE run.run_id = coalesce(
    (SELECT open.run_id FROM run AS open
     WHERE open.namespace_id = asked.namespace_id AND open.workflow_id = asked.workflow_id
       AND open.closed_at IS NULL),
    (SELECT closed.run_id FROM run AS closed
     WHERE closed.namespace_id = asked.namespace_id AND closed.workflow_id = asked.workflow_id
       AND closed.closed_at IS NOT NULL
     ORDER BY closed.run_id DESC LIMIT 1))
