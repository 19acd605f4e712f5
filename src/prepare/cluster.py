"""The workers of a run: threads of this machine, or a Dask cluster. Each has a child process for decoding."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
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

    if "://" not in cluster:
        raise UserError(f"--cluster takes an address such as tcp://10.0.0.1:8786, got {cluster}")
    try:
        client = Client(cluster, timeout="10s", set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise UserError(f"no Dask scheduler answers at {cluster} (--cluster): {error}") from None
    with client:
        if not client.scheduler_info()["workers"]:
            raise UserError(f"the Dask scheduler at {cluster} has no workers (--cluster)")
        # By a function that needs nothing of ours: what cannot be imported there would never come back.
        found = [client.run_on_scheduler(find_spec, "src"), *client.run(find_spec, "src").values()]
        if None in found:
            raise UserError(
                f"the Dask scheduler or a worker cannot import the kit: start all with PYTHONPATH={_ROOT}"
            )
        with parallel_config(backend="dask", client=client):
            yield Parallel(return_as="generator_unordered")
