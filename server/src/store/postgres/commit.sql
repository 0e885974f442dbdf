-- Applies one batch: a single statement, so a single round trip and a transaction of its own.
--
-- Postgres runs the parts of a WITH in no order but the one that reading each other's RETURNING
-- gives. So every part asks whether `entry` has its row, which it has only behind the fence.
--
-- The comparisons of lengths with zero are always true. Each lets the planner expect a third of the
-- rows, so it expects one and walks the primary key even when it knows nothing about the tables.
WITH fence AS (
    -- Whoever takes the shard or resolves a batch locks the same row first, and changes its epoch.
    SELECT shard_id FROM shard
    WHERE shard_id = $1::integer AND epoch = $2::bigint
    FOR NO KEY UPDATE
), entry AS (
    INSERT INTO batch (shard_id, commit_seq, commit_id, epoch)
    SELECT fence.shard_id, $3::bigint, $4::uuid, $2::bigint
    FROM fence
    WHERE EXISTS (
        SELECT FROM batch AS previous
        WHERE previous.shard_id = $1 AND previous.commit_seq = $3::bigint - 1 AND previous.commit_id = $5)
    RETURNING (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now
), lease AS (
    UPDATE shard SET lease_until = entry.now + $6::bigint
    FROM entry
    WHERE shard.shard_id = $1 AND $6::bigint IS NOT NULL
), updated AS (
    UPDATE run
    SET wake_at = change.wake_at,
        history_events = change.history_events,
        history_bytes = change.history_bytes,
        status = coalesce(change.status, run.status),
        closed_at = coalesce(change.closed_at, run.closed_at),
        requests = coalesce(change.requests, run.requests)
    FROM unnest($7::uuid[], $8::bigint[], $9::bigint[], $10::bigint[], $11::smallint[],
                $12::bigint[], $13::bytea[])
        AS change (run_id, wake_at, history_events, history_bytes, status, closed_at, requests)
    WHERE EXISTS (SELECT FROM entry)
      AND change.history_events >= 0 AND change.history_bytes >= 0
      AND run.run_id = change.run_id
    RETURNING run.run_id
), started AS (
    INSERT INTO run (run_id, slot, namespace_id, workflow_id, workflow_type, task_queue, status,
                     started_at, closed_at, wake_at, history_events, history_bytes, memo, requests)
    SELECT * FROM unnest($14::uuid[], $15::smallint[], $16::uuid[], $17::text[], $18::text[],
                         $19::text[], $20::smallint[], $21::bigint[], $22::bigint[], $23::bigint[],
                         $24::bigint[], $25::bigint[], $26::bytea[], $27::bytea[])
    WHERE EXISTS (SELECT FROM entry)
      -- After all updates: a run that closes here makes room for the next run of its workflow id.
      AND (SELECT count(*) FROM updated) >= 0
), journaled AS (
    INSERT INTO journal (run_id, seq, records)
    SELECT * FROM unnest($28::uuid[], $29::integer[], $30::bytea[])
    WHERE EXISTS (SELECT FROM entry)
), pending_written AS (
    INSERT INTO pending (run_id, number, data)
    SELECT * FROM unnest($31::uuid[], $32::integer[], $33::bytea[])
    WHERE EXISTS (SELECT FROM entry)
    ON CONFLICT (run_id, number) DO UPDATE SET data = excluded.data
), pending_removed AS (
    DELETE FROM pending
    USING unnest($34::uuid[], $35::integer[]) AS gone (run_id, number)
    WHERE EXISTS (SELECT FROM entry)
      AND gone.number >= 0 AND gone.number <= 2147483647
      AND pending.run_id = gone.run_id AND pending.number = gone.number
)
SELECT now FROM entry
