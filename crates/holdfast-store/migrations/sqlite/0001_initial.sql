-- Times are nanoseconds since 1970-01-01 UTC, ids are UUIDs in their hyphenated lower-case form,
-- states are the names that holdfast-core gives them. The code checks them when it reads; a CHECK
-- here would only be a second list to disagree with the first.

CREATE TABLE owners (
    id         TEXT   NOT NULL PRIMARY KEY,
    name       TEXT   NOT NULL UNIQUE,
    created_at BIGINT NOT NULL
);

CREATE TABLE tokens (
    id         TEXT    NOT NULL PRIMARY KEY,
    owner_id   TEXT    NOT NULL,
    name       TEXT    NOT NULL,
    sha256     TEXT    NOT NULL UNIQUE,
    admin      BOOLEAN NOT NULL,
    created_at BIGINT  NOT NULL,
    expires_at BIGINT,
    revoked_at BIGINT
);

CREATE TABLE hosts (
    id            TEXT   NOT NULL PRIMARY KEY,
    name          TEXT   NOT NULL,
    driver        TEXT   NOT NULL,
    driver_reason TEXT   NOT NULL,
    cpus          BIGINT NOT NULL,
    memory_mib    BIGINT NOT NULL,
    version       TEXT   NOT NULL,
    address       TEXT,
    seen_at       BIGINT NOT NULL
);

-- Session and VM name each other; the keys are checked when the transaction that writes both commits.
CREATE TABLE sessions (
    id                TEXT   NOT NULL PRIMARY KEY,
    owner_id          TEXT   NOT NULL,
    spec              TEXT   NOT NULL, -- JSON; never changes
    state             TEXT   NOT NULL,
    vm_id             TEXT   UNIQUE REFERENCES vms (id) DEFERRABLE INITIALLY DEFERRED,
    end_reason        TEXT,
    detail            TEXT,
    attempts          BIGINT NOT NULL,
    lease_expires_at  BIGINT NOT NULL,
    last_heartbeat_at BIGINT NOT NULL,
    created_at        BIGINT NOT NULL,
    state_since       BIGINT NOT NULL,
    ready_at          BIGINT,
    ended_at          BIGINT,
    generation        BIGINT NOT NULL
);
CREATE INDEX sessions_by_owner ON sessions (owner_id, created_at);
CREATE INDEX sessions_by_state ON sessions (state, created_at);

CREATE TABLE vms (
    id          TEXT   NOT NULL PRIMARY KEY,
    session_id  TEXT   REFERENCES sessions (id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
    host_id     TEXT   NOT NULL,
    state       TEXT   NOT NULL,
    driver      TEXT   NOT NULL,
    image       TEXT   NOT NULL,
    address     TEXT,
    incarnation BIGINT NOT NULL,
    secret      TEXT,
    created_at  BIGINT NOT NULL,
    state_since BIGINT NOT NULL,
    generation  BIGINT NOT NULL
);
CREATE INDEX vms_by_session ON vms (session_id);
CREATE INDEX vms_by_state ON vms (state);

-- AUTOINCREMENT: a number is never given twice, also when the newest events were purged.
CREATE TABLE events (
    seq        INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    session_id TEXT   NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    vm_id      TEXT,
    at         BIGINT NOT NULL,
    kind       TEXT   NOT NULL,
    from_state TEXT,
    to_state   TEXT,
    why        TEXT   NOT NULL,
    actor      TEXT   NOT NULL
);
CREATE INDEX events_by_session ON events (session_id, seq);

-- A key belongs to its owner and lives as long as the session that it made.
CREATE TABLE idempotency_keys (
    owner_id       TEXT NOT NULL,
    key            TEXT NOT NULL,
    request_sha256 TEXT NOT NULL,
    session_id     TEXT NOT NULL REFERENCES sessions (id)
                   ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
    vm_id          TEXT NOT NULL,
    PRIMARY KEY (owner_id, key)
);
CREATE INDEX idempotency_keys_by_session ON idempotency_keys (session_id);
