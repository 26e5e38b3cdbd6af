"""The slow desk as our environment; the grade is the support desk's own."""

from collections.abc import Mapping

from slow_tools import SlowTools

from agentrft import Environment, Task, Trajectory, tool


class SpeedDesk(SlowTools, Environment):
    """One customer's request; a fresh shop per rollout."""

    cancel_order = tool(SlowTools.cancel_order)
    change_address = tool(SlowTools.change_address)
    find_customer = tool(read_only=True)(SlowTools.find_customer)
    get_order = tool(read_only=True)(SlowTools.get_order)
    hand_over = tool(SlowTools.hand_over)
    refund = tool(SlowTools.refund)
    search_policy = tool(read_only=True)(SlowTools.search_policy)

    def __init__(self, task: Task) -> None:
        self._open(task.row)

    def grade(self, trajectory: Trajectory) -> Mapping[str, float]:
        """End state of the shop and facts in the reply."""
        from grading import grade  # beside the shop, which the tools made importable

        return grade(self.row, self.shop.changes(), trajectory)

    def teardown(self) -> None:
        """Drop the shop."""
        self.shop.close()
