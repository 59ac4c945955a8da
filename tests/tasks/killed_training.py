"""A retraining in a process of its own that stops at an instant, so that it can be killed there.

    python killed_training.py POINT     POINT: a place below, or 'none'

It prints the point when it is there and sleeps; the tests kill it with SIGKILL then.
"""

import sys
import time
from typing import Any

from flows.training import retrain_and_evaluate
from models.retraining import GatePolicy, RetrainPlan
from storage.objects import DirectoryStore
from tasks import datasets, evaluating, judging, learning, preparing, promoting

PLAN = RetrainPlan(
    model="m", corpora=["train"], campaigns=["*"], issue="*", resamples=200,
    gate=GatePolicy(overall_margin=0.9, class_margin=0.9, scenario_margin=0.9),
)  # fmt: skip
AFTER = {
    "dataset": (datasets, "freeze_dataset"),
    "scenarios": (preparing, "prepare"),
    "fit": (learning, "fit"),
    "evaluation": (evaluating, "evaluate"),
    "comparison": (evaluating, "compare"),
    "gate": (judging, "judge"),
    "promotion": (promoting, "promote_judged"),
}
WRITES = ("datasets/", "models/", "inference/", "comparisons/")  # killed once a file is there and its row is not
POINTS = [*AFTER, *WRITES]


def stop(point: str) -> None:
    print(point, flush=True)
    time.sleep(600)


def main(point: str) -> None:
    if point in AFTER:
        module, name = AFTER[point]
        real = getattr(module, name)

        def stopping(*args: Any, **kwargs: Any) -> Any:
            found = real(*args, **kwargs)
            stop(point)
            return found

        setattr(module, name, stopping)
    elif point in WRITES:
        write = DirectoryStore.write

        def writing(self: DirectoryStore, key: str, data: bytes) -> str:
            checksum = write(self, key, data)
            if key.startswith(point):
                stop(point)
            return checksum

        DirectoryStore.write = writing  # type: ignore[method-assign]
    retrain_and_evaluate.fn(PLAN)


if __name__ == "__main__":
    main(sys.argv[1])
