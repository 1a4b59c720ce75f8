"""What bench/peer_d3rlpy.py asks of d3rlpy, told by a stand-in for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

PEER = Path(__file__).parents[1] / "bench" / "peer_d3rlpy.py"
STAND_IN = """
import json, sys
from types import SimpleNamespace

__version__ = "none"

class CQLConfig:
    def __init__(self, **options):
        print(json.dumps({key: value for key, value in options.items() if "factory" not in key}), file=sys.stderr)
        raise SystemExit

seed = lambda seed: None
models = SimpleNamespace(VectorEncoderFactory=lambda hidden_units: None)
algos = SimpleNamespace(CQLConfig=CQLConfig)
dataset = SimpleNamespace(MDPDataset=lambda **arrays: None)
"""


def test_d3rlpys_conservative_weight_is_twice_ours(tmp_path):
    (tmp_path / "d3rlpy.py").write_text(STAND_IN)
    settings = {"batch_size": 128, "actor_lr": 3e-4, "target_update_rate": 0.02, "conservative_weight": 5.0}
    np.savez(tmp_path / "data.npz", observations=np.zeros((1, 2)), **settings)
    done = subprocess.run(
        [sys.executable, str(PEER)],
        input=f"learn {tmp_path / 'data.npz'} 1 0 {tmp_path / 'out.npz'}\n",
        env={"PYTHONPATH": str(tmp_path)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    found = json.loads(done.stderr.strip().splitlines()[-1])
    assert found["conservative_weight"] == 10.0
    assert (found["actor_learning_rate"], found["tau"], found["batch_size"]) == (3e-4, 0.02, 128)
    assert (
        found["alpha_learning_rate"] == found["alpha_threshold"] == 0.0
    )  # no Lagrange multiplier: the weight is fixed
