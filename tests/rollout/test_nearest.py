"""Which text is nearest to a request."""

from agentrft.rollout.nearest import Nearest

TEXTS = ["get_order Look up an order.", "refund Pay money back.", "searchPolicy Read the rules."]


def test_shared_words_decide_rare_ones_more() -> None:
    nearest = Nearest(TEXTS)
    assert nearest.order("pay me back for my order")[0] == 1
    assert nearest.order("what is the policy?")[0] == 2


def test_what_shares_nothing_keeps_its_order() -> None:
    assert Nearest(TEXTS).order("xyz") == [0, 1, 2]
    assert Nearest([]).order("xyz") == []


def test_order_numbers_do_not_decide() -> None:
    texts = ["where is W11111?", "refund W22222 please"]
    assert Nearest(texts).order("refund W11111 please") == [1, 0]
