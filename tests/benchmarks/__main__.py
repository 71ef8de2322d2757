"""python -m tests.benchmarks [NAME ...]: every ratio this library claims, measured side by side in one run."""

import sys

from tests.benchmarks import attacks, cluster, curvature, samples, training, verification, votes, wallclock

BENCHMARKS = {
    "votes": votes.main,
    "samples": samples.main,
    "wallclock": wallclock.main,
    "attacks": attacks.main,
    "verification": verification.main,
    "training": training.main,
    "curvature": curvature.main,
    "cluster": cluster.main,
}

if __name__ == "__main__":
    for name in sys.argv[1:] or BENCHMARKS:
        print(f"== {name} ==", flush=True)
        BENCHMARKS[name]()
