"""Notices: what somebody is told of the production record, and what became of telling it."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE notice (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            kind text NOT NULL,
            line text NOT NULL,
            station text NOT NULL,
            unit text NOT NULL,
            reason text NOT NULL,
            event_id bigint NOT NULL,
            made_at timestamptz NOT NULL,
            num_untold bigint NOT NULL DEFAULT 0 CHECK (num_untold >= 0)
        );
        CREATE INDEX notice_by_subject ON notice (line, station, unit, kind, reason, id);

        CREATE TABLE notice_event (
            event_id bigint PRIMARY KEY,
            notice_id bigint REFERENCES notice (id)
        );
        CREATE INDEX notice_event_by_notice ON notice_event (notice_id);

        CREATE TABLE notice_delivery (
            notice_id bigint NOT NULL REFERENCES notice (id),
            channel text NOT NULL,
            num_tries integer NOT NULL DEFAULT 0 CHECK (num_tries >= 0),
            due_at timestamptz,
            sent_at timestamptz,
            error text NOT NULL DEFAULT '',
            PRIMARY KEY (notice_id, channel)
        );
        CREATE INDEX notice_delivery_due ON notice_delivery (due_at) WHERE due_at IS NOT NULL;

        CREATE INDEX production_event_worth_a_notice ON production_event (id)
            WHERE event IN ('held', 'scrapped', 'rolled_back') OR reason = 'APPROVAL_WAITING';
        -- Nobody is told of what happened before there were notices
        INSERT INTO notice_event (event_id)
            SELECT id FROM production_event
            WHERE event IN ('held', 'scrapped', 'rolled_back') OR reason = 'APPROVAL_WAITING';
        """
    )


def downgrade() -> None:
    raise NotImplementedError("the production record is append-only: it is never migrated down")
