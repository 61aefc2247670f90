"""Which causal language models of transformers run: the table that `pagedkv models` prints and docs/models.md shows.

The table is a file of the package, written by tools/sweep_models.py, which runs every type. Reading it takes neither
torch nor transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

CATALOG_FILE = Path(__file__).parent / "models" / "catalog.tsv"

# What a type is, and what the share of those that run is counted over.
SCOPES = {
    "text": "text alone",
    "state": "text alone, with a recurrent, compressed or sparse-index state beside keys and values",
    "multimodal": "a text model inside of a model of images or sound",
    "encoder-decoder": "generates from an encoder's output",
}
STATUSES = {
    "fast": "runs; a step is one forward pass of the whole batch, with the attention of pagedkv",
    "slow": "runs; each sequence of a step takes a forward pass of its own, with the model's attention",
    "refused": "is refused when it is loaded, with the reason",
    "not built": "was not run: there is no tiny random model of it",
    "wrong": "gives other tokens than transformers: a defect of pagedkv",
}
_RUNS = ("fast", "slow")

_DOCUMENT = """\
# Models

`make models` writes this page and the table that `pagedkv models` prints: it builds a tiny random model of every causal-LM
type of transformers {version}, runs it, and compares greedy tokens and their log-probabilities with `model.generate`, one
prompt at a time. The runs are made hard: more requests than the pool can hold, so that sequences are preempted; a prompt
longer than a step; contexts longer than the windows of the model; NaN in every slot that was never written.

{coverage}

Scope is *multimodal* where the configuration has a text configuration inside or a part for images or sound, *encoder-decoder*
where it says so, *state* where layers keep something else than keys and values, *text* otherwise.

| status | meaning |
|---|---|
{statuses}

| type | scope | status | notes |
|---|---|---|---|
{rows}
"""


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A line of the table.

    Attributes:
        model_type: ``model_type`` of the configuration, a key of transformers' causal-LM mapping.
        scope: One of `SCOPES`.
        status: One of `STATUSES`.
        notes: Why it is slow or refused, as the engine says it, and what else there is to know.
    """

    model_type: str
    scope: str
    status: str
    notes: str

    @property
    def runs(self) -> bool:
        """On either path."""
        return self.status in _RUNS


@dataclass(frozen=True, slots=True)
class Catalog:
    """The table.

    Attributes:
        transformers_version: What it was made with.
        entries: In the order of their type.
    """

    transformers_version: str
    entries: tuple[CatalogEntry, ...]

    @classmethod
    def read(cls, path: Path = CATALOG_FILE) -> Catalog:
        """Reads the table.

        Raises:
            ValueError: A line has other than four fields, or an unknown scope or status.
        """
        title, _, *lines = path.read_text(encoding="utf-8").splitlines()
        return cls(title.removeprefix("# transformers "), tuple(_entry(line) for line in lines))

    def write(self, path: Path = CATALOG_FILE) -> None:
        """Writes what `read` reads."""
        lines = [f"# transformers {self.transformers_version}", "type\tscope\tstatus\tnotes"]
        lines += [
            "\t".join((entry.model_type, entry.scope, entry.status, entry.notes))
            for entry in self.entries
        ]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def select(self, text: str) -> tuple[CatalogEntry, ...]:
        """The entries whose type contains ``text``, in any case and with - for _."""
        wanted = text.lower().replace("-", "_")
        return tuple(e for e in self.entries if wanted in e.model_type.lower().replace("-", "_"))

    def coverage(self) -> str:
        """How many types run, in two sentences."""
        plain = [entry for entry in self.entries if entry.scope == "text"]
        text = [entry for entry in self.entries if entry.scope in ("text", "state")]
        fast = sum(entry.status == "fast" for entry in text)
        slow = sum(entry.status == "slow" for entry in text)
        wrong = sum(entry.status == "wrong" for entry in self.entries)
        return (
            f"Of {len(text)} text-only types {fast + slow} run ({_percent(text)}): {fast} on the fast "
            f"path, {slow} on the slow one, {wrong or 'none'} wrong. Of the {len(plain)} that keep "
            f"nothing but keys and values, {sum(e.runs for e in plain)} run ({_percent(plain)})."
        )

    def as_markdown(self) -> str:
        """The page docs/models.md."""
        rows = [
            f"| {entry.model_type} | {entry.scope} | {entry.status} | {_escaped(entry.notes)} |"
            for entry in self.entries
        ]
        used = {entry.status for entry in self.entries}
        statuses = [f"| {name} | {text} |" for name, text in STATUSES.items() if name in used]
        return _DOCUMENT.format(
            version=self.transformers_version,
            coverage=self.coverage(),
            statuses="\n".join(statuses),
            rows="\n".join(rows),
        )

    def as_json(self, entries: tuple[CatalogEntry, ...]) -> dict[str, Any]:
        """Some entries as plain values, with the version."""
        fields = CatalogEntry.__slots__
        return {
            "transformers": self.transformers_version,
            "models": [{name: getattr(entry, name) for name in fields} for entry in entries],
        }


def _entry(line: str) -> CatalogEntry:
    fields = line.split("\t")
    if len(fields) != 4 or fields[1] not in SCOPES or fields[2] not in STATUSES:
        msg = f"a line of the model table must be type, scope, status and notes, got {line!r}"
        raise ValueError(msg)
    return CatalogEntry(*fields)


def _percent(entries: list[CatalogEntry]) -> str:
    return f"{100 * sum(entry.runs for entry in entries) / max(1, len(entries)):.0f} %"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "\\<")
