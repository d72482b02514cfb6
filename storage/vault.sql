-- What is kept of people at the highest level of secrecy, who may see it, and who did. Nothing drops this schema.
--
-- No tax id is here, only a keyed hash (`person`); name, address and debts are AES-256-GCM ciphertexts under a key per
-- person, which is here only wrapped by a master key that the database never sees. Keys lie in a table of their own, so
-- that a backup may leave them out.
--
-- The service comes as the role `razao_vault`, which is bound by row-level security to what its transaction names:
--
--     razao.person    the one person that it is about (hex)
--     razao.caller    who asks
--     razao.purpose   what for
--     razao.grant     the grants that it reads under, separated by commas
--     razao.acts      'own' when the person themselves asks, 'write' when a source of data writes, else nothing
--
-- A statement that forgot its WHERE sees the fields that live grants of this caller for this purpose open, of one
-- person. Without a grant it sees nothing.

SELECT pg_advisory_xact_lock(7307503);
CREATE SCHEMA IF NOT EXISTS vault;

CREATE TABLE IF NOT EXISTS vault.keys (
    person bytea PRIMARY KEY CHECK (octet_length(person) = 16),
    master text NOT NULL,
    wrapped bytea NOT NULL,
    made_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS keys_master ON vault.keys (master, person);

-- One row a name, an address, a debt. `item`: keyed hash of the debt's id, empty for the others.
CREATE TABLE IF NOT EXISTS vault.facts (
    person bytea NOT NULL REFERENCES vault.keys ON DELETE CASCADE,
    field text NOT NULL CHECK (field IN ('name', 'address', 'debts')),
    item bytea NOT NULL,
    content bytea NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (person, field, item)
);

-- A grant may be for somebody of whom nothing is kept: who may give one must not learn from it who is here.
CREATE TABLE IF NOT EXISTS vault.grants (
    id uuid PRIMARY KEY,
    person bytea NOT NULL,
    grantee text NOT NULL,
    fields text[] NOT NULL,
    purpose text NOT NULL,
    given_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL CHECK (expires_at <= created_at + interval '1 day'),
    ended_at timestamptz,
    ended_by text
);
CREATE INDEX IF NOT EXISTS grants_person ON vault.grants (person, created_at);

CREATE TABLE IF NOT EXISTS vault.access_requests (
    id uuid PRIMARY KEY,
    person bytea NOT NULL,
    asker text NOT NULL,
    fields text[] NOT NULL,
    purpose text NOT NULL,
    expires_in integer NOT NULL,        -- seconds that the grant is to live
    created_at timestamptz NOT NULL DEFAULT now(),
    status text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'approved', 'refused')),
    decided_at timestamptz,
    grant_id uuid
);
CREATE INDEX IF NOT EXISTS access_requests_person ON vault.access_requests (person, created_at);

-- One row per answer or refusal about somebody, never its content. `chain`: keyed hash of the row and the one before it.
CREATE TABLE IF NOT EXISTS vault.accesses (
    seq bigint PRIMARY KEY,
    at timestamptz NOT NULL,
    person bytea NOT NULL,
    caller text NOT NULL,
    address text NOT NULL,
    action text NOT NULL,
    fields text[] NOT NULL,
    purpose text NOT NULL,
    decision text NOT NULL,
    grants uuid[] NOT NULL,
    request text NOT NULL,
    correlation text NOT NULL,
    chain bytea NOT NULL
);
CREATE INDEX IF NOT EXISTS accesses_person ON vault.accesses (person, seq);
CREATE INDEX IF NOT EXISTS accesses_queries ON vault.accesses (person, seq)
    WHERE action = 'read' AND decision = 'answered';

CREATE TABLE IF NOT EXISTS vault.chain_head (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    seq bigint NOT NULL,
    chain bytea NOT NULL
);
INSERT INTO vault.chain_head (seq, chain) VALUES (0, '') ON CONFLICT DO NOTHING;

-- For the score service: what it derived of somebody's debts is out of date. `person` is its own reference, not ours.
CREATE TABLE IF NOT EXISTS vault.outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    person bytea NOT NULL,
    request text NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);

CREATE OR REPLACE FUNCTION vault.keep() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
    RAISE EXCEPTION 'vault.accesses is append only';
END $$;
CREATE OR REPLACE TRIGGER keep_rows BEFORE UPDATE OR DELETE ON vault.accesses
    FOR EACH ROW EXECUTE FUNCTION vault.keep();
CREATE OR REPLACE TRIGGER keep_table BEFORE TRUNCATE ON vault.accesses
    FOR EACH STATEMENT EXECUTE FUNCTION vault.keep();

CREATE OR REPLACE FUNCTION vault.tell() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
    PERFORM pg_notify('vault_outbox', '');
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER tell AFTER INSERT ON vault.outbox FOR EACH STATEMENT EXECUTE FUNCTION vault.tell();

-- -- who may do what ---------------------------------------------------------------------------------------------------

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['razao_vault', 'razao_vault_outbox'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I', name);
        END IF;
        EXECUTE format(
            'ALTER ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOINHERIT NOREPLICATION NOBYPASSRLS', name);
    END LOOP;
END $$;

-- A replica that hangs in the middle of a call must not keep the record's end locked for the others.
ALTER ROLE razao_vault SET idle_in_transaction_session_timeout = '5s';

GRANT USAGE ON SCHEMA vault TO razao_vault, razao_vault_outbox;
GRANT SELECT, INSERT, DELETE ON vault.keys TO razao_vault;
GRANT SELECT, INSERT, UPDATE, DELETE ON vault.facts TO razao_vault;
GRANT SELECT, INSERT, UPDATE (ended_at, ended_by) ON vault.grants TO razao_vault;
GRANT SELECT, INSERT, UPDATE (status, decided_at, grant_id) ON vault.access_requests TO razao_vault;
GRANT SELECT, INSERT ON vault.accesses TO razao_vault;
GRANT SELECT, UPDATE (seq, chain) ON vault.chain_head TO razao_vault;
GRANT INSERT (person, request) ON vault.outbox TO razao_vault;
GRANT SELECT, DELETE, UPDATE (at) ON vault.outbox TO razao_vault_outbox; -- locking a row asks for UPDATE
-- What tokens are verified by, so that the service needs no other login. The private halves are encrypted.
DO $$ BEGIN
    IF to_regclass('identity.signing_keys') IS NOT NULL THEN
        GRANT USAGE ON SCHEMA identity TO razao_vault;
        GRANT SELECT ON identity.signing_keys, identity.revocations TO razao_vault;
    END IF;
END $$;

-- Settings that nobody has named are NULL, or empty once a transaction before has named them: both open nothing.
-- Policies call these inside a SELECT, so that they are evaluated once a statement and not once a row.
CREATE OR REPLACE FUNCTION vault.person() RETURNS bytea LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    SELECT decode(nullif(current_setting('razao.person', true), ''), 'hex')
$$;
CREATE OR REPLACE FUNCTION vault.acts(VARIADIC how text[]) RETURNS boolean LANGUAGE sql STABLE
SET search_path = pg_catalog AS $$
    SELECT coalesce(current_setting('razao.acts', true) = ANY (how), false)
$$;
-- The fields of that person that the named grants open to this caller for this purpose.
CREATE OR REPLACE FUNCTION vault.opened() RETURNS text[] LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    SELECT coalesce(array_agg(opened), '{}')
    FROM vault.grants g, unnest(g.fields) opened
    WHERE g.id = ANY (string_to_array(current_setting('razao.grant', true), ',')::uuid[])
      AND g.person = vault.person()
      AND g.grantee = current_setting('razao.caller', true)
      AND g.purpose = current_setting('razao.purpose', true)
      AND g.ended_at IS NULL AND g.expires_at > now()
$$;

ALTER TABLE vault.keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE vault.facts ENABLE ROW LEVEL SECURITY;
ALTER TABLE vault.grants ENABLE ROW LEVEL SECURITY;
ALTER TABLE vault.access_requests ENABLE ROW LEVEL SECURITY;
ALTER TABLE vault.accesses ENABLE ROW LEVEL SECURITY;

DO $$
DECLARE
    old record;
BEGIN
    FOR old IN SELECT policyname, tablename FROM pg_policies WHERE schemaname = 'vault' LOOP
        EXECUTE format('DROP POLICY %I ON vault.%I', old.policyname, old.tablename);
    END LOOP;
END $$;
CREATE POLICY seen ON vault.keys FOR SELECT USING (
    person = (SELECT vault.person())
    AND ((SELECT vault.acts('own', 'write')) OR (SELECT cardinality(vault.opened()) > 0)));
CREATE POLICY made ON vault.keys FOR INSERT
    WITH CHECK (person = (SELECT vault.person()) AND (SELECT vault.acts('write')));
CREATE POLICY erased ON vault.keys FOR DELETE
    USING (person = (SELECT vault.person()) AND (SELECT vault.acts('own', 'write')));
CREATE POLICY seen ON vault.facts FOR SELECT USING (
    person = (SELECT vault.person())
    AND ((SELECT vault.acts('own', 'write')) OR field = ANY ((SELECT vault.opened())::text[])));
CREATE POLICY written ON vault.facts FOR INSERT
    WITH CHECK (person = (SELECT vault.person()) AND (SELECT vault.acts('write')));
CREATE POLICY changed ON vault.facts FOR UPDATE
    USING (person = (SELECT vault.person()) AND (SELECT vault.acts('write')));
CREATE POLICY removed ON vault.facts FOR DELETE
    USING (person = (SELECT vault.person()) AND (SELECT vault.acts('write')));
CREATE POLICY theirs ON vault.grants USING (person = (SELECT vault.person()));
CREATE POLICY theirs ON vault.access_requests USING (person = (SELECT vault.person()));
CREATE POLICY seen ON vault.accesses FOR SELECT USING (person = (SELECT vault.person()));
CREATE POLICY recorded ON vault.accesses FOR INSERT
    WITH CHECK (person = (SELECT vault.person()) AND caller = current_setting('razao.caller', true));
