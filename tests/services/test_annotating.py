"""A person answers in a browser, in a real Label Studio, what dipnet sent; dipnet reads each answer as it was meant."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI
from playwright.sync_api import Browser, StorageState
from sqlmodel import col, select

from deploy.receiver import make_app
from models.labeling import Label, LabelRequest
from models.plans import CampaignPlan, IngestPlan, LabelPolicy, SelectionPolicy
from models.retraining import RetrainPlan
from models.states import BatchState, RequestState
from models.values import Sent, Synced
from storage.labelstudio_server import LabelStudioServer
from storage.stores import open_stores
from tasks import datasets, embedding, ingesting, labeling, learning, mining, planning, routing, searching
from tasks.compute.images import fingerprint
from tests.services.annotator import Annotator, chromium

pytestmark = pytest.mark.skipif(
    shutil.which("chromium") is None, reason="no browser here; on Debian: apt-get install chromium"
)
Draw = Callable[..., Path]
CLASSES = {"bar", "square"}
DAY_SECONDS = 86_400
LOOSE = {"near_duplicate_cosine": 1.0, "leak_cosine": 1.0}  # drawings of two shapes are all alike to a CLIP


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def session(
    browser: Browser, label_studio: LabelStudioServer, tmp_path_factory: pytest.TempPathFactory
) -> StorageState:
    """The owner's, who signed in once."""
    person = Annotator(browser, label_studio.url, tmp_path_factory.mktemp("owner"))
    person.sign_in(label_studio.email, label_studio.password.get_secret_value())
    found = person.session
    person.leave()
    return found


@pytest.fixture
def owner(
    browser: Browser, label_studio: LabelStudioServer, session: StorageState, tmp_path: Path
) -> Iterator[Annotator]:
    """Who set the server up, signed in."""
    person = Annotator(browser, label_studio.url, tmp_path, session=session)
    yield person
    person.leave()


@pytest.fixture
def newcomers(browser: Browser, owner: Annotator, tmp_path: Path) -> Iterator[list[Annotator]]:
    """Two whom the owner invited, and who signed up."""
    people = []
    for name in ("second", "third"):
        people.append(Annotator(browser, owner.url, tmp_path))
        people[-1].sign_up(owner.invite(), f"{name}-{uuid4().hex[:8]}@example.org", uuid4().hex)
    yield people
    for person in people:
        person.leave()


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
    learning.fit(datasets.freeze_dataset(RetrainPlan(corpora=["train"])), RetrainPlan(model="m", corpora=["train"]))
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


def link_to_image(server: LabelStudioServer, task: str) -> str:
    """What Label Studio gives a browser as the address of a task's image."""
    headers = {"Authorization": f"Token {server.token.get_secret_value()}"}
    found = httpx.get(f"{server.url}/api/tasks/{task}", headers=headers).raise_for_status()
    return str(found.json()["data"]["image"])


def wait_until_refused(link: str) -> None:
    deadline = time.monotonic() + 30
    while httpx.get(link).status_code != 403:
        assert time.monotonic() < deadline
        time.sleep(0.3)


def test_whatever_an_annotator_does_is_read_as_it_was_meant(
    owner: Annotator, images: Path, label_studio: LabelStudioServer
) -> None:
    sent = send(6)
    owner.begin(sent.project)
    words, widths, rows = owner.read_instructions()
    assert "Issue 'light-bar': bars <b> that are light." in words
    assert (widths, rows) == ([28, 28, 28], [2, 1])

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


def test_several_classes_are_ticked_and_come_back_together(owner: Annotator, images: Path) -> None:
    sent = send(1, choice="multiple")
    owner.begin(sent.project)
    owner.close_instructions()
    (guessed,) = owner.ticked()
    owner.tick(other_than(guessed))
    assert owner.ticked() == CLASSES
    task = owner.submit()
    row = sync()
    assert (told(row), row.rejected, row.complete) == ((1, {"labelled": 1}), 0, True)
    assert (request_of(task).class_name, set(request_of(task).class_names)) == ("", CLASSES)


def test_two_who_differ_are_followed_by_a_third_who_decides(
    owner: Annotator, newcomers: list[Annotator], images: Path
) -> None:
    second, third = newcomers
    sent = send(1, opinions=2, most_opinions=3)
    owner.begin(sent.project)
    owner.close_instructions()
    (guessed,) = owner.ticked()
    task = owner.submit()
    assert told(sync()) == (1, {"pending": 1})

    second.begin(sent.project)
    second.close_instructions()
    assert second.ticked() == {guessed}
    second.tick(other_than(guessed))
    assert second.submit() == task
    assert told(sync()) == (1, {"pending": 1})
    assert request_of(task).opinions == 3

    third.begin(sent.project)
    third.close_instructions()
    third.tick(other_than(guessed))
    assert third.submit() == task
    row = sync()
    assert (told(row), row.complete) == ((1, {"labelled": 1}), True)
    assert request_of(task).class_name == other_than(guessed)
    assert len({label.annotator for label in versions(task)}) == 3


def test_a_link_that_expired_is_renewed_and_the_image_shows_again(
    owner: Annotator,
    images: Path,
    label_studio: LabelStudioServer,
    listening: Callable[[FastAPI], AbstractContextManager[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DIPNET_RECEIVER_SECRET", "0123456789abcdef" * 4)
    with listening(make_app(sync=lambda _: None)) as url:
        monkeypatch.setenv("DIPNET_RECEIVER_URL", url)
        monkeypatch.setenv("DIPNET_MEDIA_DAYS", str(2 / DAY_SECONDS))
        sent = send(1)
        with open_stores() as stores:
            task = stores.db.exec(select(LabelRequest.external_id)).one()
        wait_until_refused(old := link_to_image(label_studio, task))

        owner.begin(sent.project)
        assert owner.read_instructions()[1] == [0, 0, 0]
        assert "issue loading URL" in owner.read_complaint()

        monkeypatch.setenv("DIPNET_MEDIA_DAYS", "30")
        assert told(sync()) == (0, {"pending": 1})
        assert link_to_image(label_studio, task) != old
        assert httpx.get(old).status_code == 403
        owner.begin(sent.project)
        assert owner.read_instructions()[1] == [28, 28, 28]
        assert fingerprint(owner.look()) == request_of(task).sample_id
        assert owner.submit() == task
        assert sync().complete
