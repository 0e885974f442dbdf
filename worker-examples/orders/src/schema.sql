-- The books of one orders file. They belong to the example, not to Onward: they stand for the
-- warehouse, the payment service, the carrier and the mail server of a shop.

-- The submitter's notebook: what became of each line.
CREATE TABLE IF NOT EXISTS line (
    line     INTEGER PRIMARY KEY,
    text     TEXT NOT NULL,
    order_id TEXT,
    status   TEXT NOT NULL CHECK (status IN ('open', 'completed', 'rejected', 'malformed', 'failed')),
    reason   TEXT,               -- why it was rejected, as one of a few kinds
    detail   TEXT,               -- the same for people
    CHECK ((status = 'rejected') = (reason IS NOT NULL))
) STRICT;

-- Each attempt of each activity, when it begins. Append-only.
CREATE TABLE IF NOT EXISTS attempt (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    activity TEXT NOT NULL,
    order_id TEXT NOT NULL,
    attempt  INTEGER NOT NULL
) STRICT;

CREATE TABLE IF NOT EXISTS stock (
    sku     TEXT PRIMARY KEY,
    on_hand INTEGER NOT NULL CHECK (on_hand >= 0)
) STRICT;

CREATE TABLE IF NOT EXISTS reservation (
    key      TEXT PRIMARY KEY,
    order_id TEXT NOT NULL,
    sku      TEXT NOT NULL REFERENCES stock,
    quantity INTEGER NOT NULL CHECK (quantity > 0),
    released INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX IF NOT EXISTS reservation_order ON reservation (order_id); -- release
CREATE INDEX IF NOT EXISTS reservation_sku ON reservation (sku);        -- how much is left

-- The payment service's own log: every call that reached it, also the repeated and the refused
-- ones. Append-only and without a unique index, so it cannot hide that something was asked twice.
CREATE TABLE IF NOT EXISTS call (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    operation TEXT NOT NULL CHECK (operation IN ('charge', 'refund')),
    key       TEXT NOT NULL,
    order_id  TEXT NOT NULL,
    outcome   TEXT NOT NULL CHECK (outcome IN ('done', 'repeated', 'declined', 'unavailable', 'nothing'))
) STRICT;
CREATE INDEX IF NOT EXISTS call_key ON call (key);                      -- what a key was told before

-- Money that moved. The key is the caller's; nothing here stops two charges of one order under two
-- keys: that there are none is what `orders check` finds out.
CREATE TABLE IF NOT EXISTS charge (
    key      TEXT PRIMARY KEY,
    order_id TEXT NOT NULL,
    cents    INTEGER NOT NULL CHECK (cents > 0)
) STRICT;
CREATE INDEX IF NOT EXISTS charge_order ON charge (order_id);           -- refund

CREATE TABLE IF NOT EXISTS refund (
    key      TEXT PRIMARY KEY,
    order_id TEXT NOT NULL,
    cents    INTEGER NOT NULL CHECK (cents > 0)
) STRICT;
CREATE INDEX IF NOT EXISTS refund_order ON refund (order_id);           -- refund

CREATE TABLE IF NOT EXISTS shipment (
    key        TEXT PRIMARY KEY,
    order_id   TEXT NOT NULL,
    parcel     TEXT NOT NULL,
    called_off INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX IF NOT EXISTS shipment_order ON shipment (order_id);       -- calling off

CREATE TABLE IF NOT EXISTS email (
    key      TEXT PRIMARY KEY,
    order_id TEXT NOT NULL,
    address  TEXT NOT NULL
) STRICT;

CREATE TRIGGER IF NOT EXISTS call_kept BEFORE DELETE ON call
BEGIN SELECT RAISE(ABORT, 'calls are append-only'); END;
CREATE TRIGGER IF NOT EXISTS call_unchanged BEFORE UPDATE ON call
BEGIN SELECT RAISE(ABORT, 'calls are append-only'); END;

INSERT OR IGNORE INTO stock (sku, on_hand) VALUES
    ('TEA-0101', 1000), ('TEA-0102', 1000), ('COF-0201', 1000), ('MUG-0301', 1000),
    ('MUG-0302', 1000), ('KET-0401', 1000), ('FIL-0501', 1000), ('GRI-0601', 1000),
    ('SPN-0701', 1000), ('BOX-0801', 1000), ('CAN-0901', 1000), ('SCA-1001', 1000),
    ('TEA-0199', 0), ('MUG-0399', 0);
