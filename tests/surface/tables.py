"""What `bcs db upgrade` makes in PostgreSQL, as PostgreSQL itself describes it; and rows in it."""

from __future__ import annotations

import json
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import asyncpg

from tests.surface.facts import lines_of
from tests.surface.placeholders import Placeholders

_COLUMNS = """
SELECT 'table ' || c.relname || ': column ' || lpad(a.attnum::text, 2, '0') || ' ' || a.attname || ' '
    || format_type(a.atttypid, a.atttypmod)
    || CASE WHEN a.attnotnull THEN ', not null' ELSE '' END
    || CASE WHEN a.attidentity <> '' THEN ', identity ' || a.attidentity::text ELSE '' END
    || coalesce(', default ' || pg_get_expr(d.adbin, d.adrelid), '')
    || coalesce(', collation ' || nullif(o.collname, 'default'), '')
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
LEFT JOIN pg_collation o ON o.oid = a.attcollation
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
"""
_RELATIONS = """
SELECT CASE relkind WHEN 'r' THEN 'table ' WHEN 'v' THEN 'view ' WHEN 'S' THEN 'sequence ' ELSE relkind::text || ' ' END
    || relname || ': there' || coalesce(', with ' || array_to_string(reloptions, ', '), '')
FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind NOT IN ('i', 'I', 't')
"""
_INDEXES = "SELECT 'table ' || tablename || ': index ' || indexdef FROM pg_indexes WHERE schemaname = 'public'"
_CONSTRAINTS = """
SELECT 'table ' || conrelid::regclass::text || ': constraint ' || conname || ' ' || pg_get_constraintdef(oid)
FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
"""
_FUNCTIONS = r"""
SELECT 'function ' || p.oid::regprocedure::text || ': ' || regexp_replace(pg_get_functiondef(p.oid), '\s+', ' ', 'g')
FROM pg_proc p WHERE pronamespace = 'public'::regnamespace
"""
_TRIGGERS = "SELECT 'trigger ' || pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal"
_TYPES = """
SELECT 'type ' || typname FROM pg_type t WHERE typnamespace = 'public'::regnamespace AND typtype IN ('e', 'd')
"""
_EXTENSIONS = "SELECT 'extension ' || extname FROM pg_extension WHERE extname <> 'plpgsql'"
_ASKED = (_COLUMNS, _RELATIONS, _INDEXES, _CONSTRAINTS, _FUNCTIONS, _TRIGGERS, _TYPES, _EXTENSIONS)


async def facts_of_schema(url: str) -> list[str]:
    """A line for each thing in the schema."""
    connection = await asyncpg.connect(url)
    try:
        lines = [line for question in _ASKED for (line,) in await connection.fetch(question)]
        [version] = [
            name
            for (name,) in await connection.fetch(
                "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename ~ 'version'"
            )
        ]
        lines.append(f"table {version}: says {await connection.fetchval(f'SELECT * FROM {version}')}")  # noqa: S608
    finally:
        await connection.close()
    return sorted(lines)


async def facts_of_rows(url: str, words: Placeholders) -> list[str]:
    """Lines for each row, in an order that does not depend on when it was written."""
    connection = await asyncpg.connect(url)
    try:
        names = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename")
        lines: list[str] = []
        for (table,) in names:
            rows = await connection.fetch(f'SELECT * FROM "{table}"')  # noqa: S608 (names of our own tables)
            documents = sorted(_document(row, words) for row in rows)
            for number, document in enumerate(documents):
                lines += lines_of(f"{table} {number}", json.loads(document))
    finally:
        await connection.close()
    return lines


def _document(row: Any, words: Placeholders) -> str:
    return json.dumps({name: _value(name, value, words) for name, value in row.items()})


def _value(name: str, value: object, words: Placeholders) -> object:
    if name in _OF_THE_DATABASE:
        return f"<{name}>"
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, datetime | date):
        return words.text(f"{value.isoformat()}") if isinstance(value, datetime) else "<day>"
    if isinstance(value, Decimal):
        return int(value)
    if isinstance(value, str) and value[:1] in ("{", "["):
        return words.document(json.loads(value))
    return words.document(value if isinstance(value, int | None) else str(value), name)


_OF_THE_DATABASE = frozenset({"batch_key", "number", "announcement_id", "entry_id"})
"""Counted up by the database, or made of a position in Kafka."""
