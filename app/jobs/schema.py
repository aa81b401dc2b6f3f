"""The tables, and how the file that holds them is opened."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from ..faults import refuse

VERSION = 1

TABLES = """
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    task TEXT NOT NULL,
    state TEXT NOT NULL
        CHECK (state IN ('queued', 'running', 'interrupted', 'completed', 'failed', 'cancelled')),
    held INTEGER NOT NULL DEFAULT 0,            -- paused: not to be claimed
    wanted TEXT NOT NULL DEFAULT '',            -- what a running job is asked for: cancel or pause
    priority INTEGER NOT NULL DEFAULT 0,        -- higher runs earlier
    place REAL NOT NULL,                        -- order within a priority
    device TEXT NOT NULL,                       -- what the request asks for
    phase TEXT NOT NULL DEFAULT '',
    step INTEGER NOT NULL DEFAULT 0,
    steps INTEGER NOT NULL DEFAULT 0,
    previews INTEGER NOT NULL DEFAULT 0,        -- counts up as preview.png is replaced
    created REAL NOT NULL,                      -- seconds since 1970
    started REAL,
    finished REAL,
    attempts INTEGER NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT '',
    summary TEXT NOT NULL,
    runner TEXT NOT NULL DEFAULT '',            -- whoever claimed it
    runs_on TEXT NOT NULL DEFAULT '',           -- the runner's device
    advances INTEGER NOT NULL DEFAULT 0,        -- checkpoints and results so far
    fallen INTEGER NOT NULL DEFAULT -1,         -- advances when the process last died
    strikes INTEGER NOT NULL DEFAULT 0          -- deaths in a row without an advance
);
CREATE TABLE requests (                         -- apart, so that lists need not read past them
    job INTEGER PRIMARY KEY REFERENCES jobs (id),
    request TEXT NOT NULL,                      -- JSON
    folder TEXT NOT NULL,                       -- what relative paths of the request are relative to
    words TEXT NOT NULL                         -- what a search looks in
);
CREATE INDEX jobs_queue ON jobs (priority DESC, place) WHERE state IN ('queued', 'interrupted');
CREATE INDEX jobs_state ON jobs (state, id);
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    job INTEGER NOT NULL REFERENCES jobs (id),
    time REAL NOT NULL,
    kind TEXT NOT NULL,
    data TEXT NOT NULL                          -- JSON
);
CREATE INDEX events_job ON events (job, id);
CREATE TABLE artifacts (
    job INTEGER NOT NULL REFERENCES jobs (id),
    name TEXT NOT NULL,
    hash TEXT NOT NULL,                         -- SHA-256 of the bytes
    suffix TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    media TEXT NOT NULL,
    record TEXT NOT NULL,                       -- JSON: how it was made
    about TEXT NOT NULL,                        -- JSON: seed, seconds ...
    created REAL NOT NULL,
    PRIMARY KEY (job, name)
);
CREATE INDEX artifacts_hash ON artifacts (hash);
"""


def connect(file: Path) -> sqlite3.Connection:
    """The database, made if it is not there. Transactions are begun by hand: each is one change and its event."""
    file.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(file, timeout=30, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        _migrate(db, file)
    except sqlite3.DatabaseError as error:
        db.close()
        raise refuse("jobs", str(file), f"can't be opened ({error}); move it away to begin anew") from error
    return db


def _migrate(db: sqlite3.Connection, file: Path) -> None:
    if _version(db) < VERSION:
        db.execute("BEGIN IMMEDIATE")
        try:
            if _version(db) == 0:  # else another process was first
                for statement in TABLES.split(";\n"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {VERSION}")
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")
    if _version(db) > VERSION:
        raise refuse("jobs", str(file), "was made by a newer sfumato; update sfumato")


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])
