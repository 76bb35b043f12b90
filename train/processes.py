"""Training in several processes, one GPU each: `curate train --processes 2`, or `accelerate launch -m curate train`.

Only rank 0 opens the project, evaluates on val, writes and prints. The other ranks join it in the training loop, where
each computes its part of every batch and gradients are averaged. `batch` counts the images of all processes together,
so a recipe means the same on any number of them. Batch norms see the local part of a batch; the running statistics of
rank 0 are broadcast before every step, and are the ones that are stored.
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

T = TypeVar("T")
TIMEOUT = timedelta(hours=12)  # rank 0 may evaluate a large val while the others wait
PROCESS_DIED = "a process of the training died (out of memory?); finished epochs are kept: run it again"


@dataclass(frozen=True)
class ProcessGroup:
    """This process (`rank`) among the `world_size` processes that train one model."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def is_single(self) -> bool:
        return self.world_size == 1

    def local_batch(self, batch: int) -> int:
        """Return the number of images of a batch that this process computes."""
        if batch % self.world_size:
            fitting = self.world_size * max(1, round(batch / self.world_size))
            raise CurateError(
                f"batch {batch} cannot be divided among {self.world_size} processes. Try: --set batch={fitting}"
            )
        return batch // self.world_size

    def wrap(self, model: Any) -> Any:
        """Wrap the model so that gradients are averaged over processes; all start with the weights of rank 0."""
        if self.is_single:
            return model
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(
            model, find_unused_parameters=True
        )  # a shallow encoder does not use all of its parameters

    def total(self, *values: float) -> Sequence[float]:
        """Return the sums over all processes."""
        if self.is_single:
            return values
        import torch
        from accelerate import PartialState
        from accelerate.utils import reduce

        local = torch.tensor(values, dtype=torch.float64, device=PartialState().device)
        return [float(value) for value in reduce(local, "sum")]

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank."""
        if self.is_single:
            return [value]
        from accelerate.utils import gather_object

        return list(gather_object([value]))

    def broadcast(self, value: Any) -> Any:
        """Return the value of rank 0."""
        if self.is_single:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.gather(None)

    def compute_on_main(self, make: Callable[[], T]) -> T:
        """Return what `make` returns on rank 0; the other ranks exit where it fails."""
        try:
            result = make() if self.is_main else None
        except BaseException:
            self.broadcast(None)
            raise
        value: T | None = self.broadcast(result)
        if value is None:
            raise SystemExit(1)
        return value

    def fail(self, error: CurateError) -> NoReturn:
        """Raise on rank 0 an error that all processes have seen; the others exit without a message."""
        raise error if self.is_main else SystemExit(1)


SINGLE_PROCESS = ProcessGroup()


def is_launched() -> bool:
    """Return whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def process_group(device: str) -> Iterator[ProcessGroup]:
    """Open the launcher's process group while the block runs; without a launcher, a group of this process alone."""
    if not is_launched():
        yield SINGLE_PROCESS
        return
    from accelerate import PartialState

    threading.Thread(target=workers.exit_with_parent, args=(os.getppid(),), daemon=True).start()
    state = PartialState(cpu=device == "cpu", timeout=TIMEOUT)
    group = ProcessGroup(state.process_index, state.num_processes)
    try:
        yield group
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        group.fail(CurateError(PROCESS_DIED))
    state.destroy_process_group()


def _is_lost_connection(error: RuntimeError) -> bool:
    """Return whether the error means that another process ended; that one has printed its reason if it could."""
    return any(word in str(error) for word in ("peer", "Connection", "NCCL", "Socket"))


def launch(count: int, arguments: Sequence[str], device: str) -> int:
    """Run `curate` with these arguments in `count` processes and return the exit code. They print their own errors."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    _check(count, device)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, workers.cores() // count) if device == "cpu" else 1))
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # silences its advice against find_unused_parameters
    options = {"num_processes": count, "num_machines": 1, "mixed_precision": "no", "dynamo_backend": "no"}
    flags = [f"--{name}={value}" for name, value in options.items()]
    parsed = launch_command_parser().parse_args(["--multi_gpu", *flags, "-m", "curate", *arguments])
    parsed.standalone = True  # any free port: others may train on this machine
    parsed.local_addr = "localhost"  # works where a machine cannot resolve its own name
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
        raise CurateError(
            f"--processes {count}, but there are {cards} GPUs; allowed: one process per GPU, or add --device cpu"
        )
