"""The database migrates itself, refuses what it does not know, and keeps time zones."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import Connection, create_engine, inspect, text
from sqlmodel import Session, SQLModel, select

from models.corpus import Corpus
from models.errors import BadSettings, CorruptData, DipnetError, Incompatible, Unavailable
from storage.database import alembic_config, open_engine, transaction


def url_in(folder: Path) -> str:
    return f"sqlite:///{folder / 'deep' / 'dipnet.db'}"


def test_opening_makes_the_folder_and_the_schema(tmp_path: Path) -> None:
    engine = open_engine(url_in(tmp_path))
    assert set(inspect(engine).get_table_names()) == {*SQLModel.metadata.tables, "alembic_version"}
    with engine.connect() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1
    engine.dispose()


def test_migrations_go_down_to_nothing_and_up_again(tmp_path: Path) -> None:
    url = url_in(tmp_path)
    engine = open_engine(url)
    config = alembic_config(url)
    command.downgrade(config, "base")
    assert inspect(engine).get_table_names() == ["alembic_version"]
    command.upgrade(config, "head")
    command.check(config)  # raises when the tables of the models and of the migrations differ
    engine.dispose()


def insert(db: Connection, table: str, **values: object) -> None:
    names = ", ".join(values)
    db.execute(text(f"INSERT INTO {table} ({names}) VALUES ({', '.join(f':{name}' for name in values)})"), values)


def test_batches_from_before_projects_keep_their_project_their_state_and_their_labels(tmp_path: Path) -> None:
    url = url_in(tmp_path)
    open_engine(url).dispose()
    config = alembic_config(url)
    command.downgrade(config, "0003")
    engine = create_engine(url)
    day = "2026-01-01"
    with engine.begin() as db:
        insert(
            db,
            "issue",
            id=1,
            name="i",
            class_name="c",
            slice_where="",
            description="",
            state="triage",
            version=1,
            created_at=day,
        )
        insert(db, "campaign", id=1, name="c", issue_id=1, created_at=day)
        insert(db, "encoderspec", id=1, key="k", name="n", dim=4, weights_sha256="w", preprocessing="p", created_at=day)
        insert(db, "sample", id="s", uri="u", created_at=day)
        same = {"campaign_id": 1, "plan_key": "p", "series": 1, "shards_key": "", "last_shard": 1, "encoder_id": 1}
        same |= {
            "issue_version": 1,
            "corpora": "[]",
            "policy": "{}",
            "condition": "",
            "state": "sent",
            "excluded": "{}",
        }
        same |= {"scanned": 3, "scorer_key": "", "found": "{}", "created_at": day}
        for run, project, complete in ((1, "7", True), (2, "7", False), (3, "", True)):
            insert(db, "campaignrun", id=run, key=f"k{run}", round=run, **same)
            told = {"labeler": "label-studio", "project": project, "class_names": '["a", "b"]', "complete": complete}
            insert(db, "labelbatch", id=run, run_id=run, created_at=day, **told)
        said = {"score": 0.5, "score_version": "v", "nearest_exemplar": "", "similarity": 0.5, "near_duplicates": 0}
        said |= {"prototype": 0, "arm": "exploit", "predicted_class": "a", "predicted_probability": 0.9}
        insert(db, "candidate", id=1, run_id=1, sample_id="s", rank=4, state="labelled", **said)
        insert(db, "labelrequest", id=1, batch_id=1, candidate_id=1, key="key", external_id="99", state="labelled")
        for name, at in (("a", day), ("b", "2026-01-02")):
            told = {
                "sample_id": "s",
                "request_id": 1,
                "state": "labelled",
                "class_name": name,
                "source": "label-studio",
            }
            insert(db, "label", external_id="5", annotator="x", lead_seconds=1, answered_at=at, **told)
    command.upgrade(config, "head")
    with engine.begin() as db:
        batches = db.execute(text("SELECT project_id, state, announced FROM labelbatch ORDER BY id")).all()
        assert batches == [(1, "complete", "complete"), (1, "open", "open"), (None, "complete", "complete")]
        projects = db.execute(text("SELECT campaign_id, external_id, class_names FROM labelproject")).all()
        assert projects == [(1, "7", '["a", "b"]')]
        found = db.execute(
            text("SELECT sample_id, position, predicted_class, class_name, external_id FROM labelrequest")
        )
        assert found.all() == [("s", 4, "a", "b", "99")]
    command.downgrade(config, "0003")
    with engine.begin() as db:
        found = db.execute(text("SELECT project, class_names, complete FROM labelbatch ORDER BY id"))
        assert found.all() == [("7", '["a", "b"]', 1), ("7", '["a", "b"]', 0), ("", "[]", 1)]
    engine.dispose()


def test_runs_from_before_rounds_survive_the_upgrade_and_the_way_back(tmp_path: Path) -> None:
    url = url_in(tmp_path)
    open_engine(url).dispose()
    config = alembic_config(url)
    command.downgrade(config, "0001")
    engine = create_engine(url)
    with engine.begin() as db:
        now = "'2026-01-01'"
        db.execute(text(f"INSERT INTO issue VALUES (1, 'i', 'coat', '', '', 'triage', 1, {now})"))
        db.execute(text(f"INSERT INTO campaign (id, name, issue_id, created_at) VALUES (1, 'c', 1, {now})"))
        db.execute(text(f"INSERT INTO encoderspec VALUES (1, 'k', 'n', 4, 'w', 'p', {now})"))
        columns = "campaign_id, key, encoder_id, issue_version, corpora, policy, state, excluded, scanned, created_at"
        for key in ("a", "b"):
            values = f"1, '{key}', 1, 1, '[]', '{{}}', 'mined', '{{}}', 3, {now}"
            db.execute(text(f"INSERT INTO campaignrun ({columns}) VALUES ({values})"))
    command.upgrade(config, "head")
    with engine.begin() as db:
        found = db.execute(text("SELECT key, plan_key, series, round, scanned FROM campaignrun ORDER BY key")).all()
        assert found == [("a", "a", 1, 1, 3), ("b", "b", 1, 1, 3)]
        assert db.execute(text("SELECT state, plan FROM campaign")).all() == [("active", "{}")]
    command.downgrade(config, "0001")
    with engine.begin() as db:
        assert db.execute(text("SELECT key, scanned FROM campaignrun ORDER BY key")).all() == [("a", 3), ("b", 3)]
    engine.dispose()


def test_the_upgrade_forgets_what_was_planned_and_never_mined_with_its_watermarks(tmp_path: Path) -> None:
    url = url_in(tmp_path)
    open_engine(url).dispose()
    config = alembic_config(url)
    command.downgrade(config, "0002")
    engine = create_engine(url)
    with engine.begin() as db:
        now = "'2026-01-01'"
        db.execute(text(f"INSERT INTO issue VALUES (1, 'i', 'coat', '', '', 'triage', 1, {now})"))
        db.execute(text(f"INSERT INTO campaign (id, name, issue_id, created_at) VALUES (1, 'c', 1, {now})"))
        columns = "id, campaign_id, key, plan_key, series, encoder_id, issue_version, corpora, policy, state, excluded"
        for number, state in ((1, "mined"), (2, "planned")):
            values = f"{number}, 1, '{number}', 'p', {number}, 1, 1, '[]', '{{}}', '{state}', '{{}}', 3, {now}"
            db.execute(text(f"INSERT INTO campaignrun ({columns}, scanned, created_at) VALUES ({values})"))
            db.execute(text(f"INSERT INTO scoredshard VALUES ({number}, 1, {number}, 'w', {number})"))
    command.upgrade(config, "head")
    with engine.begin() as db:
        assert db.execute(text("SELECT id, budget, shards, watermark_key FROM campaignrun")).all() == [(1, 0, "[]", "")]
        assert db.execute(text("SELECT run_id FROM scoredshard")).all() == [(1,)]
        db.execute(text("UPDATE campaignrun SET state = 'empty'"))
    command.downgrade(config, "0002")
    with engine.begin() as db:
        assert db.execute(text("SELECT state FROM campaignrun")).all() == [("labelled",)]
    engine.dispose()


def insert_models_of_0_3(db: Connection) -> None:
    """Two models, compared on three scenarios, with a gate about an issue."""
    day = {"created_at": "2026-01-01"}
    said = {"class_name": "c", "slice_where": "", "description": "", "state": "triage", "version": 1}
    insert(db, "issue", id=1, name="i", **said, **day)
    insert(db, "encoderspec", id=1, key="k", name="n", dim=4, weights_sha256="w", preprocessing="p", **day)
    insert(db, "datasetversion", id=1, content_hash="h", listing_key="l", samples=9, class_names="[]",
           adds_batches="[]", **day)  # fmt: skip
    for number, name in ((1, "before"), (2, "after")):
        insert(db, "trainingrun", id=number, key=name, dataset_id=1, encoder_id=1, trainer="head", parameters="{}",
               seed=0, **day)  # fmt: skip
        insert(db, "modelversion", id=number, training_run_id=number, name=name, weights_key="w", weights_sha256="w",
               class_names="[]", **day)  # fmt: skip
    for number, name, issue in ((1, "issue-i", 1), (2, "all-holdout", None), (3, "held", None)):
        insert(db, "scenario", id=number, name=name, issue_id=issue, listing_key="l", listing_sha256="s", samples=9,
               **day)  # fmt: skip
        insert(db, "comparison", id=number, before_id=1, after_id=2, scenario_id=number, **day)
        insert(db, "metricdelta", id=number, comparison_id=number, class_name="", metric="accuracy", before=0.5,
               after=0.5, low=0, high=0)  # fmt: skip
    insert(db, "gate", id=1, issue_id=1, slice_comparison_id=1, overall_comparison_id=2, verdict="pass", reasons="[]",
           **day)  # fmt: skip


def test_comparisons_from_before_0_4_are_forgotten_and_their_scenarios_make_room(tmp_path: Path) -> None:
    url = url_in(tmp_path)
    open_engine(url).dispose()
    config = alembic_config(url)
    command.downgrade(config, "0004")
    engine = create_engine(url)
    with engine.begin() as db:
        insert_models_of_0_3(db)
    for _ in range(2):
        command.upgrade(config, "head")
        with engine.begin() as db:
            assert db.execute(text("SELECT count(*) FROM comparison")).scalar() == 0
            assert db.execute(text("SELECT count(*) FROM metricdelta")).scalar() == 0
            found = db.execute(text("SELECT name, issue_id, kind FROM scenario ORDER BY id")).all()
            assert found == [
                ("issue-i-before-0.4", 1, "issue"), ("all-holdout-before-0.4", None, "slice"), ("held", None, "slice"),
            ]  # fmt: skip
            gates = db.execute(text("SELECT before_id, after_id, verdict, settled FROM gate")).all()
            assert gates in ([(1, 2, "pass", 1)], [])  # the way back forgets gates
        command.downgrade(config, "0004")
        with engine.begin() as db:
            names = db.execute(text("SELECT name FROM scenario ORDER BY id")).scalars().all()
        assert names == ["issue-i", "all-holdout", "held"]
    engine.dispose()


def test_old_scenarios_keep_other_names_where_fresh_ones_have_theirs(tmp_path: Path) -> None:
    url = url_in(tmp_path)
    open_engine(url).dispose()
    config = alembic_config(url)
    command.downgrade(config, "0004")
    engine = create_engine(url)
    told = {"listing_key": "l", "listing_sha256": "s", "samples": 9, "created_at": "2026-01-01"}
    with engine.begin() as db:
        insert(db, "scenario", id=1, name="all-holdout", **told)
    command.upgrade(config, "head")
    with engine.begin() as db:
        insert(db, "scenario", id=2, name="all-holdout", **told)
    command.downgrade(config, "0004")
    command.upgrade(config, "head")
    with engine.begin() as db:
        names = db.execute(text("SELECT name FROM scenario ORDER BY id")).scalars().all()
    assert names == ["all-holdout-before-0.4", "all-holdout-before-0.4-2"]
    engine.dispose()


def test_a_database_from_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    url = url_in(tmp_path)
    engine = open_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(Incompatible, match=r"newer dipnet \(revision 9999\); upgrade dipnet"):
        open_engine(url)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    file = tmp_path / "not.db"
    file.write_text("these are not the bytes of a database, however long one looks at them" * 20)
    with pytest.raises(CorruptData, match=r"not\.db"):
        open_engine(f"sqlite:///{file}")


@pytest.mark.parametrize("url", ["nonsense", "oracle://x", "mysql+nodriver://x/y"])
def test_a_url_of_no_known_kind_is_refused(url: str) -> None:
    with pytest.raises(BadSettings, match="DIPNET_DATABASE_URL"):
        open_engine(url)


def test_a_server_that_is_down_is_named_without_its_password() -> None:
    with pytest.raises(Unavailable) as caught:
        open_engine("postgresql+psycopg://me:hunter2@127.0.0.1:9/none")
    assert "127.0.0.1:9" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_transaction_is_whole_or_absent(tmp_path: Path) -> None:
    engine = open_engine(url_in(tmp_path))
    with pytest.raises(DipnetError), transaction(engine) as db:
        db.add(Corpus(name="half", prefix="x"))
        db.flush()
        raise DipnetError("stop")
    with transaction(engine) as db:
        assert not db.exec(select(Corpus)).all()
    engine.dispose()


def test_two_writers_of_one_name_are_told_to_try_again(tmp_path: Path) -> None:
    engine = open_engine(url_in(tmp_path))
    with transaction(engine) as db:
        db.add(Corpus(name="one", prefix="x"))
    with pytest.raises(Unavailable, match="wrote the same rows first"), transaction(engine) as db:
        db.add(Corpus(name="one", prefix="y"))
    engine.dispose()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "deep").write_text("a file is in the way")
    with pytest.raises(Unavailable, match="cannot be made"):
        open_engine(url_in(tmp_path))


def test_times_come_back_with_their_zone_and_naive_ones_are_refused(tmp_path: Path) -> None:
    engine = open_engine(url_in(tmp_path))
    when = datetime(2026, 11, 23, 12, 30, tzinfo=UTC)
    with transaction(engine) as db:
        db.add(Corpus(name="a", prefix="x", created_at=when))
    with Session(engine) as db:
        assert db.exec(select(Corpus)).one().created_at == when
        db.add(Corpus(name="b", prefix="x", created_at=datetime(2026, 1, 1)))
        with pytest.raises(Exception, match="no time zone"):
            db.flush()
    engine.dispose()
