"""Which names mean the same image: exactly one, or none."""

import pytest

from tasks.compute.matching import ABSENT, SEVERAL, Names, Paths, end, plain, stem


def test_a_name_is_found_where_it_stands_once() -> None:
    names = Names(["a", "", "b", "a", "c"])
    assert names.find(["c", "a", "b", "d", ""]).tolist() == [4, SEVERAL, 2, ABSENT, ABSENT]
    assert Names(["a", "b", "a"], first=True).find(["a", "b"]).tolist() == [0, 1]
    assert Names([]).find(["a"]).tolist() == [ABSENT]


@pytest.mark.parametrize(
    "theirs",
    [
        "/data/birds/in/a.jpg",
        "birds/in/a.jpg",
        "in/a.jpg",
        "a.jpg",
        "file:///data/birds/in/a.jpg",
        "./in/a.jpg",
        "in\\a.jpg",
        "/elsewhere/in/a.jpg",
        "C:\\photos\\in\\a.jpg",
        "in/a",
        "a",
    ],
)
def test_one_path_may_be_the_end_of_the_other(theirs: str) -> None:
    paths = Paths(["x/b.jpg", theirs])
    found = paths.find(["/data/birds/in/a.jpg", "/data/birds/b/c.jpg"], ["in/a.jpg", "b/c.jpg"])
    assert found.tolist() == [1, ABSENT]


@pytest.mark.parametrize(
    "theirs", ["/elsewhere/out/a.jpg", "n/a.jpg", "ba.jpg", "a.jp", "A.jpg", "in/a.png", ".jpg", "jpg"]
)
def test_what_only_looks_alike_is_another_path(theirs: str) -> None:
    assert Paths([theirs]).find(["/data/birds/in/a.jpg"], ["in/a.jpg"]).tolist() == [ABSENT]


def test_a_name_given_twice_stands_for_no_image() -> None:
    assert Paths(["in/a.jpg", "in/a.jpg"]).find(["/data/in/a.jpg"], ["in/a.jpg"]).tolist() == [SEVERAL]


def test_the_longest_end_counts() -> None:
    assert Paths(["a.jpg", "in/a.jpg"]).find(["/d/in/a.jpg", "/d/out/a.jpg"], ["in/a.jpg", "out/a.jpg"]).tolist() == [
        1,
        0,
    ]


def test_a_member_of_a_tar_is_found_by_its_key() -> None:
    paths = Paths(["000000012", "000000013"])
    found = paths.find(["/data/00000.tar/000000013.jpg"], ["00000.tar/000000013.jpg"])
    assert found.tolist() == [1]


def test_parts_of_paths() -> None:
    assert (end("a/b/c", 2), end("a/b/c", 3), end("a/b/c", 4), end("", 1)) == ("b/c", "a/b/c", "", "")
    assert (stem("a.b/c.JPG"), stem("a.b/c"), stem("a.jpg/c"), plain("/a/b/")) == ("a.b/c", "a.b/c", "a.jpg/c", "a/b")
