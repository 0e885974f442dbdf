-- The newest batch of a shard, and where two others are, if they are in. Read behind the lock on
-- the shard's row, with a snapshot younger than the lock.
SELECT (SELECT commit_seq FROM batch WHERE shard_id = $1 ORDER BY commit_seq DESC LIMIT 1),
       (SELECT recent.commit_seq FROM (
            SELECT commit_seq, commit_id FROM batch WHERE shard_id = $1
            ORDER BY commit_seq DESC LIMIT 1000) AS recent
        WHERE recent.commit_id = $2),
       (SELECT recent.commit_seq FROM (
            SELECT commit_seq, commit_id, epoch FROM batch WHERE shard_id = $1
            ORDER BY commit_seq DESC LIMIT 1000) AS recent
        WHERE recent.commit_id = $3 AND recent.epoch = $4),
       (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
