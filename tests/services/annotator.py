"""A person at Label Studio's pages: Chromium, without a window, that does one thing at a time and waits until it is done.

Names of buttons and classes of elements are those of Label Studio 1.23.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from playwright.sync_api import Browser, Error, Page, Response, StorageState, expect, sync_playwright

P = ParamSpec("P")
R = TypeVar("R")
QUIET = ["no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-component-update", "disable-sync"]
FLAGS = [f"--{flag}" for flag in [*QUIET, "disable-background-networking"]]
PATIENCE_MS = 45_000
CHOICES = ".lsf-choices"
SHOWS = "id => document.querySelector('.lsf-current-task__task-id')?.innerText.match(/\\d+/)?.[0] === id"
ENDED = "box => [...box.querySelectorAll('img')].every(image => image.complete)"
LOADED = "image => image.complete && image.naturalWidth > 0"
BYTES = "async image => Array.from(new Uint8Array(await (await fetch(image.src)).arrayBuffer()))"


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser of the machine; none is downloaded."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def act(method: Callable[Concatenate[Annotator, P], R]) -> Callable[Concatenate[Annotator, P], R]:
    """Something that an annotator does; where it does not work out, the error names a picture of the page."""

    @wraps(method)
    def watched(self: Annotator, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, *args, **kwargs)
        except Error as error:
            picture = self.pictures / f"{method.__name__}.png"
            self.page.screenshot(path=picture)
            error.add_note(f"while the annotator was to {method.__name__} at {self.page.url}; see {picture}")
            raise

    return watched


class Annotator:
    """One person in a browser of their own, at one server."""

    def __init__(self, browser: Browser, url: str, pictures: Path, *, session: StorageState | None = None) -> None:
        self.url, self.pictures = url, pictures
        context = browser.new_context(viewport={"width": 1400, "height": 1000}, storage_state=session)
        context.set_default_timeout(PATIENCE_MS)
        self.page: Page = context.new_page()

    @property
    def session(self) -> StorageState:
        """What makes another browser signed in as well."""
        return self.page.context.storage_state()

    def leave(self) -> None:
        """Close the browser's windows."""
        self.page.context.close()

    @act
    def sign_in(self, email: str, password: str) -> None:
        """With a password."""
        self.page.goto(f"{self.url}/user/login/")
        self._fill_in("Log in", {"email": email, "password": password})

    @act
    def sign_up(self, invitation: str, email: str, password: str) -> None:
        """By an invitation's path; the only way in, where signing up without a link is switched off."""
        self.page.goto(self.url + invitation)
        self.page.get_by_text("Get the latest news").click()  # no, thank you
        self._fill_in("Create Account", {"email": email, "password": password})

    @act
    def invite(self) -> str:
        """The path of a link by which others may sign up, which the Organization page shows."""
        self.page.goto(self.url)
        path: str = self.page.evaluate("fetch('/api/invite').then(answer => answer.json())")["invite_url"]
        return path

    @act
    def begin(self, project: str) -> None:
        """Open a project and press what leads through its tasks one after the other."""
        self.page.goto(f"{self.url}/projects/{project}/data")
        with self._next_task():
            self.page.get_by_role("button", name="Label All Tasks").click()

    @act
    def read_instructions(self) -> tuple[str, list[int], list[int]]:
        """Their words, the width of each picture once it is loaded (0: it does not load), how many stand in each row."""
        box = self.page.locator(".lsf-modal-ls__body")
        box.wait_for()
        self.page.wait_for_function(ENDED, arg=box.element_handle())
        widths = box.locator("img").evaluate_all("all => all.map(image => image.naturalWidth)")
        tops = box.locator("img").evaluate_all("all => all.map(image => image.offsetTop)")
        words = box.inner_text()
        self.close_instructions()
        return words, widths, list(Counter(tops).values())

    @act
    def close_instructions(self) -> None:
        """See the task behind them."""
        self.page.get_by_role("button", name="Close modal").click()

    @act
    def look(self) -> bytes:
        """The image that is to be labelled, once it is drawn: the bytes that the page holds."""
        image = self.page.locator("img[alt=image]")
        image.wait_for(state="attached")
        self.page.wait_for_function(LOADED, arg=image.element_handle())
        return bytes(image.evaluate(BYTES))

    @act
    def read_complaint(self) -> str:
        """What the page says where the image cannot be loaded."""
        complaint = self.page.get_by_text("issue loading URL")
        complaint.wait_for()
        return complaint.inner_text()

    @act
    def ticked(self) -> set[str]:
        """The classes that are chosen at the moment."""
        found = self.page.locator(f"{CHOICES} input:checked").all()
        return {str(one.get_attribute("name")) for one in found}

    @act
    def tick(self, class_name: str) -> None:
        """Choose a class; one that is chosen is so no more."""
        box = self.page.locator(f"{CHOICES} input[name='{class_name}']")
        wanted = not box.is_checked()
        box.locator("xpath=ancestor::label").click()
        expect(box).to_be_checked(checked=wanted)

    @act
    def submit(self) -> str:
        """Give a first answer; the id of the task that was answered."""
        with self._next_task():
            return self._answer("Submit current annotation", "POST")

    @act
    def skip(self) -> str:
        """Give none; the id of the task."""
        with self._next_task():
            return self._answer("skip-task", "POST")

    @act
    def open(self, project: str, task: str) -> None:
        """One task, by its own link."""
        self.page.goto(f"{self.url}/projects/{project}/data?task={task}")
        self._wait_for(task)

    @act
    def update(self) -> str:
        """Correct the answer that is open; the id of its task."""
        return self._answer("submit", "PATCH")

    @act
    def withdraw(self) -> None:
        """Delete the answer that is open."""
        tab = self.page.locator(".lsf-annotation-button_submitted")
        tab.hover()
        tab.locator(".lsf-annotation-button__trigger").click()
        self.page.get_by_text("Delete Annotation").click()
        with self.page.expect_response(lambda answer: is_call(answer, "DELETE", "/api/annotations/")):
            self.page.get_by_role("button", name="Delete", exact=True).click()

    @act
    def delete_task(self, project: str, task: str) -> None:
        """In the Data Manager: select its row, choose the action, confirm."""
        self.page.goto(f"{self.url}/projects/{project}/data")
        self.page.get_by_label(f"Select Task {task}", exact=True).click()
        self.page.get_by_role("button", name="Tasks Actions").click()
        self.page.get_by_text("Delete Tasks").click()
        with self.page.expect_response(lambda answer: is_call(answer, "POST", "id=delete_tasks")):
            self.page.get_by_role("button", name="Delete Tasks", exact=True).click()

    def _fill_in(self, button: str, fields: Mapping[str, str]) -> None:
        for name, text in fields.items():
            self.page.locator(f"input[name={name}]").fill(text)
        self.page.get_by_role("button", name=button).click()
        self.page.wait_for_url(lambda url: "/user/" not in url)

    def _answer(self, button: str, method: str) -> str:
        with self.page.expect_response(lambda answer: is_call(answer, method, "/annotations")) as found:
            self.page.get_by_role("button", name=button, exact=True).click()
        return str(found.value.json()["task"])

    @contextmanager
    def _next_task(self) -> Iterator[None]:
        """Wait for the task that comes after what is done, where there is one."""
        with self.page.expect_response(lambda answer: "id=next_task" in answer.url) as found:
            yield
        if found.value.ok:
            self._wait_for(str(found.value.json()["id"]))

    def _wait_for(self, task: str) -> None:
        self.page.wait_for_function(SHOWS, arg=task)
        self.page.locator(CHOICES).wait_for()


def is_call(answer: Response, method: str, part: str) -> bool:
    """Whether this is the answer to a call, and a good one."""
    return answer.request.method == method and part in answer.url and answer.ok
