-- The open run of a workflow id is its newest; else the closed one with the highest run id is.
SELECT asked.n, newest.run_id, newest.status, newest.requests
FROM unnest($1::uuid[], $2::text[]) WITH ORDINALITY AS asked (namespace_id, workflow_id, n)
CROSS JOIN LATERAL (
    (SELECT 0 AS rank, run_id, status, requests FROM run
     WHERE namespace_id = asked.namespace_id AND workflow_id = asked.workflow_id
       AND closed_at IS NULL)
    UNION ALL
    (SELECT 1, run_id, status, requests FROM run
     WHERE namespace_id = asked.namespace_id AND workflow_id = asked.workflow_id
       AND closed_at IS NOT NULL
     ORDER BY namespace_id DESC, workflow_id DESC, run_id DESC LIMIT 1)
    ORDER BY rank LIMIT 1
) AS newest
