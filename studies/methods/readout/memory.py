"""Peak memory and CPU seconds of a head with 100,000 contrasts: memory.json beside it.

    OMP_NUM_THREADS=1 python -m studies.methods.readout.memory

25,000 items of five choices, made-up float32 features of two blocks of 32, all settings of the library. What the
process holds before the features are made (torch and this package) is told apart.
"""

import json
import resource
import time
from pathlib import Path

import torch

from bayeslora.readouts.blocks import OptionFeatures
from bayeslora.readouts.head import fit_head

ITEMS, CHOICES, WIDTH, BLOCKS = 25_000, 5, 32, 2
RESULTS = Path(__file__).with_name("memory.json")


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    torch.set_num_threads(1)
    before = peak()
    source = torch.Generator().manual_seed(0)
    hidden = {str(one): torch.randn(ITEMS, CHOICES, WIDTH, generator=source) for one in range(BLOCKS)}
    mask = torch.ones(ITEMS, CHOICES, dtype=torch.bool)
    labels = torch.multinomial((2 * hidden["0"][..., 0]).softmax(-1), 1, generator=source)[:, 0]
    started = time.process_time()
    head = fit_head(OptionFeatures(hidden, mask, torch.randn(ITEMS, 8, generator=source)), labels)
    found = {
        "contrasts": ITEMS * (CHOICES - 1),
        "inducing": int(head.features.mask[:, 1:].sum()),
        "gib_before": round(before, 2),
        "peak_gib": round(peak(), 2),
        "fit_cpu_seconds": round(time.process_time() - started, 1),
        "leave_one_out_nll": round(head.noise.nll, 4),
    }
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
