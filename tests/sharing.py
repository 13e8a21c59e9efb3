"""What all processes of one run of the tests share, as long as one of them lives."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

from filelock import FileLock

_until_the_end = ExitStack()


def end_what_is_shared() -> None:
    """Let go of what others began; end what this process began as soon as they have let go of it."""
    _until_the_end.close()


def shared_between_processes(folder: Path, begin: Callable[[Path], AbstractContextManager[str]]) -> str:
    """What `begin(folder)` yields in the process that needs it first; the others read it."""
    folder.mkdir(exist_ok=True)
    answer = folder / "answer"
    users = open(folder / "users", "w", encoding="utf-8")  # noqa: SIM115 - its lock is held until the end
    _until_the_end.enter_context(users)
    with FileLock(folder / "lock"):
        if answer.exists():
            fcntl.flock(users, fcntl.LOCK_SH)
        else:
            text = _until_the_end.enter_context(begin(folder))
            _until_the_end.callback(_wait_for_the_others, folder, users)
            (folder / "new").write_text(text, encoding="utf-8")
            (folder / "new").rename(answer)
        return answer.read_text(encoding="utf-8")


def _wait_for_the_others(folder: Path, users: TextIO) -> None:
    with FileLock(folder / "lock"):
        (folder / "answer").unlink()  # who comes now begins another
    fcntl.flock(users, fcntl.LOCK_EX)


@contextmanager
def prefect_api_on(database: Path, folder: Path) -> Iterator[str]:
    """Address and auth string of a Prefect server without page and background services, on a copy of `database`."""
    from flows import prefect_api
    from infra import processes

    (home := folder / "home").mkdir(exist_ok=True)
    shutil.copy(database, home)
    auth, log = prefect_api.new_auth_string(), folder / "server.log"
    with prefect_api.listen(0) as listener:
        url = f"http://{prefect_api.LOOPBACK}:{listener.getsockname()[1]}/api"
        env = {**prefect_api.server_settings(url, auth), "PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"}
        server = prefect_api.start_server(listener, log, {**os.environ, **env, "PREFECT_HOME": str(home)})
    try:
        prefect_api.wait_until_healthy(url, server, log)
        yield f"{url} {auth}"
    finally:
        processes.kill(server)
