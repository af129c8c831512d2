"""Work in two processes that exchange by gloo, as the workers of a run do."""

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# A server with the slow imports forks the workers. To fork the tests' own process would leave autograd without threads.
mp.set_forkserver_preload(["modeling_r2d2.model.pretraining_r2d2"])


def in_two_processes(work: Callable[..., Any], *arguments: Any, launched: bool = False) -> list[Any]:
    """What `work(number, *arguments)` returned in processes 0 and 1: tensors and plain values.

    Args:
        work: a function of a module.
        launched: the environment is as torchrun leaves it, and `work` makes the process group. Else it is there.
    """
    port = _free_port() if launched else None
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_run, (folder, port, work, arguments), nprocs=2, start_method="forkserver")
        return [torch.load(Path(folder, str(number))) for number in (0, 1)]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _run(number: int, folder: str, port: int | None, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    if port is None:
        dist.init_process_group("gloo", f"file://{folder}/rendezvous", world_size=2, rank=number)
    else:
        names = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()})
    torch.save(work(number, *arguments), Path(folder, str(number)))
    dist.barrier()
    os._exit(0)  # what a failed step has left of a gradient reducer is not taken apart
