-- Makes the first shards, each with its batch row 0. Of two servers that do so at once the second
-- waits for the first one's shard 0 and then adds nothing, however many shards it wanted: those
-- of both would overlap.
WITH wanted AS (
    SELECT * FROM unnest($1::integer[], $2::smallint[], $3::smallint[])
        AS wanted (shard_id, slot_from, slot_to)
), first AS (
    INSERT INTO shard (shard_id, slot_from, slot_to, node_id, address, epoch, lease_until)
    SELECT shard_id, slot_from, slot_to, NULL, '', 0, NULL FROM wanted
    WHERE shard_id = 0 AND NOT EXISTS (SELECT FROM shard)
    ON CONFLICT (shard_id) DO NOTHING
    RETURNING shard_id
), others AS (
    INSERT INTO shard (shard_id, slot_from, slot_to, node_id, address, epoch, lease_until)
    SELECT shard_id, slot_from, slot_to, NULL, '', 0, NULL FROM wanted
    WHERE shard_id > 0 AND EXISTS (SELECT FROM first)
    RETURNING shard_id
)
INSERT INTO batch (shard_id, commit_seq, commit_id, epoch)
SELECT shard_id, 0, '00000000-0000-0000-0000-000000000000', 0
FROM (SELECT shard_id FROM first UNION ALL SELECT shard_id FROM others) AS added
