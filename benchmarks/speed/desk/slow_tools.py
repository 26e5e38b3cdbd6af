"""The desk's tools as every system gets them: plain async methods that take their time.

In alphabetical order and with a note for each argument, as TRL wants them, so that all prompts are
the same text. Loads neither torch nor anything of ours.
"""

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[3] / "examples" / "support_desk"))

from shop import Shop

DELAY_S = "SPEED_DESK_DELAY_S"
"""Environment variable: what a call takes beside its work. Read when a rollout begins."""


class SlowTools:
    """One customer's request, in a shop of its own."""

    row: Mapping[str, Any]
    shop: Shop
    _delay_s: float

    def _open(self, row: Mapping[str, Any]) -> None:
        self.row = row
        self.shop = Shop(row["shop"])
        self._delay_s = float(os.environ.get(DELAY_S, "0"))

    async def cancel_order(self, order_id: str) -> str:
        """Cancel an order.

        Args:
            order_id: as in W12345
        """
        await self._wait()
        return self.shop.cancel_order(order_id)

    async def change_address(self, order_id: str, address: str) -> str:
        """Change where an order goes.

        Args:
            order_id: as in W12345
            address: street and number
        """
        await self._wait()
        return self.shop.change_address(order_id, address)

    async def find_customer(self, email: str) -> str:
        """Find the orders of a customer.

        Args:
            email: of the customer
        """
        await self._wait()
        return self.shop.find_customer(email)

    async def get_order(self, order_id: str) -> str:
        """Look up an order.

        Args:
            order_id: as in W12345
        """
        await self._wait()
        return self.shop.get_order(order_id)

    async def hand_over(self, reason: str) -> str:
        """Give the case to a colleague.

        Args:
            reason: in one word
        """
        await self._wait()
        return self.shop.hand_over(reason)

    async def refund(self, order_id: str, amount: float) -> str:
        """Pay money back.

        Args:
            order_id: as in W12345
            amount: in the shop's currency
        """
        await self._wait()
        return self.shop.refund(order_id, float(amount))

    async def search_policy(self, topic: str) -> str:
        """Read the rules.

        Args:
            topic: in one word
        """
        await self._wait()
        return self.shop.search_policy(topic)

    async def _wait(self) -> None:
        if self._delay_s:
            await asyncio.sleep(self._delay_s)
