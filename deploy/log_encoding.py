"""From a step to the messages of an episode log: the step itself and the topics beside it."""

from __future__ import annotations

from deploy.log_config import LogConfig
from deploy.log_file import Topic
from deploy.log_format import INVALID_STEP_TOPIC, SIGNALS_TOPIC, STEP_TOPIC, encode_step, step_json_schema
from deploy.log_joints import JOINT_STATES_SCHEMA, JointStates, joint_states_json_schema
from deploy.log_signals import encode_signals, signals_json_schema
from mpo_robot.episode import StepRecord
from mpo_robot.specs import PolicySpec

JOINT_STATES_TOPIC = "/joint_states"


class StepEncoder:
    """Encodes steps as a configuration says.

    Attributes:
        topics: That the messages go to.
    """

    def __init__(self, spec: PolicySpec, config: LogConfig) -> None:
        """Decide on the topics.

        Raises:
            ConfigError: `joint_states` does not fit the spec.
        """
        self._spec = spec
        self._signals = config.signals
        self._joints = JointStates(config.joint_states, spec) if config.joint_states.enabled else None
        schema = step_json_schema()
        topics = [Topic(name, "mpo_robot.Step", schema) for name in (STEP_TOPIC, INVALID_STEP_TOPIC)]
        if self._signals:
            topics.append(Topic(SIGNALS_TOPIC, "mpo_robot.Signals", signals_json_schema(spec)))
        if self._joints is not None:
            topics.append(Topic(JOINT_STATES_TOPIC, JOINT_STATES_SCHEMA, joint_states_json_schema()))
        self.topics = tuple(topics)

    def encode(self, topic: str, record: StepRecord) -> list[tuple[str, bytes]]:
        """Topics and data of the messages of one step, which belongs to `topic`."""
        messages = [(topic, encode_step(record))]
        if topic == STEP_TOPIC and self._signals:
            messages.append((SIGNALS_TOPIC, encode_signals(record, self._spec)))
        if topic == STEP_TOPIC and self._joints is not None:
            messages.append((JOINT_STATES_TOPIC, self._joints.encode(record)))
        return messages
