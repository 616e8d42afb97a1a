"""The catalogue of the demo archive: data sets, products with their files, and what an order has.

A product is found by the fixed fields of REGARDS (``id``, ``providerId``, ``tags``, ...) and by the
attributes of the demo's model (``dataset``, ``cycle``, ``pass``, ``date_obs``, ...); see
:mod:`regards_nb.simulator.query` for the language.
"""

from __future__ import annotations

import uuid
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from regards_nb.simulator.faults import MissingEntry, StagingError, StorageRefuses, TruncatedEntry
from regards_nb.simulator.plans import FileSpec, OrderPlan, Outcome, noise, quicklook, sea_level
from regards_nb.simulator.query import FieldType, criterion
from regards_nb.simulator.server import iso_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from regards_nb.simulator.faults import Fault

Json = dict[str, Any]

MODEL = "SWOT_PRODUCT"
#: The fields that every catalogue of REGARDS has.
_FIXED_FIELDS = {
    "id": FieldType.STRING,
    "providerId": FieldType.STRING,
    "label": FieldType.STRING,
    "model": FieldType.STRING,
    "version": FieldType.INTEGER,
    "last": FieldType.BOOLEAN,
    "virtualId": FieldType.STRING,
    "tags": FieldType.STRING_ARRAY,
    "rawdata": FieldType.STRING_ARRAY,
    "_creationDate": FieldType.DATE,
    "_lastUpdate": FieldType.DATE,
}
#: The attributes of the products, with their labels.
ATTRIBUTES = {
    "dataset": (FieldType.STRING, "Data set"),
    "observatory": (FieldType.STRING, "Observatory"),
    "instrument": (FieldType.STRING, "Instrument"),
    "cycle": (FieldType.INTEGER, "Cycle"),
    "pass": (FieldType.INTEGER, "Pass"),
    "date_obs": (FieldType.DATE, "Start of the observation"),
    "date_end": (FieldType.DATE, "End of the observation"),
    "mean_sea_level_m": (FieldType.DOUBLE, "Mean sea level (m)"),
}
_FIELDS = _FIXED_FIELDS | {name: kind for name, (kind, _) in ATTRIBUTES.items()}

_CREATED = datetime(2026, 1, 1, tzinfo=UTC)
_NAMESPACE = uuid.UUID("6f1f5a52-9d0c-4f0e-8f0a-3f8a9f6f2b11")
_ROWS_PER_PASS = 3_000
#: GeoJSON of something without a place.
_NOWHERE: Json = {"type": "Feature", "crs": "WGS84", "geometry": {"type": "Unlocated"}}


@dataclass(kw_only=True, eq=False)
class Product:
    """One product of the catalogue; one that is not *online* can only be ordered or restored."""

    provider_id: str
    dataset: DataSet = field(repr=False)
    files: tuple[FileSpec, ...]
    attributes: Json
    online: bool = True

    @cached_property
    def urn(self) -> str:
        """The URN of the product."""
        return _urn("DATA", self.dataset.tenant, self.provider_id)

    @cached_property
    def values(self) -> Json:
        """The value of each field, for queries."""
        return {
            **_identity(self.urn, self.provider_id, MODEL),
            "virtualId": self.urn.replace(":V1", ":LAST"),
            "tags": (self.dataset.urn,),
            "rawdata": tuple(file.name for file in self.files if file.data_type == "RAWDATA"),
            "_creationDate": _CREATED,
            "_lastUpdate": _CREATED,
            **self.attributes,
        }

    def feature(self, host: str) -> Json:
        """Return the product as the search endpoints show it."""
        properties = {
            name: iso_time(value) if isinstance(value, datetime) else value
            for name, value in self.attributes.items()
        }
        files: dict[str, list[Json]] = {}
        for file in self.files:
            files.setdefault(_kind(file), []).append(self._file(file, host))
        return {
            "entityType": "DATA",
            **_identity(self.urn, self.provider_id, MODEL),
            "virtualId": self.values["virtualId"],
            "tags": [self.dataset.urn],
            **_NOWHERE,
            "properties": properties,
            "files": files,
        }

    def _file(self, file: FileSpec, host: str) -> Json:
        md5 = file.source.md5
        return {
            "dataType": _kind(file),
            "reference": file.reference,
            "uri": f"{host}/api/v1/rs-catalog/downloads/{self.urn}/files/{md5}",
            "mimeType": file.mime_type,
            "filename": file.name,
            "filesize": file.source.size_bytes,
            "digestAlgorithm": "MD5",
            "checksum": md5,
            "online": self.online,
        }


@dataclass(kw_only=True, eq=False)
class DataSet:
    """A data set, and how REGARDS treats orders of its products.

    Every order of one of its products contains its *documents*, also where filters exclude them.
    With a *licence*, a download without ``acceptLicense=true`` is refused with 423.
    """

    name: str
    tenant: str
    description: str = ""
    products: tuple[Product, ...] = ()
    documents: tuple[FileSpec, ...] = ()
    files_per_suborder: int = 2
    outcome: Outcome = Outcome.DONE
    faults: tuple[Fault, ...] = ()
    licence: str | None = None

    @cached_property
    def urn(self) -> str:
        """The URN of the data set."""
        return _urn("DATASET", self.tenant, self.name)

    def feature(self) -> Json:
        """Return the data set as the search endpoints show it."""
        return {
            "entityType": "DATASET",
            **_identity(self.urn, self.name, "SWOT_DATASET"),
            "tags": [],
            **_NOWHERE,
            "properties": {"description": self.description, "products": len(self.products)},
            "files": {},
            **({"licence": self.licence} if self.licence else {}),
        }


class Catalogue:
    """All data sets of the demo archive. Equal seeds give equal files."""

    def __init__(self, *, seed: int, tenant: str) -> None:
        self._tenant = tenant
        self.datasets = {made.name: made for made in _make_datasets(seed, tenant)}
        self._products = {
            product.urn: product for each in self.datasets.values() for product in each.products
        }

    def product(self, urn: str) -> Product | None:
        """Return the product of a URN."""
        return self._products.get(urn)

    def search(self, query: str) -> list[Product]:
        """Return the products that match a query, in the order of the catalogue."""
        matches = criterion(query, _FIELDS, tenant=self._tenant)
        return [each for each in self._products.values() if matches(each.values)]

    def plan(
        self,
        queries: Sequence[str],
        *,
        data_types: Iterable[str],
        filename_regexp: Callable[[str], object],
    ) -> OrderPlan:
        """Return the order of all products that match any of the queries.

        The outcome is ``EMPTY`` if no product matches, ``NO_FILES`` if the filters exclude every
        file.
        """
        found = {product.urn: product for query in queries for product in self.search(query)}
        if not found:
            return OrderPlan(outcome=Outcome.EMPTY)
        datasets = list({each.dataset.name: each.dataset for each in found.values()}.values())
        unusual = (each for each in datasets if each.outcome is not Outcome.DONE)
        decisive = next(unusual, datasets[0])
        wanted = set(data_types)
        files = tuple(
            file
            for product in found.values()
            for file in product.files
            if (not wanted or file.data_type in wanted) and filename_regexp(file.name)
        )
        documents = tuple(file for each in datasets for file in each.documents)
        outcome = decisive.outcome
        if not files and not documents and outcome is Outcome.DONE:
            outcome = Outcome.NO_FILES
        return OrderPlan(
            files=files + documents,
            files_per_suborder=decisive.files_per_suborder,
            outcome=outcome,
            faults=tuple(fault for each in datasets for fault in each.faults),
            dataset=decisive.name,
        )

    def summary(self, products: Iterable[Product], data_types: Iterable[str]) -> Json:
        """Return the numbers of files and bytes by data set and type."""
        wanted, found = set(data_types), list(products)
        by_dataset: dict[str, list[Product]] = {}
        for product in found:
            by_dataset.setdefault(product.dataset.urn, []).append(product)
        parts = {urn: _sub_summary(each, wanted) for urn, each in by_dataset.items()}
        return {**_sub_summary(found, wanted), "subSummariesMap": parts}


def attribute_models() -> list[Json]:
    """Return the attributes of the demo's model."""
    return [
        {
            "id": number,
            "name": name,
            "label": label,
            "type": kind.value,
            "jsonPath": f"properties.{name}",
        }
        for number, (name, (kind, label)) in enumerate(ATTRIBUTES.items(), 1)
    ]


def dataset_names() -> tuple[str, ...]:
    """Return the names of all data sets."""
    return tuple(made.name for made in _make_datasets(0, "demo"))


def _sub_summary(products: Sequence[Product], wanted: set[str]) -> Json:
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for product in products:
        for file in product.files:
            kind = _kind(file)
            if not wanted or kind in wanted:
                counts[kind] += 1
                sizes[kind] += 0 if file.reference else file.source.size_bytes
    return {
        "documentsCount": len(products),
        "filesCount": counts.total(),
        "filesSize": sizes.total(),
        "fileTypesSummaryMap": {
            kind: {"filesCount": counts[kind], "filesSize": sizes[kind]} for kind in counts
        },
    }


def _urn(kind: str, tenant: str, name: str) -> str:
    return f"URN:AIP:{kind}:{tenant}:{uuid.uuid5(_NAMESPACE, f'{tenant}/{kind}/{name}')}:V1"


def _identity(urn: str, name: str, model: str) -> Json:
    """Return the fields that products and data sets have in common."""
    names = {"providerId": name, "label": name}
    return {"id": urn, **names, "model": model, "version": 1, "last": True}


def _kind(file: FileSpec) -> str:
    """Return the type of a file in the catalogue, which has several of quicklooks."""
    return "RAWDATA" if file.data_type == "RAWDATA" else "QUICKLOOK_SD"


# -- the data sets


def _dataset(
    seed: int,
    tenant: str,
    name: str,
    description: str,
    numbers: Iterable[int] = (),
    *,
    cycle: int = 0,
    rows: int = _ROWS_PER_PASS,
    has_quicklook: bool = False,
    online: bool = True,
    **options: Any,
) -> DataSet:
    """Make a data set that has one product, with a table, for each pass."""
    dataset = DataSet(name=name, tenant=tenant, description=description, **options)
    for number in numbers:
        product = f"SWOT_SSH_{cycle:03}_{number:03}"
        product_seed = f"{seed}/{product}"
        table = sea_level(seed=product_seed, rows=rows)
        files = [FileSpec(name=f"{product}.csv", content=table, mime_type="text/csv")]
        if has_quicklook:
            files.append(
                FileSpec(
                    name=f"{product}_aperçu.png",
                    content=quicklook(seed=product_seed),
                    data_type="QUICKLOOK",
                    mime_type="image/png",
                )
            )
        _add(dataset, product, cycle, number, files, online=online)
    return dataset


def _add(
    dataset: DataSet,
    name: str,
    cycle: int,
    number: int,
    files: list[FileSpec],
    *,
    online: bool,
) -> None:
    begin = _CREATED + timedelta(days=21 * (cycle - 7) + number - 1)
    attributes = {
        "dataset": dataset.name,
        "observatory": "SWOT",
        "instrument": "KaRIn",
        "cycle": cycle,
        "pass": number,
        "date_obs": begin,
        "date_end": begin + timedelta(seconds=3000),
        "mean_sea_level_m": round(0.01 * ((7 * number + cycle) % 40) - 0.2, 3),
    }
    product = Product(
        provider_id=name,
        dataset=dataset,
        files=tuple(replace(file, product_id=name) for file in files),
        attributes=attributes,
        online=online,
    )
    dataset.products += (product,)


def _make_datasets(seed: int, tenant: str) -> Iterator[DataSet]:
    dataset = partial(_dataset, seed, tenant)
    one = dataset(
        "SWOT_PASS_012",
        "One pass, with its orbit",
        [12],
        cycle=7,
        has_quicklook=True,
        files_per_suborder=3,
    )
    orbit = noise(seed=f"{seed}/SWOT_ORBIT_012.bin", size_bytes=40_000)
    file = FileSpec(name="SWOT_ORBIT_012.bin", content=orbit)
    _add(one, "SWOT_ORBIT_012", 7, 12, [file], online=True)
    yield one

    yield dataset(
        "SWOT_CYCLE_007",
        "Ten passes of one cycle",
        range(1, 11),
        cycle=7,
        has_quicklook=True,
        files_per_suborder=4,
        licence="https://regards.example/licence",
    )

    text = b"Each table has one row a second: time, latitude, longitude, sea level, wave height.\n"
    yield dataset(
        "SWOT_CYCLE_008",
        "Thirty passes, with a description of the format",
        range(1, 31),
        cycle=8,
        rows=300,
        documents=(FileSpec(name="SWOT_SSH_FORMAT.txt", content=text, mime_type="text/plain"),),
        files_per_suborder=8,
    )

    # Every problem that tapes have.
    tapes = dataset(
        "TAPE_ARCHIVE",
        "Passes on old tapes",
        range(1, 9),
        cycle=1,
        rows=800,
        online=False,
        files_per_suborder=4,
    )
    never, cut, gone = (tapes.products[index].files[0].name for index in (2, 4, 7))
    tapes.faults = (
        StagingError(name=never, times=None, reason="Tape not readable"),
        TruncatedEntry(name=cut),
        MissingEntry(name=gone, reason="Server returned HTTP error code 410", times=None),
        StorageRefuses(name=gone, status=410, times=None),
    )
    yield tapes

    # Two files are only staged by a retry.
    shaky = dataset(
        "SHAKY_TAPES",
        "Passes that need a retry",
        range(1, 7),
        cycle=3,
        rows=400,
        online=False,
        files_per_suborder=6,
    )
    shaky.faults = tuple(
        StagingError(name=shaky.products[index].files[0].name, reason="Tape drive busy")
        for index in (1, 4)
    )
    yield shaky

    yield dataset(
        "BROKEN_STORAGE",
        "Files that storage has lost",
        range(1, 5),
        cycle=2,
        rows=100,
        outcome=Outcome.FAILED,
    )
    yield dataset("EMPTY", "A data set without products")
    for number, outcome in enumerate((Outcome.FORBIDDEN, Outcome.TOO_BIG), 1):
        name, why = outcome.value, "Orders of it are denied"
        yield dataset(name, why, [number], cycle=4, rows=10, outcome=outcome)
