"""What is told stays one line, whatever names an attacker put into it."""

import pytest

from undoor.errors import LINE, UndoorError, UndoorNotice


@pytest.mark.parametrize("kind", [UndoorError, UndoorNotice])
def test_what_is_told_is_one_line_that_a_terminal_can_show(kind):
    assert str(kind("column a\nb\r\x1b[31mred\u202e\u2028; rename it")) == "column a b  [31mred  ; rename it"
    assert str(kind("Möwe, 鳥 and 'quotes' stay")) == "Möwe, 鳥 and 'quotes' stay"
    told = str(kind(f"first {'x' * 10**6} last"))
    assert (told[:8], told[-6:]) == ("first xx", "x last")
    assert len(told) == LINE + 3
