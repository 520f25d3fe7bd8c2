"""Every message is one line that a terminal can show, whatever names an attacker put into it."""

import pytest

from undoor.errors import MESSAGE_CHARACTERS, UndoorError, UndoorNotice


@pytest.mark.parametrize("kind", [UndoorError, UndoorNotice])
def test_a_message_is_one_line_that_a_terminal_can_show(kind):
    assert str(kind("column a\nb\r\x1b[31mred\u202e\u2028; rename it")) == "column a b  [31mred  ; rename it"
    assert str(kind("Möwe, 鳥 and 'quotes' stay")) == "Möwe, 鳥 and 'quotes' stay"
    message = str(kind(f"first {'x' * 10**6} last"))
    assert (message[:8], message[-6:]) == ("first xx", "x last")
    assert len(message) == MESSAGE_CHARACTERS + 3
