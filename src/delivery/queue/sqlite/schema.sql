-- The first form of the file that was released. A released one is never changed.

-- What the file keeps beside its rows, by name: `clock`, how far the system's clock is ahead of the file's, and `window`,
-- how long a delivered ID is known; both in milliseconds. `gone` is the highest number of a delivery that is gone; `probe` is
-- written to find out whether the store can be.
CREATE TABLE setting (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;

-- Destinations of webhooks, by their names in the configuration. Whoever changes jobs counts them, in the same transaction: a
-- trigger would do so for every row, and SQLite keeps a journal for each statement that has one.
CREATE TABLE recipient (
    number      INTEGER PRIMARY KEY,
    webhook     TEXT NOT NULL,
    destination TEXT NOT NULL,
    in_order    INTEGER NOT NULL,           -- 1: each environment's jobs one after the other
    waiting     INTEGER NOT NULL DEFAULT 0,
    dead        INTEGER NOT NULL DEFAULT 0,
    UNIQUE (webhook, destination)
) STRICT;

-- What senders sent. Times are milliseconds since 1970, UTC, by the file's clock.
CREATE TABLE delivery (
    number        INTEGER PRIMARY KEY, -- in order of arrival; none is given twice
    webhook       TEXT NOT NULL,
    id            TEXT NOT NULL,       -- Pulumi-Webhook-ID
    kind          TEXT NOT NULL,       -- Pulumi-Webhook-Kind
    event         TEXT NOT NULL,       -- the filter's name where there is one, else the kind
    environment   TEXT,                -- projectName/environmentName
    revision      INTEGER,
    content_type  BLOB NOT NULL,
    signature     BLOB NOT NULL,       -- Pulumi-Webhook-Signature
    traceparent   BLOB NOT NULL,
    kind_verified INTEGER NOT NULL,
    received      INTEGER NOT NULL,
    facts         TEXT NOT NULL,       -- what else the payload says that people want to know, as JSON
    body          BLOB NOT NULL
) STRICT;
CREATE INDEX delivery_id ON delivery (id, webhook);

-- IDs that are known within the window although their delivery is gone.
CREATE TABLE known (
    id       TEXT NOT NULL,
    webhook  TEXT NOT NULL,
    digest   BLOB NOT NULL, -- SHA-256 of the body
    finished INTEGER NOT NULL,
    PRIMARY KEY (id, webhook)
) STRICT, WITHOUT ROWID;
CREATE INDEX known_finished ON known (finished);

-- A delivery's way to one recipient. Users see it as DELIVERY-RECIPIENT, e.g. 1042-1.
CREATE TABLE job (
    delivery      INTEGER NOT NULL,
    recipient     INTEGER NOT NULL,
    state         TEXT NOT NULL CHECK (state IN ('waiting', 'delivered', 'dead', 'coalesced')),
    blocked       INTEGER NOT NULL DEFAULT 0, -- 1: behind another of its line
    line          TEXT,                       -- the environment, where the destination has order or coalesce
    due           INTEGER NOT NULL,           -- not before this time
    since         INTEGER NOT NULL,           -- accepted, or last redelivered: its age counts from here
    attempts      INTEGER NOT NULL DEFAULT 0, -- since then
    attempts_ever INTEGER NOT NULL DEFAULT 0,
    finished      INTEGER,
    death         TEXT,                       -- why it is dead
    PRIMARY KEY (delivery, recipient)
) STRICT, WITHOUT ROWID;
CREATE INDEX job_due ON job (recipient, due, delivery) WHERE state = 'waiting' AND blocked = 0;
CREATE INDEX job_waiting ON job (recipient, delivery) WHERE state = 'waiting';
CREATE INDEX job_line ON job (recipient, line, blocked, delivery) WHERE state = 'waiting' AND line IS NOT NULL;
CREATE INDEX job_finished ON job (state, finished) WHERE state <> 'waiting';

CREATE TABLE attempt (
    delivery    INTEGER NOT NULL,
    recipient   INTEGER NOT NULL,
    number      INTEGER NOT NULL, -- from 1; the last 20 are kept
    at          INTEGER NOT NULL,
    duration_us INTEGER NOT NULL,
    status      INTEGER,          -- the upstream's status
    error       TEXT,             -- why there was no usable answer
    answer      BLOB NOT NULL,    -- its first 2 KiB
    PRIMARY KEY (delivery, recipient, number)
) STRICT, WITHOUT ROWID;

-- For people, by the system's clock.
CREATE VIEW log AS
    SELECT job.delivery || '-' || job.recipient AS job, recipient.webhook, recipient.destination, job.state,
        delivery.id, delivery.event, delivery.environment, delivery.revision, job.attempts_ever AS attempts,
        datetime((delivery.received + ahead) / 1000, 'unixepoch') AS received,
        datetime((job.due + ahead) / 1000, 'unixepoch') AS due,
        datetime((job.finished + ahead) / 1000, 'unixepoch') AS finished, job.death
    FROM job
    LEFT JOIN delivery ON delivery.number = job.delivery
    JOIN recipient ON recipient.number = job.recipient
    JOIN (SELECT coalesce((SELECT value FROM setting WHERE name = 'clock'), 0) AS ahead);
