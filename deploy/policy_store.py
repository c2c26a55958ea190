"""`PolicyStore`: follows a registry's pointer and loads policies in the background.

Loading takes milliseconds that a control loop at 500 Hz does not have, so a worker thread does it while the server
answers others.
"""

from __future__ import annotations

import logging
import weakref
from concurrent.futures import Future, ThreadPoolExecutor

from deploy.onnx_policy import OnnxPolicy
from deploy.registry import PolicyRegistry
from deploy.timing import give_way
from mpo_robot.errors import ConfigError

_log = logging.getLogger(__name__)


class PolicyStore:
    """The policies a server has in memory. Used by one thread; the worker is its own.

    Attributes:
        current: The policy that a new episode gets, as far as loaded.
        swaps: Times another version was taken over.
        failures: Times a version could not be loaded and the old one was kept.
    """

    def __init__(self, registry: PolicyRegistry) -> None:
        """Load the version in force.

        Raises:
            ConfigError, SpecMismatchError: there is none, or it is not valid.
        """
        self.swaps = 0
        self.failures = 0
        self._registry = registry
        self._signature = registry.signature()  # before reading: a change in between is then seen as new
        self.current = registry.load(registry.current_version())
        # Versions that some episode still has pinned stay reachable without another load.
        self._loaded: weakref.WeakValueDictionary[str, OnnxPolicy] = weakref.WeakValueDictionary()
        self._loaded[self.current.policy_version] = self.current
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="policy-load", initializer=give_way)
        self._newest = _done(self.current)

    def newest(self) -> Future[OnnxPolicy]:
        """The version in force now. Never fails: where that one cannot be loaded, it gives the one before."""
        signature = self._registry.signature()
        if signature != self._signature:
            self._signature = signature
            self._newest = self._worker.submit(self._follow)
        return self._newest

    def version(self, version: str) -> Future[OnnxPolicy]:
        """A version by name, which must still be in the registry or in memory; fails with ConfigError otherwise."""
        policy = self._loaded.get(version)
        if policy is not None:
            return _done(policy)
        if not self._registry.has(version):
            failed: Future[OnnxPolicy] = Future()
            failed.set_exception(ConfigError(f"policy version {version[:12]} is not in the registry any more"))
            return failed
        return self._worker.submit(self._load, version)

    def close(self) -> None:
        """Wait for a load under way and stop the worker. May be called twice."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _follow(self) -> OnnxPolicy:
        """On the worker: take over the version in force, or keep the old one."""
        try:
            version = self._registry.current_version()
            if version != self.current.policy_version:
                self.current = self._load(version)
                self.swaps += 1
                _log.info("policy %s loaded; new episodes get it", version[:12])
        except Exception as error:  # whatever is wrong with the new one, the old one goes on
            self.failures += 1
            _log.error("kept policy %s: %s", self.current.policy_version[:12], error)
        return self.current

    def _load(self, version: str) -> OnnxPolicy:
        policy = self._loaded.get(version)
        if policy is None:
            policy = self._registry.load(version)
            policy.spec.require_same(self.current.spec, "the new policy", "the policy served so far")
            self._loaded[version] = policy
        return policy


def _done(policy: OnnxPolicy) -> Future[OnnxPolicy]:
    future: Future[OnnxPolicy] = Future()
    future.set_result(policy)
    return future
