"""Tools and grader of the agent. A fresh `LoanDesk` is made for every rollout."""

from agentrft import Environment, Task, Trajectory, tool


class LoanDesk(Environment):
    """One reader's loan, as the row describes it."""

    def __init__(self, task: Task) -> None:
        self.loan = task["loan"]
        self.looked_up = False
        self.renewed: list[str] = []

    @tool
    def get_loan(self, loan_id: str) -> str:
        """Look a loan up. loan_id: as printed on the slip, e.g. L4821."""
        if loan_id != self.loan["id"]:
            return f"no loan {loan_id}"
        self.looked_up = True
        return f"title={self.loan['title']} reserved={'yes' if self.loan['reserved'] else 'no'}"

    @tool
    def renew_loan(self, loan_id: str) -> str:
        """Renew a loan by two weeks. loan_id: the loan's id."""
        self.renewed.append(loan_id)
        return "renewed"

    def grade(self, trajectory: Trajectory) -> float:
        """Score 1 for the right deed, 0.2 for at least looking, 0 for a forbidden or blind renewal."""
        reserved = self.loan["reserved"]
        if self.renewed and (reserved or not self.looked_up or self.renewed != [self.loan["id"]]):
            return 0.0
        done = bool(trajectory.output_text) and bool(self.renewed) is not reserved
        return 1.0 if done and self.looked_up else 0.2 * self.looked_up
