-- Times are microseconds since the Unix epoch, ids are 16 bytes.

CREATE TABLE shard (
    shard_id    INTEGER PRIMARY KEY,
    slot_from   INTEGER NOT NULL,
    slot_to     INTEGER NOT NULL CHECK (slot_from < slot_to),
    node_id     BLOB,
    address     TEXT NOT NULL,
    epoch       INTEGER NOT NULL,
    lease_until INTEGER
) STRICT;

CREATE TABLE batch (
    shard_id   INTEGER NOT NULL,
    commit_seq INTEGER NOT NULL,
    commit_id  BLOB NOT NULL,
    epoch      INTEGER NOT NULL,
    PRIMARY KEY (shard_id, commit_seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE namespace (
    namespace_id BLOB PRIMARY KEY,
    name         TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE run (
    run_id         BLOB PRIMARY KEY CHECK (length(run_id) = 16),
    slot           INTEGER NOT NULL CHECK (slot BETWEEN 0 AND 1023),
    namespace_id   BLOB NOT NULL,
    workflow_id    TEXT NOT NULL,
    workflow_type  TEXT NOT NULL,
    task_queue     TEXT NOT NULL,
    status         INTEGER NOT NULL,
    started_at     INTEGER NOT NULL,
    closed_at      INTEGER,
    wake_at        INTEGER,
    history_events INTEGER NOT NULL,
    history_bytes  INTEGER NOT NULL,
    memo           BLOB NOT NULL,
    requests       BLOB NOT NULL
) STRICT;

-- At most one open run of a workflow id; find_newest_runs looks here first.
CREATE UNIQUE INDEX run_open ON run (namespace_id, workflow_id) WHERE closed_at IS NULL;
-- find_newest_runs, when no run is open.
CREATE INDEX run_closed ON run (namespace_id, workflow_id, run_id) WHERE closed_at IS NOT NULL;
-- hot_runs.
CREATE INDEX run_hot ON run (slot, run_id) WHERE wake_at = -9223372036854775808;
-- due_runs.
CREATE INDEX run_wake ON run (slot, wake_at, run_id) WHERE wake_at > -9223372036854775808;
-- list_runs, which merges the statuses it is asked for.
CREATE INDEX run_list ON run (namespace_id, status, started_at, run_id);

CREATE TABLE journal (
    run_id  BLOB NOT NULL,
    seq     INTEGER NOT NULL,
    records BLOB NOT NULL,
    PRIMARY KEY (run_id, seq)
) STRICT;

CREATE TABLE pending (
    run_id BLOB NOT NULL,
    number INTEGER NOT NULL,
    data   BLOB NOT NULL,
    PRIMARY KEY (run_id, number)
) STRICT;
