"""The workers of a run: threads of this machine, or a Dask cluster. Each has a child process for decoding."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from joblib import Parallel, parallel_config

from src.core.errors import UserError

_ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def workers(jobs: int, cluster: str | None) -> Iterator[Parallel]:
    """Yield a `Parallel` whose results come as they are ready.

    Args:
        jobs: threads on this machine, each with a child process of its own.
        cluster: address of a Dask scheduler, whose workers are used instead; they must see the same folders.

    Raises:
        UserError: no scheduler there, it has no workers, or they cannot import the kit.
    """
    if cluster is None:
        yield Parallel(n_jobs=jobs, backend="threading", return_as="generator_unordered")
        return
    from distributed import Client  # half a second to import, and few runs need it

    try:
        client = Client(cluster, timeout="10s", set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise UserError(f"no Dask scheduler answers at {cluster} (--cluster): {error}") from None
    with client:
        if not client.scheduler_info()["workers"]:
            raise UserError(f"the Dask scheduler at {cluster} has no workers (--cluster)")
        try:
            with parallel_config(backend="dask", client=client):
                yield Parallel(return_as="generator_unordered")
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != "src":
                raise
            raise UserError(
                f"the Dask workers cannot import the kit: start them with PYTHONPATH={_ROOT}"
            ) from None
