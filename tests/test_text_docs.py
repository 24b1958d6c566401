"""What docs/text.md shows works."""

import re
from pathlib import Path

import pytest
import torch

from modelzip.data.sms import TOKENS, cleaning, message_tokenizer
from modelzip.export.onnx import export_onnx
from modelzip.zoo import text_cnn

PAGE = (Path(__file__).parent.parent / "docs/text.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("answer", ["ham", "spam"])
def test_a_raw_message_is_classified(answer, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "runs/sms_spam"
    folder.mkdir(parents=True)
    clean = cleaning().normalize_str
    cleaned = [clean("WINNER!! Claim your £900 prize, call 0"), clean("see you at lunch")]
    message_tokenizer(cleaned, vocabulary=60, length=16).save(str(folder / TOKENS))
    model = text_cnn(vocabulary=60, length=16, width=4, channels=4).eval()
    with torch.no_grad():
        model.linear.weight.zero_()
        model.linear.bias.copy_(torch.tensor([0.0, 1.0 if answer == "spam" else -1.0]))
    export_onnx(model, torch.zeros(1, 16, dtype=torch.int64), folder / "model.onnx")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    exec(code, {})
    assert capsys.readouterr().out == f"{answer}\n"
