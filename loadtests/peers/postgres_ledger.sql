-- The peer's whole book: balances behind row locks, an idempotency table, an entries table.
-- Room on the accounts' pages keeps their updates off the index (heap-only tuples).

CREATE TABLE account (
    id      bigint PRIMARY KEY,
    owner   text   NOT NULL,
    balance bigint NOT NULL CHECK (balance >= 0)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.5);

CREATE TABLE transfer (
    id             uuid        PRIMARY KEY,
    debit_account  bigint      NOT NULL,
    credit_account bigint      NOT NULL,
    amount         bigint      NOT NULL,
    status         text        NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE entry (
    account  bigint      NOT NULL,
    seq      bigint      GENERATED ALWAYS AS IDENTITY (CACHE 100),
    transfer uuid        NOT NULL,
    amount   bigint      NOT NULL,  -- negative: paid
    balance  bigint      NOT NULL,  -- after it
    at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account, seq)
);

-- One transfer in one round trip. `actor` null: an operator, who may debit any account.
-- The id is claimed first: whoever repeats it while this runs waits for its outcome, and the account rows are locked
-- for as short as can be. What makes the caller's rights fail leaves no trace, what the book refuses is remembered.
CREATE FUNCTION make_transfer(
    IN id_ uuid, IN debit bigint, IN credit bigint, IN cents bigint, IN actor text,
    OUT outcome text, OUT at timestamptz, OUT replayed boolean
) LANGUAGE plpgsql AS $$
DECLARE
    first_row transfer%ROWTYPE;
    side record;
    payer_balance bigint;
    payer_owner text;
    payee_found boolean := false;
BEGIN
    replayed := false;
    at := now();
    INSERT INTO transfer (id, debit_account, credit_account, amount, status, created_at)
        VALUES (id_, debit, credit, cents, 'settled', at) ON CONFLICT (id) DO NOTHING;
    IF NOT FOUND THEN
        SELECT * INTO first_row FROM transfer t WHERE t.id = id_;
        IF (first_row.debit_account, first_row.credit_account, first_row.amount) IS DISTINCT FROM (debit, credit, cents)
        THEN
            outcome := 'id-conflict';
            RETURN;
        END IF;
        IF actor IS NOT NULL AND NOT EXISTS (SELECT FROM account a WHERE a.id = debit AND a.owner = actor) THEN
            outcome := 'forbidden';
            RETURN;
        END IF;
        outcome := first_row.status;
        at := first_row.created_at;
        replayed := true;
        RETURN;
    END IF;

    FOR side IN SELECT a.id, a.owner, a.balance FROM account a WHERE a.id IN (debit, credit) ORDER BY a.id FOR UPDATE LOOP
        IF side.id = debit THEN
            payer_balance := side.balance;
            payer_owner := side.owner;
        ELSE
            payee_found := true;
        END IF;
    END LOOP;

    IF actor IS NOT NULL AND payer_owner IS DISTINCT FROM actor THEN
        DELETE FROM transfer t WHERE t.id = id_;
        outcome := 'forbidden';
        RETURN;
    END IF;
    outcome := CASE
        WHEN debit = credit THEN 'same-account'
        WHEN payer_balance IS NULL OR NOT payee_found THEN 'unknown-account'
        WHEN payer_balance < cents THEN 'insufficient-funds'
        ELSE 'settled'
    END;
    IF outcome <> 'settled' THEN
        UPDATE transfer t SET status = outcome WHERE t.id = id_;
        RETURN;
    END IF;
    WITH moved AS (
        UPDATE account a SET balance = a.balance + CASE a.id WHEN debit THEN -cents ELSE cents END
        WHERE a.id IN (debit, credit) RETURNING a.id, a.balance
    )
    INSERT INTO entry (account, transfer, amount, balance, at)
        SELECT m.id, id_, CASE m.id WHEN debit THEN -cents ELSE cents END, m.balance, now() FROM moved m;
END $$;
