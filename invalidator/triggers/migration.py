"""An installation as a migration for other tools: text, made without a connection, the same each time.

It is the query of `sql/plan.sql` in an anonymous block that executes its rows. So it installs what a direct install
does: it reads keys, types and partitions from the database in which it runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

from psycopg import sql

from invalidator.core.rules.ruleset import RuleSet
from invalidator.postgres.connections import OLDEST_VERSION
from invalidator.triggers.spec import Installation, setting
from invalidator.triggers.sql import load, plan

_NOT_PRUNED: Final = "state is distinct from 'orphaned'"

_ALEMBIC = '''"""{title}"""

from alembic import op
from sqlalchemy import text

revision = "{revision}"
down_revision = None  # write here the revision that makes the tables
branch_labels = None
depends_on = None

UPGRADE = {up}

DOWNGRADE = {down}


def upgrade():
    op.execute(text(UPGRADE.replace(":", "\\\\:")))  # no colon in it names a parameter


def downgrade():
    op.execute(text(DOWNGRADE.replace(":", "\\\\:")))
'''

_DJANGO = '''"""{title}"""

from django.db import migrations

UPGRADE = {up}

DOWNGRADE = {down}


class Migration(migrations.Migration):
    dependencies = []  # write here the migration that makes the tables, like ("shop", "0001_initial")
    operations = [migrations.RunSQL(UPGRADE, DOWNGRADE)]
'''


def migration(sql_format: str, installation: Installation, rules: RuleSet, *, prune: bool) -> str:
    """The migration in one of the formats."""
    up = _block(plan(), setting(installation, rules, prune=prune), installation, "true" if prune else _NOT_PRUNED)
    return _FORMATS[sql_format](
        f"The triggers of the installation {installation.name}, for invalidator.", up, _down(installation)
    )


def removal(installation: Installation) -> str:
    """The script for psql that removes the installation."""
    return _psql(f"Removes the installation {installation.name} of invalidator.", _down(installation), "")


def _down(installation: Installation) -> str:
    return _block(load("uninstall"), setting(installation, RuleSet([], [])), installation, "true")


def _block(rows: str, plan_setting: str, installation: Installation, when: str) -> str:
    tag = "$invalidator_migration$"
    while tag in plan_setting:
        tag = f"{tag[:-1]}_$"
    blanks = {
        "tag": tag,
        "oldest": str(OLDEST_VERSION * 10_000),
        "schema": sql.Literal(installation.schema).as_string(None),
        "when": when,
        "rows": rows.rstrip(),
        "setting": sql.Literal(plan_setting).as_string(None),
    }
    before, *rest = load("migration").split("{")
    parts = [before]
    for part in rest:
        name, _, after = part.partition("}")
        parts += [blanks[name], after]
    return "".join(parts)


def _psql(title: str, up: str, _down: str) -> str:
    return f"-- {title}\n\\set ON_ERROR_STOP on\nbegin;\n{up}commit;\n"


def _dbmate(title: str, up: str, down: str) -> str:
    return f"-- {title}\n-- migrate:up\n{up}\n-- migrate:down\n{down}"


def _alembic(title: str, up: str, down: str) -> str:
    revision = hashlib.sha256(up.encode()).hexdigest()[:12]
    return _ALEMBIC.format(title=title, revision=revision, up=_literal(up), down=_literal(down))


def _django(title: str, up: str, down: str) -> str:
    return _DJANGO.format(title=title, up=_literal(up), down=_literal(down))


def _literal(text: str) -> str:
    """A Python literal: a raw one over many lines, unless the text needs escapes."""
    return repr(text) if '"""' in text else f'r"""\n{text}"""'


_FORMATS: Final[dict[str, Callable[[str, str, str], str]]] = {
    "psql": _psql,
    "alembic": _alembic,
    "django": _django,
    "dbmate": _dbmate,
}
