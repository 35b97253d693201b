"""What the factory floor asks: the newest ends of a station, what waits for a person, work done, and a run's units."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute(
        """
        CREATE INDEX production_event_ends ON production_event (line, station, id)
            WHERE event IN ('passed', 'reworked', 'promoted', 'failed', 'held', 'scrapped', 'rolled_back')
            AND unit_kind IN ('batch', 'model', 'predictions', 'window');
        CREATE INDEX production_event_windows ON production_event (line, id)
            WHERE station = 'feedback' AND unit_kind = 'window' AND event IN ('passed', 'reworked');
        CREATE INDEX production_event_stops ON production_event (at, line)
            WHERE event IN ('failed', 'held', 'rolled_back');
        CREATE INDEX production_event_starts ON production_event (at, line) WHERE event = 'started';
        CREATE INDEX production_event_acknowledged ON production_event ((detail ->> 'acknowledges'))
            WHERE event = 'acknowledged';
        CREATE INDEX production_event_by_run ON production_event (line, run_id) WHERE run_id <> '';
        CREATE INDEX production_event_steps ON production_event (at, line) INCLUDE (unit, run_id)
            WHERE station = 'deploy' AND event = 'decided' AND detail ? 'stage';
        CREATE INDEX production_event_work ON production_event (at) INCLUDE (
            line, station, unit_kind, unit, event, reason, id, duration_s, gpu_s, energy_kwh, money, num_good
        ) WHERE event IN ('passed', 'reworked', 'promoted', 'failed', 'held', 'scrapped', 'rolled_back')
            OR duration_s > 0;
        -- an index alone answers where pages are known to be visible to all: vacuum says so, of new rows too
        ALTER TABLE production_event SET (
            autovacuum_vacuum_insert_threshold = 10000, autovacuum_vacuum_insert_scale_factor = 0
        );
        """
    )


def downgrade() -> None:
    raise NotImplementedError("the production record is append-only: it is never migrated down")
