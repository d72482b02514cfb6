-- Who may come in: people, systems, their keys, and what they were given. Nothing drops this schema.
--
-- No secret is here in a form that opens a door: passwords are Argon2id, every other secret is random and kept as a keyed
-- hash, signing keys are encrypted. A tax id is here as a keyed hash alone. `audit` is only ever added to.

SELECT pg_advisory_xact_lock(7307502);
CREATE SCHEMA IF NOT EXISTS identity;

CREATE TABLE IF NOT EXISTS identity.users (
    sub uuid PRIMARY KEY,
    username text NOT NULL UNIQUE,      -- as `canonical_username` has it
    name text NOT NULL,
    person bytea,                       -- keyed hash of the tax id, a claim; none for people who only operate
    proven_at timestamptz,              -- since when it is proven that the tax id is theirs
    role text NOT NULL,
    password text NOT NULL,             -- Argon2id, PHC string format
    disabled_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE identity.users ADD COLUMN IF NOT EXISTS proven_at timestamptz;
-- Anybody can claim a tax id; at most one can have it proven.
CREATE UNIQUE INDEX IF NOT EXISTS users_proven ON identity.users (person) WHERE proven_at IS NOT NULL;

-- OAuth clients. With an `owner` it is an access key: it acts for that person, with no more than that person may.
CREATE TABLE IF NOT EXISTS identity.clients (
    client_id text PRIMARY KEY,
    name text NOT NULL,
    secret bytea,                       -- keyed hash; none for public clients
    owner uuid REFERENCES identity.users,
    role text,                          -- of a system that acts for itself
    redirect_uris text[] NOT NULL DEFAULT '{}',
    grants text[] NOT NULL,
    scopes text[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    last_used_at timestamptz,
    revoked_at timestamptz
);
CREATE INDEX IF NOT EXISTS clients_owner ON identity.clients (owner, created_at) WHERE owner IS NOT NULL;

-- A login or a consent, and all refresh tokens that follow from it; its id is the claim `sid`.
CREATE TABLE IF NOT EXISTS identity.families (
    id uuid PRIMARY KEY,
    sub uuid NOT NULL REFERENCES identity.users,
    client_id text NOT NULL REFERENCES identity.clients,
    scope text NOT NULL,
    auth_time timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    revoked_at timestamptz,
    session uuid,                       -- at the login page, that it came of
    last_used_at timestamptz            -- a refresh token of it was; none: never
);
ALTER TABLE identity.families ADD COLUMN IF NOT EXISTS session uuid;
ALTER TABLE identity.families ADD COLUMN IF NOT EXISTS last_used_at timestamptz;
CREATE INDEX IF NOT EXISTS families_sub ON identity.families (sub) WHERE revoked_at IS NULL;
CREATE INDEX IF NOT EXISTS families_expiry ON identity.families (expires_at);

-- `used_by` is the gateway's number of the request: when it sends a request again whose replica died, that is no reuse.
CREATE TABLE IF NOT EXISTS identity.refresh_tokens (
    digest bytea PRIMARY KEY,
    family uuid NOT NULL REFERENCES identity.families ON DELETE CASCADE,
    used_by text
);
CREATE INDEX IF NOT EXISTS refresh_tokens_family ON identity.refresh_tokens (family);

CREATE TABLE IF NOT EXISTS identity.codes (
    digest bytea PRIMARY KEY,
    client_id text NOT NULL REFERENCES identity.clients,
    sub uuid NOT NULL REFERENCES identity.users,
    redirect_uri text NOT NULL,
    scope text NOT NULL,
    nonce text,
    challenge text NOT NULL,            -- S256, there is no other
    auth_time timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    used_by text,
    family uuid,                        -- what it was exchanged for
    session uuid                        -- at the login page, in which it was given
);
ALTER TABLE identity.codes ADD COLUMN IF NOT EXISTS session uuid;
CREATE INDEX IF NOT EXISTS codes_expiry ON identity.codes (expires_at);
CREATE INDEX IF NOT EXISTS codes_session ON identity.codes (session) WHERE used_by IS NULL;

-- Who is logged in at the login page. The id stays when the same person logs in again there, under another cookie.
CREATE TABLE IF NOT EXISTS identity.sessions (
    digest bytea PRIMARY KEY,
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    sub uuid NOT NULL REFERENCES identity.users,
    auth_time timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
);
ALTER TABLE identity.sessions ADD COLUMN IF NOT EXISTS id uuid NOT NULL DEFAULT gen_random_uuid();
CREATE INDEX IF NOT EXISTS sessions_sub ON identity.sessions (sub);

-- Where nobody registers without one: a code that an operator has made, for one person.
CREATE TABLE IF NOT EXISTS identity.invitations (
    digest bytea PRIMARY KEY,
    expires_at timestamptz NOT NULL,
    used_by uuid
);

CREATE TABLE IF NOT EXISTS identity.signing_keys (
    kid text PRIMARY KEY,
    public text NOT NULL,               -- JWK
    private text NOT NULL,              -- JWK in a JWE (RFC 7516)
    created_at timestamptz NOT NULL DEFAULT now(),
    active_at timestamptz,              -- signs from then on; none: published, in waiting
    expires_at timestamptz              -- verifies no longer
);

-- Access tokens that must stop before they expire, by a mark that they carry: sid:, jti:, client: or proof:. None is lifted.
CREATE TABLE IF NOT EXISTS identity.revocations (
    mark text PRIMARY KEY,
    expires_at timestamptz NOT NULL
);

-- Who is disabled has no access key. Where they once only slept, under a mark sub: that was lifted later, they end now.
WITH ended AS (
    UPDATE identity.clients c SET revoked_at = now() FROM identity.users u
    WHERE c.owner = u.sub AND u.disabled_at IS NOT NULL AND c.revoked_at IS NULL RETURNING c.client_id
)
INSERT INTO identity.revocations SELECT 'client:' || client_id, now() + interval '1 hour' FROM ended
    ON CONFLICT (mark) DO UPDATE SET expires_at = greatest(revocations.expires_at, excluded.expires_at);
DELETE FROM identity.revocations WHERE mark LIKE 'sub:%';

-- Leaky buckets of attempts, by keyed hash of what they count.
CREATE TABLE IF NOT EXISTS identity.attempts (
    bucket bytea PRIMARY KEY,
    level double precision NOT NULL,
    at timestamptz NOT NULL
);

CREATE TABLE IF NOT EXISTS identity.audit (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor text NOT NULL,                -- sub, client id, `operator` (command line), `anonymous`
    action text NOT NULL,
    subject text NOT NULL,
    detail jsonb NOT NULL,
    address text NOT NULL,
    request text NOT NULL
);
CREATE INDEX IF NOT EXISTS audit_subject ON identity.audit (subject, id);

CREATE OR REPLACE FUNCTION identity.keep() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'identity.audit is append only';
END $$;
CREATE OR REPLACE TRIGGER keep_rows BEFORE UPDATE OR DELETE ON identity.audit
    FOR EACH ROW EXECUTE FUNCTION identity.keep();
CREATE OR REPLACE TRIGGER keep_table BEFORE TRUNCATE ON identity.audit
    FOR EACH STATEMENT EXECUTE FUNCTION identity.keep();
