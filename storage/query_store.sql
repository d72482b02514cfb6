-- The query side: what happened, as rows that are only ever added. All of it follows from the journal, so it may be
-- dropped and built again at will; personal data is elsewhere (schema people).
--
-- Times are ns since 1970 UTC, amounts centavos, ids of accounts below 2^63. An event's `at` is strictly increasing
-- in its partition and an account lives in one partition, so (account, at) names an entry, and an event that was
-- projected twice could not get past that unique index.
--
-- An id may come again once it is forgotten, and is then another transfer in every respect. So (partition, at) is what
-- names a transfer for ever: what became of it, and what gives it back, is tied to that and never to an id alone.
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

-- How money that left its shard ended: it was taken, as the payee's partition says, or is back, as the payer's own does.
-- A refusal alone is no end: until the return is in the journal the payer lacks the money.
CREATE TABLE query.outcomes (
    at bigint NOT NULL,
    position bigint NOT NULL,
    sent_at bigint NOT NULL,            -- `at` of the debit: (payer, sent_at) names the row in transfers
    payer smallint NOT NULL,            -- partition of the payer
    partition smallint NOT NULL,        -- partition whose journal says so
    code smallint NOT NULL
);

CREATE UNIQUE INDEX outcomes_sent ON query.outcomes (payer, sent_at);

-- What each event did to an account, with its balances afterwards. An amount of 0 changed only what is pending.
CREATE TABLE query.entries (
    account bigint NOT NULL,
    at bigint NOT NULL,
    sent_at bigint NOT NULL,            -- of money between shards: `at` of the debit; else `at`
    position bigint NOT NULL,
    amount bigint NOT NULL,             -- credit positive, debit negative
    balance bigint NOT NULL,
    pending bigint NOT NULL,
    other bigint NOT NULL,              -- the account on the other side
    transfer uuid NOT NULL,             -- post, void, expire: the hold's id
    kind smallint NOT NULL,             -- of the event; money between shards: 100, 200 or 300 more, see LEG_ENTRY
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

-- The feed of events is made of the rows above and kept nowhere else. What an account did lies in its own partition,
-- in the order of `at`, and (partition, at, side) names an event for ever; 2 at + side is its place. Refusals are the
-- only ones that no index above finds by account.
CREATE INDEX transfers_refused ON query.transfers ((CASE WHEN debit < 1024 THEN credit ELSE debit END), at)
    WHERE code >= 10;

-- For whoever follows a whole partition. Rows come nearly in the order of time, so block ranges will do. The place is
-- an expression of its own so that no other index is taken for it.
CREATE INDEX entries_in_order ON query.entries USING brin (partition, (2 * at)) WITH (pages_per_range = 16);
CREATE INDEX account_changes_in_order ON query.account_changes USING brin (partition, (2 * at))
    WITH (pages_per_range = 16);
CREATE INDEX transfers_refused_in_order ON query.transfers (partition, (2 * at)) WHERE code >= 10;

-- How far the feed was passed on to somebody, such as a topic: the place of the last event that arrived there.
CREATE TABLE query.published (
    sink text NOT NULL,
    partition smallint NOT NULL,
    place bigint NOT NULL,
    PRIMARY KEY (sink, partition)
) WITH (fillfactor = 50);

-- What happened to accounts, without what takes a second look. Money that left its shard is no news until it arrived;
-- nor is a refusal because the account in question is unknown (11, 12). The conditions stand outside the union, because
-- within they would keep PostgreSQL from reading its parts in the order of their indexes.
CREATE VIEW query.happened AS
SELECT partition, at, side, sent_at, position, account, kind, transfer, amount, other, balance, pending, code
FROM (
    SELECT partition, at, (amount > 0 AND kind <> 22)::int AS side, sent_at, position, account, kind, transfer,
           abs(amount) AS amount, other, balance, pending, NULL::smallint AS code, kind NOT BETWEEN 200 AND 299 AS told
    FROM query.entries
    UNION ALL
    SELECT partition, at, 0, at, position, account, kind, NULL::uuid, NULL::bigint, NULL::bigint, NULL::bigint,
           NULL::bigint, NULL::smallint, true
    FROM query.account_changes
    UNION ALL
    SELECT partition, at, (debit < 1024)::int, at, position, CASE WHEN debit < 1024 THEN credit ELSE debit END, kind,
           CASE WHEN kind IN (14, 15) THEN ref ELSE id END, amount, CASE WHEN debit < 1024 THEN debit ELSE credit END,
           NULL::bigint, NULL::bigint, code,
           code >= 10 AND greatest(debit, credit) >= 1024 AND code <> 11 + (debit < 1024)::int
    FROM query.transfers
) AS every
WHERE told;

-- The whole of it: what an entry of no amount is about, why money came back, what a refund gives back. The row that says
-- so is found by the id, or by that of its hold, but it is the stamp that tells it from its namesakes.
CREATE FUNCTION query.told(happened query.happened)
RETURNS TABLE (
    partition smallint, at bigint, side integer, "position" bigint, account bigint, type text, transfer uuid,
    kind smallint, amount bigint, other bigint, balance bigint, pending bigint, code smallint, expires_at bigint,
    refund_of uuid
) LANGUAGE sql STABLE AS $$
SELECT happened.partition, happened.at, happened.side, happened.position, happened.account,
       CASE
           WHEN happened.code IS NOT NULL OR happened.kind = 22 THEN 'transfer.refused'
           ELSE CASE happened.kind % 100
               WHEN 1 THEN 'account.opened' WHEN 2 THEN 'account.closed'
               WHEN 3 THEN 'account.frozen' WHEN 4 THEN 'account.unfrozen'
               WHEN 13 THEN 'transfer.held' WHEN 14 THEN 'transfer.posted' WHEN 15 THEN 'transfer.voided'
               WHEN 16 THEN 'transfer.expired' WHEN 17 THEN 'transfer.refunded' ELSE 'transfer.settled'
           END
       END,
       happened.transfer, coalesce(cause.kind, happened.kind % 100)::smallint, coalesce(cause.amount, happened.amount),
       happened.other, happened.balance, happened.pending,
       CASE happened.kind WHEN 22 THEN (
           SELECT o.code FROM query.outcomes AS o
           WHERE o.payer = happened.partition AND o.sent_at = happened.sent_at
       ) ELSE happened.code END,
       CASE happened.kind WHEN 13 THEN cause.expires_at END,
       CASE WHEN cause.kind = 17 AND happened.side = 0 THEN cause.ref END
FROM (SELECT) AS one LEFT JOIN LATERAL (
    SELECT t.kind, t.amount, t.ref, t.expires_at FROM query.transfers AS t
    WHERE happened.code IS NULL AND happened.kind IN (13, 17, 22, 312, 317) AND t.id = happened.transfer
          AND t.partition = happened.partition AND t.at = happened.sent_at
    UNION ALL
    SELECT t.kind, t.amount, NULL, NULL FROM query.transfers AS t
    WHERE happened.code IS NULL AND happened.kind IN (15, 16, 22, 314) AND t.ref = happened.transfer
          AND t.partition = happened.partition AND t.at = happened.sent_at
) AS cause ON true
$$;

CREATE VIEW query.events AS
SELECT told.* FROM query.happened AS happened CROSS JOIN LATERAL query.told(happened) AS told;
