#!/bin/bash
# pandas 3.0.0: a date as text, compared with a column that has a time zone.
# Outside of query() pandas gives the text the zone of the column, and "2026-01-31" works. Inside
# query() and eval() the text becomes a time without a zone first, and the comparison raises. The
# text must carry the zone itself, and then also an hour: "2026-01-31T00Z" works, "2026-01-31Z" is
# no date to pandas.
# It matters because a condition that was tried outside fails when it is written into query(), and
# the error speaks of dtypes and not of the missing zone. tracker.events has such columns, so the
# page on frames shows the form that works.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pandas==3.0.0 numpy==2.4.0
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import pandas as pd

frame = pd.DataFrame({"at": pd.to_datetime(["2026-01-30", "2026-02-01"], utc=True)})


def rows(select):
    try:
        return len(select())
    except Exception as error:  # the kind of error is the result
        return type(error).__name__


seen = {
    "frame[frame['at'] >= '2026-01-31']": rows(lambda: frame[frame["at"] >= "2026-01-31"]),
    "query(\"at >= '2026-01-31'\")": rows(lambda: frame.query("at >= '2026-01-31'")),
    "query(\"at >= '2026-01-31Z'\")": rows(lambda: frame.query("at >= '2026-01-31Z'")),
    "query(\"at >= '2026-01-31T00Z'\")": rows(lambda: frame.query("at >= '2026-01-31T00Z'")),
}
print("pandas", pd.__version__)
for what, found in seen.items():
    print(f"{what:40} {found}")
sys.exit(list(seen.values()) != [1, "TypeError", "DateParseError", 1])
PYTHON
