SELECT CAST(seq AS bigint), records
FROM journal WHERE run_id = $1 AND seq >= $2 AND seq <= $3 ORDER BY seq
