-- Index run_hot, from the last row of the page before on: cold runs cost nothing, and neither do the
-- hot ones of other pages.
SELECT run_id FROM run INDEXED BY run_hot
WHERE wake_at = -9223372036854775808 AND (slot, run_id) > ($1, $2) AND slot < $3
ORDER BY slot, run_id
LIMIT $4
