-- The epoch, the lease and the batch row that belongs to them, of a shard whose row is locked.
WITH clock AS (
    SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now
), entry AS (
    INSERT INTO batch (shard_id, commit_seq, commit_id, epoch) VALUES ($1, $6, $7, $4)
)
UPDATE shard SET node_id = $2, address = $3, epoch = $4, lease_until = clock.now + $5
FROM clock
WHERE shard.shard_id = $1
RETURNING clock.now
