import pytest

from modelzip.runtime.operators import unsupported

OPENVINO = """Exception from src/inference/src/cpp/core.cpp:84:
Model wasn't fully converted. Failed operations detailed log:
-- Mod-21 with a message:
Summary:
-- No conversion rule found for operations: acme.Blah, acme.Frobnicate
-- Conversion is failed for: Mod-21
"""


@pytest.mark.parametrize(
    ("message", "operators"),
    [
        (OPENVINO, ("acme.Blah", "acme.Frobnicate", "Mod")),
        ("Fatal error: acme:Blah(-1) is not a registered function/op", ("acme:Blah",)),
        ("Error No Op registered for Blah with domain_version of 21", ("Blah",)),
        ("Could not find an implementation for Conv(11) node with name 'c'", ("Conv",)),
        ("Type 'tensor(bfloat16)' of input parameter (c) of operator (Conv) in node", ("Conv",)),
        ("the file is damaged", ()),
    ],
)
def test_operators_are_found_in_messages(message: str, operators: tuple[str, ...]) -> None:
    assert unsupported(message) == operators
