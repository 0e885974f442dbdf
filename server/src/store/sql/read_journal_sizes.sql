SELECT CAST(seq AS bigint), CAST(length(records) AS bigint)
FROM journal WHERE run_id = $1 AND seq >= $2 ORDER BY seq LIMIT $3
