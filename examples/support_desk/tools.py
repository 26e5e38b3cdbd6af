"""The support desk as an environment: seven tools over one shop, graded by what is left behind."""

from collections.abc import Mapping

from grading import grade, replayed
from shop import Shop

from agentrft import Environment, Task, Trajectory, tool


class SupportDesk(Environment):
    """One customer's request; a fresh shop per rollout."""

    def __init__(self, task: Task) -> None:
        self.row = task.row
        self.shop = Shop(task["shop"])

    @tool(read_only=True)
    def find_customer(self, email: str) -> str:
        """Find the orders of a customer."""
        return self.shop.find_customer(email)

    @tool(read_only=True)
    def get_order(self, order_id: str) -> str:
        """Look up an order."""
        return self.shop.get_order(order_id)

    @tool
    def cancel_order(self, order_id: str) -> str:
        """Cancel an order."""
        return self.shop.cancel_order(order_id)

    @tool
    def refund(self, order_id: str, amount: float) -> str:
        """Pay money back."""
        return self.shop.refund(order_id, amount)

    @tool
    def change_address(self, order_id: str, address: str) -> str:
        """Change where an order goes."""
        return self.shop.change_address(order_id, address)

    @tool(read_only=True)
    def search_policy(self, topic: str) -> str:
        """Read the rules."""
        return self.shop.search_policy(topic)

    @tool
    def hand_over(self, reason: str) -> str:
        """Give the case to a colleague."""
        return self.shop.hand_over(reason)

    def grade(self, trajectory: Trajectory) -> Mapping[str, float]:
        """End state of the shop and facts in the reply; see `grading.py`."""
        return grade(self.row, self.shop.changes(), trajectory)

    def teardown(self) -> None:
        """Drop the shop."""
        self.shop.close()


class RemoteDesk(Environment):
    """Grades a desk whose tools run elsewhere, by repeating its calls on a shop of its own."""

    def __init__(self, task: Task) -> None:
        self.row = task.row

    def grade(self, trajectory: Trajectory) -> Mapping[str, float]:
        """Give the same grade as `SupportDesk` gives the same rollout."""
        return grade(self.row, replayed(self.row, trajectory), trajectory)
