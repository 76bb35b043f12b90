"""One training in several processes, a GPU each: `curate train --processes 2`, or `accelerate launch -m curate train`.

The first process leads. It alone opens the project, judges on val, writes and speaks; the others join it in the loop,
where each computes its part of every batch and gradients are averaged. `batch` is that of all processes together, so a
recipe means the same on any number of them. Each norm sees its own process's part of a batch, as it would see a smaller
batch; the leader's running statistics are given to the others before every step, and are those that are stored.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from curate import workers
from curate.errors import CurateError

Made = TypeVar("Made")
PATIENCE = timedelta(hours=12)  # the leader may judge a large val while the others wait
GONE = "a process of the training died (out of memory?); what was trained is kept: run it again"


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those that train together."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.world == 1

    def part_of(self, batch: int) -> int:
        """How many images of a batch are this process's."""
        if batch % self.world:
            fitting = self.world * max(1, round(batch / self.world))
            raise CurateError(f"batch {batch} cannot be shared by {self.world} processes. Try: --set batch={fitting}")
        return batch // self.world

    def joined(self, model: Any) -> Any:
        """The model as one of several, whose gradients are averaged; it begins with the leader's weights."""
        if self.alone:
            return model
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(model, find_unused_parameters=True)  # a shallow encoder uses but some of its own

    def total(self, *values: float) -> Sequence[float]:
        """The sums over all processes."""
        if self.alone:
            return values
        import torch
        from accelerate import PartialState
        from accelerate.utils import reduce

        mine = torch.tensor(values, dtype=torch.float64, device=PartialState().device)
        return [float(one) for one in reduce(mine, "sum")]

    def gathered(self, value: Any) -> list[Any]:
        """What each process has, by rank."""
        if self.alone:
            return [value]
        from accelerate.utils import gather_object

        return list(gather_object([value]))

    def shared(self, value: Any) -> Any:
        """What the leader has."""
        if self.alone:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def wait(self) -> None:
        """Until all are here."""
        self.gathered(None)

    def agreed(self, make: Callable[[], Made]) -> Made:
        """What the leader makes; where it cannot, the others have nothing to do."""
        try:
            found = make() if self.leads else None
        except BaseException:
            self.shared(None)
            raise
        told: Made | None = self.shared(found)
        if told is None:
            raise SystemExit(1)
        return told

    def fail(self, error: CurateError) -> NoReturn:
        """What all processes see, the leader says."""
        raise error if self.leads else SystemExit(1)


ALONE = ProcessGroup()


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def team(device: str) -> Iterator[ProcessGroup]:
    """The team that the launcher made, for as long as the block lasts; without one this process is alone."""
    if not launched():
        yield ALONE
        return
    from accelerate import PartialState

    threading.Thread(target=workers.follow, args=(os.getppid(),), daemon=True).start()
    state = PartialState(cpu=device == "cpu", timeout=PATIENCE)
    made = ProcessGroup(state.process_index, state.num_processes)
    try:
        yield made
    except RuntimeError as error:
        if not _lost(error):
            raise
        made.fail(CurateError(GONE))
    state.destroy_process_group()


def _lost(error: RuntimeError) -> bool:
    """Another process left, and has said why if it could."""
    return any(word in str(error) for word in ("peer", "Connection", "NCCL", "Socket"))


def launch(count: int, arguments: Sequence[str], device: str) -> int:
    """Run `curate` with these arguments in so many processes; the exit code. They themselves say what goes wrong."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    _check(count, device)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, workers.cores() // count) if device == "cpu" else 1))
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else it advises on what `joined` has a reason for
    setting = {"num_processes": count, "num_machines": 1, "mixed_precision": "no", "dynamo_backend": "no"}
    options = [f"--{name}={value}" for name, value in setting.items()]
    parsed = launch_command_parser().parse_args(["--multi_gpu", *options, "-m", "curate", *arguments])
    parsed.standalone = True  # a port that is free, whoever else trains on this machine
    parsed.local_addr = "localhost"  # a machine need not know its own name
    try:
        launch_command(parsed)
    except ChildFailedError:
        return 1
    except SignalException as ended:
        return 128 + int(ended.sigval)
    return 0


def _check(count: int, device: str) -> None:
    import torch

    cards = torch.cuda.device_count()
    if device != "cpu" and count > cards:
        raise CurateError(f"--processes {count}, but there are {cards} GPUs, one a process; or add --device cpu")
