-- Sign-ins, what they hand over, links to look at a session, and saved states.

ALTER TABLE sessions ADD COLUMN checkpoint TEXT; -- JSON
ALTER TABLE owners ADD COLUMN recipient TEXT; -- age public key

CREATE TABLE sign_ins (
    session_id     TEXT    NOT NULL PRIMARY KEY REFERENCES sessions (id) ON DELETE CASCADE,
    provider       TEXT    NOT NULL,
    flow           TEXT    NOT NULL,
    run            BIGINT  NOT NULL,
    step           TEXT    NOT NULL,
    step_since     BIGINT  NOT NULL,
    url            TEXT,
    user_code      TEXT,
    wants_input    BOOLEAN NOT NULL,
    outcome        TEXT,
    why            TEXT,
    output         TEXT    NOT NULL,
    recipients     TEXT    NOT NULL, -- JSON
    webhook_url    TEXT,
    webhook_secret TEXT,
    expires_at     BIGINT,
    generation     BIGINT  NOT NULL
);
CREATE INDEX sign_ins_by_step ON sign_ins (step);

-- ciphertext is an age file in base64; NULL once it was fetched or its time was over.
CREATE TABLE sealed (
    session_id TEXT   NOT NULL PRIMARY KEY REFERENCES sessions (id) ON DELETE CASCADE,
    ciphertext TEXT,
    files      TEXT   NOT NULL, -- JSON
    sealed_at  BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    fetched_at BIGINT
);

CREATE TABLE deliveries (
    id           TEXT   NOT NULL PRIMARY KEY,
    session_id   TEXT   NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    url          TEXT   NOT NULL,
    secret       TEXT   NOT NULL,
    body         TEXT   NOT NULL,
    attempts     BIGINT NOT NULL,
    next_at      BIGINT,
    delivered_at BIGINT,
    last_error   TEXT
);
CREATE INDEX deliveries_by_time ON deliveries (next_at);
CREATE INDEX deliveries_by_session ON deliveries (session_id);

CREATE TABLE shares (
    id         TEXT    NOT NULL PRIMARY KEY,
    session_id TEXT    NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    sha256     TEXT    NOT NULL UNIQUE,
    view_only  BOOLEAN NOT NULL,
    created_at BIGINT  NOT NULL,
    expires_at BIGINT  NOT NULL,
    revoked_at BIGINT
);
CREATE INDEX shares_by_session ON shares (session_id);
