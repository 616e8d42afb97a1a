"""The documentation is current and complete, and its commands work."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pika
import pytest
import yaml
from conftest import until
from erlang import evaluate
from strategies import delivery

import regards_nb
from regards_nb import OrderTracker, RegardsClient, frames
from regards_nb.errors import BrokerAccessError
from regards_nb.events import VHOST
from regards_nb.journal import Journal
from regards_nb.simulator import PrivateBroker, Simulator

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
#: The known hosts; "regards.example" is a reserved name.
HOSTS = {
    "keepachangelog.com",
    "regards.example",
    "regardsoss.github.io",
    "semver.org",
    "voila.readthedocs.io",
}
#: What a reader sets and does not follow; the address of a proxy is http.
ADDRESSES_TO_SET = {"proxy.example", "localhost", "127.0.0.1"}
PASSWORD = "a-long-password"
LINES = re.MULTILINE | re.DOTALL


def module(name: str) -> Any:
    """Load a module of the folder docs, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def fences(page: Path, language: str) -> list[str]:
    """Return the blocks of a page in one language."""
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def test_generated_pages_are_current() -> None:
    """The generated files equal a new generation; if not, run python docs/generate.py."""
    generate = module("generate")
    for name, text in generate.contents().items():
        assert (DOCS / "generated" / name).read_text(encoding="utf-8") == text, name


def test_every_citation_of_the_protocol_leads_somewhere() -> None:
    """Each section that the code cites, as in "protocol.md 1.3", exists."""
    text = (DOCS / "protocol.md").read_text(encoding="utf-8")
    sections = dict(
        re.findall(r"^###? (\d(?:\.\d)?)\.? .*?\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
    )
    cited = set()
    for source in [*ROOT.glob("regards_nb/**/*.py"), *ROOT.glob("tests/*.py")]:
        found = re.findall(r"protocol\.md\s(\d)(?:\.(\d))?(?:, (\d)\b(?!\.))?", source.read_text())
        cited.update(found)
    assert len(cited) > 10
    for part, second, third in cited:
        # 0.7 is a point of section 0; 1.3 is a section, and "1.0, 5" a point of one
        name = part if part == "0" or not second else f"{part}.{second}"
        point = second if part == "0" else third
        assert name in sections or any(s.startswith(f"{name}.") for s in sections), name
        if point:
            assert re.search(rf"^{point}\. ", sections[name], re.MULTILINE), f"{name}, {point}"


def test_the_journeys_lead_through_functions_that_exist() -> None:
    """Each step of a journey names a file and a function in it; a journey has at most 12 steps."""
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    journeys = re.findall(r"^\*\*A .*?(?=^\*\*A |^## )", text, re.MULTILINE | re.DOTALL)
    assert len(journeys) == 3
    for journey in journeys:
        steps = re.findall(r"^\d+\. `([\w/]+\.py)` `(\w+)`", journey, re.MULTILINE)
        assert 5 <= len(steps) == len(re.findall(r"^\d+\.", journey, re.MULTILINE)) <= 12
        for file, function in steps:
            source = (ROOT / "regards_nb" / file).read_text(encoding="utf-8")
            assert re.search(rf"^\s*def {function}\(", source, re.MULTILINE), f"{file}: {function}"


def test_every_public_name_is_in_the_reference() -> None:
    """The page on the API has each name of `__all__` and the whole tree of errors."""
    reference = (DOCS / "api.md").read_text(encoding="utf-8")
    for name in set(regards_nb.__all__) - {"RegardsError"}:
        assert re.search(rf"\.{name}\b|autoclass:: {name}\b", reference), name
    assert "automodule:: regards_nb.errors" in reference


@pytest.mark.parametrize("frame", ["events", "orders", "files", "rejected"])
def test_each_column_is_explained(frame: str) -> None:
    """Each column has one line of meaning, in the reference and in the property's docstring."""
    columns = getattr(frames, f"{frame.rstrip('s').upper()}_COLUMNS")
    page = (DOCS / "generated" / "columns.md").read_text(encoding="utf-8")
    help_text = inspect.getdoc(getattr(OrderTracker, frame))
    for name, info in columns.items():
        assert f"| `{name}` | {info.dtype} | {info.meaning} |" in page
        assert f"{name} : {info.dtype}\n    {info.meaning}" in help_text
        assert 10 < len(info.meaning) < 70


def test_the_page_on_frames_does_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code of the page runs without changes, block by block."""
    monkeypatch.chdir(tmp_path)
    with Journal(tmp_path / "journal.sqlite") as journal:
        body = {"status": "GRANTED", "orderId": 5, "correlationId": "c"}
        journal.append(journal.open_session("q"), [delivery(body), delivery(b"poison")])
    client = RegardsClient("https://nowhere.invalid", tenant="tenant", username="u", password="p")
    names: dict[str, Any] = {"tracker": OrderTracker(client=client, journal="journal.sqlite")}
    for block in fences(DOCS / "frames.md", "python"):
        exec(compile(block, "frames.md", "exec"), names)  # noqa: S102 - our own page
    assert len(list(tmp_path.glob("orders.*"))) == 5
    assert len(list(tmp_path.glob("export/*"))) == 8


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_python_in_the_pages_is_python(page: Path) -> None:
    """Each block parses; names of regards_nb in it exist."""
    for block in fences(page, "python"):
        tree = ast.parse(block, mode="exec", type_comments=False)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("regards_nb"):
                loaded = importlib.import_module(node.module or "")
                assert all(hasattr(loaded, alias.name) for alias in node.names)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                owner = {"tracker": OrderTracker, "order": regards_nb.Order}.get(node.value.id)
                assert owner is None or hasattr(owner, node.attr), node.attr


def test_links_out_of_the_documentation_are_sound() -> None:
    """Each link is https, has no user name or stray character, and goes to a known host.

    The tests run without internet, so they cannot check that the page exists.
    """
    texts = [*PAGES, *ROOT.glob("*.md"), *ROOT.glob("notebooks/*.ipynb")]
    texts += [ROOT / "CITATION.cff", ROOT / "pyproject.toml"]
    found = {
        link
        for text in texts
        for link in re.findall(
            r"https?://[^\s<>()\[\]\"'`|\\,;]+", text.read_text(encoding="utf-8")
        )
    }
    assert len(found) > 3
    for link in found:
        parts = urlsplit(link)
        if parts.hostname in ADDRESSES_TO_SET:
            continue
        assert parts.scheme == "https", link
        assert parts.username is None, link
        assert parts.hostname in HOSTS, link
        assert re.fullmatch(r"[\w./#~-]*", parts.path + parts.fragment), link


@pytest.fixture
def node(broker: PrivateBroker) -> Iterator[PrivateBroker]:
    """Return the node of the session, and remove afterwards what other tests must not see."""
    yield broker
    evaluate(broker, f'rabbit_policy:delete(<<"{VHOST}">>, <<"orders-limit">>, <<"tests">>)')
    with pika.BlockingConnection(pika.URLParameters(broker.admin_url)) as connection:
        for queue in ("orders.jane", "orders.jim"):
            connection.channel().queue_delete(queue)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_administrators_page_makes_a_queue_that_a_tracker_can_read(
    node: PrivateBroker, tmp_path: Path
) -> None:
    """The commands of the page make a queue whose messages reach a DataFrame, and remove it."""
    page = DOCS / "administrators.md"
    (definitions,) = fences(page, "json")
    (tmp_path / "orders.jane.json").write_text(definitions)
    commands = [line for block in fences(page, "sh") for line in block.splitlines()]
    making = [each for each in commands if " delete_" not in each]
    for command in making:
        administer(node, command, tmp_path)
    # the other kind of queue that the page names
    quorum = definitions.replace("classic", "quorum").replace("orders.jane", "orders.jim")
    (tmp_path / "orders.jim.json").write_text(quorum)
    administer(node, "rabbitmqctl import_definitions orders.jim.json", tmp_path)
    columns = "--vhost regards.multitenant.manager name type policy"
    said = administer(node, f"rabbitmqctl list_queues {columns}", tmp_path)
    found = {tuple(line.split()) for line in said.splitlines()}
    assert {
        ("orders.jane", "classic", "orders-limit"),
        ("orders.jim", "quorum", "orders-limit"),
    } <= found
    jane_exists = 'rabbit_auth_backend_internal:exists(<<"jane">>)'
    assert evaluate(node, jane_exists) == "true"

    sim = Simulator(broker=node, tenant="project1").start()
    url = f"amqp://jane:{PASSWORD}@127.0.0.1:{node.amqp_port}/regards.multitenant.manager"
    journal = tmp_path / "journal.sqlite"
    with OrderTracker(url, "orders.jane", tenant="project1", journal=journal) as tracker:
        sim.order_by_query("dataset:SWOT_PASS_012")
        until(lambda: "DONE" in set(tracker.events["status"]))
    sim.stop()
    for command in commands[len(making) :]:
        administer(node, command, tmp_path)
    assert evaluate(node, jane_exists) == "false"


def test_the_inventory_makes_a_queue_that_a_tracker_can_read_and_order_with(
    node: PrivateBroker, tmp_path: Path
) -> None:
    """The YAML of the page, given to RabbitMQ as its definitions: messages and orders pass."""
    page = DOCS / "administrators.md"
    (written,) = fences(page, "yaml")
    inventory = yaml.safe_load(written)
    (reader,) = inventory["additional_users"]
    (permission,) = inventory["user_permissions"]
    reader["password"] = PASSWORD
    definitions = {
        "users": [reader],
        "permissions": [permission],
        "queues": inventory["additional_queues"],
        "bindings": inventory["additional_bindings"],
    }

    def deploy() -> None:
        (tmp_path / "inventory.json").write_text(json.dumps(definitions))
        administer(node, "rabbitmqctl import_definitions inventory.json", tmp_path)

    deploy()
    url = f"amqp://jane:{PASSWORD}@127.0.0.1:{node.amqp_port}/regards.multitenant.manager"
    with (
        Simulator(broker=node, tenant="project1", amqp_requests=True) as sim,
        OrderTracker(url, "orders.jane", tenant="project1", journal=tmp_path / "j") as tracker,
    ):
        sim.order_by_query("dataset:SWOT_PASS_012")
        until(lambda: "DONE" in set(tracker.events["status"]))
        order: Any = {"user": sim.username, "cart": "include", "correlation_id": "by jane"}
        with pytest.raises(BrokerAccessError, match="write permission"):
            tracker.submit("dataset:SWOT_PASS_012", **order)
        (permission["write"],) = re.findall(
            r"`write: \"(.*OrderRequestDtoEvent\$)\"`", page.read_text()
        )
        permission["write"] = yaml.safe_load(f'"{permission["write"]}"')
        deploy()
        assert tracker.submit("dataset:SWOT_PASS_012", **order).order_id == 2
    administer(node, "rabbitmqctl delete_user jane", tmp_path)


def administer(node: PrivateBroker, command: str, folder: Path) -> str:
    """Run one command of the page on the node and return its output."""
    program, *arguments = shlex.split(command)
    assert program == "rabbitmqctl"
    done = subprocess.run(
        # not --quiet: with it RabbitMQ 4's does not read the password
        [str(node._installation.ctl), *arguments],
        env=node._environment,
        cwd=folder,
        # what add_user asks for
        input=f"{PASSWORD}\n",
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout
