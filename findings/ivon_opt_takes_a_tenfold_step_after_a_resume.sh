#!/usr/bin/env bash
# ivon-opt 0.1.3 (PyPI), torch 2.13.0.
#
# Expected: model and optimizer loaded from their state dicts go on as if the training had never stopped, as with every
# optimizer of torch.
# Seen: the number of steps, by which IVON corrects the bias of its momentum, is not in state_dict(). A resumed run starts
# to count at 0 again and divides its momentum, which is long without bias, by 1 - 0.9: the first step goes ten times as
# far. Here, 300 steps into a training that has come to rest, with the same noise in both runs.
#
# Output seen:
#   step counter 300, after load_state_dict 0; the first step after it is 10.3 times as long, its loss 1.0 times;
#       after 5 steps the weights differ by 0.033
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-deps ivon-opt==0.1.3
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import copy

import ivon
import torch

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(1)
inputs, labels = torch.randn(64, 4, generator=generator), torch.randint(0, 3, (64,), generator=generator)


def fresh():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    return model, ivon.IVON(model.parameters(), lr=0.1, ess=64, weight_decay=1e-3)


def train(model, optimizer, steps):
    """Steps by their number, each with noise of its own seed; gives how far the last one went, and its loss."""
    for step in steps:
        before = torch.cat([value.detach().flatten().clone() for value in model.parameters()])
        torch.manual_seed(1000 + step)
        with optimizer.sampled_params(train=True):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(inputs), labels)
            loss.backward()
        optimizer.step()
    after = torch.cat([value.detach().flatten() for value in model.parameters()])
    return (after - before).norm().item(), loss.item()


straight, its_optimizer = fresh()
train(straight, its_optimizer, range(300))
resumed, other_optimizer = fresh()
resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
other_optimizer.load_state_dict(copy.deepcopy(its_optimizer.state_dict()))
counters = its_optimizer.current_step, other_optimizer.current_step
(length, loss), (longer, other_loss) = (
    train(model, optimizer, [300]) for model, optimizer in ((straight, its_optimizer), (resumed, other_optimizer))
)
for model, optimizer in ((straight, its_optimizer), (resumed, other_optimizer)):
    train(model, optimizer, range(301, 305))
pairs = zip(straight.parameters(), resumed.parameters(), strict=True)
apart = max((one - other).abs().max().item() for one, other in pairs)
print(
    f"step counter {counters[0]}, after load_state_dict {counters[1]}; the first step after it is {longer / length:.1f} "
    f"times as long, its loss {other_loss / loss:.1f} times; after 5 steps the weights differ by {apart:.2g}"
)
assert counters == (300, 0) and longer > 5 * length and loss == other_loss and apart > 1e-3
PYTHON
