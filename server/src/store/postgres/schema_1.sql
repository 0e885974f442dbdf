-- All times are microseconds since the Unix epoch by this database's clock.
-- An index costs about 5 µs and 100 to 200 bytes of WAL a workflow: each says what it is for.

CREATE TABLE shard (
    shard_id    integer PRIMARY KEY,
    slot_from   smallint NOT NULL CHECK (slot_from >= 0),
    slot_to     smallint NOT NULL CHECK (slot_to <= 1024),
    node_id     uuid,
    address     text NOT NULL,
    epoch       bigint NOT NULL,
    lease_until bigint,
    CHECK (slot_from < slot_to)
) WITH (fillfactor = 50);

-- The primary key is the fence: a second batch with the same number is refused.
CREATE TABLE batch (
    shard_id   integer NOT NULL,
    commit_seq bigint NOT NULL,
    commit_id  uuid NOT NULL,
    epoch      bigint NOT NULL,
    PRIMARY KEY (shard_id, commit_seq)
);

CREATE TABLE namespace (
    namespace_id uuid PRIMARY KEY,
    name         text NOT NULL UNIQUE
);

-- What a change of a run writes comes last, so that its WAL holds only the end of the row.
CREATE TABLE run (
    run_id         uuid PRIMARY KEY,
    namespace_id   uuid NOT NULL,
    started_at     bigint NOT NULL,
    slot           smallint NOT NULL CHECK (slot BETWEEN 0 AND 1023),
    workflow_id    text COLLATE "C" NOT NULL,
    workflow_type  text COLLATE "C" NOT NULL,
    task_queue     text COLLATE "C" NOT NULL,
    memo           bytea NOT NULL,
    status         smallint NOT NULL,
    closed_at      bigint,
    wake_at        bigint,
    history_events bigint NOT NULL,
    history_bytes  bigint NOT NULL,
    requests       bytea NOT NULL
    -- Room for every second version in the page of the first: its WAL is a third shorter.
) WITH (fillfactor = 50);

-- At most one open run of a workflow id; find_newest_runs looks here first.
CREATE UNIQUE INDEX run_open ON run (namespace_id, workflow_id) WHERE closed_at IS NULL;
-- find_newest_runs when no run is open. A run enters once, when it closes.
CREATE INDEX run_closed ON run (namespace_id, workflow_id, run_id) WHERE closed_at IS NOT NULL;
-- hot_runs. A run stands in this index or in the next one, so both together cost what one does. Both
-- end with the run's id, which costs 16 bytes an entry: a page begins behind the last row of the
-- one before, and the rows in front of it are not read again.
CREATE INDEX run_hot ON run (slot, run_id) WHERE wake_at = -9223372036854775808;
-- due_runs.
CREATE INDEX run_wake ON run (slot, wake_at, run_id) WHERE wake_at > -9223372036854775808;
-- list_runs, which merges the statuses it is asked for.
CREATE INDEX run_list ON run (namespace_id, status, started_at);

CREATE TABLE journal (
    run_id  uuid NOT NULL,
    seq     integer NOT NULL,
    records bytea NOT NULL,
    PRIMARY KEY (run_id, seq)
) PARTITION BY RANGE (run_id);

-- Payloads are often compressed or encrypted already; trying again costs more than it saves.
ALTER TABLE journal ALTER COLUMN records SET STORAGE EXTERNAL;

-- A row of a page or less stays whole in its page: two inserts fewer than beside it.
CREATE TABLE journal_default PARTITION OF journal DEFAULT WITH (toast_tuple_target = 8160);

CREATE TABLE pending (
    run_id uuid NOT NULL,
    number integer NOT NULL,
    data   bytea NOT NULL,
    PRIMARY KEY (run_id, number)
);
