import pytest

from fedfault.backbones.sites import lora_targets
from fedfault.errors import UserError
from tiny import tiny_llama


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("all-linear", r"all-linear is PEFT's word.*target_modules=\[down_proj,gate_proj,k_proj,.*v_proj\]"),
        (".*_proj", r"no module called '\.\*_proj' in llama; give names or their ends, not a pattern \(linear layers"),
        ("q_porj", r"no module called 'q_porj' in llama; did you mean 'q_proj'"),
    ],
)
def test_words_and_patterns_of_peft_are_named_as_what_they_are(wanted, said):
    with pytest.raises(UserError, match=said):
        lora_targets(tiny_llama(), [wanted])
