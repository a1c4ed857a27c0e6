"""The event loop of users' async functions: one for the process, as a client's open connections belong to a loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Awaitable
from typing import Any

_PATIENCE = 2.0  # seconds that a loop may take to answer
_LINGER = 60.0  # seconds without work after which a loop that was left ends


class _Home:
    """Keeps the loop, which runs in a daemon thread."""

    def __init__(self):
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop; a fresh one where there is none in this process (a fork has none), or where it is blocked."""
        with self._lock:
            if self._loop is None or not self._answers(self._loop):
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=_serve, args=(self._loop,), daemon=True)
                self._thread.start()
            return self._loop

    def _answers(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether it runs and is free; one that is blocked, maybe by the caller, is left to end when it is done."""
        if self._thread is None or not self._thread.is_alive():
            return False
        heard = threading.Event()
        loop.call_soon_threadsafe(heard.set)
        if self._thread is not threading.current_thread() and heard.wait(_PATIENCE):
            return True
        asyncio.run_coroutine_threadsafe(_end(), loop)
        return False


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


async def _end() -> None:
    """Stops the loop that it runs in when there is nothing left to do."""
    await asyncio.sleep(_LINGER)
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)
        await asyncio.sleep(_LINGER)
    asyncio.get_running_loop().stop()


_HOME = _Home()


def process_loop() -> asyncio.AbstractEventLoop:
    """The loop where users' async functions run, batch after batch; another one only if that is blocked."""
    return _HOME.loop()


def start(work: Awaitable, loop: asyncio.AbstractEventLoop) -> concurrent.futures.Future:
    """Starts it in the loop; the result will be what it has returned, and the error that it has raised or None."""
    return asyncio.run_coroutine_threadsafe(_outcome(work), loop)


async def _outcome(work: Awaitable) -> tuple[Any, BaseException | None]:
    """No error goes through, as some would end the loop; cancelling does."""
    try:
        return await work, None
    except BaseException as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        return None, error


def finish(work: Awaitable, timeout: float | None, since: float) -> Any:
    """What comes of it in the loop of the process; it is cancelled where the caller is interrupted.

    Args:
      work: of an async function.
      timeout: seconds that it may take; None waits for ever.
      since: where they began, in `time.monotonic()`.

    Raises:
      TimeoutError: if it overruns, when it is cancelled too.
    """
    future = start(work, process_loop())
    try:
        value, error = future.result(None if timeout is None else since + timeout - time.monotonic())
    except TimeoutError:
        raise TimeoutError(f"no answer within {timeout} s") from None
    finally:
        future.cancel()  # does nothing to one that is done
    if error is not None:
        raise error
    return value
