"""A person answers in a browser, in a real Label Studio, what dipnet sent; dipnet reads each answer as it was meant."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from playwright.sync_api import Browser
from sqlmodel import col, select

from models.labeling import Label, LabelRequest
from models.plans import CampaignPlan, IngestPlan, LabelPolicy, RetrainPlan, SelectionPolicy
from models.states import BatchState, RequestState
from models.values import Sent, Synced
from storage.labelstudio_server import LabelStudioServer
from storage.stores import open_stores
from tasks import embedding, ingesting, labeling, learning, mining, planning, routing, searching
from tasks.compute.images import fingerprint
from tests.services.annotator import Annotator, chromium

pytestmark = pytest.mark.skipif(
    shutil.which("chromium") is None, reason="no browser here; on Debian: apt-get install chromium"
)
Draw = Callable[..., Path]
CLASSES = {"bar", "square"}
LOOSE = {"near_duplicate_cosine": 1.0, "leak_cosine": 1.0}  # drawings of two shapes are all alike to a CLIP


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def owner(browser: Browser, label_studio: LabelStudioServer, tmp_path: Path) -> Annotator:
    """Who set the server up, signed in."""
    person = Annotator(browser, label_studio.url, tmp_path)
    person.sign_in(label_studio.email, label_studio.password.get_secret_value())
    return person


@pytest.fixture
def images(label_studio: LabelStudioServer, monkeypatch: pytest.MonkeyPatch, drawn_images: Draw) -> Path:
    """A house with a labelled corpus, a pool, an issue and a model, whose labeller is Label Studio; where its images lie."""
    assert label_studio.files_root
    monkeypatch.setenv("DIPNET_LABELER", "label-studio")
    monkeypatch.setenv("DIPNET_LABEL_STUDIO_URL", label_studio.url)
    monkeypatch.setenv("DIPNET_LABEL_STUDIO_TOKEN", label_studio.token.get_secret_value())
    monkeypatch.setenv("DIPNET_LABEL_STUDIO_FILES_ROOT", str(label_studio.files_root))
    folder = label_studio.files_root / uuid4().hex
    for seed, (name, count, column) in enumerate([("train", 8, "class_name"), ("pool", 12, "")]):
        drawn_images(folder / name, count, seed=seed)
        split = "train" if column else "none"
        ingesting.ingest(IngestPlan(corpus=name, prefix=str(folder / name), split=split, label_column=column))
        embedding.embed_shards(embedding.pending_shards(name, ""), "", 16)
    searching.new_issue("light-bar", class_name="bar", where="", description="bars <b> that are light")
    searching.add_exemplars("light-bar", [folder / "train" / f"000{number}.png" for number in (3, 7)], positive=True)
    searching.add_exemplars("light-bar", [folder / "train" / "0000.png"], positive=False)
    learning.fit_head(learning.freeze_dataset(["train"], []), RetrainPlan(model="m", corpora=["train"]))
    return folder


def send(budget: int, **labelling: object) -> Sent:
    """Mine the pool and send what was chosen."""
    plan = CampaignPlan(
        campaign=uuid4().hex,
        issue="light-bar",
        corpora=["pool"],
        policy=SelectionPolicy.model_validate({"budget": budget, **LOOSE}),
        labelling=LabelPolicy.model_validate(labelling),
        model="m",
    )
    run_id = planning.plan_run(plan)
    mining.mine_candidates(run_id)
    return routing.send_batch(routing.prepare_batch(run_id, plan))


def sync() -> Synced:
    """Poll the only project there is."""
    (project_id,) = labeling.projects_to_sync([])
    (row,) = labeling.sync_project(project_id)
    return row


def request_of(task: str) -> LabelRequest:
    with open_stores() as stores:
        return stores.db.exec(select(LabelRequest).where(LabelRequest.external_id == task)).one()


def versions(task: str) -> list[Label]:
    """All that was ever stored of the answers to a task, oldest first."""
    with open_stores() as stores:
        query = select(Label).where(Label.request_id == request_of(task).id).order_by(col(Label.id))
        return list(stores.db.exec(query).all())


def told(row: Synced) -> tuple[int, dict[str, int]]:
    return row.new_labels, {state.value: count for state, count in row.states.items()}


def other_than(class_name: str) -> str:
    (other,) = CLASSES - {class_name}
    return other


def test_whatever_an_annotator_does_is_read_as_it_was_meant(
    owner: Annotator, images: Path, label_studio: LabelStudioServer
) -> None:
    sent = send(6)
    owner.begin(sent.project)
    words, widths = owner.read_instructions()
    assert "Issue 'light-bar': bars <b> that are light." in words
    assert widths == [28, 28, 28]

    # As it was pre-annotated.
    image, guess = owner.look(), owner.ticked()
    kept = owner.submit()
    assert fingerprint(image) == request_of(kept).sample_id
    assert guess == {request_of(kept).predicted_class}
    assert told(sync()) == (1, {"labelled": 1, "pending": 5})
    (label,) = versions(kept)
    assert (label.state, set(label.class_names), label.origin) == (RequestState.LABELLED, guess, "prediction")
    assert (label.annotator, label.lead_seconds > 0) == (label_studio.email, True)

    # Otherwise.
    (guessed,) = owner.ticked()
    owner.tick(other_than(guessed))
    changed = owner.submit()
    assert told(sync()) == (1, {"labelled": 2, "pending": 4})
    (label,) = versions(changed)
    assert (label.class_name, label.origin) == (other_than(guessed), "prediction-changed")

    # Not at all, or with nothing to say.
    skipped = owner.skip()
    (guessed,) = owner.ticked()
    owner.tick(guessed)
    assert owner.ticked() == set()
    empty = owner.submit()
    assert told(sync()) == (2, {"labelled": 2, "skipped": 1, "empty": 1, "pending": 2})
    assert request_of(skipped).state is RequestState.SKIPPED
    assert request_of(empty).state is RequestState.EMPTY

    # Corrected.
    owner.open(sent.project, kept)
    owner.tick(other_than(*guess))
    assert owner.update() == kept
    assert told(sync()) == (1, {"labelled": 2, "skipped": 1, "empty": 1, "pending": 2})
    before, after = versions(kept)
    assert (before.class_name, after.class_name) == (*guess, other_than(*guess))
    assert (before.external_id, after.lead_seconds > before.lead_seconds) == (after.external_id, True)
    assert request_of(kept).class_name == other_than(*guess)

    # Withdrawn.
    owner.open(sent.project, changed)
    owner.withdraw()
    assert told(sync()) == (1, {"labelled": 1, "skipped": 1, "empty": 1, "pending": 3})
    assert [label.state for label in versions(changed)] == [RequestState.LABELLED, RequestState.DELETED]
    assert request_of(changed).class_name == ""

    # Deleted, unanswered.
    with open_stores() as stores:
        rest = {one.external_id for one in stores.db.exec(select(LabelRequest)).all()}
    unanswered = max(rest - {kept, changed, skipped, empty}, key=int)
    owner.delete_task(sent.project, unanswered)
    assert told(sync()) == (0, {"labelled": 1, "skipped": 1, "empty": 1, "pending": 2, "deleted": 1})
    assert request_of(unanswered).state is RequestState.DELETED

    # What is left is offered, and that is all there is.
    owner.begin(sent.project)
    owner.close_instructions()
    assert labeling.announce() == 0
    last = {owner.submit(), owner.submit()}
    assert last == rest - {kept, skipped, empty, unanswered}
    row = sync()
    assert told(row) == (2, {"labelled": 3, "skipped": 1, "empty": 1, "deleted": 1})
    assert (row.state, row.complete, row.rejected, row.foreign) == (BatchState.COMPLETE, True, 0, 0)
    assert (labeling.announce(), labeling.announce()) == (1, 0)
