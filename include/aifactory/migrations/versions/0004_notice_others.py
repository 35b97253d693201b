"""Notices: how many units more of the same run one notice stands for."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.execute("ALTER TABLE notice ADD num_others bigint NOT NULL DEFAULT 0 CHECK (num_others >= 0)")


def downgrade() -> None:
    raise NotImplementedError("the production record is append-only: it is never migrated down")
