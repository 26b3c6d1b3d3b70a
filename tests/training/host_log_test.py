"""Each process's log says when it came, what it did and why it went."""

import pytest

from diffgr_jax.training.host_log import LOGGER, host_log


def test_events_and_the_reason_of_an_end_stand_in_the_log(tmp_path):
  with host_log(tmp_path):
    LOGGER.info("saving step 4")
  with pytest.raises(ValueError, match="no such file"), host_log(tmp_path):
    raise ValueError("no such file\nand more")
  text = (tmp_path / "logs" / "process_0.log").read_text()
  assert text.count("process 0 of 1 on ") == 2
  assert "INFO saving step 4\n" in text
  assert "INFO done\n" in text
  assert text.endswith("ERROR ValueError: no such file\n")
  assert not LOGGER.handlers
