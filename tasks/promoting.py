"""Which model is champion: the one that others are compared with. One promotion at a time, and none is forgotten."""

from __future__ import annotations

from collections.abc import Sequence

from models.base import utc_now
from models.errors import BadInput
from models.learning import ModelVersion, Promotion
from models.outcomes import Gated, Promoted
from models.states import Verdict
from storage import runs
from storage.stores import Stores, alone, open_stores
from tasks.steps import step

LOCK = "champion"
FIRST = "the first"


@step()
def promote(reference: str, because: str = "promoted by hand") -> Promoted:
    """Make a model champion. The champion itself stays so. Raises NotFound."""
    with alone(LOCK), open_stores() as stores:
        model = runs.get_model(stores.db, name=reference)
        now = runs.champion(stores.db)
        if now is not None and now.id == model.id:
            return _same(now, f"{model.reference} is champion already")
        return _promote(stores, model, now, because, None)


@step()
def promote_judged(reference: str, gates: Sequence[Gated], *, allowed: bool = True) -> Promoted:
    """Make a model champion where a gate passes and none fails; where there is no champion, where none fails.

    Twice changes nothing. Only over the champion that it was compared with, and never again by itself once it was
    champion: somebody undid that, or another model has taken its place since.
    """
    with alone(LOCK), open_stores() as stores:
        model = runs.get_model(stores.db, name=reference)
        now = runs.champion(stores.db)
        if not allowed:
            return _same(now, "the plan says not to promote")
        if any(promotion.model_id == model.id for promotion, _ in runs.promotions(stores.db)):
            return _same(now, _known(model, now))
        against = _failed(gates) if now is None else _objection(gates, now)
        if against:
            return _same(now, against)
        if now is None:
            return _promote(stores, model, None, FIRST, None)
        passed = next(one for one in gates if one.verdict is Verdict.PASS)
        about = f" about '{passed.issue}'" if passed.issue else ""
        return _promote(
            stores, model, now, f"passed gate {passed.gate_id}{about} against {now.reference}", passed.gate_id
        )


@step()
def undo() -> Promoted:
    """Take the newest promotion back: the model before is champion again. Raises BadInput when there is none."""
    with alone(LOCK), open_stores() as stores:
        standing = runs.standing_promotions(stores.db)
        if not standing:
            raise BadInput("no model is champion, so there is nothing to undo; promote one with: dipnet model promote")
        promotion, model = standing[0]
        promotion.undone_at = utc_now()
        stores.db.add(promotion)
        stores.db.flush()
        now = runs.champion(stores.db)
        reason = f"the promotion of {model.reference} is undone"
        return Promoted(champion=_name(now), before=model.reference, changed=True, reason=reason)


def _objection(gates: Sequence[Gated], now: ModelVersion) -> str:
    """Why a model may not take the champion's place; empty when it may."""
    if not gates:
        return "it was compared with nothing"
    if failed := _failed(gates):
        return failed
    if all(one.verdict is not Verdict.PASS for one in gates):
        return "no gate says pass"
    if any(one.before != now.reference for one in gates):
        return f"it was compared with {gates[0].before}, and {now.reference} is champion"
    return ""


def _failed(gates: Sequence[Gated]) -> str:
    """Which gates say fail; empty when none does."""
    failed = [str(one.gate_id) for one in gates if one.verdict is Verdict.FAIL]
    return f"gate {', '.join(failed)} says fail" if failed else ""


def _known(model: ModelVersion, now: ModelVersion | None) -> str:
    if now is not None and now.id == model.id:
        return f"{model.reference} is champion already"
    return f"{model.reference} was champion before; make it so again with: dipnet model promote {model.reference}"


def _promote(
    stores: Stores, model: ModelVersion, now: ModelVersion | None, because: str, gate_id: int | None
) -> Promoted:
    stores.db.add(Promotion(model_id=model.id or 0, gate_id=gate_id, reason=because))
    stores.db.flush()
    return Promoted(champion=model.reference, before=_name(now), changed=True, reason=because)


def _same(now: ModelVersion | None, reason: str) -> Promoted:
    return Promoted(champion=_name(now), before=_name(now), changed=False, reason=reason)


def _name(model: ModelVersion | None) -> str:
    return model.reference if model else ""
