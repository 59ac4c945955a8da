"""What a collection process kept is taken once, within the campaign's filter, or refused with a reason."""

from pathlib import Path

import numpy as np
import pytest

from models.errors import BadInput
from models.plans import PoolFilter
from storage import corpora
from storage.stores import open_stores
from tasks import collecting, planning, previewing
from tasks.compute import portable
from tests.tasks.test_campaigns import answer, candidates, collector, exported, go, plan, rows_by_table


def test_collecting_nothing_new_adds_no_run_and_sends_nothing(world: Path, house: Path) -> None:
    from flows.labeling import sync_labels

    file, run_id = exported(world)
    answer()
    kept = portable.read_kept(collector(world, house, file))
    known = {name for name, _, _ in candidates(run_id)}
    with open_stores() as stores:
        uris = {sample.uri for sample in corpora.known_samples(stores.db, ids=sorted(known)).values()}
    again = np.asarray([uri in uris for uri in kept.uris])
    old = kept._replace(uris=sorted(uris), vectors=kept.vectors[again], scores=kept.scores[again])
    order = np.argsort(np.asarray(kept.uris)[again])
    portable.write_kept(world / "old.npz", old._replace(vectors=old.vectors[order], scores=old.scores[order]))
    before = rows_by_table()
    found = collecting.collect(world / "old.npz", apply=True)
    assert (found.new, found.duplicate, found.run_id) == (0, 8, 0)
    sent = collecting.send(found.run_id)
    assert (sent.sent, sent.note) == (0, "nothing is new: there is nothing to send")
    assert rows_by_table() == before
    go(plan("other"))
    assert [one.complete for one in sync_labels.fn()] == [True]


def test_what_was_kept_outside_the_campaigns_filter_is_refused_and_counted(world: Path, house: Path) -> None:
    light = PoolFilter(where="tone = 'light'")
    run_id = go(plan(budget=25, random_share=0, boundary_share=0, pool=light, min_score=0.001))
    collecting.export(world / "active.npz", [])
    found = collecting.collect(collector(world, house, world / "active.npz"), apply=True)
    assert found.kept == 60
    assert found.filtered == 30
    assert (found.new, found.duplicate) == (5, 25)
    assert not {name for name, _, _ in candidates(found.run_id)} & {name for name, _, _ in candidates(run_id)}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scores", np.zeros((8, 2))),
        ("scores", np.asarray(["a"] * 8)),
        ("scores", np.full(8, np.nan)),
        ("vectors", np.zeros(8, np.float16)),
        ("vectors", np.full((8, 4), np.inf, np.float16)),
    ],
)
def test_kept_arrays_of_another_kind_are_refused(world: Path, name: str, value: np.ndarray) -> None:
    whole = portable.Kept(
        "c", "0" * 64, 9, [f"file:///{n}.png" for n in range(8)], np.zeros((8, 4), np.float16), np.zeros(8)
    )
    portable.write_kept(world / "kept.npz", whole._replace(**{name: value}))
    with pytest.raises(BadInput, match=f"holds {name} that are no"):
        collecting.collect(world / "kept.npz", apply=False)


def test_a_file_that_cannot_be_written_is_said_before_the_work(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "plan_in", lambda *_: pytest.fail("it began to work"))
    nowhere = world / "nowhere" / "file"
    for wanted, says in ((nowhere, "there is no folder"), (world, "is a folder; name a file in it")):
        with pytest.raises(BadInput, match=says):
            previewing.preview(plan(), wanted)
        with pytest.raises(BadInput, match=says):
            collecting.export(wanted, [])
