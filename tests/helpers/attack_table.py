"""What comes of each attack in tests/integration/test_attacks.py, by who makes it."""

from __future__ import annotations

ATTACKERS = {"anybody": "x9", "dashboard": "dashboard", "submitter": "submitter", "insider": "b9"}
"""Who attacks, and under which name: anybody on an open broker, and three users of one by `distree broker init`."""

HOLDS = "holds"
"""No answer is wrong or missing, no threshold is loosened, no board is deaf or down."""


def _open(what: str) -> dict[str, str]:
    return {"anybody": what, "dashboard": HOLDS, "submitter": HOLDS, "insider": HOLDS}


EXPECTED: dict[str, dict[str, str]] = {
    "plan_beyond_all_epochs": _open(HOLDS),
    "four_plans_in_a_row": _open("all inputs leave at the first exit until `reset-plan`; `status` shows `PREEMPTED`"),
    "report_that_uses_up_epochs": _open(HOLDS),
    "forged_claim": _open(HOLDS),
    "audits_of_a_made_up_origin": _open(HOLDS),
    "forged_boot": _open(HOLDS),
    "flood_of_states": _open(HOLDS),
    "flood_of_members": _open(HOLDS),
    "forged_outcomes": _open("wrong answers: whoever reads what boards send each other can answer for them"),
    "forged_results": _open("readers of results cannot tell them from true ones"),
    "shared_subscription": _open("reads what boards send each other; nothing is lost"),
    "stolen_client_id": _open("the origin loses its connection, and inputs that wait for it at the broker are lost"),
    "ids_of_inputs_to_come": _open(HOLDS),
    "topic_of_60_kb": _open(HOLDS),
    "hostile_inputs": _open(HOLDS),
}

INSIDER = (
    "answers_wrongly", "reads_features", "delays_inputs", "gives_boards_work", "tells_people_things",
    "results_of_its_own", "false_audits",
)  # fmt: skip
"""What the key of a board still allows."""

INSIDER_ELSEWHERE = frozenset({"false_audits"})
"""Those of them that tests/orchestrator/tuning/test_false_audits.py tries."""
