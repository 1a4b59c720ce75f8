"""What bench/peer_d3rlpy.py asks of d3rlpy, told by a stand-in for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from train.bc import BCConfig
from train.iql import IQLConfig
from train.td3_bc import TD3BCConfig

PEER = Path(__file__).parents[1] / "bench" / "peer_d3rlpy.py"
STAND_IN = """
import json, sys
from types import SimpleNamespace

__version__ = "none"

class Config:
    def __init__(self, **options):
        print(json.dumps({key: value for key, value in options.items() if "factory" not in key}), file=sys.stderr)
        raise SystemExit

seed = lambda seed: None
models = SimpleNamespace(VectorEncoderFactory=lambda hidden_units: None)
algos = SimpleNamespace(CQLConfig=Config, TD3PlusBCConfig=Config, IQLConfig=Config, BCConfig=Config)
dataset = SimpleNamespace(MDPDataset=lambda **arrays: None)
"""


def asked(tmp_path, algorithm, **settings):
    """Options that d3rlpy's algorithm is made with."""
    (tmp_path / "d3rlpy.py").write_text(STAND_IN)
    np.savez(tmp_path / "data.npz", observations=np.zeros((1, 2)), settings=json.dumps(settings))
    done = subprocess.run(
        [sys.executable, str(PEER)],
        input=f"learn {algorithm} {tmp_path / 'data.npz'} 1 0 {tmp_path / 'out.npz'}\n",
        env={"PYTHONPATH": str(tmp_path)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    return json.loads(done.stderr.strip().splitlines()[-1])


def test_d3rlpys_conservative_weight_is_twice_ours(tmp_path):
    settings = {"batch_size": 128, "actor_lr": 3e-4, "target_update_rate": 0.02, "conservative_weight": 5.0}
    found = asked(tmp_path, "cql", **settings)
    assert found["conservative_weight"] == 10.0
    assert (found["actor_learning_rate"], found["tau"], found["batch_size"]) == (3e-4, 0.02, 128)
    assert (
        found["alpha_learning_rate"] == found["alpha_threshold"] == 0.0
    )  # no Lagrange multiplier: the weight is fixed


def test_the_peer_has_our_defaults(tmp_path):
    """Where d3rlpy's are others, as BC's learning rate, or might become others."""
    iql, td3_bc, bc = IQLConfig(), TD3BCConfig(), BCConfig()
    found = asked(tmp_path, "iql", batch_size=256)
    assert (found["expectile"], found["weight_temp"]) == (iql.expectile, iql.inverse_temperature)
    assert (found["actor_learning_rate"], found["tau"]) == (iql.actor_lr, iql.target_update_rate)
    found = asked(tmp_path, "td3-bc", batch_size=256)
    assert (found["alpha"], found["actor_learning_rate"]) == (td3_bc.q_weight, td3_bc.actor_lr)
    assert asked(tmp_path, "bc", batch_size=256)["learning_rate"] == bc.lr
