"""The production record: one append-only table."""

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE production_event (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            line text NOT NULL,
            station text NOT NULL,
            unit_kind text NOT NULL,
            unit text NOT NULL,
            event text NOT NULL,
            key text NOT NULL UNIQUE,
            reason text,
            "partition" text,
            run_id text NOT NULL DEFAULT '',
            at timestamptz NOT NULL DEFAULT now(),
            duration_s double precision NOT NULL DEFAULT 0 CHECK (duration_s >= 0),
            gpu_s double precision NOT NULL DEFAULT 0 CHECK (gpu_s >= 0),
            energy_kwh double precision NOT NULL DEFAULT 0 CHECK (energy_kwh >= 0),
            money double precision NOT NULL DEFAULT 0,
            num_in bigint NOT NULL DEFAULT 0 CHECK (num_in >= 0),
            num_good bigint NOT NULL DEFAULT 0 CHECK (num_good >= 0),
            num_bad bigint NOT NULL DEFAULT 0 CHECK (num_bad >= 0),
            detail jsonb NOT NULL DEFAULT '{}'
        );
        CREATE INDEX production_event_by_unit ON production_event (line, station, unit, event);
        CREATE INDEX production_event_by_time ON production_event (line, at);
        CREATE INDEX production_event_by_partition ON production_event (line, "partition");
        CREATE INDEX production_event_by_reason ON production_event (line, reason) WHERE reason IS NOT NULL;

        CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'the production record is append-only: % is refused', TG_OP;
        END $$;
        CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON production_event
            FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
        """
    )


def downgrade() -> None:
    raise NotImplementedError("the production record is append-only: it is never migrated down")
