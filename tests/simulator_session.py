"""A plain REST client for the tests of the simulator, knowing nothing of regards_nb's own."""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING, Any, Self

import requests

if TYPE_CHECKING:
    from regards_nb.simulator import Simulator

TOKEN_PATH = "/api/v1/rs-authentication/oauth/token"
ORDERS_PATH = "/api/v1/rs-order/user/orders"
FILES_PATH = "/api/v1/rs-order/orders"


class Session:
    """One logged-in user."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.http = requests.Session()
        self.http.trust_env = False

    def __enter__(self) -> Self:
        self.login()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def login(self) -> dict[str, Any]:
        """Log in; later requests carry the token."""
        answer = self.ask_token()
        assert answer.status_code == 200, answer.text
        token: dict[str, Any] = answer.json()
        self.http.headers["Authorization"] = f"Bearer {token['access_token']}"
        return token

    def ask_token(self, **changes: str) -> requests.Response:
        """Ask for a token, with changes to what is right."""
        sim = self.simulator
        body = {
            "username": sim.username,
            "password": sim.password,
            "grant_type": "password",
            "scope": sim.tenant,
        }
        secret = changes.pop("client_secret", sim.client_secret)
        return requests.post(
            sim.base_url + TOKEN_PATH,
            params={"scope": sim.tenant},
            json=body | changes,
            auth=(sim.client_id, secret),
            timeout=30,
        )

    def send(self, method: str, path: str, **more: Any) -> requests.Response:
        """Send any request."""
        return self.http.request(method, self.simulator.base_url + path, timeout=30, **more)

    def get(self, path: str, **more: Any) -> requests.Response:
        """Send a GET."""
        return self.send("GET", path, **more)

    def apply(self, *queries: str, **more: Any) -> requests.Response:
        """Ask for an order."""
        return self.send("POST", f"{ORDERS_PATH}/apply", json={"queries": list(queries), **more})

    def order(self, order_id: int) -> dict[str, Any]:
        """Return the OrderDto."""
        content: dict[str, Any] = self.get(f"{ORDERS_PATH}/{order_id}").json()["content"]
        return content

    def actions(self, order_id: int) -> set[str]:
        """Return the relations of the order's links."""
        return {link["rel"] for link in self.get(f"{ORDERS_PATH}/{order_id}").json()["links"]}

    def available(self, order_id: int, **query: int) -> list[dict[str, Any]]:
        """Return the lines of the manifest."""
        answer = self.get(
            f"{FILES_PATH}/{order_id}/files/available", params={"size": 1000, **query}
        )
        return [item["content"] for item in answer.json()["content"]]

    def states(self, order_id: int) -> list[str]:
        """Return the state of each file of the order."""
        dataset_id = self.order(order_id)["datasetTasks"][0]["id"]
        answer = self.get(
            f"{FILES_PATH}/{order_id}/dataset/{dataset_id}/files", params={"size": 1000}
        )
        return [item["content"]["state"] for item in answer.json()["content"]]

    def zip(self, order_id: int) -> requests.Response:
        """Fetch the zip."""
        return self.get(f"{ORDERS_PATH}/{order_id}/download")

    def entries(self, order_id: int) -> dict[str, bytes]:
        """Fetch the zip and return its entries; the names as ``zipfile`` reads them."""
        answer = self.zip(order_id)
        assert answer.status_code == 200, answer.status_code
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            assert archive.testzip() is None
            return {item.filename: archive.read(item) for item in archive.infolist()}

    def file(self, file_id: int) -> requests.Response:
        """Fetch one file."""
        return self.get(f"{FILES_PATH}/files/{file_id}")
