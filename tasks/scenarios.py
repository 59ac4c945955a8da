"""Named, frozen subsets of evaluation data. A scenario may grow; each version holds all samples of the one before."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa

from models.campaign import Issue
from models.corpus import Corpus, EmbeddedShard, Sample, Shard
from models.errors import BadInput, NotFound
from models.labeling import LabelRequest
from models.learning import Scenario
from models.outcomes import Grown
from models.retraining import SplitPolicy
from models.states import ScenarioKind, Split
from storage import campaigns, corpora, labels, runs, tables
from storage.stores import Stores, open_stores
from tasks import grouping
from tasks.datasets import Row, read_listing, table_of, usable
from tasks.grouping import NEAR_DUPLICATES, Rule
from tasks.ingesting import read_manifest, read_reads
from tasks.steps import step

EVALUATION = (Split.DEVELOPMENT, Split.HOLDOUT)
OVERALL = "all-holdout"
NAMES = re.compile(r"[^\s@/\\][^@/\\\n]{0,149}")


class _Definition(NamedTuple):
    """What a scenario's samples are: those of evaluation corpora that meet a condition, and held-back answers."""

    kind: ScenarioKind
    corpora: list[Corpus]
    where: str
    issue: Issue | None
    group_by: str
    answers: bool  # whether it holds what campaigns' answers a dataset version holds back

    def __str__(self) -> str:
        names = ", ".join(corpus.name for corpus in self.corpora) or "held-back answers"
        about = f" for issue '{self.issue.name}'" if self.issue else ""
        what = "a regression suite" if self.kind is ScenarioKind.REGRESSION else "a scenario"
        return f"{what} on {names} where '{self.where}'{about}"


@step()
def freeze_scenario(
    name: str,
    corpus_names: Sequence[str],
    where: str = "",
    *,
    regression: bool = False,
    group_by: str = NEAR_DUPLICATES,
) -> int:
    """Freeze the labelled samples of evaluation corpora that meet a condition, under a name.

    A known name with the same definition is its newest version; another definition under a known name is BadInput. Every
    gate looks at all regression suites.
    """
    with open_stores() as stores:
        held = [_evaluation_corpus(stores, corpus_name) for corpus_name in sorted(set(corpus_names))]
        if not held:
            raise BadInput(f"scenario '{name}' names no corpus; give at least one with split development or holdout")
        kind = ScenarioKind.SLICE if where else ScenarioKind.CORPUS
        kind = ScenarioKind.REGRESSION if regression else kind
        wanted = _Definition(kind, held, where, None, group_by, answers=False)
        found = runs.find_scenario(stores.db, name=name)
        if found is None:
            return _save(stores, name, wanted, _listing(stores, name, wanted), before=None).id or 0
        known = _definition_of(stores, found)
        if not is_old(found) and _compared(wanted) != _compared(known):
            raise BadInput(f"scenario '{name}' is {known}, not {wanted}; repeat its definition, or choose another name")
        return found.id or 0


@step()
def grow_scenario(name: str) -> Grown:
    """The next version of a scenario, where more samples meet its definition by now; otherwise nothing changes.

    Raises BadInput when samples of the version before would be missing. Labels that were corrected since come along with
    the next version, and are counted.
    """
    with open_stores() as stores:
        before = runs.get_scenario(stores.db, name=name)
        newest = runs.get_scenario(stores.db, name=before.name)
        if newest.id != before.id:
            raise BadInput(f"only the newest version can grow, which is {newest.reference}")
        return _grow(stores, before)


@step()
def default_scenarios() -> list[str]:
    """One scenario for every evaluation corpus, under the corpus's name, frozen when it is new."""
    with open_stores() as stores:
        held = [c.name for split in EVALUATION for c in corpora.list_corpora(stores.db, split=split)]
        known = set(runs.scenario_names(stores.db))
    for name in held:
        if name not in known:  # somebody may have given the name to another one
            freeze_scenario(name, [name])
    return held


@step()
def overall_scenario() -> str:
    """The name of the scenario over all holdout corpora, frozen when it is new, and grown where there is more of them.

    Without any it is over held-back answers; corpora that are added then come on top. Raises BadInput when samples of the
    version before would be missing.
    """
    with open_stores() as stores:
        found = runs.find_scenario(stores.db, name=OVERALL)
        if found is not None and not is_old(found):
            _grow(stores, found)
        elif found is None:
            held = _holdout_corpora(stores, or_answers_of=None)
            wanted = _Definition(ScenarioKind.CORPUS, held, "", None, NEAR_DUPLICATES, answers=not held)
            _save(stores, OVERALL, wanted, _listing(stores, OVERALL, wanted), before=None)
    return OVERALL


@step()
def issue_scenario(issue_name: str) -> str:
    """The name of an issue's own holdout, frozen when it is new, and grown where there is more of it.

    It holds the issue's slice of every holdout corpus, and the answers to the issue's campaigns that a dataset version
    holds back; of these only what is known not to be in the slice is left out. An issue without a condition has no slice:
    its holdout is the answers held back, where there are any when it is frozen, and otherwise all holdout corpora.
    """
    name = f"issue-{issue_name}"
    with open_stores() as stores:
        issue = campaigns.get_issue(stores.db, name=issue_name)
        found = runs.find_scenario(stores.db, name=name)
        if found is None:
            alone = not issue.slice_where and bool(_held_answers(stores, issue))
            held = [] if alone else _holdout_corpora(stores, or_answers_of=issue)
            wanted = _Definition(ScenarioKind.ISSUE, held, issue.slice_where, issue, NEAR_DUPLICATES, answers=True)
            _save(stores, name, wanted, _listing(stores, name, wanted), before=None)
        elif (found.where, found.issue_id) != (issue.slice_where, issue.id):
            raise BadInput(
                f"scenario '{name}' is {_definition_of(stores, found)}, and issue '{issue_name}' is about "
                f"'{issue.slice_where}'; choose another name for one of them"
            )
        else:
            _grow(stores, found)
    return name


def is_old(scenario: Scenario) -> bool:
    """Whether it was made before 0.4: what its definition was is not known, and it stays what it is."""
    return not scenario.corpora and not scenario.group_by


def _compared(wanted: _Definition) -> tuple[object, ...]:
    """What must be the same under the same name."""
    suite = wanted.kind is ScenarioKind.REGRESSION
    issue_id = wanted.issue.id if wanted.issue else None
    return suite, sorted(corpus.name for corpus in wanted.corpora), wanted.where, issue_id, wanted.group_by


def _definition_of(stores: Stores, scenario: Scenario) -> _Definition:
    issue = stores.db.get_one(Issue, scenario.issue_id) if scenario.issue_id else None
    held = [corpora.get_corpus(stores.db, name=name) for name in scenario.corpora]
    first = runs.find_scenario(stores.db, name=f"{scenario.name}@1")
    answers = scenario.kind is ScenarioKind.ISSUE or not (first or scenario).corpora
    return _Definition(scenario.kind, held, scenario.where, issue, scenario.group_by, answers)


def _grow(stores: Stores, before: Scenario) -> Grown:
    if is_old(before):
        raise BadInput(f"scenario '{before.name}' was made before 0.4 and cannot grow; freeze another under a new name")
    wanted = _definition_of(stores, before)
    if before.name == OVERALL or (wanted.corpora and wanted.kind is ScenarioKind.ISSUE):
        every = {corpus.name: corpus for corpus in corpora.list_corpora(stores.db, split=Split.HOLDOUT)}
        every |= {corpus.name: corpus for corpus in wanted.corpora}
        wanted = wanted._replace(corpora=[every[name] for name in sorted(every)])
    old = tables.read(stores.objects, before.listing_key, before.listing_sha256)
    listing = _listing(stores, before.name, wanted)
    known, now = (
        dict(zip(one.column("sample_id").to_pylist(), one.column("class_name").to_pylist(), strict=True))
        for one in (old, listing)
    )
    if gone := len(known.keys() - now.keys()):
        raise BadInput(
            f"{gone} of the {len(known)} samples of scenario '{before.name}' no longer meet its definition, so it cannot "
            "grow: results could not be compared; bring their labels back, or freeze another scenario under a new name"
        )
    relabelled = sum(now[sample_id] != class_name for sample_id, class_name in known.items())
    added = len(now) - len(known)
    newest = _save(stores, before.name, wanted, listing, before=before) if added else before
    return Grown(scenario=newest.reference, samples=newest.samples, added=added, relabelled=relabelled)


def _save(stores: Stores, name: str, wanted: _Definition, listing: pa.Table, *, before: Scenario | None) -> Scenario:
    """The first version, or the next. Its listing's key follows from its content, so that a kill leaves no other file."""
    data = tables.to_bytes(listing)
    key = f"scenarios/{name}/{hashlib.sha256(data).hexdigest()[:32]}.parquet"
    scenario = Scenario(
        name=name,
        version=before.version + 1 if before else 1,
        parent_id=before.id if before else None,
        kind=wanted.kind,
        issue_id=wanted.issue.id if wanted.issue else None,
        corpora=[corpus.name for corpus in wanted.corpora],
        where=wanted.where,
        group_by=wanted.group_by,
        listing_key=key,
        listing_sha256=stores.objects.write(key, data),
        samples=listing.num_rows,
    )
    stores.db.add(scenario)
    stores.db.flush()
    return scenario


def _holdout_corpora(stores: Stores, *, or_answers_of: Issue | None) -> list[Corpus]:
    """All there are. Raises BadInput where there is none, and no answer is held back either."""
    held = list(corpora.list_corpora(stores.db, split=Split.HOLDOUT))
    if not held and not _held_answers(stores, or_answers_of):
        raise BadInput(
            "there is no holdout corpus; add one with: dipnet corpus add NAME PREFIX --split holdout --labels COLUMN, or "
            "hold back some of the campaigns' answers with splits.holdout"
        )
    return held


def _evaluation_corpus(stores: Stores, name: str) -> Corpus:
    corpus = corpora.get_corpus(stores.db, name=name)
    if corpus.split not in EVALUATION:
        raise BadInput(
            f"corpus '{name}' is not for evaluation (split: {corpus.split or 'none'}); "
            "name one that was added with --split development or --split holdout"
        )
    return corpus


def _held_answers(stores: Stores, issue: Issue | None) -> list[tuple[LabelRequest, Sample]]:
    """Answers to an issue's campaigns, or to all, that are holdout in the newest dataset version that has them."""
    known = campaigns.list_campaigns(stores.db)
    names = [campaign.name for campaign in known if issue is None or campaign.issue_id == issue.id]
    batches = labels.batches_of(stores.db, campaigns=names) if names else []
    answers = labels.resolved_of_batches(stores.db, batches=batches) if batches else []
    wanted, numbers = {sample.id for _, sample in answers}, {batch.id for batch in batches}
    splits: dict[str, str] = {}
    for dataset in runs.list_datasets(stores.db):
        if numbers & set(dataset.adds_batches):
            listing = read_listing(stores, dataset)
            splits |= dict(
                zip(listing.column("sample_id").to_pylist(), listing.column("split").to_pylist(), strict=True)
            )
    return [pair for pair in answers if pair[1].id in wanted and splits.get(pair[1].id) == Split.HOLDOUT.value]


def _listing(stores: Stores, name: str, wanted: _Definition) -> pa.Table:
    """Samples that a definition says, with the manifest's columns and their groups. Raises BadInput where there is none."""
    if not NAMES.fullmatch(name):
        raise BadInput(f"a scenario cannot be called '{name}'; leave out @, / and \\, and keep it under 150 letters")
    of_corpora = usable(labels.labels_of_corpora(stores.db, corpora=wanted.corpora)).rows if wanted.corpora else {}
    answers = usable(_held_answers(stores, wanted.issue)).rows if wanted.answers else {}
    rows = answers | of_corpora  # what a corpus says of the same bytes counts
    if not rows:
        names = ", ".join(corpus.name for corpus in wanted.corpora) or "held-back answers"
        first = wanted.corpora[0].name if wanted.corpora else "CORPUS"
        raise BadInput(f"no labels in {names} yet; embed it first with: dipnet embed {first}")
    joined = _with_metadata(stores, rows, wanted.corpora)
    kept = joined.take(pa.array(_meeting(joined, wanted.where, set(of_corpora)), pa.int64()))
    if not kept.num_rows:
        raise BadInput(
            f"scenario '{name}' would be empty: no labelled sample meets '{wanted.where}'; change the condition"
        )
    return _with_groups(stores, kept, rows, wanted)


def _meeting(joined: pa.Table, where: str, of_corpora: set[str]) -> list[int]:
    """Rows that meet a condition, and answers of which it cannot be told: their pool may lack the columns."""
    if not where.strip():
        return list(range(joined.num_rows))
    found = set(tables.matching(joined, where))
    ids = joined.column("sample_id").to_pylist()
    if len(of_corpora) < len(ids):
        unclear = tables.matching(joined, f"({where}\n) IS NULL")
        found |= {row for row in unclear if ids[row] not in of_corpora}
    return sorted(found)


def _with_metadata(stores: Stores, rows: dict[str, Row], held: Sequence[Corpus]) -> pa.Table:
    """A listing of these samples with the manifests' columns, in the order of the sample ids."""
    listing = table_of([rows[sample_id] for sample_id in sorted(rows)])
    parts = [part for corpus in held for part in _metadata(stores, corpus)]
    named = {corpus.id for corpus in held}
    others = {row.sample.shard_id for row in rows.values() if row.sample.shard_id is not None}
    for shard_id, row in sorted(corpora.read_rows(stores.db, shard_ids=sorted(others)).items()):
        shard = stores.db.get_one(Shard, shard_id)
        if shard.corpus_id not in named:
            parts.append(_columns(stores, shard, row))
    if not parts:
        return listing
    metadata = tables.concat(parts)
    numbered = metadata.append_column("__row", pa.array(range(metadata.num_rows), pa.int64()))
    first = numbered.group_by("sample_id").aggregate([("__row", "min")]).column("__row_min")
    metadata = metadata.take(first)  # the same bytes may lie there twice
    return listing.join(metadata, keys="sample_id", join_type="left outer").sort_by("sample_id")


def _with_groups(stores: Stores, listing: pa.Table, rows: dict[str, Row], wanted: _Definition) -> pa.Table:
    """The listing with each sample's group, named as in dataset versions; a metadata column of that name gives way."""
    encoder = None
    if wanted.group_by == NEAR_DUPLICATES:
        try:
            encoder = corpora.get_encoder(stores.db, name=stores.settings.encoder)
        except NotFound:  # embedded by others alone: nothing is known to be near
            encoder = None
    ids = listing.column("sample_id").to_pylist()
    rule = Rule(SplitPolicy(group_by=wanted.group_by), encoder, wanted.corpora)
    groups = grouping.names_of(stores, [rows[sample_id].sample for sample_id in ids], rule)
    if "group" in listing.column_names:
        listing = listing.drop_columns(["group"])
    return listing.add_column(2, "group", pa.array([groups[sample_id] for sample_id in ids], pa.string()))


def _metadata(stores: Stores, corpus: Corpus) -> Iterator[pa.Table]:
    """The manifest columns of a corpus's read images with their sample ids, shard by shard."""
    for row in corpora.read_shards(stores.db, corpus_id=corpus.id or 0):
        yield _columns(stores, stores.db.get_one(Shard, row.shard_id), row)


def _columns(stores: Stores, shard: Shard, row: EmbeddedShard) -> pa.Table:
    """A shard's manifest columns beside what a listing knows, with sample ids."""
    manifest, reads = read_manifest(stores, shard), read_reads(stores, row, ["sample_id"])
    ours = ("key", "etag", "bytes", "class_name", "shard_id", "uri")
    known = [name for name in ours if name in manifest.column_names]
    return manifest.drop_columns(known).append_column("sample_id", reads.column("sample_id"))
