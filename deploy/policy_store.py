"""`PolicyStore`: follows a registry's pointer and loads policies in the background.

Loading takes milliseconds that a control loop at 500 Hz does not have, so a worker thread does it while the server
answers others. The same thread writes to the registry for guards and operators.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from deploy.approval import ApprovedPolicies
from deploy.onnx_policy import OnnxPolicy
from deploy.registry import PolicyRegistry
from deploy.registry_pointer import Trial
from deploy.timing import give_way
from mpo_robot.errors import ConfigError
from mpo_robot.specs import PolicySpec

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Served(NamedTuple):
    """Loaded policies that an episode may get.

    Attributes:
        current: The one in force, or the one that was asked for.
        trial: The running trial; None without one, or if its candidate cannot be loaded.
        candidate: Of the trial.
        under: Audit hash of this state of the registry; empty for a version that was asked for by name.
    """

    current: OnnxPolicy
    trial: Trial | None = None
    candidate: OnnxPolicy | None = None
    under: str = ""

    def choose(self, episode_id: str) -> OnnxPolicy:
        """The policy of an episode."""
        if self.trial is not None and self.candidate is not None and self.trial.takes(episode_id):
            return self.candidate
        return self.current


class PolicyStore:
    """The policies a server has in memory. Used by one thread; the worker is its own.

    Attributes:
        swaps: Times another version was taken over.
        failures: Times a version could not be loaded and the old one was kept.
    """

    def __init__(self, registry: PolicyRegistry, approved: ApprovedPolicies | None = None) -> None:
        """Load the version in force.

        Raises:
            ConfigError, SpecMismatchError: there is none, or it is not valid or not approved.
        """
        self.swaps = 0
        self.failures = 0
        self._registry = registry
        self._approved = approved
        # Versions that some episode still has pinned stay reachable without another load.
        self._loaded: weakref.WeakValueDictionary[str, OnnxPolicy] = weakref.WeakValueDictionary()
        self._loading: dict[str, Future[Served]] = {}
        self._signature = registry.signature()  # before reading: a change in between is then seen as new
        pointer = registry.pointer()
        self._spec: PolicySpec | None = None
        self._served = Served(self._load(pointer.current), under=pointer.audit)
        self._spec = self.current.spec
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="policy-load", initializer=give_way)
        self._newest = _done(self._served)
        if pointer.trial is not None:
            self._newest = self._worker.submit(self._follow)

    @property
    def current(self) -> OnnxPolicy:
        """The policy in force, as far as loaded."""
        return self._served.current

    def newest(self) -> Future[Served]:
        """What is in force now. Never fails: where that cannot be loaded, it gives what was before."""
        signature = self._registry.signature()
        if signature != self._signature:
            self._signature = signature
            self._newest = self._worker.submit(self._follow)
        return self._newest

    def version(self, version: str) -> Future[Served]:
        """A version by name, which must still be in the registry or in memory; fails with ConfigError otherwise."""
        loading = self._loading.get(version)  # however many ask, one load
        if loading is not None and not loading.done():
            return loading
        policy = self._loaded.get(version)  # asked after `done`: a load that ends in between is found here
        if policy is not None:
            return _done(Served(policy))
        if not self._registry.has(version):
            failed: Future[Served] = Future()
            failed.set_exception(ConfigError(f"policy version {version[:12]} is not in the registry any more"))
            return failed
        loading = self._worker.submit(lambda: Served(self._load(version)))
        self._loading = {version: loading, **{key: item for key, item in self._loading.items() if not item.done()}}
        return loading

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Run something on the worker, in the order of submission."""
        return self._worker.submit(work)

    def close(self) -> None:
        """Finish what is under way and stop the worker. May be called twice."""
        self._worker.shutdown(wait=True)

    def _follow(self) -> Served:
        """On the worker: take over what is in force, or keep the old."""
        old = self._served
        try:
            pointer = self._registry.pointer()
            current = self._load(pointer.current)
            self._served = Served(current, under=pointer.audit)
            if current.policy_version != old.current.policy_version:
                self.swaps += 1
                _log.info("policy %s loaded; new episodes get it", pointer.current[:12])
            if pointer.trial is not None:
                candidate = self._load(pointer.trial.version)
                self._served = Served(current, pointer.trial, candidate, pointer.audit)
                _log.info("trial of %s: %.3g of the episodes get it", pointer.trial.version[:12], pointer.trial.share)
        except Exception as error:  # whatever is wrong with the new one, the old one goes on
            self.failures += 1
            _log.error("kept policy %s: %s", self.current.policy_version[:12], error)
        return self._served

    def _load(self, version: str) -> OnnxPolicy:
        if self._approved is not None:
            self._approved.require(version)
        policy = self._loaded.get(version)
        if policy is None:
            policy = self._registry.load(version)
            if self._spec is not None:
                policy.spec.require_same(self._spec, "the new policy", "the policy served so far")
            self._loaded[version] = policy
        return policy


def _done(served: Served) -> Future[Served]:
    future: Future[Served] = Future()
    future.set_result(served)
    return future
