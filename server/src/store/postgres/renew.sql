-- Renews the leases of the shards that are still ours. A shard whose row somebody else holds is
-- left out: it has a commit, a resolve or a takeover under way, which says more than we could.
WITH asked AS (
    SELECT * FROM unnest($1::integer[], $2::bigint[], $3::bigint[], $4::uuid[])
        AS asked (shard_id, epoch, commit_seq, commit_id)
), locked AS (
    SELECT shard_id, epoch FROM shard
    WHERE shard_id = ANY ($1)
    FOR NO KEY UPDATE SKIP LOCKED
), judged AS (
    SELECT locked.shard_id,
           locked.epoch = asked.epoch AS is_ours,
           -- Not EXISTS, which the planner may turn into one scan of the whole table.
           coalesce((SELECT batch.commit_id = asked.commit_id FROM batch
                     WHERE batch.shard_id = asked.shard_id
                       AND batch.commit_seq = asked.commit_seq), false) AS is_there
    FROM locked JOIN asked USING (shard_id)
), clock AS (
    SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now
), renewed AS (
    UPDATE shard SET lease_until = clock.now + $5
    FROM judged, clock
    WHERE shard.shard_id = judged.shard_id AND judged.is_ours AND judged.is_there
)
SELECT clock.now, judged.shard_id::bigint, judged.is_ours, judged.is_there
FROM clock LEFT JOIN judged ON true
ORDER BY judged.shard_id
