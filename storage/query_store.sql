-- The query side: what happened, as rows that are only ever added. All of it follows from the journal, so it may be
-- dropped and built again at will; personal data is elsewhere (schema people).
--
-- Times are ns since 1970 UTC, amounts centavos, ids of accounts below 2^63. An event's `at` is strictly increasing
-- in its partition and an account lives in one partition, so (account, at) names an entry, and an event that was
-- projected twice could not get past that unique index.
--
-- Two indexes carry the load, and both are plain B-trees: one on the ids, nearly ordered by time because ids are
-- UUIDv7, and one on (account, at), into which every chunk goes sorted by account. BRIN would cost less to fill but
-- answers neither question (ids of old and new mix, accounts are everywhere in the heap).

CREATE SCHEMA query;

CREATE TABLE query.version (version integer NOT NULL);

-- One row a partition: the offset up to which (exclusive) its journal is in these tables.
CREATE TABLE query.projection (
    partition smallint PRIMARY KEY,
    next_offset bigint NOT NULL,
    at bigint NOT NULL                  -- of the newest event projected
) WITH (fillfactor = 50);

-- One row for every event that a client can name and that moves, holds or frees money; refused ones too.
CREATE TABLE query.transfers (
    at bigint NOT NULL,
    position bigint NOT NULL,           -- the journal record's offset in `partition`
    debit bigint NOT NULL,
    credit bigint NOT NULL,
    amount bigint NOT NULL,             -- as asked for; a post: what was posted
    id uuid NOT NULL,                   -- an expiry: the hold's
    partition smallint NOT NULL,
    kind smallint NOT NULL,
    code smallint NOT NULL,
    ref uuid,                           -- post, void, expire: the hold; refund: the original
    ref_at bigint,                      -- refund: `at` of the original
    expires_at bigint,                  -- hold
    detail bigint,                      -- refused: what is left of the limit, hold or original
    note bytea                          -- description and metadata, opaque JSON
);

CREATE INDEX transfers_id ON query.transfers (id);
CREATE INDEX transfers_ref ON query.transfers (ref) WHERE ref IS NOT NULL;

-- How money that left its shard ended: the payee's answer, or its return.
CREATE TABLE query.outcomes (
    at bigint NOT NULL,
    position bigint NOT NULL,
    id uuid NOT NULL,
    payer smallint NOT NULL,            -- partition of the payer: (id, payer) names the row in transfers
    partition smallint NOT NULL,        -- partition whose journal says so
    code smallint NOT NULL
);

CREATE INDEX outcomes_id ON query.outcomes (id);

-- What each event did to an account, with its balances afterwards. An amount of 0 changed only what is pending.
CREATE TABLE query.entries (
    account bigint NOT NULL,
    at bigint NOT NULL,
    position bigint NOT NULL,
    amount bigint NOT NULL,             -- credit positive, debit negative
    balance bigint NOT NULL,
    pending bigint NOT NULL,
    transfer uuid NOT NULL,             -- post, void, expire: the hold's id
    kind smallint NOT NULL,
    partition smallint NOT NULL
);

CREATE UNIQUE INDEX entries_account_at ON query.entries (account, at);

-- Open, close, freeze, unfreeze; the newest says what an account is.
CREATE TABLE query.account_changes (
    account bigint NOT NULL,
    at bigint NOT NULL,
    position bigint NOT NULL,
    kind smallint NOT NULL,
    partition smallint NOT NULL
);

CREATE UNIQUE INDEX account_changes_account_at ON query.account_changes (account, at);
