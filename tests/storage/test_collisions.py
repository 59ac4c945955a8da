"""Two dipnets that write the same rows: one of them finds them there, and goes on."""

import pytest

from models.corpus import Corpus
from models.errors import Collided
from storage import corpora
from storage.stores import insist, open_stores


def test_what_another_wrote_first_is_found_the_second_time() -> None:
    tries = []

    def add() -> int:
        with open_stores() as stores:
            found = corpora.find_corpus(stores.db, name="pool")
            if found is None:
                if not tries:  # another dipnet is quicker
                    with open_stores() as others:
                        others.db.add(Corpus(name="pool", prefix="there"))
                tries.append(1)
                stores.db.add(Corpus(name="pool", prefix="here"))
                return 0
            return found.id or 0

    assert insist(add) == 1
    assert tries == [1]


def test_what_collides_for_ever_is_told() -> None:
    with open_stores() as stores:
        stores.db.add(Corpus(name="pool", prefix="there"))

    def add() -> None:
        with open_stores() as stores:
            stores.db.add(Corpus(name="pool", prefix="here"))

    with pytest.raises(Collided, match="another dipnet wrote the same rows first"):
        insist(add)
