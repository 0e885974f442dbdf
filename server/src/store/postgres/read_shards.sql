SELECT shard_id::bigint, slot_from::bigint, slot_to::bigint, node_id, address, epoch, lease_until,
       (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
FROM shard ORDER BY shard_id
