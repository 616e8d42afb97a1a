"""Parses queries with Lucene's flexible StandardSyntaxParser, which REGARDS uses.

``python tests/lucene_trees.py`` writes data/lucene_trees.json: each query with the tree that the
parser of Lucene 8 makes of it, or "error". It needs Java and Lucene:
``sudo apt-get install default-jdk-headless liblucene8-java``. The tests read the file alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from datetime import UTC, date, datetime
from pathlib import Path

from regards_nb import queries

FILE = Path(__file__).parent / "data" / "lucene_trees.json"
_JARS = "/usr/share/java"

#: Queries as regards_nb writes them.
WRITTEN = [
    queries.term("label", 'a "b" \\ (c) [d] {e} /f/ ~ * ? : ! + - && || AND OR NOT été'),
    queries.between("cycle", -5, None),
    queries.between("height", None, 1.5e-7),
    queries.between("time", date(2026, 1, 1), datetime(2026, 1, 31, 12, tzinfo=UTC)),
    queries.both("cycle:7", queries.term("label", "x"), "pass:1 OR pass:2"),
    queries.either(queries.between("cycle", 1, 2), "NOT pass:3", "label:a*b"),
    queries.without("cycle:7", "pass:1", "label:/a b/"),
    *queries.provider_ids(["A_1", 'B "2"', "c\\"]),
    *queries.urns(["URN:AIP:DATA:swot:0a1b:V1", "URN:AIP:DATA:swot:0a1c:V1"]),
]
#: The grammar, case by case.
GRAMMAR = [
    "a",
    "a b",
    'a:"x" b:"y"',
    "a AND b",
    "a && b",
    "a OR b",
    "a || b",
    "a AND b OR c",
    "a OR b AND c",
    "a && b || c",
    "a AND b AND c",
    "(a AND b) OR c",
    "a AND (b OR c)",
    "a AND (b OR c AND d)",
    "f:(a OR b) AND g:c",
    "f:(a b)",
    "f: (a OR b) OR g: c",
    "NOT a",
    "NOT a AND b",
    "a NOT b",
    "a AND NOT b",
    "a AND NOT b OR c",
    "NOT (a OR b) AND f:(c) OR d",
    "-a AND b",
    "+a -b",
    "-(a OR b) AND c",
    "!a OR b",
    "f:[1 TO 2] AND g:{1 TO 2}",
    "f:[1 TO 2] g:2",
    'f:["2026-01-01T00:00:00Z" TO *] OR a',
    "f:/a b/ OR g:/c (d/",
    "f:/a b/ g:c",
    'f:"a AND b OR c"',
    'f:"a (b" AND c',
    'f:"a \\" b" AND c',
    "f:a\\ b",
    "f:a\\ b AND c",
    "f:a\\:b OR c",
    "a* OR ?b",
    "andes OR orbit",
    "a AND",
    "OR a",
    "a AND OR b",
    "(a",
    "a) OR b",
    'f:"a',
    "()",
]

_JAVA = """
import java.io.*;
import org.apache.lucene.queryparser.flexible.core.nodes.*;
import org.apache.lucene.queryparser.flexible.standard.parser.StandardSyntaxParser;
public class Trees {
  public static void main(String[] none) throws Exception {
    BufferedReader in = new BufferedReader(new InputStreamReader(System.in, "UTF-8"));
    PrintStream out = new PrintStream(System.out, true, "UTF-8");
    for (String query; (query = in.readLine()) != null; ) {
      String tree;
      try { tree = tree(new StandardSyntaxParser().parse(query, "")); }
      catch (Exception | Error error) { tree = "error"; }
      out.println(tree);
    }
  }
  static String tree(QueryNode node) {
    String name = node.getClass().getSimpleName().replace("QueryNode", "");
    if (node.isLeaf() || node.getChildren() == null) return name;
    StringBuilder text = new StringBuilder(name).append("(");
    for (QueryNode child : node.getChildren()) text.append(tree(child)).append(" ");
    return text.toString().trim() + ")";
  }
}
"""


def trees(texts: list[str]) -> dict[str, str]:
    """Return the tree of each query."""
    jars = sorted(map(str, Path(_JARS).glob("lucene-*-8.*.jar")))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "Trees.java")
        source.write_text(_JAVA)
        done = subprocess.run(
            ["java", "-cp", ":".join(jars), str(source)],
            input="\n".join(texts) + "\n",
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=True,
        )
    return dict(zip(texts, done.stdout.splitlines(), strict=True))


if __name__ == "__main__":
    _JARS = sys.argv[1] if len(sys.argv) > 1 else _JARS
    found = trees([*WRITTEN, *GRAMMAR])
    FILE.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
