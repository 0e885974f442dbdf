-- Makes the first shards, each with its batch row 0. Of two servers that do so at once the second
-- waits for the first and then adds nothing.
WITH added AS (
    INSERT INTO shard (shard_id, slot_from, slot_to, node_id, address, epoch, lease_until)
    SELECT wanted.shard_id, wanted.slot_from, wanted.slot_to, NULL, '', 0, NULL
    FROM unnest($1::integer[], $2::smallint[], $3::smallint[])
        AS wanted (shard_id, slot_from, slot_to)
    WHERE NOT EXISTS (SELECT FROM shard)
    ON CONFLICT (shard_id) DO NOTHING
    RETURNING shard_id
)
INSERT INTO batch (shard_id, commit_seq, commit_id, epoch)
SELECT shard_id, 0, '00000000-0000-0000-0000-000000000000', 0 FROM added
